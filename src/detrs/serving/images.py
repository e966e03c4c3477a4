"""Images of requests: checked by their header, decoded as by ``Predictor``, and resized at once."""

import io

from PIL import Image, UnidentifiedImageError

from detrs.data.images import decode_image
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError
from detrs.isolation import warnings_ignored
from detrs.magic import kind_of
from detrs.serving.batching import Resized
from detrs.serving.problems import RequestProblem
from detrs.serving.uploads import Upload

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are decoded: fewer than from files, since rarely used decoders are those with vulnerabilities."""


def resized(upload: Upload, label: str, preprocessing: Preprocessing, max_pixels: int) -> Resized:
    """Decode and resize an image; only the resized one is kept.

    Args:
        upload: the image file.
        label: of the image in messages, such as ``"Image 2 (a.jpg)"``.
        preprocessing: of the detector.
        max_pixels: checked before decoding.

    Raises:
        RequestProblem: the content is not an image of one of ``FORMATS``, is too large, or cannot be decoded.
    """
    check_header(upload.content, label, max_pixels)
    try:
        image = decode_image(upload.content)
    except UserError as error:
        raise RequestProblem(400, f"{label}: {error}") from None
    return Resized(preprocessing.resize(image), (image.shape[1], image.shape[2]), upload.name)


def check_header(content: bytes, label: str, max_pixels: int) -> None:
    """Check format and size of an image by its header.

    Raises:
        RequestProblem: 415 for another format, 413 for too many pixels, 400 for a damaged header.
    """
    try:
        with warnings_ignored(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        kind = kind_of(content[:512]) or "not a readable image"
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise RequestProblem(415, f"{label} is {kind}. Expected a {formats} image.") from None
    except Image.DecompressionBombError:
        raise RequestProblem(413, _too_large(label, max_pixels)) from None
    except Exception as error:  # Pillow's decoders raise many types
        reason = str(error) or type(error).__name__
        raise RequestProblem(400, f"{label} cannot be decoded and may be damaged: {reason}.") from None
    if width * height > max_pixels:
        raise RequestProblem(413, _too_large(label, max_pixels, f" ({height} x {width})"))


def _too_large(label: str, max_pixels: int, size: str = "") -> str:
    return f"{label} has more than {max_pixels:,} pixels{size}. Send a smaller image."
