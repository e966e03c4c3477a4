"""LabelMe: layouts, shapes, faults."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from convert import assert_equal_targets, to_labelme
from PIL import Image
from small import boxes, error, read, write_coco

from detrs.data.detect import find_splits

FIRST = "train/train 0.json"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


@pytest.fixture
def labelme(coco: Path, tmp_path: Path) -> Path:
    for split in ("train", "val"):
        to_labelme(coco, split, tmp_path / "labelme")
    return tmp_path / "labelme"


def edit(change: Callable[[Any], object], file: str = FIRST) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        data = json.loads((root / file).read_text())
        change(data)
        (root / file).write_text(json.dumps(data))

    return apply


def shape(**values: Any) -> Callable[[Path], None]:
    return edit(lambda data: data["shapes"][1].update(values))


@pytest.mark.parametrize("split", ["train", "val"])
def test_equals_the_coco_form(coco: Path, labelme: Path, split: str) -> None:
    assert [found.name for found in find_splits(labelme)] == ["train", "val"]
    assert_equal_targets(labelme, split, coco)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_data(shared: Path, tmp_path: Path, split: str) -> None:
    bccd = shared / "data" / "bccd"
    for each in ("train", "val"):
        to_labelme(bccd, each, tmp_path)
    assert_equal_targets(tmp_path, split, bccd)


@pytest.mark.parametrize(
    "path", ["../images/{}", "..\\images\\{}", "C:\\Users\\me\\{}", "/home/me/images/{}", "{}.jpg", None]
)
def test_annotations_in_a_folder_of_their_own(labelme: Path, tmp_path: Path, path: str | None) -> None:
    root = tmp_path / "other"
    for folder in ("labels", "images"):
        (root / folder).mkdir(parents=True)
    for file in (labelme / "train").iterdir():
        shutil.copy(file, root / ("labels" if file.suffix == ".json" else "images"))
    for file in (root / "labels").iterdir():
        name = path and path.format(f"{file.stem}.png")
        edit(lambda data, name=name: data.update(imagePath=name), f"labels/{file.name}")(root)
    assert [found.name for found in find_splits(root)] == [""]
    assert boxes(read(root, "")) == boxes(read(labelme))


def test_classes_are_those_of_all_splits(labelme: Path) -> None:
    edit(lambda data: data["shapes"][0].update(label=" ant"), "val/val 1.json")(labelme)
    assert read(labelme).classes.names == read(labelme, "val").classes.names == ("ant", "cat", "dog")
    assert any(
        "spaces around it, which are removed: val/val 1.json: shapes[0]" in n for n in read(labelme, "val").notes
    )


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", [[1, 10], [14.25, 2], [7, 19]]),
        ("mask", [[1, 2], [14.25, 19]]),
        ("line", [[14.25, 19], [1, 2]]),
        ("rectangle", [[1, 2], [14.25, 2], [14.25, 19], [1, 19]]),
        ("rotation", [[1, 2], [14.25, 2], [14.25, 19], [1, 19]]),
    ],
)
def test_shapes(labelme: Path, kind: str, points: list[list[float]]) -> None:
    expected = boxes(read(labelme))
    shape(shape_type=kind, points=points)(labelme)
    found = read(labelme)
    assert boxes(found) == expected
    is_box = kind in ("rectangle", "rotation")
    assert found.notes == ([] if is_box else [
        "1 x polygon or other shape, of which the enclosing upright box is used: train/train 0.json: shapes[1]"
    ])  # fmt: skip


def test_a_circle_is_a_center_and_a_point_on_it(labelme: Path) -> None:
    shape(shape_type="circle", points=[[30, 20], [33, 24]])(labelme)
    assert ("train 0.png", "cat", [25, 15, 10, 10]) in boxes(read(labelme))


def test_shapes_without_box_and_other_files(labelme: Path) -> None:
    shape(shape_type="point", points=[[30, 20]])(labelme)
    (labelme / "train" / "settings.json").write_text("{}")
    found = read(labelme)
    assert len(found.objects) == 4 and found.notes[:2] == [
        "1 x JSON file that is not of LabelMe, ignored: train/settings.json",
        "1 x shape of the type 'point', which has no box, ignored: train/train 0.json: shapes[1]",
    ]


def test_labels_of_shapes_without_box_in_another_split_are_no_classes(labelme: Path) -> None:
    point = {"label": "nose", "shape_type": "point", "points": [[3, 2]]}
    edit(lambda data: data["shapes"].append(point), "val/val 0.json")(labelme)
    assert read(labelme).classes.names == read(labelme, "val").classes.names == ("cat", "dog")


@pytest.mark.parametrize("kind", [None, 3, ["rectangle"], {"rectangle": 1}])
def test_a_type_that_is_not_a_string(labelme: Path, kind: Any) -> None:
    shape(shape_type=kind)(labelme)
    assert (
        f"1 x shape of the type {kind!r}, which has no box, ignored: train/train 0.json: shapes[1]"
        in read(labelme).notes
    )


@pytest.mark.parametrize("shapes", [1.5, "cat", {"label": "cat"}, [3], None])
def test_faulty_files_of_another_split_do_not_matter(labelme: Path, shapes: Any) -> None:
    edit(lambda data: data.update(shapes=shapes), "val/val 0.json")(labelme)
    assert read(labelme).classes.names == ("cat", "dog")


def two_images(root: Path) -> None:
    Image.new("RGB", (97, 61)).save(root / "train" / "train 0.jpg")
    edit(lambda data: data.pop("imagePath"))(root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / FIRST).write_text('{"shapes": [\n{"label"'), "train 0.json: invalid JSON at line 2, col"),
        (lambda root: (root / FIRST).write_text(""), r"train 0.json is empty\. Expected a LabelMe annotation file"),
        (lambda root: (root / FIRST).write_text('{"shapes": [], "a": NaN}'), "train/train 0.json: NaN at line 1, col"),
        (edit(lambda data: data.update(shapes=None)), "without the list 'shapes': train/train 0.json"),
        (edit(lambda data: data.update(imagePath=3)), "imagePath that is not a string: train/train 0.json: 3"),
        (edit(lambda data: data["shapes"].append(3)), r"shape that is not an object: train/train 0.json: shapes\[3\]"),
        (edit(lambda data: data.update(shapes=1.5)), "without the list 'shapes': train/train 0.json"),
        (shape(label=""), r"shape without label: train/train 0.json: shapes\[1\]"),
        (shape(points=[[1, 2]]), r"expected at least two \[x, y\] in pixels\): train/train 0.json: shapes\[1\]"),
        (shape(points=[[1, 2], [3, "4"]]), r"shape without points.*shapes\[1\]"),
        (shape(points=[1, 2, 3, 4]), r"shape without points.*shapes\[1\]"),
        (shape(points=[[1, 2], [3, 1e300]]), r"very large coordinates: train/train 0.json: shapes\[1\]"),
        (shape(shape_type="rotation", points=[[5, 0], [10, 5], [5, 10], [0, 5]]), r"rotated box.*shapes\[1\]"),
        (shape(points=[[200, 2], [210, 9]]), r"outside its image: train/train 0.json: shapes\[1\]"),
        (edit(lambda data: data.update(imageWidth=98)), r"train/train 0.json: .*is 97 x 61, not 98 x 61"),
        (lambda root: (root / "train/train 0.png").unlink(), r"missing image \(of 3\): .*train 0.png"),
        (two_images, "several images of its name.*train/train 0.json: train 0.jpg, train 0.png"),
    ],
)  # fmt: skip
def test_faults(labelme: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(labelme)
    text = error(labelme)
    assert re.search(message, text), text


def test_fractions_instead_of_pixels(labelme: Path) -> None:
    for path in (labelme / "train").glob("*.json"):
        edit(
            lambda data: [each.update(points=[[0.1, 0.2], [0.3, 0.4]]) for each in data["shapes"]],
            f"train/{path.name}",
        )(labelme)
    assert "all boxes in [0, 1] (expected pixels)" in error(labelme)


def test_images_outside_of_the_dataset_are_not_read(labelme: Path) -> None:
    Image.new("RGB", (97, 61)).save(labelme.parent / "secret.png")
    edit(lambda data: data.update(imagePath="../../secret.png"))(labelme)
    (labelme / "train/train 0.png").unlink()
    assert "missing image (of 3)" in error(labelme)
