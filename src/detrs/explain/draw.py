"""Boxes and their names on a picture.

Lines and letters grow with the picture, every class has its own colour (the first eight are Okabe and Ito's, told apart
by colour-blind people too), a name stands on a patch of that colour in black or white, whichever contrasts more, and
inside the picture, where it hides no other name and no small box if there is such a place.
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
"""Okabe and Ito, Color Universal Design (2008); their black, invisible on dark pictures, is white here."""


class Rectangle(NamedTuple):
    """In pixels; ``right`` and ``bottom`` are outside."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)

    def overlap(self, others: np.ndarray) -> float:
        """Area shared with each of the others (N, 4), added up."""
        left, top, right, bottom = others.T
        widths = np.minimum(self.right, right) - np.maximum(self.left, left)
        heights = np.minimum(self.bottom, bottom) - np.maximum(self.top, top)
        return float((widths.clip(min=0) * heights.clip(min=0)).sum())


class Mark(NamedTuple):
    """A place in the picture with its name and colour: a box, or the patch its name stands on."""

    place: Rectangle
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
    """Draws boxes with their class names, and their scores where given, best on top.

    Args:
        image: RGB picture, 0..255.
        boxes_xyxy: (x1, y1, x2, y2) in pixels. Parts outside of the picture are cut; a box that lies outside
            altogether, or is not finite, cannot be drawn and is left out.
        labels: Class indices into ``names``.
        names: Names of all classes.
        scores: Written after the names.
        min_size: A picture whose long side is shorter (pixels) is first enlarged by a whole factor, so that names can
            be read on it; 0 keeps every size.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    factor = max(1, math.ceil(min_size / max(picture.size)))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    texts = [names[label] for label in labels.tolist()]
    order = list(range(len(texts)))
    if scores is not None:
        values = scores.tolist()
        texts = [f"{name} {value:.2f}" for name, value in zip(texts, values, strict=True)]
        order.sort(key=lambda i: values[i], reverse=True)
    places = [_clip(box, picture.size) for box in (boxes_xyxy.double() * factor).tolist()]
    colors = [class_color(label) for label in labels.tolist()]
    boxes = [Mark(place, texts[i], colors[i]) for i in order if (place := places[i]) is not None]  # best first

    letters = _letters(picture.size, [box.place.area for box in boxes])
    line = max(2, round(letters / 5))
    font = _font(letters)
    canvas = ImageDraw.Draw(picture)
    for box in reversed(boxes):
        _outline(canvas, box.place, box.color, line)
    for patch in reversed(_patches(boxes, font, line, picture.size)):
        canvas.rectangle(_pixels(patch.place), fill=patch.color)
        start = (patch.place.left + line, patch.place.top)
        canvas.text(start, patch.text, fill=text_color(patch.color), font=font)
    return picture


def draw_detections(
    image: UInt8[Tensor, "3 H W"], detections: Detections, threshold: float = 0.5, *, min_size: int = 384
) -> Image.Image:
    """Draws the detections whose score is at least ``threshold`` on the image they were found in."""
    assert tuple(image.shape[1:]) == tuple(detections.image_size), (image.shape, detections.image_size)
    found = detections.filter(threshold)
    return draw_boxes(image, found.boxes_xyxy, found.labels, found.classes.names, found.scores, min_size=min_size)


def grid(
    pictures: Sequence[Image.Image], *, columns: int = 0, captions: Sequence[str] = (), max_size: int = 2400
) -> Image.Image:
    """Tiles pictures of any sizes row by row, each as large as fits into a cell of their median width and height.

    Args:
        pictures: At least one.
        columns: Pictures in a row; 0: as many as make the whole about square.
        captions: A line of text under each picture (file names; "truth" and "found"); empty: none.
        max_size: Longest side of the cells together, in pixels; larger cells shrink to it.
    """
    assert pictures and len(captions) in (0, len(pictures)), (len(pictures), len(captions))
    width, height = (statistics.median(picture.size[axis] for picture in pictures) for axis in (0, 1))
    columns = columns or min(len(pictures), max(1, round(math.sqrt(len(pictures) * height / width))))
    rows = math.ceil(len(pictures) / columns)
    scale = min(1.0, max_size / (columns * width), max_size / (rows * height))
    width, height = math.ceil(width * scale), math.ceil(height * scale)
    gap = max(2, min(width, height) // 60)
    font = _font(_letters((width, height)))
    strip = sum(font.getmetrics()) + gap if captions else 0

    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + strip + gap) + gap), PAPER)
    canvas = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        left, top = gap + column * (width + gap), gap + row * (height + strip + gap)
        fitting = ImageOps.contain(picture, (width, height), Image.Resampling.LANCZOS)
        sheet.paste(fitting, (left + (width - fitting.width) // 2, top + (height - fitting.height) // 2))
        if captions:
            text = _shorten(captions[i], font, width)
            canvas.text((left + width / 2, top + height), text, fill=BLACK, font=font, anchor="ma")
    return sheet


def class_color(label: int) -> Color:
    """The colour of a class, the same in every picture."""
    if label < len(OKABE_ITO):
        return OKABE_ITO[label]
    hue = label * 0.6180339887 % 1.0  # golden ratio: neighbours in the list are far apart on the circle
    red, green, blue = colorsys.hls_to_rgb(hue, (0.4, 0.7, 0.55)[label % 3], (0.9, 0.7, 0.5)[label // 3 % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher contrast (WCAG 2) on ``background``."""
    return BLACK if contrast(BLACK, background) >= contrast(WHITE, background) else WHITE


