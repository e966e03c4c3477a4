"""Which sources of ``detrs predict`` are images, and which are videos."""

import http.client
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from detrs.data.folders import IMAGE_SUFFIXES, find_images
from detrs.video.sources import PLAYLIST_SUFFIXES, STREAM_SCHEMES, VIDEO_SUFFIXES, is_camera, is_video_file, scheme

TIMEOUT_SECONDS = 10
VIDEO_TYPES = ("video/", "multipart/", "application/vnd.apple.mpegurl", "application/x-mpegurl")
"""Content types of streams over HTTP; ``multipart/x-mixed-replace`` is that of many network cameras."""


class Sources(NamedTuple):
    """The sources of one command."""

    images: list[str]
    """Files, folders, patterns and URLs, which contain images or nothing usable."""
    videos: list[str]
    """Files, cameras and URLs."""


def split_sources(sources: Iterable[str], allow_urls: bool) -> Sources:
    """Separate the videos, also those in folders and those that match patterns, from everything else.

    Sources that cannot be read count as images, whose reader reports why.

    Args:
        sources: as typed.
        allow_urls: whether a server may be asked what an HTTP URL is.
    """
    found = Sources([], [])
    for source in sources:
        try:
            images, videos = _split(source, allow_urls)
        except (OSError, http.client.HTTPException, RuntimeError, ValueError, NotImplementedError):
            # no permission, an invalid port, unknown ~user, "**.jpg"
            images, videos = True, []
        found.images.extend([source] if images else [])
        found.videos.extend(videos)
    return found


def _split(source: str, allow_urls: bool) -> tuple[bool, list[str]]:
    """Whether the source is, or contains, images, and its videos."""
    if is_camera(source) or scheme(source) in STREAM_SCHEMES:
        return False, [source]
    if scheme(source):
        is_video = _is_video_url(source, allow_urls)
        return not is_video, [source] if is_video else []
    path = Path(source).expanduser()
    if source and path.is_dir():
        within = list(path.iterdir())
    elif path.exists() or not any(sign in source for sign in "*?["):
        is_video = is_video_file(path)
        return not is_video, [source] if is_video else []
    else:
        within = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    videos = [str(each) for each in _videos(within, path)]
    images = find_images(within, path)
    return bool(images.images or images.unsupported or not videos), videos


def _videos(paths: Iterable[Path], given: Path) -> Iterator[Path]:
    """The videos among ``paths``, sorted; hidden ones only if ``given`` names them."""
    for path in sorted(paths):
        hidden = any(part.startswith(".") and part not in given.parts for part in path.parts)
        if path.suffix.lower() in VIDEO_SUFFIXES and not hidden and path.is_file():
            yield path


def _is_video_url(url: str, allowed: bool) -> bool:
    """Whether an HTTP URL is a stream: by the suffix of its path, or else by the type that the server returns."""
    if scheme(url) not in ("http", "https"):
        return scheme(url) != ""  # an unknown protocol, which the reader of videos reports
    suffix = Path(urlsplit(url).path).suffix.lower()
    if suffix in (*VIDEO_SUFFIXES, *PLAYLIST_SUFFIXES):
        return True
    if suffix in IMAGE_SUFFIXES or not allowed:
        return False
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        kind: str = response.headers.get_content_type()
    return kind.startswith(VIDEO_TYPES)
