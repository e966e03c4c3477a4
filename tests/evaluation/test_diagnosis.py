"""Confusion, curves, errors, calibration and the rest, against computations of their own and numbers by hand."""

import contextlib
import io
import json
from typing import Any

import hotcoco
import numpy as np
import pytest
from crowded import dataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrs.evaluation import coco
from detrs.evaluation.confusion import confusion_matrix
from detrs.evaluation.diagnosis import Diagnosis, diagnose
from detrs.evaluation.errors import KINDS, error_counts
from detrs.evaluation.label_errors import label_errors
from detrs.evaluation.layers import ImageLayers, query_use
from detrs.evaluation.matching import matching

SEEDS = pytest.mark.parametrize("seed", range(5))


def iou(box: Any, other: Any, crowd: bool = False) -> float:
    (x, y, w, h), (a, b, c, d) = box, other
    inside = max(0.0, min(x + w, a + c) - max(x, a)) * max(0.0, min(y + h, b + d) - max(y, b))
    return inside / (w * h if crowd else w * h + c * d - inside)


def by_image(truth: dict[str, Any], results: list[dict[str, Any]], threshold: float) -> Any:
    """For each image its objects, crowd regions, and accepted detections, best first."""
    for image in sorted(each["id"] for each in truth["images"]):
        own = [each for each in truth["annotations"] if each["image_id"] == image]
        found = [each for each in results if each["image_id"] == image and each["score"] >= threshold]
        found.sort(key=lambda each: -each["score"])
        yield [a for a in own if not a["iscrowd"]], [a for a in own if a["iscrowd"]], found


def counted(truth: dict[str, Any], results: list[dict[str, Any]], threshold: float) -> dict[tuple[Any, Any], int]:
    """The confusion matrix by loops: (true class, detected class) -> number; ``None`` is the background."""
    table: dict[tuple[Any, Any], int] = {}
    for objects, crowds, found in by_image(truth, results, threshold):
        free = list(objects)
        for each in found:
            best = max(((iou(each["bbox"], o["bbox"]), o["id"]) for o in free), default=(0.0, 0))
            if best[0] >= 0.5:
                (taken,) = (o for o in free if o["id"] == best[1])
                free.remove(taken)
                key = taken["category_id"], each["category_id"]
            elif any(
                iou(each["bbox"], c["bbox"], True) >= 0.5 and c["category_id"] == each["category_id"] for c in crowds
            ):
                continue
            else:
                key = None, each["category_id"]
            table[key] = table.get(key, 0) + 1
        for each in free:
            table[each["category_id"], None] = table.get((each["category_id"], None), 0) + 1
    return table


@SEEDS
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.875, 1.0])
def test_confusion_equals_counting(seed: int, threshold: float) -> None:
    truth, results = dataset(seed)
    matrix = confusion_matrix(matching(truth, results), threshold)
    ids = {f"class {id}": id for id in (2, 4, 9)} | {None: None}
    found = {(ids[e["truth"]], ids[e["detected"]]): e["count"] for e in matrix.to_json()["entries"]}
    assert found == counted(truth, results, threshold)
    objects = [sum(not a["iscrowd"] and a["category_id"] == id for a in truth["annotations"]) for id in (2, 4, 9)]
    assert matrix.matrix[:-1].sum(1).tolist() == objects and matrix.matrix[-1, -1] == 0


def without_crowds(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]], hotcoco.COCOeval]:
    """Without crowd regions, equal scores and IoUs of exactly 0.5, where hotcoco has other rules; and its evaluator."""
    truth, results = dataset(seed)
    truth = {**truth, "annotations": [a for a in truth["annotations"] if not a["iscrowd"]]}
    random = np.random.default_rng(seed)
    scores = random.permutation(len(results)) / len(results)
    boxes = np.array([result["bbox"] for result in results]) + random.random((len(results), 4)) / 10
    columns = zip(results, scores.tolist(), boxes.tolist(), strict=True)
    results = [{**result, "score": score, "bbox": box} for result, score, box in columns]
    images = coco.numbering(image["id"] for image in truth["images"])
    categories = coco.numbering(category["id"] for category in truth["categories"])
    rows = coco.result_rows(results, images, categories)
    return truth, results, coco.accumulated(coco.validated_truth(truth, images, categories), rows, 100).evaluator


