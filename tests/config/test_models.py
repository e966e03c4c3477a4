"""The table of detectors."""

import importlib
import subprocess
import sys
import typing

import pytest

from detrs.config.models import MODELS, ModelConfig, ModelSettings, check_model
from detrs.errors import UserError
from detrs.models import Model, module_of


def test_every_detector_has_a_module_that_builds_its_settings() -> None:
    assert set(typing.get_args(ModelConfig)) == set(MODELS)
    for kind in MODELS:
        hints = typing.get_type_hints(module_of(kind()).build)
        assert hints["config"] is kind and issubclass(hints["return"], Model)


def test_settings_and_module_have_the_same_name() -> None:
    for kind, module in MODELS.items():
        assert kind.__module__ == module.replace("detrs.models.", "detrs.config.")
        assert isinstance(kind(), ModelSettings)


def test_unknown_settings_are_an_error_with_an_example() -> None:
    with pytest.raises(UserError, match=r"Expected the configuration of a model, .* got 'detr-r50'"):
        check_model("detr-r50")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("detrs.backbones.timm", "detrs.config.backbone", "BackboneConfig"),
        ("detrs.data.transforms", "detrs.config.data", "DataConfig"),
        ("detrs.criterion.set_criterion", "detrs.config.criterion", "CriterionConfig"),
        ("detrs.classification", "detrs.config.classification", "Focal"),
        ("detrs.classification", "detrs.config.classification", "Softmax"),
        ("detrs.models", "detrs.config.models", "ModelConfig"),
        *((module, kind.__module__, kind.__name__) for kind, module in MODELS.items()),
    ],
)
def test_settings_are_importable_beside_the_code_that_uses_them(old: str, new: str, name: str) -> None:
    assert getattr(importlib.import_module(old), name) is getattr(importlib.import_module(new), name)


def test_one_detector_is_imported_without_the_others() -> None:
    code = "import sys, detrs; detrs.build(detrs.preset('detr-tiny').model); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    built = {name for name in run.stdout.split() if name in MODELS.values()}
    assert built == {"detrs.models.detr"}
