"""All metrics against pycocotools, and inputs for which it returns wrong results."""

import contextlib
import copy
import io
import json
import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from detrs.errors import UserError
from detrs.evaluation.coco import CocoReport, coco_report

NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the official order
NUMBERS += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
Data = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def reference(shared: Path) -> Data:
    folder = shared / "data" / "coco_eval_reference"
    return (
        json.loads((folder / "instances_val2014_100.json").read_text()),
        json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text()),
    )


def numbers(report: CocoReport) -> list[float]:
    return [-1.0 if value is None else value for value in (getattr(report, name) for name in NUMBERS)]


def changed(data: Data, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**result, **change(i, result)} for i, result in enumerate(copy.deepcopy(data[1]))]


def pycocotools(ground_truth: dict[str, Any], results: list[dict[str, Any]], max_detections: int = 100) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluator.params.maxDets = [min(1, max_detections), min(10, max_detections), max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
        if max_detections == 100:
            evaluator.summarize()
    return evaluator


def defined_mean(values: np.ndarray) -> float:
    return float(np.mean(values[values > -1])) if (values > -1).any() else -1.0


def twelve(evaluator: COCOeval) -> list[float]:
    """The definition of the twelve numbers for any limit of detections (pycocotools prints them for 100 only)."""
    p, r = evaluator.eval["precision"], evaluator.eval["recall"]
    precision = [p[..., 0, -1], p[0, ..., 0, -1], p[5, ..., 0, -1], p[..., 1, -1], p[..., 2, -1], p[..., 3, -1]]
    recall = [r[..., 0, 0], r[..., 0, 1], r[..., 0, 2], r[..., 1, -1], r[..., 2, -1], r[..., 3, -1]]
    return [defined_mean(values) for values in precision + recall]


def random_data(draw: random.Random, *, most_images: int = 13, most_detections: int = 150) -> Data:
    """Crowds, ties, boxes of all sizes, images without anything, classes without objects, many or no detections."""
    images = sorted(draw.sample(range(1, 1000), draw.randrange(1, most_images)))
    categories = sorted(draw.sample(range(1, 100), draw.randrange(1, 7)))

    def box() -> list[float]:
        size = draw.choice([7, 31, 60, 97, 300])
        return [draw.uniform(0, 200), draw.uniform(0, 100), draw.uniform(0.3, 1) * size, draw.uniform(0.3, 1) * size]

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(draw.choice([0, 1, 3, 17])):
            bbox = box()
            annotation = {"image_id": image, "category_id": draw.choice(categories[:4]), "bbox": bbox}
            area, crowd = bbox[2] * bbox[3] * draw.choice([1, 0.6]), int(draw.random() < 0.15)
            annotations.append({"id": len(annotations) + 1, **annotation, "area": area, "iscrowd": crowd})
        near = [annotation for annotation in annotations if annotation["image_id"] == image]
        for _ in range(draw.choice([0, 1, 19, most_detections])):
            one = draw.choice(near) if near and draw.random() < 0.7 else None
            bbox = [value + draw.gauss(0, 3) for value in one["bbox"]] if one else box()
            category = one["category_id"] if one and draw.random() < 0.8 else draw.choice(categories)
            score = draw.choice([round(draw.random(), 1), draw.random()])
            bbox = [bbox[0], bbox[1], abs(bbox[2]), abs(bbox[3])]
            results.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score})
    ground_truth = {
        "images": [{"id": image, "width": 640, "height": 480} for image in images],
        "categories": [{"id": category, "name": f"class {category}"} for category in categories],
        "annotations": annotations,
    }
    return ground_truth, results


