"""The nouns of the family: tensors that always travel together have one name.

Legend of axes, used in every shape comment of this library::

    B images   L levels   S tokens of all levels   Q queries   M heads   P points
    D channels per head   C channels   K classes   N objects of one image

Sizes are ``(height, width)``; points are ``(x, y)``; boxes are ``(cx, cy, w, h)`` in [0, 1] of the un-padded image
unless the name says otherwise (``boxes_xyxy``: pixels). Masks are ``True`` where padded.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
"""Sizes of the levels, ``((h, w), ...)`` as Python ints: no device synchronisation, clean export."""


class Classes(NamedTuple):
    """The class-id contract: contiguous inside, the data set's own ids and names everywhere outside."""

    names: tuple[str, ...]
    """Name of each class; the index is the label inside the library, 0 .. K-1."""
    category_ids: tuple[int, ...]
    """The data set's own id of each class."""


class Target(NamedTuple):
    """What one image should be turned into. Crowd regions are never targets; they matter in evaluation only."""

    boxes: Float[Tensor, "N 4"]
    """cxcywh in [0, 1] of the un-padded image."""
    labels: Int[Tensor, "N"]
    """Contiguous class index, 0 .. K-1 (int64)."""
    image_id: int
    """The data set's own id of the image."""
    original_size: tuple[int, int]
    """(height, width) in pixels of the image as stored, after EXIF orientation."""

    def to(self, device: torch.device | str) -> "Target":
        return self._replace(
            boxes=self.boxes.to(device, non_blocking=True), labels=self.labels.to(device, non_blocking=True)
        )


class Batch(NamedTuple):
    """Images padded right and bottom to a common size, and their targets."""

    images: Tensor
    """(B, 3, H, W): uint8 as the loader makes it, float32 normalised (and zero where padded) as a detector takes it."""
    padding: Bool[Tensor, "B H W"]
    """True where there is no image."""
    targets: tuple[Target, ...]

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(
            self.images.to(device, non_blocking=True),
            self.padding.to(device, non_blocking=True),
            tuple(target.to(device) for target in self.targets),
        )


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of all levels as one sequence of tokens, fine to coarse, row-major within a level."""

    tokens: Float[Tensor, "B S C"]
    position: Float[Tensor, "B S _"]
    """Position embedding (plus level embedding) of each token, C channels; where attention goes along rows and columns,
    C of the column, then C of the row."""
    reference: Float[Tensor, "B S 2"]
    """(x, y) of each token's centre, in [0, 1] of the un-padded image (beyond 1 where padded)."""
    padding: Bool[Tensor, "B S"]
    shapes: Shapes
    valid_ratio: Float[Tensor, "B L 2"]
    """(x, y): share of each level's width and height that is image, not padding."""

    def with_tokens(self, tokens: Float[Tensor, "B S C"]) -> "Pyramid":
        return replace(self, tokens=tokens)

    def maps(self) -> list[Float[Tensor, "B C _ _"]]:
        """The tokens as one (B, C, H, W) map per level."""
        levels = self.tokens.split([h * w for h, w in self.shapes], dim=1)
        return [level.transpose(1, 2).unflatten(2, (h, w)) for level, (h, w) in zip(levels, self.shapes, strict=True)]


@dataclass(frozen=True)
class Queries:
    """Object queries: what each is, where it sits, and the point or box it refers to, if any."""

    content: Float[Tensor, "B Q C"]
    position: Float[Tensor, "B Q _"]
    """Position embedding, C channels; where attention goes along rows and columns, C of the point, of its column and of
    its row."""
    reference: Float[Tensor, "B Q _"]
    """Reference point (x, y), reference box (cx, cy, w, h), or nothing: (B, Q, 0), where queries have none (DETR)."""

    def with_content(self, content: Float[Tensor, "B Q C"]) -> "Queries":
        return replace(self, content=content)

    def with_reference(self, reference: Float[Tensor, "B Q _"]) -> "Queries":
        return replace(self, reference=reference)


class Prediction(NamedTuple):
    """One set of boxes per image."""

    logits: Float[Tensor, "B Q K"]
    """One per class, or those and "no object": see ``detrs.classification``."""
    boxes: Float[Tensor, "B Q 4"]
    """cxcywh in [0, 1] of the un-padded image."""


class Predictions(NamedTuple):
    """Everything a detector says in one forward pass."""

    layers: tuple[Prediction, ...]
    """One prediction per decoder layer; the last is the result, the others feed the auxiliary losses."""
    proposals: Prediction | None
    """What the encoder proposes, one box per token (two-stage detectors); ``None`` otherwise."""

    @property
    def last(self) -> Prediction:
        return self.layers[-1]


@dataclass(frozen=True)
class Detections:
    """The boxes found in one image, best first, in pixels of the original image."""

    boxes_xyxy: Float[Tensor, "N 4"]
    """(x1, y1, x2, y2) in pixels of the original image (after EXIF orientation); a Predictor has clipped them."""
    scores: Float[Tensor, "N"]
    labels: Int[Tensor, "N"]
    """Contiguous class index: ``classes.names[label]`` is its name, ``classes.category_ids[label]`` its own id."""
    classes: Classes
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    source: str = ""
    """Where the image came from: a path, or empty for arrays."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.classes.names[label] for label in self.labels.tolist()]

    def filter(self, threshold: float) -> "Detections":
        """Only the detections whose score is at least ``threshold``."""
        keep = self.scores >= threshold
        return replace(self, boxes_xyxy=self.boxes_xyxy[keep], scores=self.scores[keep], labels=self.labels[keep])

    def clipped(self) -> "Detections":
        """Boxes that end where the image does; DETRs may look beyond it."""
        height, width = self.image_size
        limits = self.boxes_xyxy.new_tensor([width, height, width, height])
        return replace(self, boxes_xyxy=self.boxes_xyxy.clamp(min=0).minimum(limits))

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO results: ``{image_id, category_id, bbox: [x, y, w, h], score}`` with the data set's own category ids."""
        return [
            {
                "image_id": image_id,
                "category_id": self.classes.category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in zip(
                self.boxes_xyxy.double().tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
            )
        ]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for ``json.dumps``; boxes rounded to 1/100 pixel."""
        return {
            "source": self.source,
            "image_size": list(self.image_size),
            "detections": [
                {
                    "box_xyxy": [round(value, 2) for value in box],
                    "score": round(score, 6),
                    "name": self.classes.names[label],
                    "category_id": self.classes.category_ids[label],
                }
                for box, score, label in zip(
                    self.boxes_xyxy.double().tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
                )
            ],
        }

    def to_supervision(self) -> Any:
        """The same as a ``supervision.Detections`` (``pip install supervision``)."""
        try:
            import supervision  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise ImportError("to_supervision() needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={"class_name": self.names},
        )
