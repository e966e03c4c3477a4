import json
from collections.abc import Callable
from pathlib import Path

from detrs.engine.evaluate import evaluate_checkpoint


def test_json_is_the_report_of_the_engine(detrs: Callable, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = ("--device", "cpu", "--results", results, "--json")
    done = detrs("evaluate", checkpoint, *words)
    assert done.code == 0 and len(done.out.splitlines()) == 1 and "3 images, 6 objects" in done.err
    expected = evaluate_checkpoint(checkpoint, device="cpu")
    assert done.json == {"checkpoint": str(checkpoint), **json.loads(json.dumps(expected.report.to_json()))}
    assert json.loads(results.read_text()) == expected.results
    assert set(done.json["per_class"]) == {"bright", "dark"}

    other = detrs("evaluate", checkpoint, "--data", data, "--split", "train", *words)
    assert other.json["num_images"] == 4


def test_table_without_json(detrs: Callable, checkpoint: Path) -> None:
    done = detrs("evaluate", checkpoint, "--device", "cpu", "--image-size", 67, "--max-detections", 5)
    assert done.code == 0 and "bright" in done.out and "15 detections" in done.out and not done.err
