"""The data structures of the library: tensors that are always used together have one name.

Legend of axes, used in every shape comment of this library::

    B images   L levels   S tokens of all levels   Q queries   M heads   P points
    D channels per head   C channels   K classes   N objects of one image

Sizes are ``(height, width)``; points are ``(x, y)``; boxes are ``(cx, cy, w, h)`` in [0, 1] of the un-padded image;
``boxes_xyxy`` are ``(x1, y1, x2, y2)`` in pixels. Masks are ``True`` where padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

Shapes = tuple[tuple[int, int], ...]
"""Sizes of the levels, ``((h, w), ...)`` as Python ints: no device synchronization, clean export."""


class Classes(NamedTuple):
    """The classes of a dataset: contiguous labels inside the library, the dataset's own ids and names outside."""

    names: tuple[str, ...]
    """Name of each class; the index is the label inside the library, 0 .. K-1."""
    category_ids: tuple[int, ...]
    """The dataset's own id of each class."""


class Target(NamedTuple):
    """The objects of one image. Crowd regions are never targets; only the evaluation uses them."""

    boxes: Float[Tensor, "N 4"]
    """cxcywh in [0, 1] of the un-padded image."""
    labels: Int[Tensor, "N"]
    """Contiguous class index, 0 .. K-1 (int64)."""
    image_id: int
    """The dataset's own id of the image."""
    original_size: tuple[int, int]
    """(height, width) in pixels of the image as stored, after EXIF orientation."""

    def to(self, device: torch.device | str) -> "Target":
        return self._replace(
            boxes=self.boxes.to(device, non_blocking=True), labels=self.labels.to(device, non_blocking=True)
        )


class Batch(NamedTuple):
    """Images padded right and bottom to a common size, and their targets."""

    images: Tensor
    """(B, 3, H, W): uint8 from the loader; float32, normalized and zero where padded, as the input of a detector."""
    padding: Bool[Tensor, "B H W"]
    """True where padded: right and bottom only."""
    targets: tuple[Target, ...]

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(
            self.images.to(device, non_blocking=True),
            self.padding.to(device, non_blocking=True),
            tuple(target.to(device) for target in self.targets),
        )


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Feature maps of all levels as one sequence of tokens, fine to coarse, row-major within a level."""

    tokens: Float[Tensor, "B S C"]
    position: Float[Tensor, "B S _"]
    """Position embedding (plus level embedding) of each token: C channels; with row-column attention 2C, those of the
    token's column, then those of its row."""
    reference_points: Float[Tensor, "B S 2"]
    """(x, y) of each token's center, in [0, 1] of the un-padded image (above 1 where padded)."""
    padding: Bool[Tensor, "B S"]
    """True where padded."""
    shapes: Shapes
    valid_ratio: Float[Tensor, "B L 2"]
    """(x, y): the fraction of each level's width and height that is not padding."""
    image_sizes: Int[Tensor, "B 2"]
    """(height, width) in pixels of each un-padded image, as the backbone receives it."""

    def with_tokens(self, tokens: Float[Tensor, "B S C"]) -> "Pyramid":
        return replace(self, tokens=tokens)

    def with_maps(self, maps: Sequence[Float[Tensor, "B C _ _"]]) -> "Pyramid":
        """The same pyramid with the content of ``maps``, one (B, C, H, W) per level: the inverse of ``maps()``."""
        assert tuple((level.shape[-2], level.shape[-1]) for level in maps) == self.shapes
        return self.with_tokens(torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1))

    def maps(self) -> list[Float[Tensor, "B C _ _"]]:
        """The tokens as one (B, C, H, W) map per level."""
        levels = self.tokens.split([h * w for h, w in self.shapes], dim=1)
        return [level.transpose(1, 2).unflatten(2, (h, w)) for level, (h, w) in zip(levels, self.shapes, strict=True)]


@dataclass(frozen=True, eq=False)
class Queries:
    """Object queries: content, position embedding, and a reference point or box."""

    content: Float[Tensor, "B Q C"]
    position: Float[Tensor, "B Q _"]
    """Position embedding: C channels; with row-column attention 3C, those of the point, of its column and of its
    row."""
    reference: Float[Tensor, "B Q _"]
    """Reference point (x, y) or reference box (cx, cy, w, h); (B, Q, 0) for queries without a reference (DETR)."""
    attention_mask: Bool[Tensor, "*broadcast Q Q"] | None = None
    """Self-attention: True where the query of a row attends to the query of a column, as in
    ``scaled_dot_product_attention``: (Q, Q), or (B, 1, Q, Q) with one for each image; ``None``: everywhere."""

    def part(self, index: slice) -> "Queries":
        """Some of the queries, without a mask."""
        return Queries(self.content[:, index], self.position[:, index], self.reference[:, index])

    def with_content(self, content: Float[Tensor, "B Q C"]) -> "Queries":
        return replace(self, content=content)

    def with_reference(self, reference: Float[Tensor, "B Q _"]) -> "Queries":
        return replace(self, reference=reference)


class Prediction(NamedTuple):
    """One set of boxes per image, from one decoder layer or from the encoder."""

    logits: Float[Tensor, "B Q K"]
    """One per class, and "no object" with ``Softmax``; see ``detrs.classification``."""
    boxes: Float[Tensor, "B Q 4"]
    """cxcywh in [0, 1] of the un-padded image."""

    def part(self, index: slice) -> "Prediction":
        """The predictions of some queries."""
        return Prediction(self.logits[:, index], self.boxes[:, index])


