"""The one way from a picture to pixels, shared by training, evaluation and prediction: (3, H, W) uint8, RGB, upright.

- EXIF orientation is applied: width and height are those a viewer shows.
- Transparent pixels are composited on white; a transparent picture has no colour of its own there.
- Grey, palette, CMYK and the like become RGB. The first frame stands for files with several.
- More than 8 bits are scaled, not clipped (see ``_scaled``).
- Only common formats are opened, and only below ``MAX_PIXELS``, before anything is decoded: rare decoders and tiny
  files of enormous pictures are how image libraries are attacked.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from detrs.errors import UserError, printable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
WHITE = 255
NUM_READERS = 8
"""Threads that look at files before training; most of their time goes into waiting for the disk."""
TAIL = 4096
"""Bytes at the end of a file in which its format's last mark is looked for."""
LAST_MARK = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""What a whole file ends with; others say their length at the start."""

_ORIENTATION = 0x0112
"""The EXIF tag."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""

_MAGIC = (
    (b"GIF8", "a GIF"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file"),
    (b"%pdf", "a PDF"),
    (b"%!ps", "a PostScript file"),
    (b"8bps", "a Photoshop file"),
    (b"simple  =", "a FITS file"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x00\x0cjp", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"p4\n", "a Netpbm file"),
    (b"p5\n", "a Netpbm file"),
    (b"p6\n", "a Netpbm file"),
    (b"{", "a JSON file"),
)
_MAGIC_AT_4 = ((b"ftypavif", "an AVIF"), (b"ftyphei", "an HEIC"), (b"ftypmif1", "an HEIC"), (b"ftyp", "a video"))


def decode_image(source: str | Path | bytes | Image.Image | NDArray[Any] | Tensor) -> UInt8[Tensor, "3 H W"]:
    """The pixels of ``source``, with channels last in memory where it comes from a file.

    Args:
        source: a file, its bytes, a Pillow image, an array (H, W) or (H, W, 1 | 3 | 4) in RGB order (OpenCV reads BGR),
            or a tensor (H, W) or (1 | 3 | 4, H, W). Arrays and tensors are uint8, uint16, bool, or float in [0, 1].

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    if isinstance(source, Tensor):
        array = source.detach().cpu()
        return _from_array((array.movedim(0, -1) if array.ndim == 3 else array).numpy(), "tensor", tuple(source.shape))
    if isinstance(source, np.ndarray):
        return _from_array(source, "array", source.shape)
    with _quiet():
        if isinstance(source, Image.Image):
            with _explained("The Pillow image"):
                _check_size(source)
                return _pixels(source, "The Pillow image")
        with _opened(source) as image:
            return _pixels(image, "The image" if isinstance(source, bytes) else printable(source))


def read_sizes(paths: Sequence[str | Path]) -> list[tuple[int, int] | UserError]:
    """(height, width) of the upright picture in each file, or why it cannot be read.

    Only header and end of a file are read; one whose end is missing is decoded, to see what is left of it.
    """
    with _quiet(), ThreadPoolExecutor(NUM_READERS) as readers:
        return list(readers.map(_size, paths, chunksize=1))


def _size(path: str | Path) -> tuple[int, int] | UserError:
    try:
        with _opened(path) as image:
            width, height = image.size
            turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns TIFF by itself
            if not _has_end(image):
                image.load()
            return (width, height) if turned else (height, width)
    except UserError as error:
        return error


def _has_end(image: Image.Image) -> bool:
    """Whether the file of a picture ends as its format does, so that nothing was cut off."""
    mark, stream = LAST_MARK.get(image.format or ""), getattr(image, "fp", None)
    if mark is None or stream is None:
        return True
    position = stream.tell()
    stream.seek(-min(TAIL, stream.seek(0, os.SEEK_END)), os.SEEK_END)
    found = mark in stream.read()
    stream.seek(position)
    return found


@contextmanager
def _opened(source: str | Path | bytes) -> Iterator[Image.Image]:
    """The picture, header read; everything that goes wrong in the body becomes a sentence with the file's name."""
    name = "The image" if isinstance(source, bytes) else printable(source)
    with _explained(name), _stream(source) as stream:
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            stream.seek(0)
            what = _what_it_is(stream.read(512))
            raise UserError(f"{name} is {what}. Expected an image in one of the formats {_formats()}.") from None
        except Image.DecompressionBombError:
            raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels: cut it into tiles.") from None
        _check_size(image, name)
        yield image


@contextmanager
def _quiet() -> Iterator[None]:
    """Odd metadata of a picture that decodes is of no interest. Around threads, not in them: filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name} cannot be decoded: there is not enough memory for its pixels.") from None
    except Exception as error:  # Pillow's decoders raise nearly everything, TypeError and struct.error included
        reason = str(error) or type(error).__name__
        raise UserError(f"{name} cannot be decoded as an image, it may be damaged: {reason}.") from error


@contextmanager
def _stream(source: str | Path | bytes) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    name = printable(source)
    if "://" in name:
        raise UserError(f"{name} is a URL, and nothing is fetched from the network: give a file.")
    try:
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode):  # a pipe would block for ever
            what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise UserError(f"{name} is {what}. Expected an image.")
        stream = open(source, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise UserError(f"{name} does not exist. Expected an image file.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be opened: {error.strerror}.") from None
    with stream:
        yield stream


def _what_it_is(head: bytes) -> str:
    if not head:
        return "an empty file"
    start = head.lstrip().lower()
    for magic, what in _MAGIC:
        if start.startswith(magic) or head.startswith(magic):
            return what
    for magic, what in _MAGIC_AT_4:
        if head[4:].startswith(magic):
            return what
    return "no readable image"


def _formats() -> str:
    return f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"


def _check_size(image: Image.Image, name: str = "The Pillow image") -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UserError(f"{name} has no pixels: it is {height} high and {width} wide.")
    if width * height > MAX_PIXELS:
        raise UserError(f"{name} has {width * height:,} pixels, more than {MAX_PIXELS:,}: cut it into tiles.")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata of a picture that decodes: show it as it is stored
        return 1


def _pixels(image: Image.Image, name: str) -> Tensor:
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        key = image.info.get("transparency")
        scaled = _scaled(grey, name)
        if isinstance(key, int):
            scaled = np.where(grey == key, WHITE, scaled).astype(np.uint8)
        image = Image.fromarray(scaled)
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # Pillow converts premultiplied modes to their plain ones only
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE)), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # (3, H, W)


def _scaled(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Values of more than 8 bits, as 8 bits.

    Whole numbers are divided by the range of 8, 10, 12, 14 or 16 bits, whichever just holds the largest value: cameras
    of 12 bits store them in 16, and the full range would leave them black. Floats in [0, 1] are taken as they are. All
    other values are stretched from their smallest to their largest.
    """
    if not np.isfinite(array).all():
        raise UserError(f"{name} has pixels that are not finite numbers.")
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.issubdtype(array.dtype, np.floating) and low >= 0 and high < 2**16:
        low, high = 0.0, next(float(2**bits - 1) for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    elif np.issubdtype(array.dtype, np.floating) and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.rint((values - low) * (255 / max(high - low, np.finfo(np.float64).tiny))).astype(np.uint8)


def _from_array(array: NDArray[Any], kind: str, shape: tuple[int, ...]) -> Tensor:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        layout = "(H, W, 3)" if kind == "array" else "(3, H, W)"
        raise UserError(f"Expected an image {kind} of shape {layout} or (H, W), got {shape}.")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise UserError(f"An image {kind} of floats must lie in [0, 1], got {array.min():g} to {array.max():g}.")
        array = _scaled(array, f"The {kind}")
    elif array.dtype == np.uint16:
        array = _scaled(array, f"The {kind}")
    elif array.dtype != np.uint8:
        raise UserError(f"Expected an image {kind} of uint8, uint16, bool or float, got {array.dtype}.")
    array = array.reshape(*array.shape[:2], channels)
    if channels == 4:
        alpha = array[..., 3:].astype(np.float64) / 255
        array = np.rint(array[..., :3] * alpha + WHITE * (1 - alpha)).astype(np.uint8)
    image = torch.from_numpy(np.array(np.broadcast_to(array, (*array.shape[:2], 3))))
    return image.permute(2, 0, 1)  # (3, H, W)
