"""The benchmark of opening a dataset opens the dataset that its result names, with an empty cache."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

import data
from detrs.data import open_dataset


def made(folder: Path, images: int = 9, boxes: int = 20, *, polygons: bool = False) -> Path:
    return data.dataset(folder, images, boxes, polygons=polygons)


def test_a_dataset_has_the_counts_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "large", polygons=True)
    dataset = open_dataset(str(folder), "train")
    truth = dataset.ground_truth()
    assert (len(dataset), len(truth["annotations"])) == (9, 20) and len(dataset.classes.names) == data.NUM_CLASSES
    assert {dataset.size_of(number) for number in range(9)} == {*data.SIZES}
    annotations = json.loads((folder / "annotations" / "instances_train2017.json").read_text())["annotations"]
    assert {len(each["segmentation"][0]) for each in annotations} == {44}
    monkeypatch.setattr(data, "make_dataset", None)
    assert made(folder, polygons=True) == folder


@pytest.mark.parametrize("other", [{"images": 10}, {"boxes": 21}, {"polygons": True}])
def test_another_dataset_in_the_folder_is_not_measured(tmp_path: Path, other: dict[str, Any]) -> None:
    folder = made(tmp_path / "large")
    with pytest.raises(SystemExit, match=r"'images': 9, 'boxes': 20.*remove it, or pass"):
        made(folder, **other)
    (folder / data.COUNTS).unlink()
    with pytest.raises(SystemExit, match=r"large is a folder without counts\.json"):
        made(folder)


def test_an_interrupted_dataset_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "document", interrupted)
        made(tmp_path / "large")
    assert not (tmp_path / "large").exists()
    assert len(open_dataset(str(made(tmp_path / "large")), "train")) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_the_first_opening_finds_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cache the caller uses."""
    monkeypatch.setenv("DETRS_CACHE", str(tmp_path / "caller"))
    caches: list[bool] = []

    def child(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        assert command[-1] in (str(tmp_path / "large"), str(tmp_path / "small"))
        cache = Path(env["DETRS_CACHE"])
        assert os.environ["DETRS_CACHE"] != str(cache) and cache.parent == tmp_path
        caches.append(cache.exists())
        cache.mkdir(exist_ok=True)
        raise FileNotFoundError

    monkeypatch.setattr(data.subprocess, "Popen", child)
    monkeypatch.setattr(data.time, "sleep", lambda _: None)
    options = argparse.Namespace(images=9, boxes=20, polygons=False)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            data.measure(tmp_path, options)
    assert caches == [False, False]
    opened: list[dict[str, float]] = []
    monkeypatch.undo()
    for _ in range(2):
        opened.append(data.child("open", tmp_path / "small", tmp_path / "cache"))
    assert all(each["s"] > 0 and each["peak_mib"] > each["before_mib"] > 0 for each in opened)
