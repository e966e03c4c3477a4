"""Decodes images for training, evaluation and prediction in one way: (3, H, W) uint8, RGB, upright.

- EXIF orientation is applied: height and width are those of the image as displayed.
- Transparent pixels are composited on white, since the color stored in them is undefined.
- Grayscale, palette and CMYK images are converted to RGB. Of files with several frames, the first is used.
- Pixels of more than 8 bits are scaled by the range of their type, not by their values (see ``depth``).
- Only common formats with at most ``MAX_PIXELS`` pixels are accepted, which is checked before decoding: rarely used
  decoders and decompression bombs are the usual attacks on image libraries.
"""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from detrs.config.data import MAX_PIXELS
from detrs.data import depth
from detrs.data.complete import has_late_metadata, is_complete
from detrs.errors import UserError, printable
from detrs.isolation import warnings_ignored
from detrs.magic import kind_of

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
WHITE = 255
NUM_READERS = 8
"""Threads that check files before training; they mostly wait for the disk."""
TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height. Values above 8 are invalid and are ignored."""

_ORIENTATION = 0x0112
"""EXIF tag of the orientation."""
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transpose that undoes each EXIF orientation."""

_TENSOR_DTYPES = (torch.uint8, torch.uint16, torch.bool, torch.float16, torch.float32, torch.float64)


Bytes = bytes | bytearray | memoryview
"""The content of a file."""


def decode_image(source: str | Path | Bytes | Image.Image | NDArray[Any] | Tensor) -> UInt8[Tensor, "3 H W"]:
    """Decodes an image. The result is in channels-last memory order if ``source`` is a file.

    Args:
        source: A path, the bytes of a file, a Pillow image, an array (H, W) or (H, W, 1 | 3 | 4) in RGB order (OpenCV
            returns BGR), or a tensor (H, W) or (1 | 3 | 4, H, W). Arrays and tensors are uint8, uint16, bool, or
            float16, float32 or float64 in [0, 1].

    Raises:
        UserError: ``source`` cannot be decoded; the message names the file and the reason.
    """
    if isinstance(source, Tensor):
        return _from_array(_to_numpy(source), "tensor", tuple(source.shape))
    if isinstance(source, np.ndarray):
        return _from_array(source, "array", source.shape)
    if isinstance(source, Image.Image):
        with _user_errors("The Pillow image"):
            _check_size(source, "The Pillow image")
            return _pixels(source, "The Pillow image")
    with _open(source) as image:
        return _pixels(image, _name(source))


class Header(NamedTuple):
    """Of an image file."""

    size: tuple[int, int]
    """(height, width) after EXIF orientation."""
    frames: int
    """Images in the file, of which only the first is used: pages of a TIFF, or images of an MPO."""


def read_headers(paths: Sequence[str | Path], *, decode: bool = False) -> list[Header | UserError]:
    """The header of each image, or the error for a file that cannot be read.

    Only the header and the end of a file are read, unless ``decode`` is True. A file that may be truncated is decoded.
    """
    with ThreadPoolExecutor(NUM_READERS) as readers:
        return list(readers.map(partial(_header, decode=decode), paths, chunksize=1))


def _header(path: str | Path, decode: bool) -> Header | UserError:
    try:
        with _open(path) as image:
            width, height = image.size
            frames = getattr(image, "n_frames", 1) if image.format in ("TIFF", "MPO") else 1
            image.seek(0)
            if decode:
                _pixels(image, printable(path))
            elif not is_complete(image) or has_late_metadata(image):
                image.load()
            transposed = image.format != "TIFF" and _orientation(image) in TRANSPOSED  # Pillow rotates TIFF itself
            return Header((width, height) if transposed else (height, width), frames)
    except UserError as error:
        return error


def is_transposed(path: str | Path) -> bool:
    """Whether the EXIF orientation of an image file exchanges its width and height."""
    try:
        with _open(path) as image:
            return _orientation(image) in TRANSPOSED
    except UserError:
        return False


@contextmanager
def _open(source: str | Path | Bytes) -> Iterator[Image.Image]:
    """Opens an image and reads its header. Exceptions in the body become a ``UserError`` that names the file."""
    name = _name(source)
    with _user_errors(name), _stream(source) as stream:
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            stream.seek(0)
            kind = kind_of(stream.read(512)) or "not a readable image"
            formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            raise UserError(f"{name} is {kind}. Expected a {formats} image.") from None
        except Image.DecompressionBombError:
            raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels. Split it into tiles.") from None
        _check_size(image, name)
        yield image


