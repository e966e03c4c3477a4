"""The size of an upright JPEG image from the first bytes of its file, for files that are in no way unusual.

Pillow takes about ten times as long. It decides about every file that is not recognized here.
"""

from PIL import Image

from detrs.config.data import MAX_PIXELS
from detrs.data.images import TRANSPOSED
from detrs.isolation import warnings_ignored

START, SIZE_MARKERS, TABLES, SCAN = b"\xff\xd8\xff", (0xC0, 0xC1, 0xC2), 0xDB, 0xDA
HARMLESS = frozenset({0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF})
"""Markers of segments whose content Pillow does not check: Huffman tables, restart interval, comment, applications."""
MIN_LENGTHS = {0xE0: (b"JFIF", 16), 0xE2: (b"ICC_PROFILE\0", 16), 0xEE: (b"Adobe", 14)}
"""Applications whose content Pillow reads: how it starts, and the length from which it cannot fail."""
EXIF, ORIENTATION = b"Exif\0\0", 0x0112


def upright_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG image after EXIF orientation; ``None`` if Pillow must decide.

    Args:
        head: The first bytes of the file.
    """
    size, exif, position = None, b"", 2
    try:
        while (marker := head[position + 1]) != SCAN:
            if head[position] != 0xFF:
                return None
            length = head[position + 2] << 8 | head[position + 3]
            start, end = position + 4, position + 2 + length
            if length < 2 or end > len(head):
                return None
            if marker in SIZE_MARKERS:
                if size or head[start] != 8 or head[start + 5] not in (1, 3, 4) or length != 8 + 3 * head[start + 5]:
                    return None
                size = head[start + 1] << 8 | head[start + 2], head[start + 3] << 8 | head[start + 4]
            elif marker == TABLES:
                if not _are_tables(head[start:end]):
                    return None
            elif marker == 0xE1:
                if exif or not head.startswith(EXIF, start):  # such as XMP, which may have an orientation
                    return None
                exif = head[start:end]
            elif marker not in HARMLESS:
                begin, min_length = MIN_LENGTHS.get(marker, (b"", 2**16))
                if length < min_length or not head.startswith(begin, start):
                    return None
            position = end
        if head[position] != 0xFF or position + 2 + (head[position + 2] << 8 | head[position + 3]) > len(head):
            return None
    except IndexError:
        return None
    if size is None or not 0 < size[0] * size[1] <= MAX_PIXELS:
        return None
    return size if not exif else _oriented(size, exif)


def _are_tables(segment: bytes) -> bool:
    """Whether a segment consists of whole quantization tables."""
    while segment:
        length = 65 if segment[0] < 16 else 129
        if len(segment) < length:
            return False
        segment = segment[length:]
    return True


def _oriented(size: tuple[int, int], data: bytes) -> tuple[int, int] | None:
    try:
        with warnings_ignored():
            exif = Image.Exif()
            exif.load(data)
            values = {tag: exif[tag] for tag in exif}  # fails if Pillow may fail
        return size[::-1] if int(values.get(ORIENTATION, 1)) in TRANSPOSED else size
    except Exception:  # damaged metadata
        return None
