"""What a file is by its first bytes: for messages about files that are neither an image nor a checkpoint."""

from typing import NamedTuple

VIDEO = "a video"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Magic(NamedTuple):
    """The bytes by which a file format is recognized."""

    start: bytes
    """Text formats in lower case; they are compared without regard to case and leading white space."""
    kind: str
    """Noun phrase for ``"<file> is <kind>."``; may add what to do."""
    offset: int = 0


TABLE = (
    Magic(b"version https://git-lfs", "a Git LFS pointer (run 'git lfs pull' to download the file itself)"),
    Magic(b"<!doctype html", "a web page, probably from a failed download"),
    Magic(b"<html", "a web page, probably from a failed download"),
    Magic(b"<svg", "an SVG drawing"),
    Magic(b"<", "an XML or HTML file"),
    Magic(b"{", "a JSON file"),
    Magic(b"PK\x03\x04", "a ZIP archive (PyTorch's .pth files are ZIP archives)"),
    Magic(b"\x80\x02", "a Python pickle (.pth, .pt or .pkl)"),
    Magic(b"\x80\x03", "a Python pickle (.pth, .pt or .pkl)"),
    Magic(b"\x80\x04", "a Python pickle (.pth, .pt or .pkl)"),
    Magic(b"\x80\x05", "a Python pickle (.pth, .pt or .pkl)"),
    Magic(b"\x1f\x8b", "a gzip archive"),
    Magic(b"\x89HDF", "an HDF5 file"),
    Magic(b"GIF8", "a GIF image"),
    Magic(b"%pdf", "a PDF document"),
    Magic(b"%!ps", "a PostScript document"),
    Magic(b"8BPS", "a Photoshop file"),
    Magic(b"simple  =", "a FITS file"),
    Magic(b"\x00\x00\x01\x00", "an icon file"),
    Magic(b"\x00\x00\x00\x0cjP", "a JPEG 2000 image"),
    Magic(b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    Magic(b"P4\n", "a Netpbm image"),
    Magic(b"P5\n", "a Netpbm image"),
    Magic(b"P6\n", "a Netpbm image"),
    Magic(b"ftypavif", "an AVIF image", offset=4),
    Magic(b"ftyphei", "an HEIC image", offset=4),
    Magic(b"ftypmif1", "an HEIC image", offset=4),
    Magic(b"ftyp", VIDEO, offset=4),
    Magic(b"moov", VIDEO, offset=4),
    Magic(b"mdat", VIDEO, offset=4),
    Magic(b"AVI LIST", VIDEO, offset=8),
    Magic(b"\x1aE\xdf\xa3", VIDEO),  # Matroska and WebM
    Magic(b"FLV\x01", VIDEO),
    Magic(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", VIDEO),  # ASF and WMV
    Magic(b"\x00\x00\x01\xba", VIDEO),  # MPEG program stream
    Magic(b"\x00\x00\x01\xb3", VIDEO),  # MPEG video
)
"""The first match counts."""

_TS_PACKET = 188
"""Bytes of a packet of an MPEG transport stream; each begins with the letter G."""


def kind_of(start: bytes) -> str | None:
    """What a file is, as a noun phrase, or ``None`` if its format is unknown.

    Args:
        start: The first bytes of the file, at least 64 unless the file is shorter.

    >>> kind_of(b"%PDF-1.7")
    'a PDF document'
    """
    text = start.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not text:
        return "an empty file"
    text = text.lower()
    for magic in TABLE:
        if start.startswith(magic.start, magic.offset) or (magic.offset == 0 and text.startswith(magic.start)):
            return magic.kind
    return VIDEO if start[:1] == start[_TS_PACKET : _TS_PACKET + 1] == b"G" else None


def is_video(start: bytes) -> bool:
    """Whether a file is a video by its first bytes, at least 189."""
    return kind_of(start) == VIDEO
