"""Every file is decoded to uint8 RGB or raises UserError."""

import io
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from detrs.data import images
from detrs.data.images import decode_image, read_headers
from detrs.errors import UserError

RANDOM = np.random.default_rng(3)
PHOTO = RANDOM.integers(0, 256, (37, 53, 3), dtype=np.uint8)


def read_sizes(paths: list[Any], **options: bool) -> list[Any]:
    """(height, width) of each image, or its error."""
    return [x if isinstance(x, UserError) else x.size for x in read_headers(paths, **options)]


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    assert tensor.dtype == torch.uint8 and tensor.ndim == 3 and tensor.shape[0] == 3
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_stored_pixels(format: str) -> None:
    data = encoded(Image.fromarray(PHOTO), format, **({"lossless": True} if format == "WEBP" else {}))
    np.testing.assert_array_equal(pixels(decode_image(data)), PHOTO)


def test_jpeg_is_near_the_original() -> None:
    smooth = np.asarray(Image.fromarray(PHOTO[:3, :5]).resize((53, 37), Image.Resampling.BICUBIC))
    for options in ({}, {"progressive": True}):
        ours = pixels(decode_image(encoded(Image.fromarray(smooth), "JPEG", quality=95, subsampling=0, **options)))
        assert np.abs(ours.astype(int) - smooth).max() < 12


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(PHOTO), "PNG")
    path = tmp_path / "50% of #1,\n ünï.png"
    path.write_bytes(data)
    tensor = torch.from_numpy(PHOTO).permute(2, 0, 1)
    sources: list[Any] = [path, str(path), data, Image.open(path), PHOTO, tensor, tensor.float() / 255, PHOTO / 255.0]
    for source in sources:
        np.testing.assert_array_equal(pixels(decode_image(source)), PHOTO)


def stored_as(visual: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """The raster as stored: EXIF names the visual side of its first row and of its first column."""
    row, column = (
        ("top", "left"),
        ("top", "right"),
        ("bottom", "right"),
        ("bottom", "left"),
        ("left", "top"),
        ("right", "top"),
        ("right", "bottom"),
        ("left", "bottom"),
    )[orientation - 1]
    raster = visual if row in ("top", "bottom") else visual.transpose(1, 0, 2)
    raster = raster[::-1] if row in ("bottom", "right") else raster
    return np.ascontiguousarray(raster[:, ::-1] if column in ("bottom", "right") else raster)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation(orientation: int, format: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored_as(PHOTO, orientation))
    path = tmp_path / f"photo.{format.lower()}"
    path.write_bytes(
        encoded(image, format, exif=exif, **({"quality": 95, "subsampling": 0} if format == "JPEG" else {}))
    )
    difference = np.abs(pixels(decode_image(path)).astype(int) - PHOTO)
    assert difference.mean() < (5 if format == "JPEG" else 1e-9)
    assert read_sizes([path]) == [(37, 53)]
    with Image.open(path) as opened:
        np.testing.assert_array_equal(pixels(decode_image(path)), np.asarray(ImageOps.exif_transpose(opened)))
        np.testing.assert_array_equal(pixels(decode_image(opened)), pixels(decode_image(path)))


def test_grey_and_single_bit() -> None:
    grey = PHOTO[..., 0]
    for image in (Image.fromarray(grey), Image.fromarray(grey > 127)):
        expected = np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)
        np.testing.assert_array_equal(pixels(decode_image(encoded(image, "PNG"))), expected)
    np.testing.assert_array_equal(pixels(decode_image(grey)), np.repeat(grey[..., None], 3, axis=2))


def composited(rgb: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def test_transparency_is_composited_on_white() -> None:
    alpha = RANDOM.integers(0, 256, PHOTO.shape[:2], dtype=np.uint8)
    alpha[:5], alpha[5:10] = 0, 255
    rgba = np.dstack([PHOTO, alpha])
    for source in (rgba, torch.from_numpy(rgba).permute(2, 0, 1), encoded(Image.fromarray(rgba), "PNG")):
        ours = pixels(decode_image(source))
        assert np.abs(ours - composited(PHOTO, alpha)).max() <= 1
        assert (ours[:5] == 255).all() and (ours[5:10] == PHOTO[5:10]).all()
    grey = np.dstack([PHOTO[..., 0], alpha])
    ours = pixels(decode_image(encoded(Image.fromarray(grey, "LA"), "PNG")))
    assert np.abs(ours[..., 1] - composited(PHOTO[..., :1], alpha)[..., 0]).max() <= 1


def test_palette_with_transparency() -> None:
    indices = RANDOM.integers(0, 3, (23, 31), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 90])
    opaque = pixels(decode_image(encoded(image, "PNG")))
    table = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 90]], dtype=np.uint8)
    np.testing.assert_array_equal(opaque, table[indices])
    table[1] = 255
    np.testing.assert_array_equal(pixels(decode_image(encoded(image, "PNG", transparency=1))), table[indices])


