"""Scales pixels of more than 8 bits to 8 bits, by the range of their type: equal values become equal grays.

The range never depends on the values of an image, since one bright pixel would change all others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrs.errors import UserError

BITS_PER_SAMPLE, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 258, 281, 339
"""TIFF tags."""
SIGNED = 2
"""``SAMPLE_FORMAT`` of signed integers."""
BAND = 256
"""Rows that are scaled at a time, since floats take four to eight times the memory of the result."""


def maximum(image: Image.Image, name: str) -> int:
    """The value that is white in a grayscale image of more than 8 bits, from the header of the file.

    1 for floats. For integers, the largest value of as many bits as the file declares: 65535 for 16 bits, or less in a
    TIFF file with 10, 12 or 14 bits or with the tag MaxSampleValue.

    Raises:
        UserError: The image has signed integers or integers of 32 bits.
    """
    if image.mode == "F":
        return 1
    tags = getattr(image, "tag_v2", {})
    bits = _first(tags.get(BITS_PER_SAMPLE)) or 16
    if image.mode == "I" and image.format == "TIFF" and (bits > 16 or _first(tags.get(SAMPLE_FORMAT)) == SIGNED):
        kind = "signed " if _first(tags.get(SAMPLE_FORMAT)) == SIGNED else ""
        raise UserError(
            f"{name} has {kind}integers of {bits} bits, which have no fixed range of brightness. Convert it to 8 or 16 "
            "bits without sign."
        )
    limit = 2**bits - 1
    declared = _first(tags.get(MAX_SAMPLE_VALUE))
    return declared if declared is not None and 255 < declared < limit else limit


def _first(value: Any) -> int | None:
    """The value of a TIFF tag for the first sample."""
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int | float) else None


def gray(image: Image.Image, maximum: int, transparent: int, name: str) -> NDArray[np.uint8]:
    """The pixels (H, W) of a grayscale image of more than 8 bits.

    Args:
        image: A decoded image.
        maximum: The value that becomes 255.
        transparent: The gray of transparent pixels.
        name: The name of the image in messages.

    Raises:
        UserError: A value is NaN, infinite or outside of 0 to ``maximum``.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= maximum):
        if not np.isfinite(values).all():
            raise UserError(f"{name} has pixels that are NaN or infinite.")
        raise UserError(f"{name} has values from {low:g} to {high:g}. Expected {_range(maximum)}. Rescale it first.")
    result = scaled(values, maximum)
    key = image.info.get("transparency")
    if isinstance(key, int):
        result[values == key] = transparent
    return result


def _range(maximum: int) -> str:
    return "floats in [0, 1]" if maximum == 1 else f"0 to {maximum:g}"


def scaled(values: NDArray[Any], maximum: int) -> NDArray[np.uint8]:
    """``values`` from 0 to ``maximum`` as 0 to 255, rounded."""
    if values.dtype == np.uint16:
        table = np.rint(np.arange(2**16) * (255 / maximum)).clip(0, 255).astype(np.uint8)
        return table[values]
    result = np.empty(values.shape, dtype=np.uint8)
    for row in range(0, len(values), BAND):
        band = values[row : row + BAND].astype(np.float64)
        result[row : row + BAND] = np.rint(band * (255 / maximum))
    return result
