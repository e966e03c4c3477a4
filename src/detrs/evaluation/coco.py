"""COCO average precision as a report, by hotcoco: the numbers of pycocotools to the last digit, without its traps.

A diverged model can score *better* than a good one (pycocotools gives all-NaN boxes AP 0.70 where the true boxes get
0.50), an annotation with id 0 is never matched, and numbers without ground truth come out as -1. So every detection is
checked before the evaluator sees it, all ids are renumbered from 1, and an undefined number is ``None``.

Among detections of equal score the order of the images' ids decides, and within an image the order given, as in
pycocotools; boxes and scores are never rounded (rounding boxes to whole pixels moves AP by 0.02).
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from detrs.errors import UserError

SIZES = ("all", "small", "medium", "large")  # COCO: areas below 32^2, below 96^2, and above


@dataclass(frozen=True)
class CocoReport:
    """COCO's twelve numbers, each class, and what was counted. ``None``: undefined, for there is nothing to find."""

    ap: float | None
    """Average precision over IoU thresholds 0.50, 0.55 .. 0.95: the number meant by "COCO AP"."""
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    """Objects below 32^2 pixels."""
    ap_medium: float | None
    ap_large: float | None
    """Objects above 96^2 pixels."""
    ar1: float | None
    """Average recall with one detection per image and class."""
    ar10: float | None
    ar100: float | None
    """Average recall with ``max_detections`` detections per image and class (100 unless asked otherwise)."""
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, dict[str, float | None]]
    """Class name -> ``ap``, ``ap50``, ``ar`` (at ``max_detections``), ``num_objects``."""
    num_images: int
    num_objects: int
    """Objects to be found, crowd regions not counted."""
    num_crowd: int
    """Crowd regions: detections in them count neither as right nor as wrong."""
    num_detections: int

    def scalars(self) -> dict[str, float | None]:
        """Everything but the classes: one flat dictionary, ready for a journal line or a checkpoint."""
        return {name: value for name, value in self.to_json().items() if name != "per_class"}

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for ``json.dumps``; full precision."""
        return dataclasses.asdict(self)

    def table(self) -> RenderableType:
        """The report for people: the twelve numbers, then the classes."""
        summary = Table(
            title=f"COCO on {self.num_images:,} images: {self.num_objects:,} objects, {self.num_crowd:,} crowd regions, "
            f"{self.num_detections:,} detections",
            title_justify="left",
        )
        for column in ("", "all", "IoU 0.50", "IoU 0.75", "1 per image", "10 per image", "small", "medium", "large"):
            summary.add_column(column, justify="right")
        precision = (self.ap, self.ap50, self.ap75, None, None, self.ap_small, self.ap_medium, self.ap_large)
        recall = (self.ar100, None, None, self.ar1, self.ar10, self.ar_small, self.ar_medium, self.ar_large)
        summary.add_row("[bold]precision", *map(_figure, precision))
        summary.add_row("[bold]recall", *map(_figure, recall))
        classes = Table("class", title="classes", title_justify="left")
        for column in ("objects", "AP", "AP50", "recall"):
            classes.add_column(column, justify="right")
        for name, numbers in self.per_class.items():
            figures = [_figure(numbers[key]) for key in ("ap", "ap50", "ar")]
            classes.add_row(name, f"{numbers['num_objects']:,}", *figures)
        return Group(summary, classes)


def coco_report(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, max_detections: int = 100
) -> CocoReport:
    """Scores detections against ground truth.

    Args:
        ground_truth: COCO's dictionary: ``images``, ``annotations``, ``categories``. Ids may be any integers or strings,
            ``iscrowd`` (0) and ``area`` (w h of the box) may be missing. Not changed.
        results: ``{image_id, category_id, bbox: [x, y, w, h], score}`` with the ids of ``ground_truth``, boxes in
            pixels, unrounded.
        max_detections: Detections considered per image and class, best first.

    Raises:
        UserError: A box or score is not finite or a size is negative (a diverged model), an image or category is
            unknown, an annotation id occurs twice.
    """
    if max_detections < 1:
        raise UserError(f"max_detections must be at least 1, and is {max_detections}.")
    images = _numbers(image["id"] for image in ground_truth["images"])
    categories = _numbers(category["id"] for category in ground_truth["categories"])
    annotations = ground_truth["annotations"]
    truth = _ground_truth(annotations, images, categories)
    crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool)

    evaluator = hotcoco.COCOeval(truth, truth.load_res(_rows(results, images, categories)), "bbox")
    evaluator.params.max_dets = [min(1, max_detections), min(10, max_detections), max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None
    precision = evaluator.eval["precision"]  # (T thresholds, R recalls, K classes, 4 sizes, 3 limits), -1: undefined
    recall = evaluator.eval["recall"]  # (T, K, 4, 3)

    objects = Counter(
        annotation["category_id"] for annotation, is_crowd in zip(annotations, crowd, strict=True) if not is_crowd
    )
    per_class = {
        name: {
            "ap": _mean(precision[:, :, k, 0, -1]),
            "ap50": _mean(precision[0, :, k, 0, -1]),
            "ar": _mean(recall[:, k, 0, -1]),
            "num_objects": objects[category_id],
        }
        for k, (category_id, name) in enumerate(_names(ground_truth["categories"], categories).items())
    }
    return CocoReport(
        ap50=_mean(precision[0, :, :, 0, -1]),
        ap75=_mean(precision[5, :, :, 0, -1]),
        ar1=_mean(recall[:, :, 0, 0]),
        ar10=_mean(recall[:, :, 0, 1]),
        **{_key("ap", "ap", size): _mean(precision[:, :, :, i, -1]) for i, size in enumerate(SIZES)},
        **{_key("ar", "ar100", size): _mean(recall[:, :, i, -1]) for i, size in enumerate(SIZES)},
        per_class=per_class,
        num_images=len(images),
        num_objects=objects.total(),
        num_crowd=int(crowd.sum()),
        num_detections=len(results),
    )