class TestAgainstPycocotools:
    def test_reference(self, reference: Data, shared: Path) -> None:
        report = coco_report(*reference)
        expected = pycocotools(*reference).stats
        assert np.abs(np.array(numbers(report)) - expected).max() <= 1e-12
        published = json.loads((shared / "data" / "coco_eval_reference" / "expected_stats.json").read_text())
        assert np.abs(np.array(numbers(report)) - published["bbox/pycocotools"]).max() <= 5e-7
        assert (report.num_images, report.num_objects, report.num_crowd, report.num_detections) == (100, 830, 9, 734)

    @pytest.mark.parametrize("seed", range(60))
    def test_random(self, seed: int) -> None:
        ground_truth, results = random_data(random.Random(seed))
        untouched = copy.deepcopy((ground_truth, results))
        report = coco_report(ground_truth, results)
        assert (ground_truth, results) == untouched
        if not results:  # pycocotools fails on none at all
            assert report.ap == (0.0 if report.num_objects else None)
            return
        evaluator = pycocotools(ground_truth, results)
        assert np.abs(np.array(numbers(report)) - evaluator.stats).max() <= 1e-12
        precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
        for k, category in enumerate(ground_truth["categories"]):
            own = report.per_class[category["name"]]
            expected = [precision[:, :, k, 0, -1], precision[0, :, k, 0, -1], recall[:, k, 0, -1]]
            actual = [-1.0 if own[key] is None else own[key] for key in ("ap", "ap50", "ar")]
            assert np.abs(np.array(actual) - [defined_mean(values) for values in expected]).max() <= 1e-12

    @pytest.mark.parametrize("max_detections", [1, 3, 10, 11, 57, 300])
    def test_other_limits(self, max_detections: int) -> None:
        ground_truth, results = random_data(random.Random(77), most_images=7, most_detections=350)
        assert len(results) > 350
        evaluator = pycocotools(ground_truth, results, max_detections)
        report = coco_report(ground_truth, results, max_detections=max_detections)
        assert np.abs(np.array(numbers(report)) - twelve(evaluator)).max() <= 1e-12

    def test_order_of_images_and_categories_does_not_matter(self) -> None:
        ground_truth, results = random_data(random.Random(5), most_images=30)
        report = coco_report(ground_truth, results)
        other = {**ground_truth, "images": ground_truth["images"][::-1], "categories": ground_truth["categories"][::-1]}
        by_image = sorted(results, key=lambda result: -result["image_id"])  # stable: same order within an image
        assert coco_report(other, by_image) == report


NUMBERINGS: dict[str, Callable[[int], int | str]] = {
    "from 0": lambda i: i,
    "from 1": lambda i: i + 1,
    "with gaps": lambda i: 7 * i + 3,
    "negative": lambda i: i - 1000,
    "beyond 53 bits": lambda i: 2**60 + i,
    "words": lambda i: f"word {i:06}",
}


@pytest.mark.parametrize("name", NUMBERINGS)
def test_numberings(name: str) -> None:
    """The values of ids do not matter: image, category and annotation ids of any kind give the same report."""
    ground_truth, results = random_data(random.Random(3), most_images=30)
    expected = coco_report(ground_truth, results)
    assert expected.ap is not None and expected.ap > 0.05
    number = NUMBERINGS[name]
    images = {image["id"]: number(i) for i, image in enumerate(ground_truth["images"])}
    categories = {category["id"]: number(i) for i, category in enumerate(ground_truth["categories"])}

    def renumbered(entry: dict[str, Any]) -> dict[str, Any]:
        ids = {"image_id": images[entry["image_id"]], "category_id": categories[entry["category_id"]]}
        return {**entry, **ids}

    annotations = ground_truth["annotations"]
    other = {
        "images": [{"id": images[image["id"]]} for image in ground_truth["images"]],
        "categories": [{**category, "id": categories[category["id"]]} for category in ground_truth["categories"]],
        "annotations": [{**renumbered(annotation), "id": number(i)} for i, annotation in enumerate(annotations)],
    }
    assert coco_report(other, [renumbered(result) for result in results]) == expected


