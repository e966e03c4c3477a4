"""Model cards."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detrs import models
from detrs.checkpoints.card import Contents, command, last_per_class, model_card
from detrs.checkpoints.detector import TrainedDetector, preprocessing_of
from detrs.classification import Focal, Softmax
from detrs.cli import train
from detrs.config import Experiment
from detrs.config.criterion import ContrastiveDenoising, GroupDenoising, NoDenoising, OneToMany
from detrs.presets import preset
from detrs.presets.fitted import FITTED
from detrs.structures import Classes

NAMES = ("red_cell", "N/A 1", "a|b: <c>")
SCORES = {"ap": 0.51234, "ap50": 0.75, "ap75": None, "ar100": 0.6, "num_images": 1234, "num_objects": 5678}
PER_CLASS = {
    "red_cell": {"ap": 0.25, "ap50": 0.5, "ar": 0.75, "num_objects": 4321},
    "a|b: <c>": {"ap": None, "ap50": None, "ar": None, "num_objects": 0},
}


def experiment(name: str = "deformable-detr-tiny", **settings: Any) -> Experiment:
    start = preset(name)
    model: Any = start.model
    model = replace(model, num_classes=3, **settings)
    return replace(start, model=model, data=replace(start.data, path="blood cells", val_split="test"))


def detector(**changes: Any) -> TrainedDetector:
    chosen = experiment()
    with torch.device("meta"):
        module = models.build(chosen.model)
    values: dict[str, Any] = {"scores": SCORES, "step": 1200, "epoch": 30, "experiment": chosen, **changes}
    return TrainedDetector(
        module=module, classes=Classes(NAMES, (0, 1, 2)), preprocessing=preprocessing_of(chosen), **values
    )


def card(found: TrainedDetector, *, transformers: bool = True, curves: bool = True, **options: Any) -> str:
    values = {"license": "apache-2.0", "per_class": PER_CLASS, **options}
    return model_card(found, "me/blood-cells", contents=Contents(transformers, curves), **values)


def test_the_suppression_that_transformers_does_not_apply() -> None:
    line = "`torchvision.ops.batched_nms(boxes, scores, labels, 0.8)`"
    assert line in card(detector()) and line not in card(detector(), transformers=False)
    paper = experiment("deformable-detr-r50")
    assert "batched_nms" not in card(detector(experiment=paper))


def test_the_front_matter_is_what_the_hub_reads() -> None:
    _, matter, _ = card(detector()).split("---\n", 2)
    values = yaml.safe_load(matter)
    assert (values["license"], values["library_name"], values["pipeline_tag"]) == (
        *("apache-2.0", "detrs"),
        "object-detection",
    )
    assert values["tags"] == ["object-detection", "detrs", "deformabledetr", "transformers"]
    (model,) = values["model-index"]
    (result,) = model["results"]
    assert model["name"] == "blood-cells" and result["task"] == {"type": "object-detection"}
    assert result["dataset"] == {"name": "blood cells", "type": "blood-cells", "split": "test"}
    found = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert found == {"AP": 0.5123, "AP50": 0.75, "AR": 0.6}  # not the undefined one


def test_results_classes_and_training() -> None:
    text = card(detector())
    for part in (
        "1,234 images, 5,678 objects",
        "| AP | AP50 | AP75 | AR |",
        "| 0.512 | 0.750 | - | 0.600 |",
        "| red\\_cell | 4,321 | 0.250 | 0.500 | 0.750 |",
        "| a\\|b: \\<c\\> | 0 | - | - | - |",
        "red\\_cell, a\\|b: \\<c\\>.",
        "for 2 classes",
        "(results.png)",
        'detrs.load("me/blood-cells")',
        'AutoModelForObjectDetection.from_pretrained("me/blood-cells")',
        "| best weights | step 1,200, epoch 30 |",
        "detrs train deformable-detr-tiny --data 'blood cells' --data.val-split test",
        "## License\n\napache-2.0",
    ):
        assert part in text, part
    assert "N/A" not in text


def test_the_default_threshold() -> None:
    assert "below a score of 0.5 are left out; `threshold=` changes" in card(detector())
    assert "below a score of 0.37 are left out: this threshold maximizes F1" in card(detector(threshold=0.37))


def test_what_is_unknown_is_omitted() -> None:
    own = replace(experiment(), name=None)
    found = detector(experiment=own, scores={}, step=0)
    text = card(found, transformers=False, curves=False, license=None, per_class={})
    assert "license:" not in text and "model-index" not in text and "transformers" not in text
    assert "results.png" not in text and "best weights" not in text and "detrs train" not in text
    assert "No scores are stored" in text and "No license was given" in text


def test_weights_of_another_program_were_not_trained() -> None:
    published = experiment("detr-r50")
    text = card(detector(experiment=replace(published, data=replace(published.data, path=None)), step=0))
    assert "DETR (detr-r50) for 2 classes, converted, not trained, with [detrs]" in text
    assert "trained with" not in text and "detrs train" not in text and "## Training" not in text
    assert "| 0.512 |" in text and "model-index" not in text and "data in Python" not in text
    assert "2 classes, trained with [detrs]" in card(detector())


@pytest.mark.parametrize("name", ["deformable-detr-tiny", "detr-r50", "faster-rcnn-tiny", "sparse-rcnn-tiny"])
def test_the_command_trains_the_same_experiment(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    start = experiment(name)
    model: Any = start.model
    if hasattr(model, "classification") and isinstance(model.classification, Focal):
        model = replace(model, classification=replace(model.classification, weight=7.5))
    changed = replace(
        start,
        initial="owner/source",
        model=replace(model, backbone=replace(model.backbone, freeze_stem=not model.backbone.freeze_stem)),
        data=replace(start.data, resize_to=(96, 160), augment="crop", mirror=False, padded_together=None),
        schedule=replace(start.schedule, epochs=7, drop_at=(0.5, 0.75), max_minutes=2.5),
        optimizer=replace(start.optimizer, ema_decay=None),
        seed=3,
    )
    assert parsed(changed) == changed


def parsed(trained: Experiment) -> Experiment:
    """The experiment of the command on the card of another, with its number of classes."""
    words = shlex.split(command(trained))
    assert words[:2] == ["detrs", "train"]
    found, _, arguments = train.read(words[2:])
    assert arguments.fixed_settings == (trained.name in FITTED)
    model: Any = replace(found.model, num_classes=3)  # type: ignore[type-var]
    return replace(found, model=model, runtime=trained.runtime)


@pytest.mark.parametrize(
    "criterion",
    [
        {"denoising": NoDenoising()},
        {"denoising": GroupDenoising(groups=7, max_objects=9)},
        {"denoising": GroupDenoising()},
        {"denoising": ContrastiveDenoising(pairs=31), "assignment": OneToMany(queries=50, repeats=2)},
    ],
)
@pytest.mark.parametrize("name", ["deformable-detr-small", "dino-small", "dn-detr-tiny"])
def test_the_command_has_the_kinds_of_settings(
    name: str, criterion: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    start = experiment(name)
    assert parsed(start) == start
    changed = replace(
        start,
        criterion=replace(start.criterion, **criterion),
        schedule=replace(start.schedule, kind="step", drop_at=()),
        data=replace(start.data, large_scale_jitter=(0.5, 1.5), batch_size=3),
    )
    assert parsed(changed) == changed
    other = replace(start, schedule=replace(start.schedule, kind="cosine"), data=replace(start.data, val_fraction=0.1))
    assert parsed(other) == other


def test_the_command_has_another_classification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, kind in (("detr-r50", Focal(gamma=3.0)), ("detr-r50-dc5-plus", Softmax(no_object_weight=0.2))):
        changed = experiment(name, classification=kind)
        assert parsed(changed) == changed


def test_settings_of_no_preset_have_no_command() -> None:
    assert command(replace(experiment(), name="tiny")) == command(replace(experiment(), name="detr-r50")) == ""


def test_scores_of_classes_are_those_of_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_per_class(path, 3) == {}
    lines: list[Any] = [
        {"kind": "evaluation", "step": step, "per_class": {"a": {"ap": step / 10}}} for step in (1, 3, 5)
    ]
    path.write_text("\n".join(map(json.dumps, [*lines, {"kind": "step", "step": 3}, 7])) + '\n{"kind": "eval')
    assert last_per_class(path, 3) == {"a": {"ap": 0.3}}
    assert last_per_class(path, 4) == {}