@SEEDS
def test_confusion_and_kinds_of_errors_are_those_of_hotcoco(seed: int) -> None:
    truth, results, evaluator = without_crowds(seed)
    matched = matching(truth, results)
    theirs = evaluator.confusion_matrix(iou_thr=0.5, min_score=0.4)["matrix"]
    ours = confusion_matrix(matched, 0.4).matrix
    np.testing.assert_array_equal(ours, theirs.astype(int))
    counts = error_counts(matched, 0.0, {})
    tide = evaluator.tide_errors()["counts"]
    assert list(counts.wrong.values()) == [tide[name] for name in ("Loc", "Cls", "Dupe", "Bkg", "Both")]
    assert counts.missed == tide["Miss"]


@SEEDS
def test_curves_equal_pycocotools_and_counting(seed: int) -> None:
    truth, results = dataset(seed)
    found = diagnose(truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = truth
        api.createIndex()
        evaluator = COCOeval(api, api.loadRes([dict(result) for result in results]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][0, :, :, 0, -1]  # (101, 3)
    assert found.curves.precision["class 2"] == pytest.approx(precision[:, 0].tolist())
    assert found.curves.precision["class 4"] == pytest.approx(precision[:, 1].tolist())
    assert found.curves.precision["class 9"] is None  # no object
    assert found.curves.precision[""] == pytest.approx(precision[:, :2].mean(1).tolist())
    assert found.per_class["class 2"].ap_small == pytest.approx(evaluator.eval["precision"][:, :, 0, 1, -1].mean())
    matches = matching(truth, results)
    for index, threshold in enumerate(found.curves.threshold):
        accepted = matches.found.scores >= threshold
        right, wrong = (int((which & accepted).sum()) for which in (matches.is_right, matches.is_wrong))
        objects = sum(not a["iscrowd"] for a in truth["annotations"])
        assert found.curves.f1[""][index] == pytest.approx(2 * right / (right + wrong + objects))
    assert max(found.curves.f1[""]) == found.best_f1 == found.at_threshold.f1
    assert found.threshold == found.best_threshold and found.threshold_origin == "best F1"


@SEEDS
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_errors_add_up(seed: int, threshold: float) -> None:
    truth, results = dataset(seed)
    found = diagnose(truth, results, threshold=threshold)
    assert found.threshold == threshold and found.threshold_origin == "checkpoint"
    errors = found.errors
    accepted = sum(result["score"] >= threshold for result in results)
    assert errors.right + errors.ignored + sum(errors.wrong.values()) == accepted and errors.ignored > 0
    assert errors.right + errors.covered + errors.missed == sum(not a["iscrowd"] for a in truth["annotations"])
    assert (errors.right, sum(errors.wrong.values())) == (found.at_threshold.right, found.at_threshold.wrong)
    assert errors.covered + errors.missed == found.at_threshold.lost
    assert found.duplicates.num_detections == errors.wrong["duplicate"] >= found.duplicates.num_objects
    classes = [each.at_threshold for each in found.per_class.values()]
    assert sum(each.right for each in classes) == errors.right
    assert sum(each.lost for each in found.worst_images) == found.at_threshold.lost
    assert sum(each.wrong for each in found.worst_images) == found.at_threshold.wrong


SIDE = 100.0


def scene(*found: tuple[int, float, float, float], objects: Any = ((0, 0.0),), crowd: Any = ()) -> Any:
    """One image with squares of side 100: detections (class, left, top, score), objects (class, left)."""
    truth: dict[str, Any] = {"images": [{"id": 5}], "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}
    truth["annotations"] = [
        {"id": n + 1, "image_id": 5, "category_id": label, "bbox": [left, 0.0, SIDE, SIDE], "iscrowd": int(n in crowd)}
        for n, (label, left) in enumerate(objects)
    ]
    results = [
        {"image_id": 5, "category_id": label, "bbox": [left, top, SIDE, SIDE], "score": score}
        for label, left, top, score in found
    ]
    return truth, results


@pytest.mark.parametrize(
    ("detection", "kind", "covered"),
    [
        ((0, 50.0, 0.0, 0.9), "localization", 1),  # IoU 1/3
        ((1, 0.0, 0.0, 0.9), "classification", 1),
        ((1, 50.0, 0.0, 0.9), "both", 0),
        ((0, 500.0, 0.0, 0.9), "background", 0),
        ((0, 95.0, 0.0, 0.9), "background", 0),  # IoU 0.026
    ],
)
def test_each_kind_of_error(detection: Any, kind: str, covered: int) -> None:
    errors = diagnose(*scene(detection), threshold=0.5).errors
    assert errors.wrong == {name: int(name == kind) for name in KINDS}
    assert (errors.right, errors.covered, errors.missed) == (0, covered, 1 - covered)


def test_duplicates() -> None:
    """Three detections of the first object, two of the second, of which one is below the threshold."""
    found = ((0, 0.0, 0.0, 0.9), (0, 10.0, 0.0, 0.8), (0, 0.0, 20.0, 0.7), (0, 300.0, 0.0, 0.9), (0, 300.0, 5.0, 0.2))
    truth, results = scene(*found, objects=((0, 0.0), (0, 300.0)))
    duplicates = diagnose(truth, results, threshold=0.5).duplicates
    assert (duplicates.num_detections, duplicates.num_objects, duplicates.most, duplicates.num_images) == (2, 1, 3, 1)
    assert diagnose(truth, results, threshold=0.1).duplicates.num_objects == 2
    nothing = diagnose(truth, results, threshold=0.95).duplicates
    assert (nothing.num_detections, nothing.num_objects, nothing.most, nothing.num_images) == (0, 0, 0, 0)


def test_calibration_by_hand() -> None:
    """0.95: right; 0.85 and 0.81: one of two; 0.15: wrong; one more lies in a crowd region and is left out."""
    found = ((0, 20.0, 0.0, 0.95), (0, 600.0, 0.0, 0.85), (0, 300.0, 0.0, 0.81), (0, 600.0, 0.0, 0.15))
    truth, results = scene(*found, (0, 900.0, 0.0, 0.99), objects=((0, 0.0), (0, 300.0), (0, 900.0)), crowd={2})
    calibration = diagnose(truth, results).calibration
    assert calibration.num_detections == 4
    bins = {round(each.low, 1): each for each in calibration.bins if each.count}
    assert {low: (each.count, each.precision) for low, each in bins.items()} == {
        0.1: (1, 0.0),
        0.8: (2, 0.5),
        0.9: (1, 1.0),
    }
    assert bins[0.8].score == pytest.approx(0.83) and calibration.bins[4].score is None
    gaps = 0.15, 0.83 - 0.5, 1 - 0.95
    assert calibration.expected_error == pytest.approx((gaps[0] + 2 * gaps[1] + gaps[2]) / 4)
    assert calibration.largest_error == pytest.approx(0.33)


def kinds(truth: Any, results: Any, threshold: float = 0.5) -> list[tuple[Any, ...]]:
    found = label_errors(matching(truth, results), threshold)
    return [(each.kind, each.label, each.detected_label, each.score) for each in found]


def test_labels_to_check() -> None:
    right = [(0, 200.0 * n, 0.0, 0.6) for n in range(1, 12)] + [(1, 5000.0, 0.0, 0.6)]
    objects = [(0, 200.0 * n) for n in range(1, 12)] + [(1, 5000.0)]
    assert kinds(*scene(*right, objects=objects)) == []
    surely = (*right, (0, 9000.0, 0.0, 0.7), (0, 9005.0, 0.0, 0.65), (0, 9300.0, 0.0, 0.55))  # the last is not sure
    assert kinds(*scene(*surely, objects=objects)) == [("missing label", None, "a", 0.7)]
    varied = [(label, left, top, 0.5 + n / 100) for n, (label, left, top, _) in enumerate(right[:11])]
    assert kinds(*scene(*varied, (0, 9000.0, 0.0, 0.55), objects=objects)) == [("missing label", None, "a", 0.55)]
    assert kinds(*scene(*varied, (0, 9000.0, 0.0, 0.54), objects=objects)) == []  # below the median
    wrong = [(0, 9000.0 + 200 * n, 0.0, 0.7) for n in range(12)]  # as many as are right: half of them
    assert len(kinds(*scene(*right, *wrong[:11], objects=objects))) == 11
    assert kinds(*scene(*right, *wrong, objects=objects)) == []
    for crowd in (False, True):  # also of another class
        region = scene(*surely, objects=[*objects, (1, 9000.0)], crowd={12} if crowd else ())
        assert [each[0] for each in kinds(*region)] == ([] if crowd else ["wrong class"])
    assert kinds(*scene(*right, (1, 20.0, 0.0, 0.8), objects=[*objects, (0, 0.0)])) == []  # IoU 2/3
    assert kinds(*scene(*right, (1, 5.0, 0.0, 0.8), objects=[*objects, (0, 0.0)])) == [("wrong class", "a", "b", 0.8)]
    found_too = scene(*right, (1, 5.0, 0.0, 0.8), (0, 0.0, 0.0, 0.6), objects=[*objects, (0, 0.0)])
    assert kinds(*found_too) == []
    assert kinds(*scene(*right, (0, 50.0, 0.0, 0.8), objects=[*objects, (0, 0.0)])) == [("shifted box", "a", "a", 0.8)]
    assert kinds(*scene(*right, objects=[*objects, (0, 9000.0)])) == [("no object", "a", None, 1.0)]
    assert kinds(*scene(*right, (1, 9080.0, 0.0, 0.3), objects=[*objects, (0, 9000.0)])) == []  # something is there
    assert kinds(*scene(*right[:9], objects=[*objects[:9], (0, 9000.0)])) == []  # too few similar ones
    assert kinds(*scene(*right, objects=[*objects, (1, 9000.0)])) == []  # one similar one


def test_worst_images_first() -> None:
    truth, results = scene((0, 0.0, 0.0, 0.9))
    truth["images"] += [{"id": id} for id in (1, 9, 7)]
    for image, wrong in ((9, 3), (7, 1)):
        results += [
            {"image_id": image, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9 - n / 10} for n in range(wrong)
        ]
    truth["annotations"].append({"id": 99, "image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9]})
    truth["annotations"].append({"id": 98, "image_id": 1, "category_id": 1, "bbox": [50, 5, 9, 9]})
    truth["annotations"].append({"id": 97, "image_id": 7, "category_id": 0, "bbox": [50, 5, 9, 9]})
    results.append({"image_id": 7, "category_id": 0, "bbox": [50, 5, 9, 9], "score": 0.9})
    truth["images"].append({"id": 8})
    results.append({"image_id": 8, "category_id": 0, "bbox": [50, 5, 9, 9], "score": 0.9})
    worst = diagnose(truth, results, threshold=0.5).worst_images
    assert [(each.image_id, each.right, each.wrong, each.lost) for each in worst] == [
        *((9, 0, 3, 0), (1, 0, 0, 2), (8, 0, 1, 0), (7, 1, 1, 0))  # of equal errors, fewer right ones first
    ]


def test_use_of_queries() -> None:
    truth, _ = scene(objects=[(0, 200.0 * n) for n in range(7)] + [(0, 0.0)], crowd={7})
    truth["images"].append({"id": 6})
    rows = [[0.0, 0.0, 9.0, 9.0, score, 0.0] for score in (0.9, 0.8, 0.7, 0.2)]
    images = [
        ImageLayers(5, (np.zeros((0, 6)), np.array(rows)), np.array([3, 1, 3, 0]), 5),
        ImageLayers(6, (np.zeros((0, 6)), np.array(rows[:1])), np.array([1]), 5),
    ]
    use = query_use(truth, images, 0.5, 6)
    assert use is not None
    assert (use.num_queries, use.most_objects, use.image_with_most_objects) == (5, 7, 5)  # without the crowd region
    assert (use.images_above_queries, use.images_above_detections) == (1, 1)
    assert (use.num_used, use.per_image, use.counts, use.several_classes) == (2, (1.5, 2.0), (0, 2, 0, 2, 0), 1)
    assert query_use(truth, [ImageLayers(5, (), None, None)], 0.5, 6) is None


@pytest.mark.parametrize("what", ["no detections", "no objects", "nothing"])
def test_nothing_to_diagnose(what: str) -> None:
    truth, results = dataset(0)
    truth = truth if what == "no detections" else {**truth, "annotations": []}
    found = diagnose(truth, results if what == "no objects" else [])
    assert isinstance(found, Diagnosis) and found.threshold == 0.5 and found.threshold_origin == "default"
    assert found.best_threshold is None and found.layers == () and found.queries is None
    json.dumps(found.to_json(), allow_nan=False)
