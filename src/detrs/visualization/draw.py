"""Boxes with class names, drawn on images.

Line width and font size scale with the image. Every class, or every object, has its own color; the first eight are the
palette of Okabe and Ito, which color-blind people can distinguish. A name is printed on a patch of that color, in black
or white, whichever has the higher contrast. The patch lies inside the image and, where possible, covers no other name
and no small box. A long name is truncated, its score is not.
"""

import colorsys
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from detrs.errors import UserError
from detrs.structures import Detections
from detrs.visualization.fonts import font as font_of
from detrs.visualization.fonts import legible

Color = tuple[int, int, int]

BLACK, WHITE, PAPER = (0, 0, 0), (255, 255, 255), (240, 240, 240)
OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
)
"""Okabe and Ito, Color Universal Design (2008); their black, which is invisible on dark images, is white here."""


LONG_NAME = 0.4
"""Names are truncated to this part of the width of the image, or to the width of their box if it is wider."""


class Rectangle(NamedTuple):
    """A rectangle in pixels; ``right`` and ``bottom`` are exclusive."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)

    def overlap(self, others: np.ndarray) -> float:
        """Sum of the intersection areas with each of the others (N, 4)."""
        left, top, right, bottom = others.T
        widths = np.minimum(self.right, right) - np.maximum(self.left, left)
        heights = np.minimum(self.bottom, bottom) - np.maximum(self.top, top)
        return float((widths.clip(min=0) * heights.clip(min=0)).sum())


class Annotation(NamedTuple):
    """A rectangle with a name, a score and a color: a box, or the patch on which its name is printed."""

    rectangle: Rectangle
    name: str
    score: str
    color: Color


@dataclass(frozen=True, kw_only=True)
class Style:
    """How boxes are drawn.

    Raises:
        UserError: A value is out of range.
    """

    show_labels: bool = True
    """Print class names and scores."""
    line_width: int | None = None
    """Width of the outlines in pixels of the drawn image; ``None``: proportional to the image, thinner around small
    objects."""
    color_by: Literal["class", "instance"] = "class"
    """One color per class, or another color for each object."""

    def __post_init__(self) -> None:
        width = self.line_width
        if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
            raise UserError(f"line_width is {width!r}, but must be a number of pixels of at least 1, or None.")
        if self.color_by not in ("class", "instance"):
            raise UserError(f"color_by is {self.color_by!r}, but must be 'class' or 'instance'.")


def draw_boxes(
    image: UInt8[Tensor, "3 H W"],
    boxes_xyxy: Float[Tensor, "N 4"],
    labels: Int[Tensor, "N"],
    names: Sequence[str],
    scores: Float[Tensor, "N"] | None = None,
    *,
    min_size: int = 384,
    style: Style = Style(),
) -> Image.Image:
    """Draws boxes with class names and, if given, scores. Boxes with higher scores are drawn on top.

    Args:
        image: RGB image, 0 to 255.
        boxes_xyxy: (x1, y1, x2, y2) in pixels, clipped to the image. Boxes that are not finite or lie outside the image
            are skipped.
        labels: Class indices into ``names``.
        names: Names of all classes.
        scores: Printed after the names.
        min_size: An image whose long side is shorter (in pixels) is first enlarged by an integer factor, so that the
            names are legible. 0 keeps the size.
        style: Labels, line width and colors.

    Returns:
        A new image; ``image`` is not modified.
    """
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    factor = max(1, math.ceil(min_size / max(drawn.size)))
    if factor > 1:
        drawn = drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.BICUBIC)
    order = list(range(len(labels)))
    texts = [""] * len(order)
    if scores is not None:
        values = scores.tolist()
        texts = [f"{value:.2f}" for value in values]
        order.sort(key=lambda i: values[i], reverse=True)
    rectangles = [_clip(box, drawn.size) for box in (boxes_xyxy.double() * factor).tolist()]
    numbers = labels.tolist() if style.color_by == "class" else np.argsort(order).tolist()
    boxes = [  # highest score first
        Annotation(rectangle, legible(names[label], f"class {label}"), texts[i], class_color(numbers[i]))
        for i, label in ((i, int(labels[i])) for i in order)
        if (rectangle := rectangles[i]) is not None
    ]

    font_size = _font_size(drawn.size, [box.rectangle.area for box in boxes])
    margin = max(2, round(font_size / 5))
    canvas = ImageDraw.Draw(drawn)
    for box in reversed(boxes):
        _outline(canvas, box.rectangle, box.color, margin, style.line_width)
    for patch in reversed(_name_patches(boxes, font_size, margin, drawn.size) if style.show_labels else []):
        canvas.rectangle(_pixels(patch.rectangle), fill=patch.color)
        start = (patch.rectangle.left + margin, patch.rectangle.top)
        canvas.text(start, patch.name, fill=text_color(patch.color), font=font_of(patch.name, font_size))
    return drawn


def draw_detections(
    image: UInt8[Tensor, "3 H W"],
    detections: Detections,
    threshold: float | Sequence[float] = 0.5,
    *,
    min_size: int = 384,
    style: Style = Style(),
) -> Image.Image:
    """Draws the detections of ``image`` with scores of at least ``threshold``, or that of their class."""
    assert tuple(image.shape[1:]) == tuple(detections.image_size), (image.shape, detections.image_size)
    found = detections.filter(threshold)
    boxes = found.boxes_xyxy, found.labels, found.classes.names, found.scores
    return draw_boxes(image, *boxes, min_size=min_size, style=style)


def grid(
    images: Sequence[Image.Image],
    *,
    columns: int = 0,
    captions: Sequence[str] = (),
    title: str = "",
    max_size: int = 2400,
) -> Image.Image:
    """Tiles images of any sizes row by row. All cells have the median width and height; every image is scaled to fit.

    Args:
        images: At least one.
        columns: Images per row; 0 chooses the number that makes the grid about square.
        captions: One line of text below each image, or none at all.
        title: One line of text above all images.
        max_size: Longest side of all cells together, in pixels; larger grids are scaled down to it.
    """
    assert images and len(captions) in (0, len(images)), (len(images), len(captions))
    width, height = (statistics.median(image.size[axis] for image in images) for axis in (0, 1))
    columns = columns or min(len(images), max(1, round(math.sqrt(len(images) * height / width))))
    rows = math.ceil(len(images) / columns)
    scale = min(1.0, max_size / (columns * width), max_size / (rows * height))
    width, height = math.ceil(width * scale), math.ceil(height * scale)
    gap = max(2, min(width, height) // 60)
    font_size = _font_size((width, height))
    line_height = sum(font_of("", font_size).getmetrics()) + gap
    caption_height, top = (line_height if captions else 0), (line_height if title else 0)

    size = columns * (width + gap) + gap, rows * (height + caption_height + gap) + gap + top
    sheet = Image.new("RGB", size, PAPER)
    canvas = ImageDraw.Draw(sheet)

    def write(text: str, middle: float, height: float, width: float) -> None:
        text = _shorten(legible(text), "", font_size, width)
        canvas.text((middle, height), text, fill=BLACK, font=font_of(text, font_size), anchor="ma")

    write(title, size[0] / 2, gap / 2, size[0])
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        left, upper = gap + column * (width + gap), gap + top + row * (height + caption_height + gap)
        scaled = ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS)
        sheet.paste(scaled, (left + (width - scaled.width) // 2, upper + (height - scaled.height) // 2))
        if captions:
            write(captions[i], left + width / 2, upper + height, width)
    return sheet


def class_color(label: int) -> Color:
    """The color of a class, the same in all images."""
    if label < len(OKABE_ITO):
        return OKABE_ITO[label]
    hue = label * 0.6180339887 % 1.0  # golden ratio: consecutive labels get distant hues
    red, green, blue = colorsys.hls_to_rgb(hue, (0.4, 0.7, 0.55)[label % 3], (0.9, 0.7, 0.5)[label // 3 % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher contrast (WCAG 2) on ``background``."""
    return BLACK if contrast(BLACK, background) >= contrast(WHITE, background) else WHITE


