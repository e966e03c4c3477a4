"""Sources of images: files, folders, glob patterns, URLs, bytes and arrays, decoded one by one."""

import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detrs.data.folders import IMAGE_SUFFIXES, find_images
from detrs.data.images import decode_image
from detrs.errors import UserError

Source = str | Path | bytes | BinaryIO | Image.Image | NDArray[Any] | Tensor
"""A file, folder, glob pattern or URL; the bytes of a file; a file opened in binary mode (also ``BytesIO``), of which
the rest is read; a Pillow image; an array (H, W, 3); a tensor (3, H, W)."""
EXPECTED = "a path, URL, bytes, binary file, Pillow image, array (H, W, 3) or tensor (3, H, W)"
OnError = Literal["raise", "skip"] | Callable[[str, UserError], object]
"""``raise``; ``skip``: log a warning and continue; or a function of (source, error)."""

MAX_DOWNLOAD_BYTES = 100_000_000
DOWNLOAD_TIMEOUT_SECONDS = 30

logger = logging.getLogger("detrs")


def handler(on_error: OnError) -> Callable[[str, UserError], object]:
    """The function of (source, error) that ``on_error`` stands for.

    Raises:
        UserError: ``on_error`` is another string.
    """
    if callable(on_error):
        return on_error
    if on_error not in ("raise", "skip"):
        raise UserError(f"on_error is {on_error!r}, but must be 'raise', 'skip' or a function of (source, error).")
    return _raise if on_error == "raise" else _warn


def _raise(source: str, error: UserError) -> None:
    raise error


def _warn(source: str, error: UserError) -> None:
    logger.warning("skipped: %s", error)


def decoded(
    sources: Source | Iterable[Source], allow_urls: bool, handle: Callable[[str, UserError], object]
) -> Iterator[tuple[str | None, Tensor]]:
    """The images of sources, decoded one by one.

    Args:
        sources: one source, or an iterable of them.
        allow_urls: download ``http://`` and ``https://`` sources.
        handle: called with each source that cannot be read and its error.

    Yields:
        The path or URL of the image (``None`` for arrays and bytes), and the image (3, H, W), uint8.

    Raises:
        UserError: ``sources`` is neither a source nor an iterable, or ``handle`` raises.
    """
    if _is_source(sources):
        sources = [sources]  # type: ignore[list-item]
    elif not isinstance(sources, Iterable) or isinstance(sources, dict):
        raise UserError(f"Expected {EXPECTED}, or an iterable of them, got {_described(sources)}.")
    for source in sources:
        try:
            images = _images_of(source)
        except UserError as error:
            handle(str(source), error)
            continue
        for image in images:
            name = str(image) if isinstance(image, str | Path) else None
            try:
                yield name, _downloaded(str(image), allow_urls) if _is_url(image) else decode_image(image)
            except UserError as error:
                handle(name or type(image).__name__, error)


def _is_source(value: object) -> bool:
    known = (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor)
    return isinstance(value, known) or callable(getattr(value, "read", None))


def _described(value: object) -> str:
    """A value that is not a source, in messages."""
    return "None" if value is None else f"an object of type '{type(value).__name__}'"


def _images_of(source: Any) -> list[Any]:
    """``_expanded``, with errors of the file system as ``UserError``."""
    try:
        return _expanded(source)
    except UserError:
        raise
    except OSError as error:  # no permission, a name that is too long
        raise UserError(f"'{source!s}' cannot be opened: {error.strerror}.") from error
    except (RuntimeError, ValueError, NotImplementedError) as error:  # unknown ~user, "**.jpg"
        if not isinstance(source, str | Path):
            raise
        hint = "" if "**" not in str(source) else "; '**' must be a whole path component, as in 'images/**/*.jpg'"
        raise UserError(f"'{source!s}' is not a valid path or pattern: {str(error).rstrip('.')}{hint}.") from error


def _expanded(source: Any) -> list[Any]:
    """The images of a folder or glob; any other source is itself.

    Raises:
        UserError: the folder or glob has no image.
    """
    if not _is_source(source):
        raise UserError(f"Expected {EXPECTED}, got {_described(source)}.")
    if isinstance(source, bytearray | memoryview):
        return [bytes(source)]
    if not isinstance(source, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        return [_content(source)]
    if not isinstance(source, str | Path) or _is_url(source):
        return [source]
    if source == "":
        raise UserError("The source is an empty string. Expected a path; '.' is the working directory.")
    path = Path(source).expanduser()
    if path.is_dir():
        found = find_images(path.iterdir(), path)
        if not found.images:
            nested = find_images(path.rglob("*"), path).images
            within = f"; for images in sub-folders use '{path}/**/*'" if nested else ""
            also = f"; it contains {found.skipped()}: convert them to JPEG or PNG" if found.unsupported else ""
            raise UserError(f"The folder '{path}' has no images ({', '.join(IMAGE_SUFFIXES)}){also}{within}.")
        if found.unsupported:
            logger.warning("skipped in the folder '%s': %s", path, found.skipped())
        return [*found.images]
    if path.exists() or not any(sign in str(path) for sign in "*?["):
        return [path]
    root = Path(path.anchor)
    found = find_images(root.glob(str(path.relative_to(path.anchor))), path)
    if found.unsupported:
        logger.warning("skipped of those that match '%s': %s", path, found.skipped())
    if not found.images:
        raise UserError(f"No images ({', '.join(IMAGE_SUFFIXES)}) match '{path}'.")
    return [*found.images]


def _content(file: BinaryIO) -> bytes:
    """The rest of an open file.

    Raises:
        UserError: it was opened in text mode, or is closed.
    """
    try:
        content = file.read()
    except (OSError, ValueError) as error:  # closed, not readable, or text that is not UTF-8
        raise UserError(f"Cannot read the open file: {error}. Open it in binary mode ('rb').") from error
    if not isinstance(content, bytes):
        raise UserError("The open file returns text. Open it in binary mode ('rb').")
    return content


def _is_url(source: Source) -> bool:
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _downloaded(url: str, allowed: bool) -> Tensor:
    if not allowed:
        raise UserError(
            f"{url} is a URL, and downloads are disabled by default: pass allow_urls=True (--allow-urls on the command "
            "line) or give a file."
        )
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise UserError(f"{url} could not be downloaded: {error}.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url} could not be downloaded: {error}.") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise UserError(f"{url} is larger than {MAX_DOWNLOAD_BYTES // 10**6} MB: download it and give the file.")
    try:
        return decode_image(data)
    except UserError as error:
        raise UserError(f"{url}: {error}") from error
