"""The boxes of the shapes in CVAT's XML files."""

from typing import NamedTuple
from xml.etree.ElementTree import Element

from detrs.data.objects import ROTATED, box_fault, is_rotated

Box = tuple[float, float, float, float]
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)


class Shape(NamedTuple):
    line: int
    label: int
    box: Box
    """(x, y, width, height) in pixels."""
    frame: int
    """Of a video; -1 in a file of images."""


def shape_box(element: Element) -> tuple[str, str, Box]:
    """The kind of fault of a shape and the faulty value, and its enclosing box; the kind is empty if it has none."""
    value = " ".join(f"{key}={text}" for key, text in element.attrib.items() if key in _CORNERS)
    try:
        corners = _corners(element)
        rotation = float(element.get("rotation", "0"))
    except (KeyError, ValueError):
        expected = _EXPECTED.get(element.tag)
        if expected is None:
            return "element of an image that is not a shape of CVAT", f"<{element.tag:.40}>", NO_BOX
        return f"<{element.tag}> without numbers (expected {expected} in pixels)", value, NO_BOX
    if is_rotated(rotation):
        return ROTATED, f"rotation={rotation:g}", NO_BOX
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        return "<box> with xbr below xtl or ybr below ytl", value, NO_BOX
    box = (x1, y1, x2 - x1, y2 - y1)
    return box_fault(box), value or f"<{element.tag}>", box


_EXPECTED = {
    "box": "xtl, ytl, xbr and ybr",
    "polygon": "points",
    "polyline": "points",
    "ellipse": "cx, cy, rx and ry",
    "mask": "left, top, width and height",
}
_CORNERS = ("xtl", "ytl", "xbr", "ybr", "cx", "cy", "rx", "ry", "left", "top", "width", "height")


def _corners(element: Element) -> Box:
    """x1, y1, x2 and y2 of a shape.

    Raises:
        KeyError, ValueError: An attribute is missing or is not a number, or the shape is unknown.
    """
    get = element.attrib.__getitem__
    if element.tag == "box":
        return float(get("xtl")), float(get("ytl")), float(get("xbr")), float(get("ybr"))
    if element.tag in ("polygon", "polyline"):
        points = [tuple(map(float, point.split(","))) for point in get("points").split(";")]
        xs, ys = zip(*points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)
    if element.tag == "ellipse":
        x, y, horizontal, vertical = (float(get(key)) for key in ("cx", "cy", "rx", "ry"))
        return x - horizontal, y - vertical, x + horizontal, y + vertical
    x, y, width, height = (float(get(key)) for key in ("left", "top", "width", "height"))
    if element.tag != "mask":
        raise KeyError(element.tag)
    return x, y, x + width, y + height
