"""Whether an image file is complete, without decoding it."""

import os
from typing import IO

from PIL import Image

TAIL = 4096
"""Bytes at the end of a file that are searched for the end marker."""
METADATA_TAIL = 2**17
"""Bytes at the end of a PNG file that are searched for metadata."""
END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""End of a complete file."""
STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS = 273, 279, 324, 325
"""TIFF tags: offsets and lengths in bytes of the parts of the image."""


def is_complete(image: Image.Image) -> bool:
    """Whether the file of an opened image has the length that its header declares, or its end marker.

    False if the file may be truncated. A file that is complete may still be damaged inside.
    """
    stream = getattr(image, "fp", None)
    if stream is None:
        return False
    position = stream.tell()
    try:
        length = stream.seek(0, os.SEEK_END)
        if image.format in END_MARKERS:
            return _ends_with(stream, length, END_MARKERS[image.format])
        if image.format == "WEBP":
            stream.seek(4)
            return length >= int.from_bytes(stream.read(4), "little") + 8  # RIFF, length of the rest
        if image.format == "TIFF":
            return _has_strips(image, length)
        return False
    finally:
        stream.seek(position)


def has_late_metadata(image: Image.Image) -> bool:
    """Whether a PNG file may have its EXIF orientation after the pixels, where Pillow finds it only by decoding."""
    stream = getattr(image, "fp", None)
    if stream is None or image.format != "PNG":
        return False
    position = stream.tell()
    stream.seek(max(position, stream.seek(0, os.SEEK_END) - METADATA_TAIL))
    tail = stream.read()
    stream.seek(position)
    return any(name in tail for name in (b"eXIf", b"com.adobe.xmp", b"Raw profile type exif"))


def _ends_with(stream: IO[bytes], length: int, marker: bytes) -> bool:
    stream.seek(-min(TAIL, length), os.SEEK_END)
    return marker in stream.read()


def _has_strips(image: Image.Image, length: int) -> bool:
    """Whether all parts of a TIFF image are within the file."""
    tags = getattr(image, "tag_v2", {})
    for starts, lengths in ((STRIPS, STRIP_LENGTHS), (TILES, TILE_LENGTHS)):
        if starts in tags and lengths in tags and len(tags[starts]) == len(tags[lengths]):
            return all(start + size <= length for start, size in zip(tags[starts], tags[lengths], strict=True))
    return False
