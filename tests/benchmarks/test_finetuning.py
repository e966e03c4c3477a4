import json
from pathlib import Path

import finetuning
import page
import pytest
from finetuning import STARTS, main, report

from detrs import config
from detrs.data import digits
from detrs.engine import trainer
from detrs.ops import use

TINY = ["--data", "digits", "--image-size", "64", "96", "--evaluate-every", "1", "--device", "cpu"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and few images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finetuning, "RESULTS", tmp_path / "results" / "finetuning.jsonl")
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 4, "val": 2})
    for name in ("save_training_batch", "save_predictions", "save_curves"):
        monkeypatch.setattr(trainer, name, lambda *arguments: None)
    return tmp_path


def test_both_runs_differ_in_their_initial_weights_only(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "warm_up", lambda experiment: None)
    with use("reference"):
        assert main([*TINY, "--source-minutes", "0.02", "--max-minutes", "0.02"]) == 0
    (line,) = [json.loads(text) for text in finetuning.RESULTS.read_text().splitlines()]
    assert line["curves"].keys() == set(STARTS) and all(line["curves"].values())
    shown = capsys.readouterr().out
    assert "fine-tuned: AP50" in shown and "Best AP: backbone alone" in shown
    assert "0.02 minutes each; fine-tuned from 0.02 minutes on digits" in shown
    bare, tuned = (
        config.load(Path("runs/finetuning", name, "experiment.json")) for name in ("backbone-alone", "fine-tuned")
    )
    assert bare.initial is None and tuned.initial == str(Path("runs/finetuning/source/best.safetensors"))
    assert {**vars(bare), "initial": None} == {**vars(tuned), "initial": None}


def test_curves_of_different_length() -> None:
    point = {"epoch": 1.5, "seconds": 20.0, "ap": 0.25, "ap50": None}
    setting = {"data": "a", "source": "b", "source_minutes": None, "max_minutes": 8.0}
    text = report({"preset": "p", "setting": setting, "curves": {STARTS[0]: [point], STARTS[1]: [point, point]}})
    assert "| 1 | 1.5 | 20 | 0.250 | - | 1.5 | 20 | 0.250 | - |\n| 2 |  |  |  |  | 1.5 | 20 | 0.250 | - |" in text
    assert page.table(["x"], []) and "fine-tuned from b**" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-minutes", "0"], "must be above 0, got 0"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--preset", "detr-tinny"], "Did you mean 'detr-tiny'?"),
        (["--output", "."], "'.' is not empty"),
    ],
)
def test_faults_are_reported_before_training(
    home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "file").touch()
    assert main([*TINY, *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
