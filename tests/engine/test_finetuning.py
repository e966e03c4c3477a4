"""Initial weights: what is kept of them, those that do not fit, and the experiment that follows from a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import run_tiny
import torch
from run_tiny import Tiny, training

from detrs import models
from detrs.checkpoints import TrainedDetector, format, load_detector, save_detector
from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.detector import preprocessing_of
from detrs.checkpoints.foreign.transformers import save_transformers
from detrs.classification import Focal
from detrs.config import RuntimeConfig
from detrs.engine.finetuning import experiment_from, initialize, open_initial
from detrs.errors import UserError
from detrs.models.detector import Model
from detrs.presets import preset
from detrs.structures import Classes

CLASSES = Classes(tuple("0123456789"), tuple(range(10)))


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


def saved(path: Path, best: Path, **changes: Any) -> Path:
    """The detector with another experiment."""
    detector = load_detector(best)
    save_detector(path, replace(detector, experiment=replace(detector.experiment, **changes)))
    return path


def test_the_experiment_follows_from_the_weights(best: Path, tmp_path: Path) -> None:
    """Model and image size of the checkpoint, recipe of its preset."""
    trained = run_tiny.experiment(data={"path": "elsewhere", "val_split": "val2017", "mirror": False, "batch_size": 3})
    path = saved(tmp_path / "best.safetensors", best, name="deformable-detr-small", data=trained.data)
    found, recipe = experiment_from(str(path)), preset("deformable-detr-small")
    assert (found.name, found.initial) == (recipe.name, str(path))
    assert found.model == load_detector(best).experiment.model
    assert found.data == replace(recipe.data, resize_to=(64, 96))
    assert (found.optimizer, found.schedule, found.criterion) == (recipe.optimizer, recipe.schedule, recipe.criterion)
    assert (found.evaluation, found.runtime, found.seed) == (recipe.evaluation, recipe.runtime, recipe.seed)


@pytest.mark.parametrize("name", [None, "tiny", "detr-r50"])  # none, unknown, of another class of models
def test_without_a_preset_the_recipe_is_that_of_the_checkpoint(name: str | None, best: Path, tmp_path: Path) -> None:
    trained = run_tiny.experiment(data={"path": "elsewhere", "val_split": "val2017", "batch_size": 3})
    runtime = RuntimeConfig(device="cpu", workers=3)
    path = saved(tmp_path / "best.safetensors", best, name=name, data=trained.data, runtime=runtime)
    found = experiment_from(str(path))
    assert found.data == replace(trained.data, path=None, val_split="val")
    assert (found.optimizer, found.schedule, found.runtime) == (trained.optimizer, trained.schedule, RuntimeConfig())


def test_the_official_augmentation_is_replaced_at_other_sizes(best: Path, tmp_path: Path) -> None:
    """It has a fixed size."""
    path = saved(tmp_path / "best.safetensors", best, name="deformable-detr-r50")
    assert experiment_from(str(path)).data.augment == "crop"
    detector = load_detector(path)
    official = replace(detector.preprocessing, resize_to=(800, 1333))
    save_detector(path, replace(detector, preprocessing=official))
    assert experiment_from(str(path)).data.augment == "official"


class Renamed(Tiny):
    """Digits with names of which three are those of the checkpoint."""

    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.classes = self.classes._replace(names=("9", "eight", "7", *"abcdef", "0"))


def test_resuming_needs_no_source_and_is_bit_exact(best: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    source.write_bytes(best.read_bytes())
    experiment = replace(run_tiny.experiment(), initial=str(source))
    data = {"train_set": Renamed("train"), "val_set": Renamed("val")}
    list(training(experiment, tmp_path / "whole", **data))
    steps = training(experiment, tmp_path / "stopped", **data)
    for _ in range(2):
        next(steps)
    steps.close()
    source.unlink()
    list(training(experiment, tmp_path / "stopped", resume=True, **data))
    whole, resumed = (format.load(tmp_path / name / "last.safetensors").tensors for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_published_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder of transformers with COCO's 91 rows; "no object" and shared classes are kept."""
    torch.manual_seed(0)
    start = preset("detr-r50")
    backbone = replace(start.model.backbone, name="resnet18.tv_in1k")
    sizes: dict[str, int] = {"dim": 32, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 9}
    model: Any = replace(start.model, backbone=backbone, ffn_dim=48, **sizes)  # type: ignore[call-arg]
    source = TrainedDetector(
        module=models.build(model),
        classes=coco_classes(91),
        preprocessing=preprocessing_of(start),
        experiment=replace(start, model=model),
        scores={},
        step=0,
        epoch=0,
    )
    folder = tmp_path / "detr"
    save_transformers(source, folder)
    experiment = experiment_from(str(folder))
    assert experiment.name == "detr-r50" and experiment.data.resize_to == (800, 1333)
    names = ("helmet", "Dog", "person")
    tuned: Any = replace(experiment, model=replace(experiment.model, num_classes=3))  # type: ignore[type-var]
    own = models.build(tuned.model)
    with caplog.at_level("INFO", logger="detrs"):
        initialize(own, open_initial(str(folder), tuned.model), tuned, Classes(names, (1, 2, 3)))
    head = "decoder.heads.0.classes.weight"
    kept, given = own.state_dict()[head], source.module.state_dict()[head]
    assert torch.equal(kept[[1, 2, 3]], given[[18, 1, 91]])
    assert "kept 2 of 3 classes: Dog, person; new: helmet" in caplog.messages
