"""The evaluation gives the same numbers for annotations as arrays and as dictionaries, and makes none of these."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrs.data import FolderDataset, annotation_cache
from detrs.data.annotation_rows import AnnotationRows
from detrs.data.detect import find_split
from detrs.data.protocol import checked_ground_truth
from detrs.evaluation.coco import coco_report
from detrs.evaluation.matching import matching


def detections(truth: dict[str, Any]) -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    return [
        {
            "image_id": each["image_id"],
            "category_id": each["category_id"] if random.random() < 0.8 else 3,
            "bbox": (np.array(each["bbox"]) * random.uniform(0.8, 1.2, 4)).tolist(),
            "score": float(random.random()),
        }
        for each in truth["annotations"]
        for _ in range(3)
    ]


@pytest.mark.parametrize("kept", [[True, True, True], [False, True, True]])
def test_arrays_and_dictionaries_give_the_same_scores(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[bool]
) -> None:
    monkeypatch.setenv("DETRS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_cache, "SETTLED_S", -60.0)
    folder.data["annotations"][3]["iscrowd"] = 1
    folder.write()
    dataset = FolderDataset(find_split(folder.root, "train"), cache_annotations=True).select(np.array(kept))
    rows, plain = checked_ground_truth(dataset), dataset.ground_truth()
    assert isinstance(rows["annotations"], AnnotationRows) and type(plain["annotations"]) is list
    assert rows | {"annotations": list(rows["annotations"])} == plain
    assert rows["annotations"][-1] == plain["annotations"][-1] and rows["annotations"][1:3] == plain["annotations"][1:3]
    found = detections(plain)
    expected, matched = coco_report(plain, found), matching(plain, found)

    def refuse(*_: Any) -> None:
        raise AssertionError("a dictionary was made")

    monkeypatch.setattr(AnnotationRows, "__getitem__", refuse)
    assert coco_report(rows, found) == expected
    assert 0 < (expected.ap or 0) < 1 and expected.num_crowd == 1
    same = matching(rows, found)
    for ours, theirs in zip(dataclasses.astuple(same), dataclasses.astuple(matched), strict=True):
        assert repr(ours) == repr(theirs)


def test_a_dataset_with_its_own_ground_truth_keeps_it(folder: Any) -> None:
    class Own(FolderDataset):
        def ground_truth(self) -> dict[str, Any]:
            return super().ground_truth() | {"annotations": []}

    folder.write()
    assert checked_ground_truth(Own(find_split(folder.root, "train")))["annotations"] == []
