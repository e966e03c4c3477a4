"""Metadata of a checkpoint that are missing, of another type or out of range."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detrs import models, presets
from detrs.checkpoints import TrainedDetector, format, load_detector, save_detector
from detrs.checkpoints.detector import preprocessing_of
from detrs.errors import UserError
from detrs.structures import Classes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = presets.preset("deformable-detr-tiny")
    path = tmp_path_factory.mktemp("detector") / "best.safetensors"
    detector = TrainedDetector(
        module=models.build(experiment.model),
        classes=Classes(tuple(f"class {i}" for i in range(91)), tuple(range(1, 92))),
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={"ap": None},
        step=3,
        epoch=1,
    )
    save_detector(path, detector)
    return path


def test_it_is_loaded_as_saved(checkpoint: Path) -> None:
    detector = load_detector(checkpoint)
    assert detector.experiment == presets.preset("deformable-detr-tiny")
    assert detector.preprocessing == preprocessing_of(detector.experiment)
    assert (detector.scores, detector.step, detector.epoch) == ({"ap": None}, 3, 1)
    assert detector.classes.names[90] == "class 90" and not detector.module.training


def test_thresholds_are_saved_and_absent_in_old_files(checkpoint: Path, tmp_path: Path) -> None:
    detector = load_detector(checkpoint)
    assert (detector.threshold, detector.class_thresholds) == (None, {})
    path = tmp_path / "new.safetensors"
    save_detector(path, replace(detector, threshold=0.37, class_thresholds={"class 3": 0.4, "class 4": None}))
    loaded = load_detector(path)
    assert (loaded.threshold, loaded.class_thresholds) == (0.37, {"class 3": 0.4, "class 4": None})
    saved = format.load(path)
    del saved.meta["threshold"], saved.meta["class_thresholds"]
    format.save(path, saved.tensors, saved.meta)
    old = load_detector(path)
    assert (old.threshold, old.class_thresholds) == (None, {})


NAMES, IDS = [f"{i}" for i in range(91)], list(range(91))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("classes", "names"), ["a"]),
        (("classes", "names"), "ab"),
        (("classes", "names"), [*NAMES[:90], "0"]),
        (("classes", "names"), [*NAMES[:90], 7]),
        (("classes", "names"), None),
        (("classes", "category_ids"), [1]),
        (("classes", "category_ids"), [*IDS[:90], 0]),
        (("classes", "category_ids"), [*IDS[:90], 1.5]),
        (("classes",), {}),
        (("classes",), []),
        (("classes",), "dog"),
        (("preprocessing", "resize_to"), [0, 0]),
        (("preprocessing", "resize_to"), [64]),
        (("preprocessing", "resize_to"), 64),
        (("preprocessing", "std"), [0, 0, 0]),
        (("preprocessing", "mean"), "x"),
        (("preprocessing",), None),
        (("preprocessing", "cwd"), 3),
        (("scores",), "high"),
        (("step",), "three"),
        (("threshold",), 1.5),
        (("threshold",), "high"),
        (("threshold",), True),
        (("class_thresholds",), [0.5]),
        (("class_thresholds",), {"class 3": -0.1}),
        (("epoch",), True),
        (("experiment", "evaluation", "max_detections"), -1),
        (("experiment", "optimizer", "lr"), 10**400),
        (("experiment", "schedule", "kind"), "linear"),
        (("experiment", "model", "kind"), "os.system"),
        (("experiment", "model", "dim"), 33),
        (("experiment", "model", "__class__"), "x"),
        (("experiment",), []),
    ],
    ids=str,
)
def test_malformed_metadata(checkpoint: Path, tmp_path: Path, where: tuple[str, ...], value: Any) -> None:
    saved = format.load(checkpoint)
    section: Any = saved.meta
    for key in where[:-1]:
        section = section[key]
    section[where[-1]] = value
    path = tmp_path / "malformed.safetensors"
    format.save(path, saved.tensors, saved.meta)
    with pytest.raises(UserError, match=r"malformed.safetensors"):
        load_detector(path)


@pytest.mark.parametrize("key", ["preprocessing", "scores", "step", "epoch", "experiment"])
def test_missing_metadata(checkpoint: Path, tmp_path: Path, key: str) -> None:
    saved = format.load(checkpoint)
    del saved.meta[key]
    path = tmp_path / "missing.safetensors"
    format.save(path, saved.tensors, saved.meta)
    with pytest.raises(UserError, match=rf"missing.safetensors.*{key}"):
        load_detector(path)


def test_the_folder_of_a_run_is_its_best_detector(checkpoint: Path, tmp_path: Path) -> None:
    assert load_detector(checkpoint.parent).step == 3
    with pytest.raises(UserError, match="has no best.safetensors: pass the .safetensors file"):
        load_detector(tmp_path)
    format.save(tmp_path / "last.safetensors", {}, {})
    for path in (tmp_path, tmp_path / "last.safetensors"):
        with pytest.raises(UserError, match=r"written by the first evaluation.*--resume"):
            load_detector(path)


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a named pipe. Expected a regular file"):
        load_detector(tmp_path / "pipe")
