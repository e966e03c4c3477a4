from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from detrs.cli import demo
from detrs.data import digits


def test_demo_trains_scores_and_draws(detrs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 16, "val": 4})
    monkeypatch.setattr(demo, "NUM_IMAGES", 3)
    done = detrs("demo", "--output", "demo", "--minutes", 0.02, "--device", "cpu", "--quiet", "--json")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert {"ap", "ap50", "seconds", "checkpoint", "images"} <= set(done.json)
    assert 0 <= done.json["ap"] <= done.json["ap50"] <= 1 and done.json["num_images"] == 4
    drawings = sorted(Path(done.json["images"]).iterdir())
    assert [path.name for path in drawings] == ["01.jpg", "02.jpg", "03.jpg"]
    for path in drawings:
        with Image.open(path) as drawing:
            assert min(drawing.size) > 100
    for name in ("best.safetensors", "metrics.jsonl", "results.png", "experiment.json", "val_predictions.jpg"):
        assert Path("demo", name).is_file()
    assert done.json["checkpoint"] == "demo/best.safetensors"
