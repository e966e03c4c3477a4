"""The page of ``detrs serve``: drop images, see their detections, explain one.

Its files are read once and served from memory under fixed paths; no path of a request reaches the file system. The
content security policy allows the scripts and styles of the page itself and requests to its own server. Two hashes
allow those of the explorer, which the page opens in a frame from memory: such a document inherits the policy.
"""

import json
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from detrs.html_table import text
from detrs.structures import Classes
from detrs.visualization.draw import class_color, text_color
from detrs.visualization.explorer import policy_sources

STATIC = {
    "page.css": "text/css",
    "main.js": "text/javascript",
    "authorization.js": "text/javascript",
    "drawing.js": "text/javascript",
    "elements.js": "text/javascript",
    "explanation.js": "text/javascript",
    "intake.js": "text/javascript",
    "keys.js": "text/javascript",
    "lists.js": "text/javascript",
    "output.js": "text/javascript",
    "requests.js": "text/javascript",
}
"""Files of the page and their media types; ``main.js`` is the module that imports the others."""


class PageSettings(NamedTuple):
    """What the page shows of the server."""

    checkpoint: str
    """Name of the file, without its folder."""
    detector: str
    """For example ``DeformableDETR``."""
    classes: Classes
    threshold: float
    """Initial threshold."""
    max_bytes: int
    """Largest body of a request: larger files are not sent."""
    formats: tuple[str, ...]
    """Of images: ``JPEG``, ...."""
    needs_token: bool
    """Whether requests need a token, for which the page asks."""
    unexplainable: str | None
    """Why no detection can be explained, as a sentence for the user; ``None``: they can."""


class PageFile(NamedTuple):
    """A file that a browser requests."""

    content: bytes
    media_type: str


def add_page(app: FastAPI, settings: PageSettings) -> None:
    """Add the routes of the page to an application."""
    headers = page_headers()
    for path, file in page_files(settings).items():
        app.add_route(path, _answer(file, headers), methods=["GET"], include_in_schema=False)


def _answer(file: PageFile, headers: Mapping[str, str]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        return Response(file.content, media_type=file.media_type, headers=headers)

    return answer


def page_files(settings: PageSettings) -> dict[str, PageFile]:
    """Path of a request -> file: ``/`` and ``/page/NAME``."""
    found = {f"/page/{name}": PageFile(_read(name).encode(), f"{kind}; charset=utf-8") for name, kind in STATIC.items()}
    return {"/": PageFile(_document(settings).encode(), "text/html; charset=utf-8"), **found}


def page_headers() -> Mapping[str, str]:
    """Headers of all files of the page."""
    script, style = policy_sources()
    policy = {
        "default-src": "'none'",
        "script-src": f"'self' {script}",
        "style-src": f"'self' {style}",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "frame-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
        "Cache-Control": "no-cache",
    }


def _document(settings: PageSettings) -> str:
    count = len(settings.classes.names)
    values: dict[str, Any] = {
        "checkpoint": settings.checkpoint,
        "threshold": settings.threshold,
        "limits": {"bytes": settings.max_bytes},
        "explain": settings.unexplainable,
        "needs_token": settings.needs_token,
        "classes": [{"name": name, "colors": _colors(label)} for label, name in enumerate(settings.classes.names)],
    }
    parts = {
        "title": text(f"{settings.checkpoint}: detrs serve"),
        "heading": text(settings.checkpoint),
        "formats": f"{', '.join(settings.formats[:-1])} or {settings.formats[-1]}",
        "accepted": ",".join(f"image/{each.lower()}" for each in settings.formats),
        "subtitle": text(f"{settings.detector}, {count} class{'' if count == 1 else 'es'}"),
        "settings": json.dumps(values, allow_nan=False).replace("<", "\\u003c"),  # cannot end its element
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("index.html"))


def _colors(label: int) -> list[str]:
    """The color of a class, and the color of text on it."""
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in (class_color(label), text_color(class_color(label)))]


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
