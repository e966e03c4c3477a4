"""COCO average precision, computed by hotcoco: equal to pycocotools to the last digit, without its pitfalls.

With pycocotools, a diverged model can score *higher* than a good one (AP 0.70 for boxes that are all NaN, where the
correct boxes get 0.50), an annotation with id 0 is never matched, and metrics without ground truth are -1. Here all
detections are validated first, all ids are renumbered from 1, and undefined metrics are ``None``.

Detections of equal score are ordered by image id and, within an image, as given, as in pycocotools. Boxes and scores
are not rounded: rounding boxes to integer pixels changes AP by 0.02.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import hotcoco
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from detrs.data.annotation_rows import AnnotationRows
from detrs.data.objects import Objects
from detrs.errors import UserError, counted, printable
from detrs.html_table import html_table, score, text

Id = int | str

COLUMNS = ("", "all", "IoU 0.50", "IoU 0.75", "top 1", "top 10", "small", "medium", "large")
"""Columns of the table of scores."""
ALL, SMALL, MEDIUM, LARGE = range(4)  # index of the object size in the evaluator's arrays: all, < 32^2, < 96^2, above


@dataclass(frozen=True)
class CocoReport:
    """The twelve COCO metrics, metrics per class, and counts. ``None`` means undefined: there are no such objects."""

    ap: float | None
    """Average precision over the IoU thresholds 0.50, 0.55 .. 0.95, known as "COCO AP"."""
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    """Objects with an area below 32^2 pixels."""
    ap_medium: float | None
    ap_large: float | None
    """Objects with an area above 96^2 pixels."""
    ar1: float | None
    """Average recall with one detection per image and class."""
    ar10: float | None
    ar100: float | None
    """Average recall with ``max_detections`` detections per image and class (100 by default)."""
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, dict[str, float | None]]
    """Class name -> ``ap``, ``ap50``, ``ar`` (at ``max_detections``), ``num_objects``."""
    num_images: int
    num_objects: int
    """Ground-truth objects without crowd regions."""
    num_crowd: int
    """Crowd regions; detections in them are ignored."""
    num_detections: int
    num_skipped: int = 0
    """Images of the dataset that are missing or unreadable; they are not part of the scores."""

    def scalars(self) -> dict[str, float | None]:
        """All metrics except those per class, as a flat dictionary."""
        return {name: value for name, value in self.to_json().items() if name != "per_class"}

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable dictionary with full precision."""
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        counts = (
            f"{counted(self.num_images, 'image')}, {counted(self.num_objects, 'object')}, "
            f"{counted(self.num_crowd, 'crowd region')}, {counted(self.num_detections, 'detection')}"
        )
        precision, recall = self._rows()
        summary = html_table(COLUMNS, [("AP", *map(score, precision)), ("AR", *map(score, recall))])
        classes = [
            (text(name), f"{row['num_objects']:,}", *(score(row[key]) for key in ("ap", "ap50", "ar")))
            for name, row in self.per_class.items()
        ]
        return f"<div><p>{counts}</p>{summary}{html_table(('class', 'objects', 'AP', 'AP50', 'AR'), classes)}</div>"

    def _rows(self) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
        """AP and AR for ``COLUMNS``."""
        precision = (self.ap, self.ap50, self.ap75, None, None, self.ap_small, self.ap_medium, self.ap_large)
        recall = (self.ar100, None, None, self.ar1, self.ar10, self.ar_small, self.ar_medium, self.ar_large)
        return precision, recall

    def table(self) -> RenderableType:
        """The report as rich tables: the twelve metrics and the metrics per class."""
        skipped = f" ({self.num_skipped:,} skipped: missing or unreadable)" if self.num_skipped else ""
        summary = Table(
            title=f"{counted(self.num_images, 'image')}{skipped}, {counted(self.num_objects, 'object')}, "
            f"{counted(self.num_crowd, 'crowd region')}, {counted(self.num_detections, 'detection')}",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        for column in COLUMNS:
            summary.add_column(column, justify="right")
        precision, recall = self._rows()
        summary.add_row("AP", *map(score, precision), style="bold")
        summary.add_row("AR", *map(score, recall))
        classes = Table("class", box=SIMPLE_HEAD)
        for column in ("objects", "AP", "AP50", "AR"):
            classes.add_column(column, justify="right")
        for name, numbers in self.per_class.items():
            figures = [score(numbers[key]) for key in ("ap", "ap50", "ar")]
            classes.add_row(Text(printable(name)), f"{numbers['num_objects']:,}", *figures)
        return Group(summary, classes)


def coco_report(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, max_detections: int = 100
) -> CocoReport:
    """Scores detections against ground truth.

    Args:
        ground_truth: Dictionary in COCO format with ``images``, ``annotations``, ``categories``. Ids are integers or
            strings; ``iscrowd`` defaults to 0 and ``area`` to w * h of the box. Not modified.
        results: ``{image_id, category_id, bbox: [x, y, w, h], score}`` with the ids of ``ground_truth``, boxes in
            pixels, unrounded.
        max_detections: Maximum number of detections per image and class, highest scores first.

    Raises:
        UserError: A box or score is not finite or a size is negative (a diverged model), an image or category id is
            unknown, or an annotation id is not unique.
    """
    images = numbering(image["id"] for image in ground_truth["images"])
    categories = numbering(category["id"] for category in ground_truth["categories"])
    truth = validated_truth(ground_truth, images, categories)
    _, precision, recall = accumulated(truth, result_rows(results, images, categories), max_detections)

    names = class_names(ground_truth["categories"])
    annotations = ground_truth["annotations"]
    objects = object_counts(annotations)
    return CocoReport(
        ap=mean(precision[:, :, :, ALL, -1]),
        ap50=mean(precision[0, :, :, ALL, -1]),
        ap75=mean(precision[5, :, :, ALL, -1]),
        ap_small=mean(precision[:, :, :, SMALL, -1]),
        ap_medium=mean(precision[:, :, :, MEDIUM, -1]),
        ap_large=mean(precision[:, :, :, LARGE, -1]),
        ar1=mean(recall[:, :, ALL, 0]),
        ar10=mean(recall[:, :, ALL, 1]),
        ar100=mean(recall[:, :, ALL, 2]),
        ar_small=mean(recall[:, :, SMALL, -1]),
        ar_medium=mean(recall[:, :, MEDIUM, -1]),
        ar_large=mean(recall[:, :, LARGE, -1]),
        per_class={
            names[category_id]: {
                "ap": mean(precision[:, :, k, ALL, -1]),
                "ap50": mean(precision[0, :, k, ALL, -1]),
                "ar": mean(recall[:, k, ALL, -1]),
                "num_objects": objects[category_id],
            }
            for k, category_id in enumerate(categories)
        },
        num_images=len(images),
        num_objects=objects.total(),
        num_crowd=len(annotations) - objects.total(),
        num_detections=len(results),
    )


class Accumulated(NamedTuple):
    """The evaluator after its computations."""

    evaluator: hotcoco.COCOeval
    precision: np.ndarray
    """(10 IoU thresholds, 101 recalls, K, 4 sizes, 3 limits); -1: undefined"""
    recall: np.ndarray
    """(10, K, 4, 3)"""


def accumulated(truth: hotcoco.COCO, rows: np.ndarray, max_detections: int) -> Accumulated:
    """Evaluate detections.

    Args:
        truth: with ids that are numbers from 1.
        rows: (N, 7) image, x, y, w, h, score, category.
        max_detections: see ``coco_report``.
    """
    if max_detections < 1:
        raise UserError(f"max_detections must be at least 1, got {max_detections}.")
    evaluator = hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")
    evaluator.params.max_dets = [min(1, max_detections), min(10, max_detections), max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None
    return Accumulated(evaluator, evaluator.eval["precision"], evaluator.eval["recall"])


def numbering(ids: Iterable[Id]) -> dict[Id, int]:
    """Maps the ids, in the order in which the evaluator sorts them, to 1, 2, .."""
    return {id: number for number, id in enumerate(sorted(set(ids), key=lambda id: (isinstance(id, str), id)), start=1)}


def class_names(categories: list[dict[str, Any]]) -> dict[Id, str]:
    """Category id -> name. Names that are not unique get the id as a suffix."""
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    count = Counter(names.values())
    return {id: name if count[name] == 1 else f"{name} ({id})" for id, name in names.items()}


def validated_truth(ground_truth: dict[str, Any], images: dict[Id, int], categories: dict[Id, int]) -> hotcoco.COCO:
    """The annotations with all ids renumbered from 1 (the evaluator treats annotation id 0 as unmatched)."""
    annotations = ground_truth["annotations"]
    if isinstance(annotations, AnnotationRows):  # checked when the dataset was opened
        objects = annotations.objects
        return hotcoco.COCO.from_arrays(
            [{"id": number} for number in images.values()],
            [{"id": number, "name": str(id)} for id, number in categories.items()],
            *numbered(objects, images, categories),
            objects.boxes,
            area=objects.area,
            iscrowd=objects.crowd,
        )
    is_crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool)  # (N,)
    repeated = [id for id, count in Counter(a["id"] for a in annotations if "id" in a).items() if count > 1]
    if repeated:
        raise UserError(f"The annotation id {repeated[0]!r} is not unique. Annotation ids must be unique.")

    def name(index: int) -> str:
        return f"Annotation {annotations[index].get('id', index)!r}"

    _check_ids(annotations, name, images, categories)
    boxes = _boxes(annotations, name)  # (N, 4)
    return hotcoco.COCO.from_arrays(
        [{"id": number} for number in images.values()],
        [{"id": number, "name": str(id)} for id, number in categories.items()],
        [images[annotation["image_id"]] for annotation in annotations],
        [categories[annotation["category_id"]] for annotation in annotations],
        boxes,
        area=[float(a.get("area", w * h)) for a, (w, h) in zip(annotations, boxes[:, 2:].tolist(), strict=True)],
        iscrowd=is_crowd.astype(int),
    )


def numbered(objects: Objects, images: dict[Id, int], categories: dict[Id, int]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of image and class (N,) of each object."""
    of_image = np.array([images.get(id, 0) for id in objects.image_ids.tolist()], dtype=np.int64)
    of_label = np.array([categories[id] for id in objects.category_ids], dtype=np.int64)
    return of_image[objects.image], of_label[objects.label]


def object_counts(annotations: Any) -> Counter[Id]:
    """Number of objects of each category id, without crowd regions."""
    if isinstance(annotations, AnnotationRows):
        objects = annotations.objects
        counts = np.bincount(objects.label[~objects.crowd], minlength=len(objects.category_ids))
        return Counter(dict(zip(objects.category_ids, counts.tolist(), strict=True)))
    return Counter(a["category_id"] for a in annotations if not a.get("iscrowd", 0))


def result_rows(results: Sequence[dict[str, Any]], images: dict[Id, int], categories: dict[Id, int]) -> np.ndarray:
    """Validates and renumbers the detections: (N, 7) with image, x, y, w, h, score, category."""

    def name(index: int) -> str:
        return f"Detection {index} (image id {results[index]['image_id']!r})"

    _check_ids(results, name, images, categories)
    boxes = _boxes(results, name)
    scores = np.array([result["score"] for result in results], dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        raise UserError(
            f"{name(int(wrong[0]))} has the score {scores[wrong[0]]} ({wrong.size} of {len(scores)} scores are not "
            "finite). The model has diverged. Use an earlier checkpoint."
        )
    image_column = np.array([images[result["image_id"]] for result in results], dtype=np.float64)
    category_column = np.array([categories[result["category_id"]] for result in results], dtype=np.float64)
    return np.column_stack([image_column, boxes, scores, category_column])


def _boxes(entries: Sequence[dict[str, Any]], name: Callable[[int], str]) -> np.ndarray:
    """Validates the boxes (x, y, w, h) of annotations or detections: (N, 4), finite, no negative size."""
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < 0).any(axis=1))
    if wrong.size:
        raise UserError(
            f"{name(int(wrong[0]))} has the box {boxes[wrong[0]].tolist()} ({wrong.size} of {len(boxes)} boxes are "
            "invalid). Expected finite x, y, width, height with width and height not negative. If the boxes are "
            "predictions, the model has diverged. Use an earlier checkpoint."
        )
    return boxes


def _check_ids(
    entries: Sequence[dict[str, Any]], name: Callable[[int], str], images: dict[Id, int], categories: dict[Id, int]
) -> None:
    for index, entry in enumerate(entries):
        for kind, known in (("image", images), ("category", categories)):
            id = entry[f"{kind}_id"]
            if id not in known:
                raise UserError(f"{name(index)} has the {kind} id {id!r}, which is not in the ground truth.")


def mean(values: np.ndarray) -> float | None:
    """Mean of the defined values, or ``None``; the evaluator marks undefined values with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
