import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrs.engine.evaluate import Scores
from detrs.engine.train import TrainResult
from detrs.errors import UserError
from detrs.evaluation.coco import coco_report
from detrs.structures import Classes, Detections
from detrs.visualization.draw import Style, draw_detections

ODD = "</td><script>alert(1)</script>"


class Cells(HTMLParser):
    """Text of the cells of all tables, row by row, and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.is_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.is_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.is_cell = self.is_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.is_cell:
            self.rows[-1][-1] += data


def found(number: int = 2, source: str | None = None) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[10.0, 20.0, 60.4, 50.6]]).repeat(number, 1),
        scores=torch.linspace(0.9, 0.5, number),
        labels=torch.arange(number) % 2,
        classes=Classes(("cell", ODD), (1, 2)),
        image_size=(397, 499),
        source=source,
    )


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (397, 499, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_plot_draws_on_the_source_or_on_an_image_of_any_kind(photograph: Path) -> None:
    pixels = torch.from_numpy(np.asarray(Image.open(photograph)).copy()).permute(2, 0, 1)
    expected = draw_detections(pixels, found(), 0.0)
    assert found(source=str(photograph)).plot() == expected
    array = pixels.permute(1, 2, 0).numpy()
    for image in (photograph, str(photograph), photograph.read_bytes(), Image.open(photograph), array, pixels):
        assert found().plot(image) == expected
    style = Style(show_labels=False, line_width=3, color_by="instance")
    drawn = found().plot(pixels, threshold=0.8, show_labels=False, line_width=3, color_by="instance")
    assert drawn == draw_detections(pixels, found(), 0.8, style=style) != expected


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (None, {}, "pass the image"),
        ("https://example.com/a.jpg", {}, "is a URL"),
        ("gone.jpg", {}, "gone.jpg"),
        (None, {"image": np.zeros((10, 20, 3), dtype=np.uint8)}, "20 x 10 pixels, but .* 499 x 397"),
        (None, {"image": 7}, "got an object of type 'int'"),
        (None, {"threshold": 50.0}, "must be in [0, 1]"),
        (None, {"line_width": 0}, "line_width is 0"),
    ],
)
def test_plot_names_what_is_wrong(source: str | None, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        found(source=source).plot(**arguments)
    assert re.search(message.replace("[", r"\["), str(error.value)), error.value


def test_detections_are_a_table() -> None:
    page = Cells(found(source="<b>.jpg")._repr_html_())
    assert page.rows[0] == ["class", "score", "x1, y1, x2, y2"]
    assert [[cell.strip() for cell in row] for row in page.rows[1:]] == [
        ["cell", "0.900", "10, 20, 60, 51"],
        [ODD, "0.500", "10, 20, 60, 51"],
    ]
    assert not {"script", "b"} & {*page.tags}
    many = found(300)._repr_html_()
    assert len(Cells(many).rows) == 21 and "and 280 more" in many and len(many) < 20_000
    assert Cells(found(0)._repr_html_()).rows == []


def test_names_that_are_not_text_can_be_shown() -> None:
    """File names may hold bytes that are not UTF-8, which Python reads as lone surrogates; notebooks write UTF-8."""
    assert "caf\\udce9.jpg" in found(source="caf\udce9.jpg")._repr_html_()
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "\ud800"}]}
    for page in (found(source="caf\udce9.jpg")._repr_html_(), coco_report(truth, [])._repr_html_()):
        page.encode()


def test_repr_is_short() -> None:
    assert repr(found(300, "a.jpg")) == (
        f"<Detections: 300 (cell 0.90, {ODD} 0.90, cell 0.90, ...), image_size=(397, 499), source='a.jpg'>"
    )
    assert repr(found(0)) == "<Detections: 0 (), image_size=(397, 499)>"


def scores(number: int) -> Scores:
    truth = {
        "images": [{"id": 1}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40]}],
        "categories": [{"id": 1, "name": ODD}, {"id": 2, "name": "cell"}],
    }
    result = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 40.0, 40.0], "score": 0.5}
    return Scores(report=coco_report(truth, [result] * number), results=[result] * number)


def test_an_evaluation_is_a_table_and_not_its_results() -> None:
    of_run = scores(5000)
    assert len(str(list(of_run.results))) > 400_000
    assert repr(of_run) == "<Scores: AP 1.000, AP50 1.000, AP75 1.000; 1 image, 5,000 detections>"
    page = of_run._repr_html_()
    assert page == of_run.report._repr_html_() and len(page) < 5000
    assert "1 image, 1 object, 0 crowd regions, 5,000 detections" in page
    rows = Cells(page).rows
    assert rows[1][:2] == ["AP", "1.000"] and rows[2][0] == "AR" and rows[1][6] == "–"
    assert rows[4] == [ODD, "1", "1.000", "1.000", "1.000"] and rows[5] == ["cell", "0", "–", "–", "–"]
    assert "script" not in Cells(page).tags


def test_a_training_result_shows_scores_and_curves(tmp_path: Path) -> None:
    result = TrainResult(
        output=tmp_path,
        checkpoint=tmp_path / "best<i>.safetensors",
        scores={"ap": 0.5, "ap50": None},
        best_step=3,
        steps=6,
        seconds=1234.0,
    )
    page = Cells(result._repr_html_())
    assert page.rows[:3] == [["AP", "0.500"], ["AP50", "–"], ["AP75", "–"]]
    assert ["best weights", "step 3 of 6"] in page.rows and ["time", "1,234 s"] in page.rows
    assert not {"i", "img"} & {*page.tags}
    Image.new("RGB", (5, 3), (1, 2, 3)).save(tmp_path / "results.png")
    data = re.search('src="data:image/png;base64,([^"]*)"', result._repr_html_())
    assert data is not None and base64.b64decode(data[1]) == (tmp_path / "results.png").read_bytes()
