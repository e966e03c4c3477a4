"""Batches that cannot be divided, and initial weights that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import run_tiny
import torch
from run_tiny import Tiny

from detrs import models
from detrs.checkpoints import TrainedDetector, load_detector, save_detector
from detrs.checkpoints.detector import preprocessing_of
from detrs.classification import Focal
from detrs.engine.compatibility import check_batch_norm, check_divisible, initialize, open_initial
from detrs.errors import UserError
from detrs.models.detector import Model
from detrs.presets import preset
from detrs.structures import Classes

CLASSES = Classes(tuple("0123456789"), tuple(range(10)))


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "message"),
    [
        (8, 3, 1, r"data\.batch_size 8 cannot be divided among 3 processes .*choose a multiple of 3"),
        (16, 1, 3, r"data\.batch_size 16 cannot be divided among 1 process .*runtime\.accumulate.* a multiple of 3"),
        (4, 2, 4, "multiple of 8"),
        (2, 4, 1, "multiple of 4"),
    ],
)
def test_a_batch_that_cannot_be_divided(batch_size: int, world_size: int, accumulate: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_divisible(batch_size, world_size, accumulate)


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(1, 1, 1), (16, 4, 4), (12, 3, 2)])
def test_a_batch_that_can_be_divided(batch_size: int, world_size: int, accumulate: int) -> None:
    check_divisible(batch_size, world_size, accumulate)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector with refinement, saved."""
    path = tmp_path_factory.mktemp("initial") / "best.safetensors"
    experiment = run_tiny.experiment(model={"num_classes": 10})
    detector = TrainedDetector(
        module=models.build(experiment.model),
        classes=Tiny("val").classes,
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=1,
        epoch=1,
    )
    save_detector(path, detector)
    return path


def initialized(path: Path, classes: Classes = CLASSES, **changes: Any) -> Model:
    experiment = run_tiny.experiment(model={"num_classes": len(classes.names), **changes})
    experiment = replace(experiment, initial=str(path))
    start = open_initial(str(path), experiment.model)
    torch.manual_seed(0)
    model = models.build(experiment.model)
    initialize(model, start, experiment, classes)
    return model


def test_initial_weights(best: Path) -> None:
    """Dropout and the weights of the loss may differ."""
    model = initialized(best, dropout=0.5, classification=Focal(weight=7.0))
    expected = load_detector(best).module.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": "learned"}, 'queries: "proposals" -> "learned"'),
        ({"num_points": 2}, "num_points: 3 -> 2"),
        ({"num_levels": 3}, "num_levels: 4 -> 3"),
        ({"backbone": {"mean": (0.5, 0.5, 0.5)}}, "backbone.mean"),
    ],
)
def test_initial_weights_of_another_model(best: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"of another model \\(tiny\\).*model.{message}"):
        initialized(best, **changes)


def test_a_shared_head_is_not_loaded_from_separate_ones(best: Path, tmp_path: Path) -> None:
    """All names and shapes are equal."""
    separate = run_tiny.experiment(model={"num_classes": 10, "queries": "learned"})
    path = tmp_path / "separate.safetensors"
    save_detector(path, replace(load_detector(best), module=models.build(separate.model), experiment=separate))
    with pytest.raises(UserError, match='model.reference: "refine" -> "keep"'):
        initialized(path, queries="learned", reference="keep")


def test_another_class_of_models(best: Path) -> None:
    with pytest.raises(UserError, match="another model: DeformableDETRConfig, and this experiment trains DETRConfig"):
        open_initial(str(best), preset("detr-r50").model)