class TestPoison:
    """The table of the reliability notes, row by row."""

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("every", [1, 10])
    def test_boxes_that_are_not_finite(self, reference: Data, bad: float, every: int) -> None:
        results = changed(reference, lambda i, r: {"bbox": [bad, *r["bbox"][1:]]} if i % every == every - 1 else {})
        image = results[every - 1]["image_id"]
        with pytest.raises(UserError, match=rf"Detection {every - 1} \(image id {image}\) has the box"):
            coco_report(reference[0], results)

    def test_scores_that_are_not_finite(self, reference: Data) -> None:
        for bad in (float("nan"), float("inf")):
            for first in (0, 44):
                results = changed(reference, lambda i, _, first=first, bad=bad: {"score": bad} if i >= first else {})
                image = results[first]["image_id"]
                with pytest.raises(UserError, match=rf"Detection {first} \(image id {image}\) has the score {bad}"):
                    coco_report(reference[0], results)

    @pytest.mark.parametrize("side", [2, 3])
    def test_negative_size(self, reference: Data, side: int) -> None:
        results = copy.deepcopy(reference[1])
        results[9]["bbox"][side] = -0.001
        with pytest.raises(UserError, match=rf"Detection 9 \(image id {results[9]['image_id']}\).*1 of 734"):
            coco_report(reference[0], results)

    def test_zero_size_is_a_box(self) -> None:
        data = random_data(random.Random(2), most_images=5)
        results = changed(data, lambda i, r: {"bbox": [*r["bbox"][:2], 0.0, 0.0]} if i % 5 == 0 else {})
        expected = pycocotools(data[0], results).stats
        assert expected[0] > 0
        assert np.abs(np.array(numbers(coco_report(data[0], results))) - expected).max() <= 1e-12

    def test_annotation_ids_from_zero(self, reference: Data) -> None:
        """pycocotools treats a match with annotation 0 as unmatched: 0.4993."""
        truth = copy.deepcopy(reference[0])
        for i, annotation in enumerate(truth["annotations"]):
            annotation["id"] = i
        assert coco_report(truth, reference[1]) == coco_report(*reference)

    def test_equal_annotation_ids(self, reference: Data) -> None:
        truth = copy.deepcopy(reference[0])
        for annotation in truth["annotations"]:
            annotation["id"] = 17
        with pytest.raises(UserError, match="The annotation id 17 is not unique"):
            coco_report(truth, reference[1])

    def test_no_annotation_ids(self, reference: Data) -> None:
        truth = copy.deepcopy(reference[0])
        for annotation in truth["annotations"]:
            del annotation["id"]
        assert coco_report(truth, reference[1]) == coco_report(*reference)

    def test_crowd_flags_dropped(self, reference: Data) -> None:
        truth = copy.deepcopy(reference[0])
        for annotation in truth["annotations"]:
            del annotation["iscrowd"]
        report = coco_report(truth, reference[1])
        assert report.ap == pytest.approx(0.5023, abs=5e-5)
        assert (report.num_crowd, report.num_objects) == (0, 839)

    def test_area_missing(self, reference: Data) -> None:
        with_area, without = copy.deepcopy(reference[0]), copy.deepcopy(reference[0])
        for annotation, bare in zip(with_area["annotations"], without["annotations"], strict=True):
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            del bare["area"]
        assert coco_report(without, reference[1]) == coco_report(with_area, reference[1])
        assert coco_report(without, reference[1]).ap_small != coco_report(*reference).ap_small

    def test_each_detection_twice(self, reference: Data) -> None:
        assert coco_report(reference[0], reference[1] * 2).ap == pytest.approx(0.3560, abs=5e-5)

    def test_nothing_is_rounded(self, reference: Data) -> None:
        """Rounding before evaluation would move AP; what the JSON export rounds (1/100 pixel) may not."""
        ap = coco_report(*reference).ap

        def rounded(digits: int) -> float | None:
            box = changed(reference, lambda _, r: {"bbox": [round(value, digits) for value in r["bbox"]]})
            return coco_report(reference[0], box).ap

        assert rounded(0) == pytest.approx(0.4849, abs=5e-5)
        assert rounded(1) == pytest.approx(0.5020, abs=5e-5)
        assert rounded(2) == pytest.approx(ap, abs=1e-3)
        scores = changed(reference, lambda _, r: {"score": round(r["score"], 2)})
        assert coco_report(reference[0], scores).ap == pytest.approx(0.5053, abs=5e-5)

    def test_reversed_order(self, reference: Data) -> None:
        """Ties go to the earlier detection, as in pycocotools."""
        assert coco_report(reference[0], reference[1][::-1]).ap50 == pytest.approx(0.6979, abs=5e-5)
        assert coco_report(*reference).ap50 == pytest.approx(0.6970, abs=5e-5)

    def test_no_detections(self, reference: Data) -> None:
        report = coco_report(reference[0], [])
        assert numbers(report) == [0.0] * 12
        assert report.num_detections == 0
        assert report.per_class["person"]["ap"] == 0.0

    @pytest.mark.parametrize("key", ["image_id", "category_id"])
    @pytest.mark.parametrize("unknown", [123456789, "42", None])
    def test_unknown_ids(self, reference: Data, key: str, unknown: object) -> None:
        results = copy.deepcopy(reference[1])
        results[5][key] = unknown
        with pytest.raises(UserError, match=f"Detection 5 .* has the {key.replace('_', ' ')} {unknown!r}, which"):
            coco_report(reference[0], results)
        truth = copy.deepcopy(reference[0])
        truth["annotations"][5][key] = unknown
        name = f"Annotation {truth['annotations'][5]['id']} has the {key.replace('_', ' ')} {unknown!r}"
        with pytest.raises(UserError, match=name):
            coco_report(truth, reference[1])

    def test_no_ground_truth(self, reference: Data) -> None:
        report = coco_report({**reference[0], "annotations": []}, reference[1])
        assert [getattr(report, name) for name in NUMBERS] == [None] * 12
        assert report.num_objects == 0
        assert json.loads(json.dumps(report.scalars(), allow_nan=False))["ap"] is None

    def test_only_crowd(self) -> None:
        crowd = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}
        truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": [crowd]}
        report = coco_report(truth, [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5}])
        assert (report.ap, report.num_crowd, report.num_objects) == (None, 1, 0)

    @pytest.mark.parametrize("bbox", [[float("nan"), 0, 5, 5], [0, 0, -5, 5], [0, 0, 5, float("inf")]])
    def test_bad_ground_truth(self, reference: Data, bbox: list[float]) -> None:
        truth = copy.deepcopy(reference[0])
        truth["annotations"][7]["bbox"] = bbox
        with pytest.raises(UserError, match=f"Annotation {truth['annotations'][7]['id']} has the box"):
            coco_report(truth, reference[1])


