"""Names that settings, commands and functions share; importable without torch."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Precision of the detector's arithmetic; ``auto``: ``bf16`` where the device multiplies it in hardware, else
``fp32``."""
Resolved = Literal["fp32", "bf16", "fp16"]
"""The same once ``auto`` is resolved."""