def test_a_transparent_colour_in_rgb() -> None:
    photo = PHOTO.copy()
    photo[3:9, 4:20] = (1, 2, 3)
    ours = pixels(decode_image(encoded(Image.fromarray(photo), "PNG", transparency=(1, 2, 3))))
    assert (ours[3:9, 4:20] == 255).all()
    np.testing.assert_array_equal(ours[10:], photo[10:])


def test_cmyk() -> None:
    image = Image.fromarray(PHOTO).convert("CMYK")
    ours = pixels(decode_image(encoded(image, "TIFF")))
    np.testing.assert_array_equal(ours, PHOTO)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_exif_orientation_is_ignored(orientation: int, format: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.fromarray(PHOTO), format, exif=exif))
    assert read_sizes([path]) == [(37, 53)] and decode_image(path).shape == (3, 37, 53)
    assert not images.is_transposed(path)


def test_out_of_memory_is_not_reported_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> None:
        raise MemoryError

    path = tmp_path / "large.png"
    Image.fromarray(PHOTO).save(path)
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(UserError, match=r"large\.png cannot be decoded: out of memory"):
        decode_image(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"shape \(H, W, 3\) or \(H, W\), got \(3, 20, 30\)"),
        (torch.zeros(20, 30, 3, dtype=torch.uint8), r"shape \(3, H, W\) or \(H, W\), got \(20, 30, 3\)"),
        (np.zeros((0, 30, 3), np.uint8), "got"),
        (np.zeros((20, 30, 3), np.int64), "int64"),
        (torch.zeros(3, 20, 30, dtype=torch.bfloat16), "of type uint8, .* or float64, got bfloat16"),
        (torch.zeros(3, 20, 30).to(torch.float8_e4m3fn), "got float8_e4m3fn"),
        (torch.zeros(20, 30, dtype=torch.complex64).conj(), "got complex64"),
        (torch.zeros(3, 20, 30).to_sparse(), "got sparse float32"),
        (np.full((20, 30, 3), 255.0), r"in \[0, 1\], got values from 255 to 255"),
        (np.full((20, 30, 3), np.nan), r"in \[0, 1\]"),
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"%PDF-1.7", "a PDF document"),
        (b"SIMPLE  =                    T", "a FITS file"),
        (b"\x00\x00\x00\x1cftypheic", "an HEIC image"),
        (b"hello", "not a readable image. Expected a JPEG, PNG, WEBP, BMP or TIFF image"),
        ("https://example.com/a.jpg", "not downloaded"),
    ],
)
def test_unsupported_input_is_refused(source: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode_image(source)


@pytest.mark.parametrize("format", ["GIF", "ICO", "PPM", "TGA", "PCX", "JPEG2000"])
def test_other_formats_are_refused_whatever_their_name(format: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(PHOTO), format))
    with pytest.raises(UserError, match=r"photo\.jpg is .* Expected a JPEG"):
        decode_image(path)


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(PHOTO), "PNG"))
    np.testing.assert_array_equal(pixels(decode_image(path)), PHOTO)


