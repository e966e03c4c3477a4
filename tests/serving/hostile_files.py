"""Files that are no image of an accepted format and size: ``FILES``. Bombs are small, and promise gigabytes."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

from PIL import Image


def jpeg(width: int = 64, height: int = 48) -> bytes:
    """A harmless image."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"", depth: int = 8, color: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(length: int) -> bytes:
    """``length`` zero bytes, compressed."""
    compressor = zlib.compressobj(9)
    parts = [compressor.compress(bytes(min(1 << 20, length - start))) for start in range(0, length, 1 << 20)]
    return b"".join([*parts, compressor.flush()])


def real_png_bomb(pixels: int) -> bytes:
    """All pixels are there: 1 bit each, compressed."""
    side = 8 * (int(pixels**0.5) // 8 + 1)
    return png(side, side, data=zeros(side * (side // 8 + 1)), depth=1)


def text_bomb() -> bytes:
    """1 x 1 pixel, and a text of 200 MB, compressed."""
    return png(1, 1, chunk(b"zTXt", b"Comment\0\0" + zeros(200_000_000)), data=zlib.compress(bytes(2)))


def jpeg_bomb() -> bytes:
    """A small file whose frame header promises 65500 x 65500 pixels."""
    content = bytearray(jpeg())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


def webp_bomb() -> bytes:
    """A lossless file whose header promises 16384 x 16384 pixels."""
    bits = (16383 | 16383 << 14).to_bytes(4, "little")
    body = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + bits + bytes(5)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_canvas_bomb() -> bytes:
    """An extended file whose canvas has 2^24 x 2^24 pixels."""
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.png", bytes(20_000_000))
    return stream.getvalue()


def tiff_bomb() -> bytes:
    tags = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)


def saved(kind: str) -> bytes:
    """A harmless image in another format."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 11)).save(stream, kind)
    return stream.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "png-bomb-of-2-gigapixels-squared": lambda: png(2**31 - 1, 2**31 - 1),
    "png-text-bomb": text_bomb,
    "jpeg-bomb": jpeg_bomb,
    "webp-bomb": webp_bomb,
    "webp-canvas-bomb": webp_canvas_bomb,
    "gif-bomb": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(4) + b"\xff" * 4,
    "zip-bomb": zip_bomb,
    "tiff-bomb": tiff_bomb,
    "png-without-pixels": lambda: png(0, 0),
    "gif": lambda: saved("GIF"),
    "tiff": lambda: saved("TIFF"),
    "ico": lambda: saved("ICO"),
    "ppm": lambda: saved("PPM"),
    "pdf": lambda: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "xml-entities": lambda: b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "html": lambda: b"<!doctype html><script>alert(1)</script>",
    "photoshop": lambda: b"8BPS\0\1" + bytes(40),
    "fits": lambda: b"SIMPLE  =                    T".ljust(2880),
    "video": lambda: b"\0\0\0\x18ftypisom" + bytes(64),
    "avif": lambda: b"\0\0\0\x18ftypavif" + bytes(64),
    "pickle": lambda: b"\x80\x04cos\nsystem\n(S'touch harmed'\ntR.",
    "executable": lambda: b"\x7fELF" + bytes(range(200)),
    "empty-file": lambda: b"",
    "text": lambda: b"/etc/passwd",
    "truncated-jpeg": lambda: jpeg()[:300],
    "truncated-png": lambda: saved("PNG")[:-30],
    "damaged-png": lambda: saved("PNG").replace(b"IDAT", b"IDAT\xff", 1),
    "damaged-webp": lambda: saved("WEBP")[:20] + bytes(12),
}
"""Files that are no image of an accepted format and size; all are sent as ``image.jpg``."""
