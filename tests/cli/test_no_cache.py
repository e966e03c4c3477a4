"""--no-cache of detrs train and detrs evaluate."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detrs.cli import evaluate, train
from detrs.config import Experiment, RuntimeConfig
from detrs.data.transforms import DataConfig
from detrs.engine import validation


@pytest.mark.parametrize("flags", [[], ["--no-cache"]])
def test_train(flags: list[str], tmp_path: Path) -> None:
    argv = ["deformable-detr-tiny", "--data", "digits", "--output", str(tmp_path / "run"), *flags]
    experiment, _, _ = train.read(argv)
    assert experiment.runtime.cache_annotations is not bool(flags)


@pytest.mark.parametrize("flags", [[], ["--no-cache"]])
def test_evaluate(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    given: dict[str, Any] = {}
    checkpoint = tmp_path / "best.safetensors"
    checkpoint.touch()

    def record(checkpoint: str, **options: Any) -> None:
        given.update(options)
        raise Stop

    monkeypatch.setattr("detrs.engine.evaluate.evaluate_checkpoint", record)
    with pytest.raises(Stop):
        evaluate.run([str(checkpoint), *flags])
    assert given["cache_annotations"] is not bool(flags)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("is_exact", [True, False])
def test_the_setting_reaches_the_dataset(cached: bool, is_exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []

    def record(*_: Any, cache_annotations: bool, **options: Any) -> None:
        given.append(cache_annotations)

    for name in ("open_dataset", "open_validation_part"):
        monkeypatch.setattr(validation, name, record)
    experiment = Experiment(data=DataConfig(path="folder"))
    experiment = replace(experiment, runtime=RuntimeConfig(cache_annotations=cached))
    validation.open_validation(experiment, is_given=True, is_exact=is_exact)
    assert given == [cached]
