"""Images of more than 8 bits: equal values become equal grays."""

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrs.data.images import decode_image
from detrs.errors import UserError

RANDOM = np.random.default_rng(3)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("limit", [255, 1023, 4095, 65535])
def test_16_bits_are_scaled_by_their_range_and_not_by_their_values(limit: int) -> None:
    """One bright pixel changes no other."""
    values = RANDOM.integers(0, limit + 1, (29, 41)).astype(np.uint16)
    bright = values.copy()
    bright[0, 0] = 65535
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    for array in (values, bright):
        for source in [array, torch.from_numpy(array)] + [
            encoded(Image.fromarray(array), format) for format in ("PNG", "TIFF")
        ]:
            ours = pixels(decode_image(source))
            np.testing.assert_array_equal(ours[1:], np.repeat(expected[..., None], 3, axis=2)[1:])


@pytest.mark.parametrize(("tag", "declared"), [(281, 4095), (281, 1023)])
def test_the_range_that_a_file_declares_is_used(tag: int, declared: int) -> None:
    values = RANDOM.integers(0, declared + 1, (29, 41)).astype(np.uint16)
    source = encoded(Image.fromarray(values), "TIFF", tiffinfo={tag: declared})
    np.testing.assert_array_equal(
        pixels(decode_image(source))[..., 0], np.rint(values / declared * 255).astype(np.uint8)
    )
    values[3, 5] = declared + 1
    with pytest.raises(UserError, match=rf"values from \d+ to {declared + 1}\. Expected 0 to {declared}\. Rescale"):
        decode_image(encoded(Image.fromarray(values), "TIFF", tiffinfo={tag: declared}))


def packed_12_bit_tiff(values: np.ndarray[Any, Any]) -> bytes:
    """A TIFF file of 12 bits per pixel, two pixels in three bytes."""
    height, width = values.shape
    a, b = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=-1).astype(np.uint8).tobytes()
    tags = ((256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height))
    entries = sorted((*tags, (279, len(data))))
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


def test_12_bit_files() -> None:
    values = RANDOM.integers(0, 4096, (13, 22)).astype(np.uint16)
    values[values == 4095] = 7
    expected = np.rint(values / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels(decode_image(packed_12_bit_tiff(values)))[..., 0], expected)


def test_8_bits_stored_in_16_come_back() -> None:
    grey = RANDOM.integers(0, 256, (5, 53), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(decode_image(grey.astype(np.uint16) * 257))[..., 0], grey)


def test_a_transparent_value_of_16_bits() -> None:
    values = RANDOM.integers(0, 2**16, (29, 41)).astype(np.uint16)
    values[3:5, 2:9], values[7, 7] = 1234, 1235
    ours = pixels(decode_image(encoded(Image.fromarray(values), "PNG", transparency=1234)))[..., 0]
    assert (ours[3:5, 2:9] == 255).all() and ours[7, 7] == round(1235 / 257)


def test_float_files(tmp_path: Path) -> None:
    unit = RANDOM.random((319, 43)).astype(np.float32)
    ours = pixels(decode_image(encoded(Image.fromarray(unit), "TIFF")))[..., 0]
    np.testing.assert_array_equal(ours, np.rint(unit.astype(float) * 255))
    half = unit / 2
    np.testing.assert_array_equal(
        pixels(decode_image(encoded(Image.fromarray(half), "TIFF")))[..., 0], np.rint(half.astype(float) * 255)
    )
    path = tmp_path / "depth.tif"
    for low, high in ((-40.0, 1000.0), (0.0, 255.0), (-0.5, 0.5)):
        Image.fromarray((low + unit * (high - low)).astype(np.float32)).save(path)
        with pytest.raises(UserError, match=r"depth\.tif has values from .* Expected floats in \[0, 1\]\. Rescale it"):
            decode_image(path)
    for value in ("nan", "inf"):
        Image.new("F", (7, 5), float(value)).save(path)
        with pytest.raises(UserError, match=r"depth\.tif has pixels that are NaN or infinite"):
            decode_image(path)


@pytest.mark.parametrize(("dtype", "format"), [("<i2", "I;16S"), ("<i4", "I;32S"), ("<u4", "I;32N")])
def test_integers_without_a_fixed_range_are_rejected(dtype: str, format: str, tmp_path: Path) -> None:
    data = np.arange(12, dtype=dtype).tobytes()
    sample_format = 2 if "i" in dtype else 1
    tags = ((256, 4), (257, 3), (258, 8 * int(dtype[-1])), (259, 1), (262, 1), (273, 8), (277, 1), (278, 3))
    entries = sorted((*tags, (279, len(data)), (339, sample_format)))
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    path = tmp_path / "heights.tif"
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)
    )
    with pytest.raises(UserError, match=r"heights\.tif has (signed )?integers of \d+ bits, which have no fixed range"):
        decode_image(path)


def test_16_bit_files_are_not_clipped(shared: Path) -> None:
    """Values of 291 to 694, which are dark: the file declares 16 bits."""
    image = decode_image(shared / "data" / "bad_images" / "16bit.cropped.tif")
    assert image.min() == 1 and image.max() == 3


def test_a_large_16_bit_image_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    Image.fromarray(np.full((2500, 2000), 40_000, np.uint16)).save(path)
    tracemalloc.start()  # Pillow's own memory, 2 bytes per pixel, is not included
    try:
        image = decode_image(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image.unique().tolist() == [round(40_000 / 257)]
    assert peak < 9 * 2500 * 2000