@contextmanager
def _user_errors(name: str) -> Iterator[None]:
    """Converts the exceptions of the decoders to ``UserError``, and ignores warnings about metadata."""
    try:
        with warnings_ignored():
            yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name} cannot be decoded: out of memory.") from None
    except Exception as error:  # Pillow's decoders raise many types, including TypeError and struct.error
        reason = str(error) or type(error).__name__
        raise UserError(f"{name} cannot be decoded and may be damaged: {reason}.") from error


@contextmanager
def _stream(source: str | Path | Bytes) -> Iterator[IO[bytes]]:
    if isinstance(source, Bytes):
        yield io.BytesIO(source)
        return
    if not isinstance(source, str | os.PathLike):  # a number is the descriptor of an open file, which would be closed
        raise UserError(
            "Expected an image as a path, bytes, Pillow image, NumPy array or tensor, "
            f"got an object of type {type(source).__name__}."
        )
    name = printable(source)
    if "://" in name:
        raise UserError(f"{name} is a URL, and files are not downloaded here. Pass a local file.")
    try:
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode):  # opening a pipe could block forever
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise UserError(f"{name} is {kind}. Expected an image file.")
        stream = open(source, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise UserError(f"{name} does not exist. Expected an image file.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be opened: {error.strerror}.") from None
    with stream:
        yield stream


def _name(source: object) -> str:
    """The source in error messages."""
    return printable(source) if isinstance(source, str | os.PathLike) else "The image"


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UserError(f"{name} has no pixels: its height is {height} and its width {width}.")
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name} has {width * height:,} pixels, but at most {MAX_PIXELS:,} are supported. Split it into tiles."
        )


def _orientation(image: Image.Image) -> int:
    try:
        # that of PngImageFile decodes the image, and its errors would be ignored here
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged metadata, but decodable pixels: keep the stored orientation
        return 1


def _pixels(image: Image.Image, name: str) -> Tensor:
    is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    maximum = depth.maximum(image, name) if is_deep else WHITE
    image.load()
    transpose = _TO_UPRIGHT.get(_orientation(image))
    if transpose is not None:
        image = image.transpose(transpose)
    if is_deep:
        return _rgb(depth.gray(image, maximum, WHITE, name)[..., None])
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # Pillow converts La only to LA, and RGBa only to RGBA
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE)), image)
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A tensor (C, H, W) or (H, W) as an array (H, W, C) or (H, W). NumPy lacks some types of PyTorch."""
    if tensor.layout != torch.strided or tensor.dtype not in _TENSOR_DTYPES:
        layout = "sparse " if tensor.layout != torch.strided else ""
        raise UserError(_wrong_type("tensor", f"{layout}{str(tensor.dtype).removeprefix('torch.')}"))
    tensor = tensor.detach().cpu()
    return (tensor.movedim(0, -1) if tensor.ndim == 3 else tensor).numpy()


def _wrong_type(kind: str, dtype: object) -> str:
    return f"Expected an image {kind} of type uint8, uint16, bool, float16, float32 or float64, got {dtype}."


def _from_array(array: NDArray[Any], kind: str, shape: tuple[int, ...]) -> Tensor:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        layout = "(H, W, 3)" if kind == "array" else "(3, H, W)"
        raise UserError(f"Expected an image {kind} of shape {layout} or (H, W), got {shape}.")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            values = f"{array.min():g} to {array.max():g}"
            raise UserError(f"Expected an image {kind} with floats in [0, 1], got values from {values}.")
        array = depth.scaled(array, 1)
    elif array.dtype == np.uint16:
        array = depth.scaled(array, 2**16 - 1)
    elif array.dtype != np.uint8:
        raise UserError(_wrong_type(kind, array.dtype))
    array = array.reshape(*array.shape[:2], channels)
    if channels == 4:
        alpha = array[..., 3:].astype(np.float64) / 255
        array = np.rint(array[..., :3] * alpha + WHITE * (1 - alpha)).astype(np.uint8)
    return _rgb(array)


def _rgb(array: NDArray[np.uint8]) -> Tensor:
    """An array (H, W, 1 | 3) as a tensor (3, H, W)."""
    return torch.from_numpy(np.array(np.broadcast_to(array, (*array.shape[:2], 3)))).permute(2, 0, 1)