def test_unusual_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, message in (
        ("pipe.jpg", "not a regular file"),
        (".", "a folder"),
        ("none.jpg", "does not exist"),
        ("dangling.jpg", "does not exist"),
        ("loop.jpg", "cannot be opened"),
        ("x" * 300, "cannot be opened"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\\udce9\.jpg does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            decode_image(tmp_path / name)


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(encoded(Image.fromarray(PHOTO), "PNG"))
    np.testing.assert_array_equal(pixels(decode_image(path)), PHOTO)


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    for format in ("JPEG", "PNG"):
        data = encoded(Image.fromarray(PHOTO), format)
        for length in range(1, len(data) - 12, 97):
            with pytest.raises(UserError):
                decode_image(data[:length])


def test_size_limit_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(PHOTO), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", PHOTO.shape[0] * PHOTO.shape[1])
    decode_image(data)
    monkeypatch.setattr(images, "MAX_PIXELS", PHOTO.shape[0] * PHOTO.shape[1] - 1)
    with pytest.raises(UserError, match="Split it into tiles"):
        decode_image(data)


def test_a_text_bomb_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)
    with pytest.raises(UserError, match="damaged"):
        decode_image(encoded(Image.fromarray(PHOTO), "PNG", pnginfo=info))


def test_the_smallest_and_the_flattest(tmp_path: Path) -> None:
    for height, width in ((1, 1), (10, 30000), (3000, 1)):
        path = tmp_path / "image.png"
        path.write_bytes(encoded(Image.new("RGB", (width, height), (9, 8, 7)), "PNG"))
        assert decode_image(path).shape == (3, height, width)
        assert read_sizes([path]) == [(height, width)]


def test_bad_images(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All 45 files are decoded or raise UserError with the name of the file, without warnings and within 2 s."""
    folder = shared / "data" / "bad_images"
    refused_formats = {"GIF", "ICO", "PPM", "JPEG2000", "AVIF"}
    entries = json.loads((folder / "MANIFEST.json").read_text())["files"]
    assert len(entries) == 45
    accepted = 0
    for entry in entries:
        path = folder / entry["file"]
        should_decode = entry["outcome"] == "decodes" and entry["format"] not in refused_formats
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if not should_decode:
                with pytest.raises(UserError) as caught:
                    decode_image(path)
                assert entry["file"] in str(caught.value) and "\n" not in str(caught.value)
            else:
                image = decode_image(path)
                width, height = entry["exif_transposed_size"]
                assert image.shape == (3, height, width) and read_sizes([path]) == [(height, width)]
                if entry["mode"] in ("RGB", "L", "CMYK", "1"):
                    assert float(image.float().mean()) == pytest.approx(entry["mean"], abs=0.06)
                accepted += 1
        assert time.process_time() - start < 2
    assert accepted == 22
    capfd.readouterr()  # libtiff writes to the file descriptor


def test_the_same_portrait_in_seven_orientations(shared: Path) -> None:
    folder = shared / "data" / "bad_images"
    portraits = [decode_image(folder / f"hopper_orientation_{k}.jpg").float() for k in range(2, 9)]
    for portrait in portraits[1:]:
        assert (portrait - portraits[0]).abs().mean() < 6
    assert (portraits[0].flip(2) - portraits[0]).abs().mean() > 20  # the portrait is not symmetrical


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_found_without_decoding_complete_ones(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(np.tile(PHOTO, (3, 3, 1))), format)
    path = tmp_path / "photo"
    for length in (len(data) // 3, len(data) // 2, len(data) - 300):
        path.write_bytes(data[:length])
        assert isinstance(read_sizes([path])[0], UserError), length
    path.write_bytes(data)
    assert read_sizes([path]) == [(111, 159)]

    def fail(image: Image.Image) -> None:
        raise AssertionError("decoded")

    if format != "BMP":  # whose header may have any length of the file
        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
        assert read_sizes([path]) == [(111, 159)]


@pytest.mark.parametrize("kind", ["png data", "jpeg thumbnail", "webp data", "tiff data", "nan"])
def test_damage_inside_a_file_is_found_by_decoding(kind: str, tmp_path: Path) -> None:
    """Five kinds of damage that neither the header nor the end of a file shows."""
    path = tmp_path / "photo"
    image = Image.fromarray(np.tile(PHOTO, (3, 3, 1)))
    if kind == "nan":
        Image.new("F", (7, 5), float("nan")).save(path, "TIFF")
        assert read_sizes([path]) == [(5, 7)]
    else:
        format = kind.split()[0].upper()
        options = {"compression": "tiff_lzw"} if format == "TIFF" else {"lossless": True} if format == "WEBP" else {}
        data = bytearray(encoded(image, format, **options))
        if format == "JPEG":  # truncated after a thumbnail with its own end marker
            data = bytearray(encoded(image, format, comment=b"\xff\xd9"))[:2000]
        else:
            start = {"TIFF": 20, "PNG": 43}.get(format, len(data) // 2)
            data[start : start + 400] = (b"\xff" if format == "PNG" else b"\0") * 400
        path.write_bytes(data)
        assert read_sizes([path]) == [(111, 159)]
    (found,) = read_sizes([path], decode=True)
    assert isinstance(found, UserError) and str(path) in str(found)


def test_exif_after_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(PHOTO), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    path = tmp_path / "photo.png"
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert read_sizes([path]) == [(53, 37)] and decode_image(path).shape == (3, 53, 37)
