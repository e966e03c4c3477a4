from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detrs import config
from detrs.backbones.timm import BackboneConfig
from detrs.classification import Focal
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


def test_broken_json_is_told_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "experiment.json"
    file.write_text('{\n  "name": oops\n}')
    with pytest.raises(UserError, match="line 2, column 11"):
        config.load(file)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", None])
def test_what_is_no_text_or_no_file_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "experiment.json"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=r"experiment\.json(: | is not an experiment)") as error:
        config.load(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("optimizer", {"lr": 0.0}, "optimizer.lr is 0.0, but must be above 0"),
        ("optimizer", {"ema_decay": 1.0}, "optimizer.ema_decay is 1.0, but must be in [0, 1)"),
        ("schedule", {"drop_at": (0.5, 40.0)}, "schedule.drop_at is (0.5, 40.0), but must be in (0, 1)"),
        ("schedule", {"drop_at": (0.5, float("nan"))}, "schedule.drop_at is (0.5, nan), but must be finite"),
        ("schedule", {"max_minutes": 0.0}, "schedule.max_minutes is 0.0, but must be above 0"),
        ("data", {"resize_to": (640, 480)}, "data.resize_to is (640, 480), but must be (short, long)"),
        ("data", {"resize_to": (8, 480)}, "data.resize_to is (8, 480), but must be in [32, 16384]"),
        ("data", {"mosaic": 1.5}, "data.mosaic is 1.5, but must be in [0, 1]"),
        ("data", {"large_scale_jitter": (0.5, 9.0)}, "data.large_scale_jitter is (0.5, 9.0), but must be in [0.1, 4]"),
        ("runtime", {"log_every": 0}, "runtime.log_every is 0, but must be at least 1"),
        ("evaluation", {"batch_size": 0}, "evaluation.batch_size is 0, but must be at least 1"),
        ("optimizer", {"lr": float("inf")}, "optimizer.lr is inf, but must be finite"),
        ("optimizer", {"clip_norm": 0.0}, "optimizer.clip_norm is 0.0, but must be above 0"),
        ("model", {"num_heads": 0}, "model.num_heads is 0, but must be in [1, 1024]"),
        ("model", {"num_heads": 3}, "model.num_heads is 3, but must divide model.dim"),
        ("model", {"encoder_layers": -1}, "model.encoder_layers is -1, but must be in [0, 100]"),
        ("model", {"classification": Focal(alpha=2.0)}, "model.classification.alpha is 2.0, but must be in [0, 1]"),
        ("model", {"backbone": BackboneConfig(std=(0.2, 0.0, 0.2))}, "model.backbone.std is (0.2, 0.0, 0.2), but must"),
    ],
)
def test_values_out_of_range_are_refused_by_name(section: str, change: dict[str, Any], message: str) -> None:
    """tests/test_schema.py has the edges of every range."""
    experiment = Experiment()
    with pytest.raises(UserError) as error:
        config.validate(replace(experiment, **{section: replace(getattr(experiment, section), **change)}))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("change", [{"resize_to": (640, 640)}, {"min_scale": 0.5}])
def test_sizes_that_the_official_recipe_ignores_are_refused(change: dict[str, Any]) -> None:
    experiment = preset("deformable-detr-r50")
    with pytest.raises(UserError, match=r"'official' always trains at .*: add --data\.augment crop"):
        config.validate(replace(experiment, data=replace(experiment.data, **change)))
    config.validate(replace(experiment, data=replace(experiment.data, augment="crop", **change)))


def test_factors_in_the_wrong_order() -> None:
    data = replace(Experiment().data, large_scale_jitter=(1.5, 0.5))
    message = (
        r"^data\.large_scale_jitter is \(1\.5, 0\.5\), but must be \(smallest, largest\) with smallest <= largest\.$"
    )
    with pytest.raises(UserError, match=message):
        config.validate(replace(Experiment(), data=data))


def test_a_vertical_flip_mirrors_too() -> None:
    for mirror in (True, False):
        data = replace(Experiment().data, mirror=mirror, vertical_flip=True)
        if mirror:
            config.validate(replace(Experiment(), data=data))
        else:
            with pytest.raises(
                UserError, match=r"^data\.vertical_flip is True, which mirrors.*data\.mirror False excl"
            ):
                config.validate(replace(Experiment(), data=data))


def test_seed_out_of_range_is_refused() -> None:
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match=rf"^seed is {seed}, but must be in \[0, 2\^63\)"):
            config.validate(replace(Experiment(), seed=seed))


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'deformable-detr-tiny'"):
        preset("deformable-detr-tny")


def test_did_you_mean_is_silent_when_nothing_is_near() -> None:
    assert did_you_mean("zebra", ["detr"]) == ""
