"""``detrs check``: output and exit codes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.cli import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset with 150 objects in one image."""
    root = tmp_path / "data"
    write(root, "train", [[1 + n % 50, 2 + n // 50, 3, 4] for n in range(150)])
    write(root, "val", [[5, 6, 20, 30]])
    return root


def write(root: Path, split: str, boxes: list[Any]) -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(boxes)).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "images" / f"{split}.png")
    data = {
        "images": [{"id": 1, "file_name": f"{split}.png", "height": 61, "width": 97}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / f"{split}.json").write_text(json.dumps(data))


def test_report(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(root), "--preset", "detr-tiny"]) == 0
    out = capsys.readouterr().out
    assert "train" in out and "150" in out and "cat" in out
    assert "--model.num-queries" in out and "--evaluation.max-detections 200" in out
    assert "Advice for detr-tiny" in out


def test_json(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "check.html"
    words = ["check", str(root), "--image-size", "96", "--near-duplicates", "--output", str(page), "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["num_errors"] == 0 and found["preset"] == "deformable-detr-small" and found["similar"] == []
    assert [split["num_objects"] for split in found["splits"]] == [150, 1]
    # boxes of 3 x 4 pixels are smaller than a cell of stride 4, too; the size was given
    assert {each["topic"] for each in found["advice"]} >= {"image size"}
    starts = (
        "--model.num-queries 300 instead",
        "--evaluation.max-detections 200 instead",
        "--model.backbone.stages 2 3 4",
    )
    assert all(setting.startswith(start) for setting, start in zip(found["settings"], starts, strict=True))
    assert "--image-size 96" in captured.err and page.read_text().startswith("<!doctype html>")


def test_advice_follows_the_settings_that_follow_from_the_data(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in ``detrs train``: nothing is advised that the training does by itself."""
    write(root, "train", [[10 * n, 2, 4, 4] for n in range(9)])
    words = ["check", str(root), "--json", "--preset"]
    assert main([*words, "deformable-detr-tiny"]) == 0  # 4 pixels at 128 x 192 are 7.9
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == [] and "image size" in {each["topic"] for each in found["advice"]}
    for name in ("deformable-detr-small", "dino-small"):  # 15.8 at 288 x 384
        assert main([*words, name]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["settings"] == [] and "image size" not in {each["topic"] for each in found["advice"]}
    write(root, "train", [[10 * n, 2, 1.5, 1.5] for n in range(9)])  # 5.9
    assert main([*words, "dino-small"]) == 0
    found = json.loads(capsys.readouterr().out)
    (stages,) = found["settings"]
    assert stages.startswith(
        "--model.backbone.stages 2 3 4 instead of 3 4 5: a tenth of the objects are smaller than 5.9"
    )
    assert "image size" not in {each["topic"] for each in found["advice"]}


def test_errors_are_all_reported_with_exit_code_2(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, "train", [[1, 2, -3, 4], [1, 2, 3], [3, 4, 5, 6]])
    write(root, "val", [[1, 2, 3, 4, 5], [3, 4, 5, 6]])
    assert main(["check", str(root)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("error: train: ") == 2 and captured.out.count("error: val: ") == 1
    assert "has 3 kinds of errors, listed above" in captured.err
    assert main(["check", str(root), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["num_errors"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{root}x"], "does not exist"),
        (["{root}", "--preset", "detr"], "There is no preset 'detr'"),
        (["{root}", "--split", "test"], "has no split 'test'"),
        (["{root}", "--output", "{root}"], "--output must be an HTML file"),
        (["{root}", "--output", "{root}/no/check.html"], "does not exist or is not writable"),
        (["{root}", "--image-size", "5"], "--image-size"),
        (["digits"], "The demo set 'digits' is generated"),
        ([], "Missing argument DATA"),
    ],
)
def test_wrong_arguments(
    root: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert main(["check", *(word.format(root=root) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_columns_are_complete_at_80_characters(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    undivided = tmp_path / "undivided"
    write(undivided, "labels", [[1 + n, 2, 30, 30] for n in range(50)])
    (root / "val.json").rename(root / "validation.json")
    for folder, name in ((undivided, "(undivided)"), (root, "validation")):
        assert main(["check", str(folder)]) == 0
        out = capsys.readouterr().out
        table = out[: out.index("class")]
        assert f"  {name} " in table and "100%/0%/0%" in table and "…" not in table
        assert max(map(len, out.splitlines()[:8])) <= 80


def test_equal_notes_of_several_splits_are_printed_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        path = root / f"{split}.json"
        data = json.loads(path.read_text())
        data["categories"].append({"id": 2, "name": "dog"})
        path.write_text(json.dumps(data))
    assert main(["check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "note: train, val: 1 x class without objects: 'dog'" in out and out.count("'dog'") == 1


def test_equal_errors_of_several_splits_are_counted_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, "train", [[1, 2, 3]])
    shutil.copy(root / "train.json", root / "val.json")
    page = root / "check.html"
    assert main(["check", str(root), "--output", str(page)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("error: ") == 1 and "has 1 kind of error, listed above" in captured.err
    assert "<b>1</b><span>kinds of errors</span>" in page.read_text()


def test_names_of_copies_of_an_undivided_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "labels", [[1, 2, 3, 4]])
    path = tmp_path / "labels.json"
    data = json.loads(path.read_text())
    for number in range(2, 9):
        shutil.copy(tmp_path / "images/labels.png", tmp_path / f"images/{number}.png")
        data["images"].append({**data["images"][0], "id": number, "file_name": f"{number}.png"})
    pixels = np.random.default_rng(7).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    for group in range(6):
        for name in ("a", "b"):
            Image.fromarray(pixels + np.uint8(group)).save(tmp_path / f"images/{name}{group}.png")
            image = {**data["images"][0], "id": 10 + len(data["images"]), "file_name": f"{name}{group}.png"}
            data["images"].append(image)
    path.write_text(json.dumps(data))
    assert main(["check", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("copies: ")]
    assert len(lines) == 6 and "copies: a0.png, b0.png" in lines and lines[-1].startswith("copies: 2 more groups")


def test_advice_if_the_training_split_cannot_be_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train.json").write_text('{"images": [')
    assert main(["check", str(root)]) == 2
    out = capsys.readouterr().out
    assert "fix the errors first" in out and "nothing to change" not in out
