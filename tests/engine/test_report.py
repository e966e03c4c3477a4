"""The report of an evaluation as files."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from run_tiny import Tiny

from detrs.engine import report
from detrs.engine.evaluate import Scores
from detrs.engine.report import FIGURES
from detrs.errors import UserError
from detrs.evaluation.coco import coco_report
from detrs.structures import Classes
from detrs.visualization.report_page import query_facts

ODD = ("</script><b>", "$x_1$", "_under", "红细胞", "ñandú \n 2", *(f"class {n} " + "x" * 60 for n in range(5, 10)))
"""Names of the ten classes that would break a page or a figure."""


class Odd(Tiny):
    """Digits with odd names."""

    def __init__(self, names: tuple[str, ...] = ODD) -> None:
        super().__init__("val")
        self.classes = Classes(names, tuple(range(len(names))))

    def ground_truth(self) -> dict[str, Any]:
        truth = Tiny("val").ground_truth()
        categories = [{"id": id, "name": name} for id, name in enumerate(self.classes.names)]
        return {**truth, "categories": categories}


def scores_of(tiny: ModuleType, dataset: Tiny, *, found: bool = True) -> Scores:
    """Most objects are found, some twice, some with another class or box; and some detections of nothing."""
    truth, results = dataset.ground_truth(), []
    for number, each in enumerate(truth["annotations"]):
        x, y, w, h = each["bbox"]
        label = (each["category_id"] + (number % 5 == 0)) % min(10, len(dataset.classes.names))
        box = [x + w / 2 * (number % 7 == 0), y, w, h]
        result = {"image_id": each["image_id"], "category_id": label, "bbox": box, "score": 0.9 - number / 100}
        results.append(result)
        if number % 4 == 0:
            results += [{**result, "score": result["score"] / 2}, {**result, "bbox": [0.0, 0.0, 9.0, 9.0]}]
    results = results if found else []
    return Scores(coco_report(truth, results), results, dataset, tiny.experiment(), threshold=0.4)


class Parser(HTMLParser):
    """Checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: Path) -> str:
    html = page.read_text(encoding="utf-8")
    parser = Parser()
    parser.feed(html)
    assert parser.open == [] and "<script" not in html
    assert all(source.startswith("data:image/") for source in parser.sources)
    assert not re.findall(r"https?://|url\(|@import", html) and "prefers-color-scheme: dark" in html
    return html


def test_the_files_of_a_report(tiny: ModuleType, tmp_path: Path) -> None:
    scores = scores_of(tiny, Odd())
    (tmp_path / "report").mkdir()
    for old in ("report.json", "layers.png"):
        (tmp_path / "report" / old).write_text('{"diagnosis": "of an earlier report"}')
    page = scores.write_report(tmp_path / "report")
    html = checked(page)
    for part in ("Classes", "F1 over the threshold", "Errors", "Confusion matrix", "Calibration", "most errors"):
        assert part in html
    assert "&lt;/script&gt;&lt;b&gt;" in html and "红细胞" in html and "stored in the checkpoint" in html
    values = json.loads((tmp_path / "report" / "report.json").read_text())
    assert values["diagnosis"] == json.loads(json.dumps(scores.diagnosis.to_json()))
    assert values["report"] == scores.report.to_json() and values["diagnosis"]["threshold"] == 0.4
    written = {path.name for path in page.parent.iterdir()}
    assert written == {"report.html", "report.json", *FIGURES} - {"layers.png"}  # its layers are unknown
    for name in written & FIGURES:
        with Image.open(page.parent / name) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 200


def test_a_report_of_nothing(tiny: ModuleType, tmp_path: Path) -> None:
    page = scores_of(tiny, Odd(), found=False).write_report(tmp_path)
    html = checked(page)
    assert "0 wrong detections" in html and "Labels to check" not in html and "Calibration</h2>" not in html


def test_facts_about_one_query_and_one_image() -> None:
    use: dict[str, Any] = {"most_objects": 2, "max_detections": 9, "num_queries": 1, "image_with_most_objects": 7}
    use |= {"images_above_queries": 1, "num_used": 1, "per_image": (1.0, 1.0), "several_classes": 1, "counts": (4,)}
    facts = [fact for _, fact in query_facts(use)]
    assert facts[:2] == [
        "Image 7 has 2 objects, 1 query: raise --model.num-queries.",
        "More objects than queries: 1 image.",
    ]
    assert "Same query as a better detection, but another class: 1 detection." in facts


def test_files_of_other_programs_are_not_replaced(tiny: ModuleType, tmp_path: Path) -> None:
    """Others call their file report.json, too; a report that was not finished is no reason to refuse."""
    scores, folder = scores_of(tiny, Odd()), tmp_path / "other"
    for text in ("not JSON", "[]", '{"tests": 3}'):
        folder.mkdir(exist_ok=True)
        contents = {"report.json": text, "errors.png": "mine"}
        for name, content in contents.items():
            (folder / name).write_text(content)
        with pytest.raises(UserError, match="contains no report: choose another one"):
            scores.write_report(folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == contents
    (tmp_path / "unfinished").mkdir()
    for name in ("errors.png", ".report.html.0123456789ab.tmp"):
        (tmp_path / "unfinished" / name).write_text("half")
    assert scores.write_report(tmp_path / "unfinished").exists()


class SameNames(Odd):
    """Images of different folders with the same file name, each with one object."""

    def ground_truth(self) -> dict[str, Any]:
        truth = super().ground_truth()
        first = {each["image_id"]: each for each in reversed(truth["annotations"])}
        return {**truth, "annotations": [*first.values()]}

    def path_of(self, index: int) -> str:
        return f"folder_{index}/frame.jpg"


def test_images_with_the_same_name_are_all_shown(tiny: ModuleType) -> None:
    captions = [caption for caption, _ in report.worst_images(scores_of(tiny, SameNames(), found=False))]
    assert len(captions) > 1 and set(captions) == {"frame.jpg: 0 wrong, 1 not found, 0 right"}


class One(Odd):
    """All digits are one class."""

    def __init__(self) -> None:
        super().__init__(("only",))

    def ground_truth(self) -> dict[str, Any]:
        truth = super().ground_truth()
        return {**truth, "annotations": [{**each, "category_id": 0} for each in truth["annotations"]]}


def test_one_class(tiny: ModuleType, tmp_path: Path) -> None:
    scores = scores_of(tiny, One())
    html = checked(scores.write_report(tmp_path))
    assert "Confusion matrix" in html and scores.diagnosis.errors.wrong["classification"] == 0


def test_two_hundred_classes(tiny: ModuleType, tmp_path: Path) -> None:
    scores = scores_of(tiny, Odd(tuple(f"class {n}" for n in range(200))))
    html = checked(scores.write_report(tmp_path))
    assert "Most frequent confusions" in html
    assert (tmp_path / "report.json").stat().st_size < 3_000_000


def test_a_folder_that_cannot_be_written(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = scores_of(tiny, Odd())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="must be a folder"):
        scores.write_report(tmp_path / "file")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(UserError, match="No space left"):
        scores.write_report(tmp_path / "report")
