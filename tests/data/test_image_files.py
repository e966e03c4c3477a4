"""Files that are recognized without Pillow have the size, the faults and the hash that Pillow and a full read find."""

import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.data import image_files
from detrs.data.fingerprint import hash_files
from detrs.data.image_files import scan_files
from detrs.data.images import read_headers
from detrs.data.jpeg_header import upright_size
from detrs.errors import UserError


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(height).integers(0, 255, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    exif[0x0132] = "2013:11:14 17:02:52"
    return exif


FILES: dict[str, Any] = {
    "plain.jpg": (noise(37, 53), {}),
    "large.jpg": (noise(301, 211), {"quality": 95}),
    "gray.jpg": (noise(37, 53, 1), {}),
    "cmyk.jpg": (noise(37, 53).convert("CMYK"), {}),
    "progressive.jpg": (noise(37, 53), {"progressive": True}),
    "comment.jpg": (noise(37, 53), {"comment": b"a comment \xff\xd9"}),
    "icc.jpg": (noise(37, 53), {"icc_profile": b"profile" * 50}),
    "long.jpg": (noise(37, 53), {"icc_profile": bytes(90_000)}),
    "xmp.jpg": (noise(37, 53), {"xmp": b'<x:xmpmeta tiff:Orientation="6"/>'}),
    **{f"exif{value}.jpg": (noise(37, 53), {"exif": orientation(value)}) for value in range(10)},
    "image.png": (noise(37, 53), {}),
    "image.bmp": (noise(37, 53), {}),
}


def write(folder: Path) -> list[str]:
    for name, (image, options) in FILES.items():
        image.copy().save(folder / name, **options)
    for name in ("pages.tiff", "several.mpo"):
        noise(41, 59).save(folder / name, save_all=True, append_images=[noise(43, 61)])
    content = (folder / "plain.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[:-200])
    (folder / "header only.jpg").write_bytes(content[:300])
    (folder / "trailing.jpg").write_bytes(content + bytes(9000))
    (folder / "not an image.jpg").write_text("text")
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    return [*sorted(str(path) for path in folder.iterdir()), str(folder / "missing.jpg")]


def same(paths: list[str], **options: Any) -> None:
    scan = scan_files(paths, **options)
    headers, contents = read_headers(paths, **options), hash_files(paths)
    for row, (header, content) in enumerate(zip(headers, contents, strict=True)):
        if isinstance(header, UserError):
            assert str(scan.errors[row]) == str(header)
        else:
            assert row not in scan.errors, paths[row]
            assert (*scan.sizes[row].tolist(), scan.frames.get(row, 1)) == (*header.size, header.frames), paths[row]
            assert scan.contents[row].tobytes() == content, paths[row]


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("end_bytes", [500, 16384])
def test_files_are_as_pillow_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: bool, end_bytes: int
) -> None:
    for module in ("detrs.data.image_files", "detrs.data.fingerprint"):
        monkeypatch.setattr(f"{module}.END_BYTES", end_bytes)
    same(write(tmp_path), decode=decode)


def test_usual_files_need_no_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    by_pillow: list[str] = []

    def record(paths: list[str], **options: Any) -> list[Any]:
        by_pillow.extend(Path(path).name for path in paths)
        return read_headers(paths, **options)

    monkeypatch.setattr(image_files, "read_headers", record)
    usual = [name for name in FILES if name.endswith("jpg") and name != "xmp.jpg"]
    scan = scan_files([str(tmp_path / name) for name in [*usual, "xmp.jpg", "image.png", "several.mpo"]])
    assert by_pillow == ["xmp.jpg", "image.png", "several.mpo"]
    assert scan.frames == {len(usual) + 2: 2} and not scan.errors


def test_damaged_headers(tmp_path: Path) -> None:
    """A header with changed bytes has the size that Pillow finds, or is left to Pillow."""
    numbers, path, recognized = random.Random(0), tmp_path / "a.jpg", 0
    for number in range(600):
        image, options = FILES[numbers.choice([name for name in FILES if name.endswith("jpg") and name != "long.jpg"])]
        stream = io.BytesIO()
        image.copy().save(stream, "JPEG", **options)
        content = bytearray(stream.getvalue())
        for _ in range(number % 3):
            content[numbers.randrange(3, 700)] = numbers.choice(
                [0, 1, 8, 0xFF, 0xC0, 0xD8, 0xDA, 0xE1, numbers.randrange(256)]
            )
        size = upright_size(bytes(content))
        if size is not None:
            recognized += 1
            path.write_bytes(content)
            (header,) = read_headers([path])
            assert not isinstance(header, UserError), str(header)
            assert header.size == size and header.frames == 1
    assert recognized > 250


def test_no_files() -> None:
    scan = scan_files([])
    assert scan.sizes.shape == (0, 2) and scan.contents.shape == (0, 32)
