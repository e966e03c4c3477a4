"""The page of ``detrs check``."""

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.data.advice import Plan, advise
from detrs.data.doctor import examine_dataset
from detrs.visualization.check_page import heat_map, page
from detrs.visualization.suspects import suspects
from detrs.visualization.svg import bars, histogram, scatter

PLAN = Plan(preset="some-detr", resize_to=(64, 96), stride=8, capacity=None, max_detections=100)


def dataset(root: Path) -> Path:
    """A dataset with every kind of suspicious image."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for split, first in (("train", 0), ("val", 10)):
        data: dict[str, Any] = {"categories": [{"id": 1, "name": "<b>a"}, {"id": 2, "name": "b & c"}], "images": []}
        data["annotations"] = []
        for number in range(first, first + 5):
            name = f"{number}.png"
            pixels = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((97, 61)).save(root / "images" / name)
            data["images"].append({"id": number, "file_name": name, "height": 61, "width": 97})
            for label in (1, 2):
                bbox = [3 + number, 5, 20, 17 + number]
                data["annotations"].append({"image_id": number, "category_id": label, "bbox": bbox})
        data["annotations"].append({"image_id": first, "category_id": 1, "bbox": [-10, 5, 40, 30]})
        (root / f"{split}.json").write_text(json.dumps(data))
    shutil.copy(root / "images" / "0.png", root / "images" / "10.png")
    return root


class Parser(HTMLParser):
    """Checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        self.values += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_has_every_section_and_no_external_references(tmp_path: Path) -> None:
    facts = examine_dataset(dataset(tmp_path / "da<ta"), near_duplicates=True)
    text = page(facts, advise(facts, PLAN), PLAN)
    for section in (
        *("Findings", "Advice", "Splits", "Classes", "Objects per class", "Box sizes at image size 64 96"),
        *("Where boxes lie", "Objects per image", "Image sizes", "Smallest objects", "Largest objects"),
        *("Most objects in one image", "Boxes that exceed their image", "Boxes with several classes"),
        *("Copies of images", "Similar images", "stride 8", "box with several classes", "prefers-color-scheme: dark"),
    ):
        assert section in text, section
    parser = Parser()
    parser.feed(text)
    assert parser.open == [] and "<script" not in text and "<b>a" not in text and "&lt;b&gt;a" in text
    assert parser.values and all(value.startswith("data:image/") for value in parser.values)
    assert not re.findall(r"https?://|url\(|@import", text)
    for value in parser.values:
        image = Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2])))
        image.load()
        assert max(image.size) <= 400


def test_page_of_a_dataset_with_errors_only(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"images": [')
    facts = examine_dataset(tmp_path)
    text = page(facts, [], PLAN)
    assert "Fix the errors first." in text and "Nothing to change" not in text and 'class="error"' in text


def test_the_smallest_and_largest_objects_are_in_different_images(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    data = json.loads((root / "train.json").read_text())
    for bbox in [[n, n, 2, 2] for n in range(20)] + [[0, 0, 90 - n, 60] for n in range(20)]:
        data["annotations"].append({"image_id": 0, "category_id": 1, "bbox": bbox})
    (root / "train.json").write_text(json.dumps(data))
    found = suspects(examine_dataset(root))
    for kind in ("Smallest objects", "Largest objects"):
        assert len({suspect.caption.partition(",")[0] for suspect in found[kind]}) == 6, kind


def test_heat_map_covers_the_boxes(tmp_path: Path) -> None:
    facts = examine_dataset(dataset(tmp_path))
    uri = heat_map(facts.splits[0])
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))
    dark = pixels[-1, -1]  # no box reaches the lower right corner
    covered = (pixels != dark).any(2)
    height, width = covered.shape
    rows, columns = covered.any(1).nonzero()[0], covered.any(0).nonzero()[0]
    assert rows.min() / height == pytest.approx(5 / 61, abs=0.03)
    assert columns.min() == 0 and columns.max() / width == pytest.approx(30 / 97, abs=0.03)


@pytest.mark.parametrize(
    "chart",
    [
        bars(["a", "<b>"], {"train": [3, 0], "val": [100_000, 1]}),
        bars([], {"train": []}),
        histogram(np.array([1.0, 2.0, 300.0]), label="x", logarithmic=True, marks=[(8, "stride 8")]),
        histogram(np.array([5.0]), label="x", logarithmic=True),
        histogram(np.array([0, 0, 1, 7]), label="x"),
        histogram(np.array([0]), label="x"),
        histogram(np.arange(5000), label="x"),
        scatter(np.array([[640, 480], [30, 1000]]), np.array([1, 500]), labels=("w", "h")),
    ],
)
def test_charts_are_valid_xml(chart: str) -> None:
    root = ElementTree.fromstring(chart)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for rect in root.iter("rect"):
        x, y, w, h = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= -0.1 and x + w <= width + 0.1 and y >= -0.1 and y + h <= height + 0.1


def test_histogram_counts_every_value() -> None:
    values = np.random.default_rng(0).integers(0, 137, 1000)
    titles = [
        float(title.text.rpartition(": ")[2].replace(",", ""))
        for title in ElementTree.fromstring(histogram(values, label="x")).iter("title")
        if title.text
    ]
    assert sum(titles) == 1000
