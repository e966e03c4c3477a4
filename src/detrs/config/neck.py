"""Settings of the neck that several detectors have."""

from typing import Literal

NeckNorm = Literal["group", "group-masked"]
"""Settings of detectors with ``normalized_projection``; see ``APPLICATIONS``."""
