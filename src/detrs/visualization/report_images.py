"""Images of a report: ground truth and detections side by side, and parts of images with a label to check."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional

from detrs.visualization.draw import draw_boxes

SIDE = 560
"""Long side in pixels of an image."""
WIDE = 2
"""Ratio of width and height above which both sides are one below the other."""
GAP = 6
"""Pixels between both sides."""
PART = 300
"""Side in pixels of a part."""
CONTEXT = 2.5
"""Side of a part relative to the box."""
RIGHT_COLOR, WHITE, ORANGE, BLACK = (0, 230, 118), (255, 255, 255), (255, 140, 0), (0, 0, 0)


class Drawn(NamedTuple):
    """Boxes of one side."""

    boxes_xyxy: Float[Tensor, "N 4"]
    labels: Sequence[int]
    is_right: Sequence[bool]
    """Right detections, or objects that are found."""
    scores: Sequence[float] | None = None


def side_by_side(image: UInt8[Tensor, "3 H W"], truth: Drawn, found: Drawn, names: Sequence[str]) -> Image.Image:
    """The ground truth on the left and the detections on the right, or below for wide images; what is wrong has its
    name."""
    height, width = image.shape[1:]
    is_wide = width > WIDE * height
    one, other = (_side(image, each, names, 2 * SIDE if is_wide else SIDE) for each in (truth, found))
    right, down = (0, one.height + GAP) if is_wide else (one.width + GAP, 0)
    sheet = Image.new("RGB", (right + one.width, down + one.height), WHITE)
    sheet.paste(one, (0, 0))
    sheet.paste(other, (right, down))
    return sheet


def _side(image: UInt8[Tensor, "3 H W"], drawn: Drawn, names: Sequence[str], side: int) -> Image.Image:
    height, width = image.shape[1:]
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    resized = functional.resize_image(image.as_subclass(Tensor), size, antialias=True)
    boxes = drawn.boxes_xyxy.float() * torch.tensor([size[1] / width, size[0] / height] * 2)
    canvas = Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())
    pen = ImageDraw.Draw(canvas)
    for box, right in zip(boxes.tolist(), drawn.is_right, strict=True):
        if right:
            outline(pen, box, RIGHT_COLOR, 2)
    wrong = [index for index, right in enumerate(drawn.is_right) if not right]
    scores = None if drawn.scores is None else torch.tensor([drawn.scores[index] for index in wrong])
    labels = torch.tensor([drawn.labels[index] for index in wrong], dtype=torch.long)
    return draw_boxes(functional.pil_to_tensor(canvas), boxes[wrong], labels, names, scores, min_size=0)


def part(image: UInt8[Tensor, "3 H W"], label: Sequence[float] | None, found: Sequence[float] | None) -> Image.Image:
    """The part around a box (x, y, w, h), with the box of the label in white and that of the detection in orange."""
    boxes = [box for box in (label, found) if box is not None]
    low = [min(box[axis] for box in boxes) for axis in (0, 1)]
    high = [max(box[axis] + box[axis + 2] for box in boxes) for axis in (0, 1)]
    height, width = image.shape[1:]
    side = min(max(24.0, CONTEXT * max(high[0] - low[0], high[1] - low[1])), float(max(height, width)))
    left, top = ((low[axis] + high[axis] - side) / 2 for axis in (0, 1))
    left, top = round(min(max(left, 0), max(width - side, 0))), round(min(max(top, 0), max(height - side, 0)))
    right, bottom = min(width, left + round(side)), min(height, top + round(side))
    cut = image.as_subclass(Tensor)[:, top:bottom, left:right]
    scale = PART / max(cut.shape[1:])
    size = [max(1, round(length * scale)) for length in cut.shape[1:]]
    canvas = Image.fromarray(functional.resize_image(cut, size).permute(1, 2, 0).contiguous().numpy())
    pen = ImageDraw.Draw(canvas)
    for box, color in ((found, ORANGE), (label, WHITE)):
        if box is not None:
            x, y, w, h = box
            corners = zip((x, y, x + w, y + h), (left, top) * 2, strict=True)
            outline(pen, [(value - offset) * scale for value, offset in corners], color, 3)
    return canvas


def outline(pen: ImageDraw.ImageDraw, box_xyxy: Sequence[float], color: tuple[int, int, int], width: int) -> None:
    """An outline with a dark line around it, visible on any image."""
    x1, y1, x2, y2 = box_xyxy
    x2, y2 = max(x1, x2), max(y1, y2)
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=BLACK)
    pen.rectangle((x1, y1, x2, y2), outline=color, width=width)
