"""CVAT for images and for video: subsets, shapes, faults."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from convert import assert_equal_targets, to_cvat
from PIL import Image
from small import boxes, error, read, replace, write_coco

from detrs.data.detect import find_splits
from detrs.errors import UserError

FILE = "annotations.xml"
BOX = '<box label="dog" source="manual" occluded="0" xtl="5.5" ytl="7" xbr="36.5" ybr="30" z_order="0">'


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


@pytest.fixture
def cvat(coco: Path, tmp_path: Path) -> Path:
    for split in ("train", "val"):
        to_cvat(coco, split, tmp_path / "cvat")
    return tmp_path / "cvat"


def test_equals_the_coco_form(coco: Path, cvat: Path) -> None:
    assert [split.name for split in find_splits(cvat)] == ["train", "val"]
    for split in ("train", "val"):
        assert_equal_targets(cvat, split, coco)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_data(shared: Path, tmp_path: Path, split: str) -> None:
    bccd = shared / "data" / "bccd"
    for each in ("train", "val"):
        to_cvat(bccd, each, tmp_path)
    assert_equal_targets(tmp_path, split, bccd)


def test_subsets_without_a_list_of_them(cvat: Path) -> None:
    expected = {split: boxes(read(cvat, split)) for split in ("train", "val")}
    replace(cvat / FILE, "<subsets>Train\nVal</subsets>", "")
    assert {split: boxes(read(cvat, split)) for split in ("train", "val")} == expected


def test_a_task_without_subset_is_undivided(coco: Path, tmp_path: Path) -> None:
    path = to_cvat(coco, "train", tmp_path / "cvat")
    (tmp_path / "cvat/images/Train").rename(tmp_path / "cvat/flat")
    (tmp_path / "cvat/flat").rename(tmp_path / "cvat/images/default")
    replace(path, "Train", "default", -1)
    for root in (tmp_path / "cvat", path):
        assert [split.name for split in find_splits(root)] == [""]
        assert boxes(read(root, "")) == boxes(read(coco))


def test_a_file_for_each_split(coco: Path, tmp_path: Path) -> None:
    root = tmp_path / "cvat"
    for split in ("train", "val"):
        path = to_cvat(coco, split, tmp_path / f"export {split}")
        replace(path, "<subsets>", f"<subset>{split.title()}</subset><ignored>")
        replace(path, "</subsets>", "</ignored>")
        path.parent.rename(root / split) if root.exists() else root.mkdir() or path.parent.rename(root / split)
    replace(root / "val" / FILE, "<name>cat", "<name>ant")
    replace(root / "val" / FILE, 'label="cat"', 'label="ant"', -1)
    assert boxes(read(root)) == boxes(read(coco))
    assert [split.name for split in find_splits(root)] == ["train", "val"]
    assert [read(root, split).classes.names for split in ("train", "val")] == [("cat", "dog", "ant")] * 2


def test_other_shapes(cvat: Path) -> None:
    expected = boxes(read(cvat))
    shapes = (
        '<polygon label="dog" points="5.5,7;36.5,12;10,30"></polygon>',
        '<ellipse label="dog" cx="21" cy="18.5" rx="15.5" ry="11.5"></ellipse>',
        '<mask label="dog" rle="1, 2" left="5.5" top="7" width="31" height="23"></mask>',
        '<polyline label="dog" points="5.5,7;36.5,30"></polyline>',
    )
    current = f"{BOX}\n    </box>"
    for shape in shapes:
        replace(cvat / FILE, current, shape)
        found = read(cvat)
        assert boxes(found) == expected
        assert (
            "1 x polygon or other shape, of which the enclosing upright box is used: annotations.xml:7" in found.notes
        )
        current = shape
    replace(cvat / FILE, current, f'{BOX}</box><tag label="dog"/><points label="dog" points="1,2"/>')
    assert "1 x <points>, which has no box, ignored: annotations.xml:7" in read(cvat).notes


def video(root: Path, image: str = "frame_00000{}.PNG") -> Path:
    (root / "images").mkdir(parents=True)
    for frame in range(3):
        Image.new("RGB", (97, 61)).save(root / "images" / image.format(frame))
    box = '<box frame="{}" keyframe="1" outside="{}" occluded="0" xtl="{}" ytl="1" xbr="9" ybr="7"/>\n'
    first = box.format(0, 0, 1) + box.format(1, 0, 2) + box.format(2, 1, 3)
    (root / FILE).write_text(
        "<annotations><meta><task><labels><label><name>dog</name></label></labels>"
        "<original_size><width>97</width><height>61</height></original_size></task></meta>\n"
        f'<track id="0" label="dog">{first}</track>\n</annotations>'
    )
    return root


def test_a_video_with_its_frames(tmp_path: Path) -> None:
    found = read(video(tmp_path), "")
    assert boxes(found) == [("frame_000000.PNG", "dog", [1, 1, 8, 6]), ("frame_000001.PNG", "dog", [2, 1, 7, 6])]
    assert len(found.images) == 3


def test_a_video_without_its_frames(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has tracks of a video, but there are no images of its frames"):
        read(video(tmp_path, "photo {}.png"), "")


def change(old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    return lambda root: replace(root / FILE, old, new, count)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("</annotations>", ""), r"annotations.xml:\d+: invalid XML: no element found"),
        (change("<meta>", '</meta>'), r"annotations.xml:4: invalid XML: mismatched tag"),
        (change("<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]>\n<annotations>'), ":2: .*document type declaration"),
        (change("subset=\"Train\"", 'subset="Trian"'), r"not in <meta> \(train, val\): annotations.xml:6"),
        (change('label="dog"', 'label="dgo"'), "label that is not in <meta>: annotations.xml:7: 'dgo'"),
        (change('label="dog"', ""), "shape without label: annotations.xml:7"),
        (change('xbr="36.5"', 'xbr="3"'), "<box> with xbr below xtl.*annotations.xml:7: xtl=5.5 ytl=7 xbr=3"),
        (change('xbr="36.5"', ""), "<box> without numbers.*expected xtl, ytl, xbr and ybr in pixels.*xml:7: xtl=5.5"),
        (change('xbr="36.5"', 'xbr="nan"'), "NaN, infinite or very large coordinates: annotations.xml:7"),
        (change('z_order="0"', 'rotation="30.5"'), "rotated box.*annotations.xml:7: rotation=30.5"),
        (change(f"{BOX}\n    </box>", '<polygon label="dog" points="1,2;3"/>'), "<polygon> without numbers.*xml:7"),
        (change("<box", "<cube", 1), "mismatched tag"),
        (change('width="97"', 'width="96"'), "annotations.xml:6: .*train 0.png is 97 x 61, not 96 x 61"),
        (change('name="train 0.png"', 'name=""'), "<image> without name: annotations.xml:6"),
        (change('name="train 0.png"', 'name="http://a.org/a.png"'), "URL.*annotations.xml:6"),
        (lambda root: (root / "images/Train/train 0.png").unlink(), r"missing image \(of 3\): .*train 0.png"),
        (change("xtl", "x1", -1), r"5 x <box> without numbers"),
    ],
)  # fmt: skip
def test_faults(cvat: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(cvat)
    text = error(cvat)
    assert re.search(message, text), text