def contrast(one: Color, other: Color) -> float:
    """Contrast ratio of two colours after WCAG 2: 1 (same) to 21 (black on white)."""

    def luminance(color: Color) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _letters(size: tuple[int, int], areas: Sequence[float] = ()) -> int:
    """Size of the letters in pixels: in proportion to the picture, smaller where most boxes are small."""
    side = math.sqrt(size[0] * size[1])
    usual = math.sqrt(statistics.median(areas)) if areas else side
    return round(max(10, 0.014 * side, min(0.025 * side, 0.4 * usual)))


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The font that matplotlib ships knows Greek, Cyrillic and Arabic too; the one inside Pillow only Latin.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _clip(box: list[float], size: tuple[int, int]) -> Rectangle | None:
    """The part of a box that lies in the picture, ``None`` where there is none."""
    x1, y1, x2, y2 = box
    width, height = size
    if not all(map(math.isfinite, box)) or x2 < x1 or y2 < y1 or x2 < 0 or y2 < 0 or x1 >= width or y1 >= height:
        return None
    return Rectangle(max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))


def _pixels(box: Rectangle) -> tuple[int, int, int, int]:
    """First and last pixel of each axis, as Pillow wants them."""
    left, top = math.floor(box.left), math.floor(box.top)
    return left, top, max(left, math.ceil(box.right) - 1), max(top, math.ceil(box.bottom) - 1)


def _outline(canvas: ImageDraw.ImageDraw, box: Rectangle, color: Color, line: int) -> None:
    """A coloured line along the inside of the box, and inside of it a thin dark one, for pictures of that colour."""
    left, top, right, bottom = _pixels(box)
    if min(right - left, bottom - top) > 5 * line:
        red, green, blue = color
        within = (left + line, top + line, right - line, bottom - line)
        canvas.rectangle(within, outline=(red // 3, green // 3, blue // 3), width=max(1, line // 3))
    else:  # of a small object the line must leave something to be seen
        line = max(1, line // 2)
    canvas.rectangle((left, top, right, bottom), outline=color, width=line)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text in one line, cut so that it fits into ``width`` pixels."""
    text = " ".join(text.split())  # a line break cannot be drawn
    if font.getlength(text) <= width:
        return text
    fitting = (text[:length] + "…" for length in range(len(text) - 1, 0, -1))
    return next((short for short in fitting if font.getlength(short) <= width), "")


def _patches(boxes: Sequence[Mark], font: ImageFont.FreeTypeFont, margin: int, picture: tuple[int, int]) -> list[Mark]:
    """Where the names of the boxes stand. The first box chooses first."""
    places = np.array([box.place for box in boxes]).reshape(-1, 4)
    areas = np.array([box.place.area for box in boxes])
    patches: list[Mark] = []
    for box in boxes:
        text = _shorten(box.text, font, picture[0] - 2 * margin)
        size = (font.getlength(text) + 2 * margin, sum(font.getmetrics()))
        names = np.array([patch.place for patch in patches]).reshape(-1, 4)
        small = places[areas < 4 * size[0] * size[1]]
        place, hidden = _place(box.place, size, picture, np.concatenate([names, small]))
        # In a crowd a name would hide more than it says, and the colour names the class as well.
        if hidden < 0.25 * place.area or all(patch.color != box.color for patch in patches):
            patches.append(Mark(place, text, box.color))
    return patches


def _place(
    box: Rectangle, size: tuple[float, float], picture: tuple[int, int], taken: np.ndarray
) -> tuple[Rectangle, float]:
    """Where a name hides least of what is ``taken`` (N, 4), above its box if it can, and how much it hides there."""
    width, height = size
    starts = (
        (box.left, box.top - height),
        (box.left, box.top),
        (box.right - width, box.top - height),
        (box.left, box.bottom),
        (box.right - width, box.bottom),
        (box.left, box.bottom - height),
    )
    places = []
    for x, y in starts:
        left, top = min(max(x, 0.0), max(picture[0] - width, 0.0)), min(max(y, 0.0), max(picture[1] - height, 0.0))
        place = Rectangle(left, top, left + width, top + height)
        hidden = place.overlap(taken)
        places.append((place, hidden))
        if hidden == 0:
            break
    return min(places, key=lambda place: place[1])