def test_the_message_names_the_preset_of_the_weights(best: Path, tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    detector = load_detector(best)
    save_detector(path, replace(detector, experiment=replace(detector.experiment, name="detr-tiny")))
    with pytest.raises(UserError, match="Train 'detr-tiny' with the same settings of the model"):
        initialized(path, num_points=2)


def test_classes_are_kept_by_name(best: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same number of classes, other names, another order."""
    names = ("9", "zero", "7")
    with caplog.at_level("INFO", logger="detrs"):
        model = initialized(best, Classes(names, (1, 2, 3)))
    source = load_detector(best).module.state_dict()
    for name in ("decoder.heads.0.classes.weight", "decoder.heads.1.classes.bias"):
        assert torch.equal(model.state_dict()[name][[0, 2]], source[name][[9, 7]])
    torch.manual_seed(0)
    fresh = models.build(run_tiny.experiment(model={"num_classes": 3}).model).state_dict()
    for name in ("decoder.heads.0.classes.weight", "decoder.heads.1.classes.bias"):
        assert torch.equal(model.state_dict()[name][1], fresh[name][1])
    assert "kept 2 of 3 classes: 9, 7; new: zero" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (tuple("9876543210"), "kept all 10 classes"),
        (tuple("abc"), "kept 0 of 3 classes; new: a, b, c"),
        (tuple("abcdefgh0"), "kept 1 of 9 classes: 0; new: a, b, c, d, e and 3 more"),
    ],
)
def test_kept_classes_are_logged(
    best: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...], message: str
) -> None:
    with caplog.at_level("INFO", logger="detrs"):
        initialized(best, Classes(names, tuple(range(len(names)))))
    assert message in caplog.messages


def test_other_numbers_of_queries_and_another_image_size_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = run_tiny.experiment(
        model={"num_classes": 10, "queries": "learned", "num_queries": 17}, data={"resize_to": (96, 160)}
    )
    path = tmp_path / "best.safetensors"
    detector = TrainedDetector(
        module=models.build(source.model),
        classes=CLASSES,
        preprocessing=preprocessing_of(source),
        experiment=source,
        scores={"ap": 0.25},
        step=1,
        epoch=1,
    )
    save_detector(path, detector)
    with caplog.at_level("INFO", logger="detrs"):
        initialized(path, queries="learned", num_queries=20)
        initialized(path, queries="learned", num_queries=11)
    assert "20 object queries instead of 17: 3 are new" in caplog.messages
    assert "11 object queries instead of 17: the first 11 were kept" in caplog.messages
    assert "image size 64, 96; the initial weights were trained with 96, 160" in caplog.messages
    assert f"initialized from {path} (AP 0.2500)" in caplog.messages


def test_a_class_that_matches_several_is_rejected(best: Path, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_detector(path, replace(load_detector(best), classes=CLASSES._replace(names=("a b", "a_b", *"23456789"))))
    with pytest.raises(UserError, match="'A-B' matches several classes: 'a b' and 'a_b'"):
        initialized(path, Classes(("A-B",), (1,)))


@pytest.mark.parametrize(
    ("images", "size", "norm", "dilated", "is_rejected"),
    [
        (1, (32, 32), "batch", False, True),
        (1, (32, 64), "batch", False, True),
        (2, (32, 32), "batch", False, False),
        (1, (33, 64), "batch", False, False),
        (1, (32, 32), "batch", True, False),
        (1, (32, 32), "frozen", False, False),
    ],
)
def test_one_value_per_channel_is_not_enough_for_batch_norm(
    images: int, size: tuple[int, int], norm: Any, dilated: bool, is_rejected: bool
) -> None:
    experiment = preset("deformable-detr-r50")
    backbone = replace(experiment.model.backbone, norm=norm, dilated=dilated)
    model: Any = experiment.model
    experiment = replace(
        experiment,
        model=replace(model, backbone=replace(backbone, stages=(5,) if dilated else (3, 4, 5))),
        data=replace(experiment.data, resize_to=size),
    )
    check_batch_norm(experiment, 2)
    if is_rejected:
        with pytest.raises(UserError, match="--batch-size 2 or more per process, --image-size 64"):
            check_batch_norm(experiment, images)
        check_batch_norm(experiment, images, is_synchronized=True)
    else:
        check_batch_norm(experiment, images)
