import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detrs import config
from detrs.backbones.timm import BackboneConfig
from detrs.config import Experiment
from detrs.errors import UserError, did_you_mean
from detrs.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_survives_json_and_says_what_it_is(name: str, tmp_path: Path) -> None:
    experiment = preset(name)
    config.validate(experiment)
    config.save(experiment, tmp_path / "experiment.json")
    assert config.load(tmp_path / "experiment.json") == experiment
    assert experiment.name == name
    assert PRESETS[name].__doc__


def changed(*path: str, value: Any) -> dict[str, Any]:
    values = config.to_dict(Experiment())
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed("modle", value={}), "unknown setting 'modle'. Did you mean 'model'"),
        (changed("optimizer", "lrr", value=1.0), "experiment.optimizer: unknown setting 'lrr'. Did you mean 'lr'"),
        (changed("optimizer", "lr", value="fast"), "experiment.optimizer.lr: expected float, got 'fast'"),
        (changed("schedule", "epochs", value=1.5), "expected int"),
        (changed("schedule", "epochs", value=True), "expected int"),
        (changed("schedule", "kind", value="cosin"), "not one of 'step', 'cosine'"),
        (changed("data", "image_size", value=[1, 2, 3]), "experiment.data.image_size"),
        (changed("model", "kind", value="DeformableDTRConfig"), "Did you mean 'DeformableDETRConfig'"),
        (changed("model", value=3), "unknown model kind"),
        (changed("model", "classification", value="softmax"), "experiment.model: unknown setting 'classification'"),
        (changed("model", "kind", value=[]), "unknown model kind"),
        (changed("data", value=[]), "expected an object of settings"),
    ],
)
def test_unknown_or_mistyped_settings_are_refused_with_their_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("'", ".")):
        config.from_dict(Experiment, values)


def test_integers_are_good_floats_and_lists_become_tuples() -> None:
    experiment = config.from_dict(Experiment, json.loads(json.dumps(changed("optimizer", "lr", value=1))))
    assert experiment.optimizer.lr == 1.0
    assert isinstance(experiment.optimizer.lr, float)
    assert experiment.data.image_size == (800, 1333)


def test_broken_json_is_told_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "experiment.json"
    file.write_text('{\n  "name": oops\n}')
    with pytest.raises(UserError, match="line 2, column 11"):
        config.load(file)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", None])
def test_what_is_no_text_or_no_file_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "experiment.json"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=r"experiment\.json "):
        config.load(file)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("optimizer", {"lr": 0.0}, "optimizer.lr is 0.0, but must be above 0"),
        ("optimizer", {"ema_decay": 1.0}, "optimizer.ema_decay"),
        ("schedule", {"epochs": 0}, "schedule.epochs"),
        ("schedule", {"drop_at": (0.5, 40.0)}, "schedule.drop_at"),
        ("data", {"batch_size": 0}, "data.batch_size"),
        ("data", {"image_size": (640, 480)}, "data.image_size"),
        ("runtime", {"workers": -1}, "runtime.workers"),
        ("runtime", {"accumulate": 3}, "cannot be split"),
        ("runtime", {"log_every": 0}, "runtime.log_every is 0, but must be 1 or above"),
        ("runtime", {"cache_gib": -1.0}, "runtime.cache_gib"),
        ("runtime", {"save_every_minutes": -1.0}, "runtime.save_every_minutes"),
        ("evaluation", {"batch_size": -1}, "evaluation.batch_size is -1, but must be 0 or above"),
        ("evaluation", {"max_detections": 0}, "evaluation.max_detections is 0"),
        ("optimizer", {"lr": float("inf")}, "optimizer.lr is inf, but must be a finite number"),
        ("optimizer", {"weight_decay": float("nan")}, "optimizer.weight_decay is nan"),
        ("optimizer", {"backbone_lr_factor": -0.1}, "optimizer.backbone_lr_factor is -0.1"),
        ("optimizer", {"sampling_lr_factor": -0.1}, "optimizer.sampling_lr_factor"),
        ("schedule", {"final_lr_factor": -1.0}, "schedule.final_lr_factor"),
        ("schedule", {"drop_at": (0.5, float("nan"))}, "schedule.drop_at.1 is nan"),
        ("schedule", {"max_minutes": float("inf")}, "schedule.max_minutes is inf"),
        ("criterion", {"focal_alpha": 2.0}, "criterion.focal_alpha"),
        ("criterion", {"no_object_weight": 0.0}, "criterion.no_object_weight is 0.0, but must be in .0, 1."),
        ("criterion", {"class_weight": -1.0}, "criterion.class_weight"),
        ("data", {"padded_together": -1}, "data.padded_together"),
        ("criterion", {"focal_gamma": float("nan")}, "criterion.focal_gamma is nan"),
        ("data", {"min_scale": 0.01}, "data.min_scale"),
        ("model", {"num_heads": 0}, "model.num_heads is 0, but must be 1 or above"),
        ("model", {"dim": 0}, "model.dim is 0"),
        ("model", {"num_levels": -1}, "model.num_levels is -1"),
        ("model", {"encoder_layers": -1}, "model.encoder_layers is -1, but must be 0 or above"),
        ("model", {"backbone": BackboneConfig(std=(0.2, 0.0, 0.2))}, "model.backbone.std"),
    ],
)
def test_values_out_of_range_are_refused_by_name(section: str, change: dict[str, Any], message: str) -> None:
    experiment = Experiment()
    with pytest.raises(UserError, match=message):
        config.validate(replace(experiment, **{section: replace(getattr(experiment, section), **change)}))


def test_every_number_has_a_range() -> None:
    """No setting takes minus a thousand, NaN or infinity."""
    refused = 0
    for section in ("data", "criterion", "optimizer", "schedule", "evaluation", "runtime", "model"):
        part = getattr(Experiment(), section)
        for name, value in vars(part).items():
            for bad in {int: (-1000,), float: (-1000.0, float("nan"), float("inf"))}.get(type(value), ()):
                with pytest.raises(UserError, match=f"{section}.{name} is "):
                    config.validate(replace(Experiment(), **{section: replace(part, **{name: bad})}))
                refused += 1
    assert refused > 50


@pytest.mark.parametrize("change", [{"image_size": (640, 640)}, {"min_scale": 0.5}])
def test_sizes_that_the_official_recipe_ignores_are_refused(change: dict[str, Any]) -> None:
    experiment = preset("deformable-detr-r50")
    with pytest.raises(UserError, match=r"'official' trains at its own, .*: add --data\.augment crop"):
        config.validate(replace(experiment, data=replace(experiment.data, **change)))
    config.validate(replace(experiment, data=replace(experiment.data, augment="crop", **change)))


def test_seed_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="seed"):
        config.validate(replace(Experiment(), seed=2**64))


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'deformable-detr-tiny'"):
        preset("deformable-detr-tny")


def test_did_you_mean_is_silent_when_nothing_is_near() -> None:
    assert did_you_mean("zebra", ["detr"]) == ""
