"""What notebooks show of detections and training results: tables as HTML, and detections drawn on their image.

The tables use the colors of the notebook, light or dark. All text from outside is escaped.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from detrs.data.images import decode_image
from detrs.errors import UserError
from detrs.html_table import html_table, score, text
from detrs.structures import Detections
from detrs.visualization.draw import Style, class_color, draw_detections

MAX_ROWS = 20
"""Detections in a table."""
MAX_FIGURE_BYTES = 500_000
"""Larger figures are not embedded."""


def plot(
    detections: Detections,
    image: Any = None,
    *,
    threshold: float = 0.0,
    show_labels: bool = True,
    line_width: int | None = None,
    color_by: Literal["class", "instance"] = "class",
) -> Image.Image:
    """``Detections.plot``."""
    style = Style(show_labels=show_labels, line_width=line_width, color_by=color_by)
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold}, but must be in [0, 1].")
    if image is None:
        image = _source_of(detections)
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if not isinstance(image, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        raise UserError(
            f"image: expected a path, bytes, Pillow image, array (H, W, 3) or tensor (3, H, W), got an object of type "
            f"'{type(image).__name__}'."
        )
    pixels = decode_image(image)
    if tuple(pixels.shape[1:]) != tuple(detections.image_size):
        height, width = detections.image_size
        raise UserError(
            f"The image has {pixels.shape[2]} x {pixels.shape[1]} pixels, but the detections are of an image of "
            f"{width} x {height} pixels (width x height). Pass the image in which they were found."
        )
    return draw_detections(pixels, detections, threshold, style=style)


def _source_of(detections: Detections) -> str:
    source = detections.source
    if source is None:
        raise UserError("The detections do not contain the path of their image: pass the image, plot(image).")
    if source.lower().startswith(("http://", "https://")):
        raise UserError(f"The image is a URL, {source}: download it and pass the file, plot(image).")
    return source


def detections_html(detections: Detections) -> str:
    """A table of the best detections: class with its color, score, box."""
    height, width = detections.image_size
    number = len(detections)
    source = "an image" if detections.source is None else f"<code>{text(detections.source)}</code>"
    title = f"{number} detection{'s' * (number != 1)} in {source} ({width} × {height} pixels)"
    names = detections.names[:MAX_ROWS]
    rows = [
        (f"{_patch(label)} {text(name)}", score(value), ", ".join(f"{side:.0f}" for side in box))
        for name, label, value, box in zip(
            names,
            detections.labels[:MAX_ROWS].tolist(),
            detections.scores[:MAX_ROWS].tolist(),
            detections.boxes_xyxy[:MAX_ROWS].double().tolist(),
            strict=True,
        )
    ]
    more = f"<p>and {number - MAX_ROWS} more with lower scores</p>" if number > MAX_ROWS else ""
    return f"<div><p>{title}</p>{html_table(('class', 'score', 'x1, y1, x2, y2'), rows) if rows else ''}{more}</div>"


def result_html(scores: Mapping[str, Any], facts: Mapping[str, str], curves: Path) -> str:
    """The table of a finished run, and its curves if the file exists."""
    rows = [(text(name), text(value)) for name, value in facts.items()]
    known = {"AP": "ap", "AP50": "ap50", "AP75": "ap75"}
    if scores:
        rows = [(name, score(scores.get(key))) for name, key in known.items()] + rows
    image = ""
    if curves.is_file() and curves.stat().st_size <= MAX_FIGURE_BYTES:
        data = base64.b64encode(curves.read_bytes()).decode()
        image = f'<img alt="curves of the run" style="max-width: 100%" src="data:image/png;base64,{data}">'
    return f"<div>{html_table(('', ''), rows)}{image}</div>"


def _patch(label: int) -> str:
    red, green, blue = class_color(label)
    size = "display: inline-block; width: 0.8em; height: 0.8em; border: 1px solid"
    return f'<span style="{size}; background: rgb({red},{green},{blue})"></span>'