class Predictions(NamedTuple):
    """The output of one forward pass."""

    layers: tuple[Prediction, ...]
    """One prediction per decoder layer; the last is the result, the others are supervised by auxiliary losses."""
    proposals: Prediction | None
    """Encoder proposals, one box per token (two-stage detectors); ``None`` otherwise."""

    @property
    def last(self) -> Prediction:
        return self.layers[-1]


class Boxes(NamedTuple):
    """The detections of a batch as tensors of fixed size, best first: what ``detect`` returns and what is exported.

    Images with fewer than N detections are padded with boxes of score 0.
    """

    boxes: Float[Tensor, "B N 4"]
    """cxcywh in [0, 1] of the un-padded image, not clipped to it."""
    scores: Float[Tensor, "B N"]
    """In [0, 1], descending."""
    labels: Int[Tensor, "B N"]
    """Contiguous class index, 0 .. K-1 (int64)."""


class LayerBoxes(NamedTuple):
    """The detections of one decoder layer, as ``detect`` would return them if it were the last."""

    boxes: Boxes
    queries: Int[Tensor, "B N"] | None
    """The query of each detection; ``None`` for models without queries."""
    num_queries: int | None


class Losses(NamedTuple):
    """The training loss of a batch."""

    total: Float[Tensor, ""]
    """The scalar to minimize."""
    terms: dict[str, Float[Tensor, ""]]
    """Its unweighted terms by name, detached, for the log."""


class Totals(NamedTuple):
    """Counts over the whole effective batch: all micro-batches of all processes.

    Losses are sums divided by functions of these, so they do not depend on how the batch is divided.
    """

    images: int
    objects: int
    processes: int = 1
    """Number of processes whose gradients are averaged. Per-process normalizers are the global ones divided by this
    number."""

    @classmethod
    def of(cls, targets: tuple[Target, ...]) -> "Totals":
        """The counts of a batch that is not divided."""
        return cls(len(targets), sum(len(target.labels) for target in targets))


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image, best first, in pixels of the original image."""

    boxes_xyxy: Float[Tensor, "N 4"]
    """(x1, y1, x2, y2) in pixels of the original image (after EXIF orientation); clipped to it by
    ``TrainedDetector.detect``."""
    scores: Float[Tensor, "N"]
    labels: Int[Tensor, "N"]
    """Contiguous class index: ``classes.names[label]`` is its name, ``classes.category_ids[label]`` its own id."""
    classes: Classes
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    source: str | None = None
    """Path or URL of the image; ``None`` for arrays."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.classes.names[label] for label in self.labels.tolist()]

    def filter(self, threshold: float | Sequence[float]) -> "Detections":
        """The detections with a score of at least ``threshold``, or that of their class if there is one per class."""
        if isinstance(threshold, Sequence):
            return self.rows(self.scores >= self.scores.new_tensor(threshold)[self.labels])
        return self.rows(self.scores >= threshold)

    def rows(self, index: Tensor) -> "Detections":
        """The detections of a mask (N,) or of indices."""
        return replace(self, boxes_xyxy=self.boxes_xyxy[index], scores=self.scores[index], labels=self.labels[index])

    def clipped(self) -> "Detections":
        """The same detections with boxes clipped to the image; raw predictions may extend beyond it."""
        height, width = self.image_size
        limits = self.boxes_xyxy.new_tensor([width, height, width, height])
        return replace(self, boxes_xyxy=self.boxes_xyxy.clamp(min=0).minimum(limits))

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO results: ``{image_id, category_id, bbox: [x, y, w, h], score}`` with the dataset's own category ids."""
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

    def plot(
        self,
        image: Any = None,
        *,
        threshold: float = 0.0,
        show_labels: bool = True,
        line_width: int | None = None,
        color_by: Literal["class", "instance"] = "class",
    ) -> "Image.Image":
        """The detections drawn on their image, as a Pillow image, which notebooks show; ``.save(path)`` writes it.

        Args:
            image: The image in which they were found: a path, bytes, Pillow image, array (H, W, 3) in RGB or tensor
                (3, H, W). By default the file ``source``.
            threshold: Minimum score of the detections drawn, in [0, 1].
            show_labels: Print class names and scores.
            line_width: Width of the outlines in pixels; ``None``: proportional to the image.
            color_by: One color per class, or another color for each object (``instance``).

        Raises:
            UserError: There is no image, it has another size than ``image_size``, or an argument is out of range.
        """
        from detrs.visualization import notebook

        style: Any = {"show_labels": show_labels, "line_width": line_width, "color_by": color_by}
        return notebook.plot(self, image, threshold=threshold, **style)

    def __repr__(self) -> str:
        first = zip(self.names[:3], self.scores[:3].tolist(), strict=True)
        best = ", ".join(f"{name} {score:.2f}" for name, score in first)
        more = ", ..." if len(self) > 3 else ""
        height, width = self.image_size
        source = "" if self.source is None else f", source={self.source!r}"
        return f"<Detections: {len(self)} ({best}{more}), image_size=({height}, {width}){source}>"

    def _repr_html_(self) -> str:
        from detrs.visualization import notebook

        return notebook.detections_html(self)

    def to_supervision(self) -> Any:
        """The same as a ``supervision.Detections`` (``pip install supervision``)."""
        try:
            import supervision  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise ImportError("to_supervision() requires the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={"class_name": self.names},
        )
