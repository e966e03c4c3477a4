import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from detrs.evaluation.diagnosis import diagnose
from detrs.visualization import fonts
from detrs.visualization.curves import curves_figure
from detrs.visualization.draw import draw_boxes
from detrs.visualization.report_figures import figures

CACHED = (
    *(fonts.font, fonts.sized, fonts.legible, fonts.file_for, fonts.other_files, fonts.characters_of),
    *(fonts._warned,),
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "other_files", lambda: ())


@pytest.fixture
def square_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font whose glyphs for 血 and a few others (matplotlib measures "lp") are black squares."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(100, 0), (100, 800), (900, 800), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap(dict.fromkeys(map(ord, "血A 0.5lp"), "square"))
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 100)})
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = str(tmp_path / "square.ttf")
    builder.save(path)
    monkeypatch.setattr(fonts, "other_files", lambda: (path,))
    return path


def drawn(name: str) -> Image.Image:
    boxes = torch.tensor([[100.0, 200.0, 400.0, 390.0]])
    return draw_boxes(torch.full((3, 397, 499), 90, dtype=torch.uint8), boxes, torch.tensor([0]), (name,))


def test_the_default_font_is_kept_where_it_has_all_characters(square_font: str) -> None:
    assert fonts.file_for("cell A, клетка, سيارة") == fonts.default_file()
    assert fonts.legible("cell\n A\x00, клетка") == "cell A , клетка"


def test_other_characters_are_drawn_with_a_font_that_has_them(square_font: str) -> None:
    assert fonts.file_for("血") == square_font
    black = (np.asarray(drawn("血")) == 0).all(axis=2)
    rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
    assert black[rows[1] : rows[-1], columns[1] : columns[-1]].all(), "not filled"
    assert rows[-1] < 200 and len(columns) >= 6


def test_without_a_font_the_name_is_replaced_and_one_warning_says_how_to_get_one(
    no_fonts: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "detrs"):
        assert drawn("血小板") == drawn("class 0")
        assert fonts.legible("血 cell") == "U+8840 cell" and fonts.legible("板", "class 7") == "class 7"
    (record,) = caplog.records
    assert "pip install 'detrs[fonts]'" in record.getMessage() and "血小板" in record.getMessage()


def test_figures_use_the_font_as_well(square_font: str) -> None:
    """matplotlib warns of missing glyphs, and warnings are errors here."""
    line = {"kind": "evaluation", "step": 1, "ap": 0.5, "per_class": {"血": {"ap": 0.5}}}
    figure = curves_figure([line])
    figure.canvas.draw()
    labels = [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    (label,) = [label for label in labels if label.get_text().startswith("血")]
    assert label.get_fontproperties().get_file() == square_font
    assert "Square" not in font_manager.fontManager.get_font_names()


def test_figures_of_a_report_use_the_font_as_well(square_font: str) -> None:
    truth: Any = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "血"}]}
    (matrix,) = (figure for name, figure in figures(diagnose(truth, []).to_json()) if name == "confusion_matrix.png")
    matrix.canvas.draw()
    labels = [label for label in matrix.axes[0].get_xticklabels() if label.get_text() == "血"]
    assert [label.get_fontproperties().get_file() for label in labels] == [square_font]
    assert "Square" not in font_manager.fontManager.get_font_names()


def test_the_package_comes_first_and_regular_fonts_before_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / fonts.PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = ["/x/NotoSansBold.ttf", "/x/Zen.ttf", "/x/Ming-Light.otf"]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    files = fonts.other_files()
    assert files[-3:] == ("/x/Zen.ttf", "/x/Ming-Light.otf", "/x/NotoSansBold.ttf")
    assert Path(files[0]).name == fonts.PACKAGE_FILE and Path(files[0]).parent.name == fonts.PACKAGE


def test_damaged_fonts_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    assert fonts.characters_of(str(tmp_path / "broken.ttf")) == frozenset()
    assert fonts.characters_of(str(tmp_path / "missing.ttf")) == frozenset()
