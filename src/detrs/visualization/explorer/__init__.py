"""The explorer: the explanation of one image as one HTML file, without server, network or external files.

The page is ``page.html`` with the style sheet, the scripts (``SCRIPTS``, joined in this order into one) and the JSON of
``detrs.explanation.Explanation.to_json``. A content security policy allows this one script and no connections.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import matplotlib
import numpy as np

from detrs.html_table import text
from detrs.visualization.draw import Color, class_color, text_color

SCRIPTS = (
    "arrays.js",
    "explanation.js",
    "state.js",
    "marks.js",
    "drawing.js",
    "viewport.js",
    "elements.js",
    "panel.js",
    "controls.js",
    "keys.js",
    "output.js",
    "explorer.js",
)
"""Parts of the script; a part uses names of all others, ``explorer.js`` starts the page."""
COLOR_MAPS = ("inferno", "viridis", "cividis")
"""Perceptually uniform maps of matplotlib for the maps on the image."""


def explorer_page(explanation: Mapping[str, Any]) -> str:
    """The page of an explanation.

    Args:
        explanation: what ``Explanation.to_json`` returns.

    Returns:
        HTML in UTF-8. No text of the explanation is interpreted: ``<`` is escaped in JSON, and the script sets texts as
        text.
    """
    source = explanation["source"]
    name = PurePath(source).name if source else "image"
    classes, detections = explanation["classes"], explanation["detections"]
    found = (
        f"{len(detections)} detection{'' if len(detections) == 1 else 's'} with score {explanation['threshold']:.3g}"
    )
    subtitle = f"{explanation['detector']}, {found} or more"
    settings = {
        "name": name,
        "caption": f"{name} · {explanation['detector']}",
        "colors": [[_hex(class_color(i)), _hex(text_color(class_color(i)))] for i in range(len(classes))],
        "color_maps": {each: _color_map(each) for each in COLOR_MAPS},
    }
    script, style = _script(), _style()
    parts = {
        "title": text(f"{name}: detrs explain"),
        "heading": text(name),
        "subtitle": text(subtitle),
        "style": style,
        "script": script,
        "script_hash": _hash(script),
        "payload": _json(explanation),
        "settings": _json(settings),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html"))


def policy_sources() -> tuple[str, str]:
    """The sources of the script and of the style sheet, the same in all pages, for a content security policy.

    Pages that open the explorer from memory need them: its document inherits their policy.
    """
    return f"'{_hash(_script())}'", f"'{_hash(_style())}'"


def _script() -> str:
    script = "(() => {\n" + '"use strict";\n' + "\n".join(_read(part) for part in SCRIPTS) + "\n})();"
    assert "</script" not in script and "<!--" not in script, "the script would end early"
    return script


def _style() -> str:
    return f"\n{_read('explorer.css')}\n"


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _json(values: Mapping[str, Any]) -> str:
    """JSON that can stand inside a ``script`` element: ASCII, and without ``<``, which would be able to end it."""
    return json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _color_map(name: str) -> str:
    """256 colors as bytes in base64."""
    colors = matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return base64.b64encode(np.rint(255 * colors).astype(np.uint8).tobytes()).decode()
