"""``detrs checkpoint inspect`` and ``list``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detrs.checkpoints.detector import load_detector, save_detector
from detrs.checkpoints.published import TABLE


def test_inspect(detrs: Callable, checkpoint: Path) -> None:
    done = detrs("checkpoint", "inspect", checkpoint, "--json", "--tensors")
    assert done.code == 0 and len(done.out.splitlines()) == 1
    values = done.json
    assert (values["kind"], values["detector"]) == ("checkpoint of detrs", "DeformableDETR")
    assert values["classes"] == ["bright", "dark"] and values["category_ids"] == [7, 3]
    assert values["written_by"].startswith("detrs ") and len(values["sha256"]) == 64
    assert set(values["preprocessing"]) == {"resize_to", "mean", "std"}
    weights = [entry for entry in values["tensors"] if "running" not in entry["name"]]
    assert sum(torch.Size(entry["shape"]).numel() for entry in weights) >= values["num_parameters"] > 0
    table = detrs("checkpoint", "inspect", checkpoint)
    assert "2: bright, dark" in table.out and f"{values['num_parameters']:,}" in table.out
    assert weights[0]["name"] not in table.out
    assert "shortest side 61, longest side at most 113" in table.out and "published at" not in table.out
    assert all(len(line) <= 80 for line in table.out.splitlines())
    assert values["sha256"] in table.out
    assert weights[0]["name"] in detrs("checkpoint", "inspect", checkpoint, "--tensors").out


def test_inspect_shows_the_threshold(detrs: Callable, checkpoint: Path, tmp_path: Path) -> None:
    values = detrs("checkpoint", "inspect", checkpoint, "--json").json
    assert (values["threshold"], values["class_thresholds"]) == (None, {})
    assert "threshold" not in detrs("checkpoint", "inspect", checkpoint).out
    path, thresholds = tmp_path / "best.safetensors", {"bright": 0.4, "dark": None}
    save_detector(path, replace(load_detector(checkpoint), threshold=0.37, class_thresholds=thresholds))
    values = detrs("checkpoint", "inspect", path, "--json").json
    assert (values["threshold"], values["class_thresholds"]) == (0.37, thresholds)
    assert "0.37 (best F1 on the validation split)" in detrs("checkpoint", "inspect", path).out


def test_inspect_shows_ap_and_suppression(detrs: Callable, checkpoint: Path, tmp_path: Path) -> None:
    path, detector = tmp_path / "best.safetensors", load_detector(checkpoint)
    assert "suppression" not in detrs("checkpoint", "inspect", checkpoint).out
    evaluation = replace(detector.experiment.evaluation, nms=0.8)
    changed = replace(detector, scores={"ap": 0.0071}, experiment=replace(detector.experiment, evaluation=evaluation))
    save_detector(path, changed)
    rows = {
        words[0]: words[1:] for line in detrs("checkpoint", "inspect", path).out.splitlines() if (words := line.split())
    }
    assert rows["AP"] == ["0.007"]  # as after training
    assert rows["suppression"][:7] == ["of", "detections", "with", "an", "IoU", "above", "0.8"]


def test_a_file_with_code_is_an_error(detrs: Callable, tmp_path: Path) -> None:
    torch.save({"model": torch.nn.ReLU()}, tmp_path / "a.pth")
    done = detrs("checkpoint", "inspect", tmp_path / "a.pth")
    assert done.code == 2 and "contains code: 'torch.nn.modules.activation.ReLU'" in done.message


def test_list(detrs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = detrs("checkpoint", "list", "--json").json["checkpoints"]
    assert [row["source"] for row in rows] == [each.source for each in TABLE]
    assert rows[0]["ap"] == 0.42 and rows[0]["sha256"] is None and rows[0]["preprocessing"]["resize_to"] == [800, 1333]
    monkeypatch.setenv("COLUMNS", "80")
    lines = detrs("checkpoint", "list").out.splitlines()
    assert all(any(each.source in line for line in lines) for each in TABLE)
    assert all(line == line.rstrip() for line in lines) and sum(len(line) > 80 for line in lines) < len(TABLE) // 3


def test_actions(detrs: Callable) -> None:
    assert "inspect" in detrs("checkpoint").out == detrs("checkpoint", "--help").out
    done = detrs("checkpoint", "inspct")
    assert done.code == 2 and "Did you mean 'inspect'" in done.message
    assert detrs("checkpoint", "inspect").code == 2
    assert "SOURCE" in detrs("checkpoint", "inspect", "--help").out