def contrast(one: Color, other: Color) -> float:
    """Contrast ratio of two colors as defined by WCAG 2, from 1 (equal) to 21 (black on white)."""

    def luminance(color: Color) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _font_size(size: tuple[int, int], areas: Sequence[float] = ()) -> int:
    """Font size in pixels, proportional to the image and smaller if most boxes are small."""
    side = math.sqrt(size[0] * size[1])
    usual = math.sqrt(statistics.median(areas)) if areas else side
    return round(max(10, 0.014 * side, min(0.025 * side, 0.4 * usual)))


def _clip(box: list[float], size: tuple[int, int]) -> Rectangle | None:
    """The box clipped to the image; ``None`` if it lies outside or is not finite."""
    x1, y1, x2, y2 = box
    width, height = size
    if not all(map(math.isfinite, box)) or x2 < x1 or y2 < y1 or x2 < 0 or y2 < 0 or x1 >= width or y1 >= height:
        return None
    return Rectangle(max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))


def _pixels(box: Rectangle) -> tuple[int, int, int, int]:
    """First and last pixel of each axis, both inclusive, as Pillow expects them."""
    left, top = math.floor(box.left), math.floor(box.top)
    return left, top, max(left, math.ceil(box.right) - 1), max(top, math.ceil(box.bottom) - 1)


