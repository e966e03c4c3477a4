"""What names a video: a file, a camera or the URL of a stream."""

import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from detrs.errors import UserError, printable
from detrs.magic import is_video

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ogv"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".mjpeg", ".mjpg", ".h264", ".264", ".hevc", ".h265", ".265", ".ivf"),
)
"""Video files in folders and globs; a single file may have any name."""
PLAYLIST_SUFFIXES = (".m3u8",)
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "srt")
"""Protocols of streams. ``http`` and ``https`` may also name an image."""
CAMERA = re.compile(r"/dev/video\d+")
CAMERA_FORMATS = {"linux": ("video4linux2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
"""Platform -> input format of FFmpeg and the name of camera N."""
EXPECTED = "a video file, the number of a camera such as 0, a device such as /dev/video0, or the URL of a stream"

_SECRET = re.compile(r"(?i)((?:password|passwd|pwd|pass|token|secret|key|auth)=)[^&/?#]+")


@dataclass(frozen=True, kw_only=True)
class StreamSource:
    """A video that exists, or a URL that may be opened."""

    name: str
    """For results and messages; without passwords."""
    location: str
    """Path, device or URL."""
    kind: Literal["file", "camera", "url"]
    input_format: str | None = None
    """Input format of FFmpeg, for cameras."""


def scheme(source: object) -> str:
    """``"rtsp"`` of ``"rtsp://..."``; empty for everything that is not a URL."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source) if isinstance(source, str) else None
    return found[1].lower() if found else ""


def is_camera(source: object) -> bool:
    """Whether ``source`` is a device such as ``/dev/video0``, or a number, unless a file has this name."""
    if isinstance(source, str | Path):
        text = str(source)
        return bool(CAMERA.fullmatch(text)) or (text.isascii() and text.isdecimal() and not os.path.exists(text))
    return isinstance(source, int) and not isinstance(source, bool)


def is_video_file(path: Path) -> bool:
    """Whether a file is a video by its suffix, or by its first bytes if the suffix is unknown.

    Raises:
        OSError: the file cannot be read.
    """
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_video(file.read(512))


def parse_source(source: Any, allow_urls: bool) -> StreamSource:
    """The source with this name.

    Args:
        source: path, number of a camera, device or URL.
        allow_urls: whether URLs may be opened.

    Raises:
        UserError: there is no such file or camera, or URLs are not allowed.
    """
    if is_camera(source):
        return _camera(source)
    if not isinstance(source, str | Path) or source == "":
        got = "an empty string" if source == "" else f"an object of type '{type(source).__name__}'"
        raise UserError(f"Expected {EXPECTED}, got {got}.")
    if scheme(source):
        return _url(str(source), allow_urls)
    return _file(source)


def redacted(url: str) -> str:
    """``url`` without user name, password and tokens.

    >>> redacted("rtsp://admin:secret@10.0.0.7/live?token=abc&channel=1")
    'rtsp://***@10.0.0.7/live?token=***&channel=1'
    """
    before, mark, after = url.partition("://")
    address, slash, path = after.partition("/")
    user, at, host = address.rpartition("@")
    return f"{before}{mark}{'***' if user else ''}{at}{host}{slash}" + _SECRET.sub(r"\1***", path)


def _camera(source: str | Path | int) -> StreamSource:
    text = str(source)
    if sys.platform not in CAMERA_FORMATS:
        raise UserError(f"Cameras such as {text} can be opened on Linux and macOS only. Pass the URL of a stream.")
    input_format, pattern = CAMERA_FORMATS[sys.platform]
    device = text if text.startswith("/dev/") else pattern.format(text.lstrip("0") or "0")
    if device.startswith("/dev/"):
        present = sorted(str(path) for path in Path("/dev").glob("video*") if CAMERA.fullmatch(str(path)))
        if not os.path.exists(device):
            raise UserError(f"There is no camera {device}. Cameras of this machine: {', '.join(present) or 'none'}.")
    return StreamSource(name=text, location=device, kind="camera", input_format=input_format)


def _url(url: str, allow_urls: bool) -> StreamSource:
    name = printable(redacted(url))
    known = (*STREAM_SCHEMES, "http", "https")
    if scheme(url) not in known:
        raise UserError(f"{name} has an unknown protocol. Expected one of {', '.join(known)}.")
    if not allow_urls:
        raise UserError(
            f"{name} is a URL, and URLs are disabled by default: pass allow_urls=True (--allow-urls on the command "
            "line)."
        )
    try:
        host = urlsplit(url).hostname
    except ValueError:  # an invalid IPv6 address
        host = None
    if not host:
        raise UserError(f"{name} is not a valid URL: it has no host.")
    return StreamSource(name=name, location=url, kind="url")


def _file(source: str | Path) -> StreamSource:
    name = printable(source)
    try:
        path = Path(source).expanduser()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{name} does not exist. Expected {EXPECTED}.") from None
    except OSError as error:  # no permission, a name that is too long
        raise UserError(f"{name} cannot be opened: {error.strerror}.") from error
    except (RuntimeError, ValueError) as error:  # unknown ~user, a null character
        raise UserError(f"{name!r} is not a valid path: {str(error).rstrip('.')}.") from error
    if not stat.S_ISREG(mode):  # opening a pipe could block forever
        raise UserError(f"{name} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}. Expected {EXPECTED}.")
    return StreamSource(name=name, location=str(path), kind="file")