def test_no_images_and_no_classes() -> None:
    report = coco_report({"images": [], "categories": [], "annotations": []}, [])
    assert (report.ap, report.num_images, report.per_class) == (None, 0, {})


def test_max_detections_is_positive(reference: Data) -> None:
    with pytest.raises(UserError, match="max_detections must be at least 1, got 0"):
        coco_report(*reference, max_detections=0)


def test_classes_with_equal_names_are_separate() -> None:
    categories = [{"id": 3, "name": "cell"}, {"id": 5, "name": "cell"}, {"id": 8, "name": "dust"}, {"id": 9}]
    truth = {"images": [{"id": 1}], "categories": categories, "annotations": []}
    assert list(coco_report(truth, []).per_class) == ["cell (3)", "cell (5)", "dust", "9"]


def test_json_and_scalars(reference: Data) -> None:
    report = coco_report(*reference)
    assert CocoReport(**json.loads(json.dumps(report.to_json(), allow_nan=False))) == report
    assert set(report.scalars()) == {field.name for field in fields(CocoReport)} - {"per_class"}
    assert report.per_class["person"]["num_objects"] == 250
    assert report.per_class["fire hydrant"] == {"ap": None, "ap50": None, "ar": None, "num_objects": 0}


def test_table(reference: Data) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(coco_report(*reference).table())
    text = console.export_text()
    assert "100 images, 830 objects, 9 crowd regions, 734 detections" in text
    assert "0.505" in text and "0.697" in text
    assert next(line for line in text.splitlines() if "fire hydrant" in line).split()[-4:] == ["0", "–", "–", "–"]
    assert max(map(len, text.splitlines())) <= 80


def test_skipped_images_are_in_the_table(reference: Data) -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(replace(coco_report(*reference), num_skipped=3).table())
    assert "100 images (3 skipped: missing or unreadable), 830 objects" in console.export_text()


def test_names_with_brackets_are_shown_as_they_are() -> None:
    names = ("[/red]", "[bold]cell[/bold]", "caf\udce9")
    truth = {
        "images": [{"id": 1}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    screen = Console(file=io.StringIO(), width=120, record=True)
    screen.print(coco_report(truth, []).table())
    text = screen.export_text()
    assert "[/red]" in text and "[bold]cell[/bold]" in text and "caf\\udce9" in text