def _outline(
    canvas: ImageDraw.ImageDraw, box: Rectangle, color: Color, usual_width: int, line_width: int | None
) -> None:
    """Draws a colored line along the inside of the box, with a thin dark line inside it for images of that color."""
    left, top, right, bottom = _pixels(box)
    is_small = min(right - left, bottom - top) <= 5 * (line_width or usual_width)
    # a thinner line, so that it does not cover a small object
    width = line_width or (max(1, usual_width // 2) if is_small else usual_width)
    if not is_small:
        red, green, blue = color
        inner = (left + width, top + width, right - width, bottom - width)
        canvas.rectangle(inner, outline=(red // 3, green // 3, blue // 3), width=max(1, width // 3))
    canvas.rectangle((left, top, right, bottom), outline=color, width=width)


def _shorten(text: str, end: str, font_size: int, width: float) -> str:
    """``text`` and ``end`` in one line; ``text`` is truncated so that both fit into ``width`` pixels."""
    end = f" {end}" if text and end else end
    font = font_of(text + end, font_size)
    if font.getlength(text + end) <= width:
        return text + end
    shorter = (text[:length] + "…" + end for length in range(len(text) - 1, 0, -1))
    return next((short for short in shorter if font.getlength(short) <= width), "")


def _name_patches(
    boxes: Sequence[Annotation], font_size: int, margin: int, image_size: tuple[int, int]
) -> list[Annotation]:
    """The patches with the names of the boxes, placed greedily in the order of ``boxes``.

    ``image_size`` is (width, height) as in Pillow.
    """
    rectangles = np.array([box.rectangle for box in boxes]).reshape(-1, 4)
    areas = np.array([box.rectangle.area for box in boxes])
    patches: list[Annotation] = []
    named: set[str] = set()
    for box in boxes:
        limit = max(LONG_NAME * image_size[0], box.rectangle.right - box.rectangle.left, 8 * font_size)
        text = _shorten(box.name, box.score, font_size, min(limit, image_size[0]) - 2 * margin)
        font = font_of(text, font_size)
        size = (font.getlength(text) + 2 * margin, sum(font.getmetrics()))
        names = np.array([patch.rectangle for patch in patches]).reshape(-1, 4)
        small = rectangles[areas < 4 * size[0] * size[1]]
        patch, covered = _place(box.rectangle, size, image_size, np.concatenate([names, small]))
        # Among crowded boxes a name is skipped if it would cover another name or much of small boxes, unless it is the
        # first of its class.
        is_free = covered < 0.25 * patch.area and patch.overlap(names) == 0
        if is_free or box.name not in named:
            named.add(box.name)
            patches.append(Annotation(patch, text, "", box.color))
    return patches


def _place(
    box: Rectangle, size: tuple[float, float], image_size: tuple[int, int], occupied: np.ndarray
) -> tuple[Rectangle, float]:
    """The position of a name with the least overlap with ``occupied`` (N, 4), preferably above its box.

    Returns:
        The rectangle of the name and the area of the overlap.
    """
    width, height = size
    starts = (
        (box.left, box.top - height),
        (box.left, box.top),
        (box.right - width, box.top - height),
        (box.left, box.bottom),
        (box.right - width, box.bottom),
        (box.left, box.bottom - height),
    )
    candidates = []
    for x, y in starts:
        left = min(max(x, 0.0), max(image_size[0] - width, 0.0))
        top = min(max(y, 0.0), max(image_size[1] - height, 0.0))
        candidate = Rectangle(left, top, left + width, top + height)
        overlap = candidate.overlap(occupied)
        candidates.append((candidate, overlap))
        if overlap == 0:
            break
    return min(candidates, key=lambda candidate: candidate[1])
