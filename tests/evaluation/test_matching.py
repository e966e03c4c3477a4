"""Matches are those of pycocotools, detection by detection."""

import contextlib
import io

import pytest
from crowded import dataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrs.evaluation import matching as module
from detrs.evaluation.matching import matching


@pytest.mark.parametrize("seed", range(8))
def test_matches_are_those_of_pycocotools(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 37)  # in many parts
    truth, results = dataset(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**truth, "images": sorted(truth["images"], key=lambda image: image["id"])}
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes([dict(result) for result in results]), "bbox")
        evaluator.evaluate()
    expected: list[tuple[int, bool]] = [(-1, False)] * len(results)
    for found in evaluator.evalImgs:
        if found is not None and found["aRng"] == evaluator.params.areaRng[0]:
            for id, match, ignored in zip(found["dtIds"], found["dtMatches"][0], found["dtIgnore"][0], strict=True):
                expected[id - 1] = (-1 if ignored or not match else int(match) - 1, bool(ignored))

    matched = matching(truth, results)
    # Detections are sorted by image, then by score; the sort is repeated here.
    order = sorted(range(len(results)), key=lambda index: (results[index]["image_id"], -results[index]["score"]))
    assert matched.found.scores.tolist() == [results[index]["score"] for index in order]
    found = list(zip(matched.match.tolist(), matched.ignored.tolist(), strict=True))
    assert found == [expected[index] for index in order]
    assert any(match >= 0 for match, _ in found) and any(ignored for _, ignored in found)
    assert matched.image_ids == tuple(sorted(image["id"] for image in truth["images"]))
    for index, finder in enumerate(matched.finder.tolist()):
        assert finder < 0 or matched.match[finder] == index
    assert (matched.finder >= 0).sum() == matched.is_right.sum()


def test_of_equal_iou_the_later_object_is_found() -> None:
    """As pycocotools: ``if ious[dind, gind] < iou: continue``."""
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8]}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": [box, box]}
    assert matching(truth, [{**box, "score": 0.5}]).match.tolist() == [1]
    assert matching(truth, [{**box, "score": 0.5}] * 3).match.tolist() == [1, 0, -1]


def test_nothing_at_all() -> None:
    matched = matching({"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": []}, [])
    assert len(matched.match) == len(matched.finder) == len(matched.pairs.iou) == 0
