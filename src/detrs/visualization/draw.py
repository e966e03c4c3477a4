"""Boxes with class names, drawn on images.

Line width and font size scale with the image. Every class has its own color; the first eight are the palette of Okabe
and Ito, which color-blind people can distinguish. A name is printed on a patch of the class color, in black or white,
whichever has the higher contrast. The patch lies inside the image and, where possible, covers no other name and no
small box.
"""

import colorsys
import functools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from detrs.structures import Detections

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
    """A rectangle with a text and a color: a box, or the patch on which its name is printed."""

    rectangle: Rectangle
    text: str
    color: Color


def draw_boxes(
    image: UInt8[Tensor, "3 H W"],
    boxes_xyxy: Float[Tensor, "N 4"],
    labels: Int[Tensor, "N"],
    names: Sequence[str],
    scores: Float[Tensor, "N"] | None = None,
    *,
    min_size: int = 384,
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

    Returns:
        A new image; ``image`` is not modified.
    """
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    factor = max(1, math.ceil(min_size / max(drawn.size)))
    if factor > 1:
        drawn = drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.BICUBIC)
    texts = [names[label] for label in labels.tolist()]
    order = list(range(len(texts)))
    if scores is not None:
        values = scores.tolist()
        texts = [f"{name} {value:.2f}" for name, value in zip(texts, values, strict=True)]
        order.sort(key=lambda i: values[i], reverse=True)
    rectangles = [_clip(box, drawn.size) for box in (boxes_xyxy.double() * factor).tolist()]
    colors = [class_color(label) for label in labels.tolist()]
    boxes = [  # highest score first
        Annotation(rectangle, texts[i], colors[i]) for i in order if (rectangle := rectangles[i]) is not None
    ]

    font_size = _font_size(drawn.size, [box.rectangle.area for box in boxes])
    line_width = max(2, round(font_size / 5))
    font = _font(font_size)
    canvas = ImageDraw.Draw(drawn)
    for box in reversed(boxes):
        _outline(canvas, box.rectangle, box.color, line_width)
    for patch in reversed(_name_patches(boxes, font, line_width, drawn.size)):
        canvas.rectangle(_pixels(patch.rectangle), fill=patch.color)
        start = (patch.rectangle.left + line_width, patch.rectangle.top)
        canvas.text(start, patch.text, fill=text_color(patch.color), font=font)
    return drawn


def draw_detections(
    image: UInt8[Tensor, "3 H W"], detections: Detections, threshold: float = 0.5, *, min_size: int = 384
) -> Image.Image:
    """Draws the detections of ``image`` with scores of at least ``threshold``."""
    assert tuple(image.shape[1:]) == tuple(detections.image_size), (image.shape, detections.image_size)
    found = detections.filter(threshold)
    return draw_boxes(image, found.boxes_xyxy, found.labels, found.classes.names, found.scores, min_size=min_size)


def grid(
    images: Sequence[Image.Image], *, columns: int = 0, captions: Sequence[str] = (), max_size: int = 2400
) -> Image.Image:
    """Tiles images of any sizes row by row. All cells have the median width and height; every image is scaled to fit.

    Args:
        images: At least one.
        columns: Images per row; 0 chooses the number that makes the grid about square.
        captions: One line of text below each image, or none at all.
        max_size: Longest side of all cells together, in pixels; larger grids are scaled down to it.
    """
    assert images and len(captions) in (0, len(images)), (len(images), len(captions))
    width, height = (statistics.median(image.size[axis] for image in images) for axis in (0, 1))
    columns = columns or min(len(images), max(1, round(math.sqrt(len(images) * height / width))))
    rows = math.ceil(len(images) / columns)
    scale = min(1.0, max_size / (columns * width), max_size / (rows * height))
    width, height = math.ceil(width * scale), math.ceil(height * scale)
    gap = max(2, min(width, height) // 60)
    font = _font(_font_size((width, height)))
    caption_height = sum(font.getmetrics()) + gap if captions else 0

    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + caption_height + gap) + gap), PAPER)
    canvas = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        left, top = gap + column * (width + gap), gap + row * (height + caption_height + gap)
        scaled = ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS)
        sheet.paste(scaled, (left + (width - scaled.width) // 2, top + (height - scaled.height) // 2))
        if captions:
            text = _shorten(captions[i], font, width)
            canvas.text((left + width / 2, top + height), text, fill=BLACK, font=font, anchor="ma")
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


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The font of matplotlib includes Greek, Cyrillic and Arabic; that of Pillow is limited to Latin.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


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


def _outline(canvas: ImageDraw.ImageDraw, box: Rectangle, color: Color, line_width: int) -> None:
    """Draws a colored line along the inside of the box, with a thin dark line inside it for images of that color."""
    left, top, right, bottom = _pixels(box)
    if min(right - left, bottom - top) > 5 * line_width:
        red, green, blue = color
        inner = (left + line_width, top + line_width, right - line_width, bottom - line_width)
        canvas.rectangle(inner, outline=(red // 3, green // 3, blue // 3), width=max(1, line_width // 3))
    else:  # a thinner line, so that it does not cover a small object
        line_width = max(1, line_width // 2)
    canvas.rectangle((left, top, right, bottom), outline=color, width=line_width)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text as a single line, truncated to ``width`` pixels."""
    text = " ".join(text.split())  # line breaks would be drawn as boxes
    if font.getlength(text) <= width:
        return text
    shorter = (text[:length] + "…" for length in range(len(text) - 1, 0, -1))
    return next((short for short in shorter if font.getlength(short) <= width), "")


def _name_patches(
    boxes: Sequence[Annotation], font: ImageFont.FreeTypeFont, margin: int, image_size: tuple[int, int]
) -> list[Annotation]:
    """The patches with the names of the boxes, placed greedily in the order of ``boxes``.

    ``image_size`` is (width, height) as in Pillow.
    """
    rectangles = np.array([box.rectangle for box in boxes]).reshape(-1, 4)
    areas = np.array([box.rectangle.area for box in boxes])
    patches: list[Annotation] = []
    for box in boxes:
        text = _shorten(box.text, font, image_size[0] - 2 * margin)
        size = (font.getlength(text) + 2 * margin, sum(font.getmetrics()))
        names = np.array([patch.rectangle for patch in patches]).reshape(-1, 4)
        small = rectangles[areas < 4 * size[0] * size[1]]
        patch, covered = _place(box.rectangle, size, image_size, np.concatenate([names, small]))
        # Among crowded boxes a name is skipped if it would cover much; the color still identifies the class.
        if covered < 0.25 * patch.area or all(other.color != box.color for other in patches):
            patches.append(Annotation(patch, text, box.color))
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
