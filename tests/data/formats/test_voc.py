"""Pascal VOC: layouts, coordinates, faults."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from convert import assert_equal_targets, to_voc
from PIL import Image
from small import boxes, error, read, replace, write_coco

from detrs.data.detect import find_split, find_splits
from detrs.data.doctor import examine_dataset
from detrs.data.formats import voc as module
from detrs.data.formats.file_per_image import ImageFiles

FIRST = "Annotations/train 0.xml"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


@pytest.fixture
def voc(coco: Path, tmp_path: Path) -> Path:
    for split in ("train", "val"):
        to_voc(coco, split, tmp_path / "voc")
    return tmp_path / "voc"


def lines(root: Path, text: str, file: str = FIRST) -> int:
    """The line of the first occurrence of ``text``."""
    return next(n for n, line in enumerate((root / file).read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize("split", ["train", "val"])
def test_equals_the_coco_form(coco: Path, voc: Path, split: str) -> None:
    assert_equal_targets(voc, split, coco)
    assert read(voc, split).classes.category_ids == (1, 2)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_data(shared: Path, tmp_path: Path, split: str) -> None:
    bccd = shared / "data" / "bccd"
    for each in ("train", "val"):
        to_voc(bccd, each, tmp_path)
    assert_equal_targets(tmp_path, split, bccd)


def test_pixels_start_at_1_and_the_last_one_is_included(voc: Path) -> None:
    (voc / FIRST).write_text(
        "<annotation><object><name>dog</name><bndbox><xmax>9</xmax><ymax>8</ymax><ymin>1</ymin><xmin>2</xmin></bndbox>"
        "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part></object></annotation>"
    )
    assert boxes(read(voc))[0] == ("train 0.png", "dog", [1, 0, 8, 8])


def beside(voc: Path, root: Path) -> None:
    """As Roboflow: annotations and images in a folder for each split."""
    for split in ("train", "valid"):
        (root / split).mkdir(parents=True)
        for folder in ("Annotations", "JPEGImages"):
            for path in (voc / folder).glob(f"{split.removesuffix('id')} *"):
                shutil.copy(path, root / split)


def nested(voc: Path, root: Path) -> None:
    shutil.copytree(voc, root / "VOCdevkit" / "VOC2012")


def named_images(voc: Path, root: Path) -> None:
    shutil.copytree(voc, root)
    (root / "JPEGImages").rename(root / "images")


def folder_per_split(voc: Path, root: Path) -> None:
    for split in ("train", "val"):
        for folder, name in (("Annotations", "annotations"), ("JPEGImages", "images")):
            (root / name / split).mkdir(parents=True)
            for path in (voc / folder).glob(f"{split} *"):
                shutil.copy(path, root / name / split)


@pytest.mark.parametrize("lay_out", [beside, nested, named_images, folder_per_split])
def test_layouts(voc: Path, tmp_path: Path, lay_out: Callable[[Path, Path], None]) -> None:
    lay_out(voc, tmp_path / "other")
    for split in ("train", "val"):
        assert boxes(read(tmp_path / "other", split)) == boxes(read(voc, split))
    assert len(find_splits(tmp_path / "other")) == 2


@pytest.mark.parametrize("folder", [".", "images", "Annotations"])
def test_without_splits(voc: Path, tmp_path: Path, folder: str) -> None:
    root = tmp_path / "other"
    (root / folder).mkdir(parents=True)
    for path in (*voc.glob("Annotations/*"), *voc.glob("JPEGImages/*")):
        shutil.copy(path, root / folder)
    assert [split.name for split in find_splits(root)] == [""]
    assert len(read(root, "").images) == 5


def test_lists_of_images(voc: Path) -> None:
    sets = voc / "ImageSets" / "Main"
    (sets / "train.txt").write_text("train 1  1\ntrain 0.png -1\n\ntrain 1\n")
    (sets / "trainval.txt").write_text("train 1\nval 0\n")
    (sets / "dog_train.txt").write_text("train 1 1\n")
    assert [split.name for split in find_splits(voc)] == ["train", "trainval", "val"]
    found = read(voc)
    assert [image.path.name for image in found.images] == ["train 0.png", "train 1.png"]
    assert "1 x image listed several times, used once: ImageSets/Main/train.txt:4: train 1" in found.notes


def test_the_folder_of_the_development_kit(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "VOCdevkit").mkdir(parents=True)
    voc.rename(tmp_path / "in" / "VOCdevkit" / "VOC2012")
    for root in (tmp_path / "in", tmp_path / "in" / "VOCdevkit", tmp_path / "in" / "VOCdevkit" / "VOC2012"):
        assert [split.name for split in find_splits(root)] == ["train", "val"]


def test_trainval_is_not_a_third_split_of_the_report(voc: Path) -> None:
    (voc / "ImageSets/Main/trainval.txt").write_text("train 0\ntrain 1\nval 0\n")
    facts = examine_dataset(voc)
    assert [split.name for split in facts.splits] == ["train", "val"] and not facts.leaks
    assert [split.name for split in examine_dataset(voc, split="trainval").splits] == ["trainval"]
    (voc / "ImageSets/Main/val.txt").unlink()
    assert [split.name for split in examine_dataset(voc).splits] == ["train", "trainval"]


def test_classes_are_those_of_all_splits(voc: Path) -> None:
    before = read(voc).digest
    replace(voc / "Annotations" / "val 0.xml", "dog", "ant", -1)
    for split in ("train", "val"):
        assert read(voc, split).classes.names == ("ant", "cat", "dog")
    assert read(voc).digest != before


def test_the_digest_is_that_of_the_annotations(voc: Path, tmp_path: Path) -> None:
    before = read(voc)
    shutil.copytree(voc, tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere").digest == before.digest
    replace(voc / FIRST, "<xmin>6.5</xmin>", "<xmin>6.25</xmin>")
    assert read(voc).digest != before.digest


def test_difficult_objects_only(voc: Path) -> None:
    for path in (voc / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<"))
    text = error(voc)
    assert "each of the 5 objects is an object with <difficult>1</difficult>, which is not a target of training" in text
    assert "iscrowd" not in text


def test_difficult_objects_are_neither_targets_nor_scored(voc: Path) -> None:
    replace(voc / FIRST, "<difficult>0</difficult>", "<difficult>1</difficult>")
    found = read(voc)
    assert found.objects.crowd.tolist() == [True, False, False, False, False]
    assert found.objects.trainable.tolist() == [False, True, True, True, True]
    line = lines(voc, "<object>")
    assert (
        "1 x object with <difficult>1</difficult>, not a target, handled as a crowd region: "
        f"Annotations/train 0.xml:{line}" in found.notes
    )


def test_tolerated_deviations(voc: Path) -> None:
    expected = boxes(read(voc))
    replace(voc / FIRST, "<name>dog</name>", "<name> dog\n</name>")
    replace(voc / FIRST, "<difficult>0</difficult>", "")
    replace(voc / FIRST, "<width>97</width><height>61</height>", "<width>0</width><height>0</height>")
    replace(voc / FIRST, "<filename>train 0.png</filename>", "<filename>C:\\photos\\Image0.JPG</filename>")
    replace(voc / "Annotations/train 1.xml", "<filename>train 1.png</filename>", "")
    replace(voc / "Annotations/train 2.xml", "png", "jpg")
    found = read(voc)
    assert boxes(found) == expected
    assert found.notes == [
        "1 x class name with spaces around it, which are removed: Annotations/train 0.xml:"
        f"{lines(voc, '<object>')}: ' dog\\n'"
    ]


def test_an_image_that_only_filename_names(voc: Path) -> None:
    (voc / "JPEGImages" / "train 0.png").rename(voc / "JPEGImages" / "photo.png")
    replace(voc / FIRST, "train 0.png", "photo.png")
    assert next(image.path.name for image in read(voc).images) == "photo.png"


def test_one_missing_image_of_many_is_skipped(voc: Path) -> None:
    for number in range(100):
        shutil.copy(voc / "JPEGImages" / "train 0.png", voc / "JPEGImages" / f"more {number}.png")
        shutil.copy(voc / FIRST, voc / "Annotations" / f"more {number}.xml")
    shutil.rmtree(voc / "ImageSets")
    (voc / "JPEGImages" / "more 50.png").unlink()
    replace(voc / "Annotations" / "more 50.xml", "train 0.png", "more 50.png")
    found = read(voc, "")
    assert len(found.images) == 104 and found.num_skipped == 1
    assert any(note.startswith("1 x missing image, skipped: ") and "more 50.png" in note for note in found.notes)


def in_first(old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    return lambda root: replace(root / FIRST, old, new, count)


def normalized(root: Path) -> None:
    for path in root.glob("Annotations/*.xml"):
        path.write_text(re.sub(r"(?<=<[xy]m..>)[\d.]+", lambda match: str(float(match[0]) / 1000), path.read_text()))


def write(content: str | bytes) -> Callable[[Path], None]:
    return lambda root: void((root / FIRST).write_bytes(content if isinstance(content, bytes) else content.encode()))


def void(_: object) -> None:
    return None


def two_images(root: Path) -> None:
    Image.new("RGB", (97, 61)).save(root / "JPEGImages" / "train 0.jpg")
    replace(root / FIRST, "<filename>train 0.png</filename>", "")


ENTITIES = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n'
OBJECT = "<annotation>\n<object><name>dog</name>%s</object></annotation>"
CORNERS = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax></bndbox>"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: write((root / FIRST).read_text()[:300])(root), "0.xml:13: invalid XML: unclosed token"),
        (write("<annotation>\n<object></annotation>"), ":2: invalid XML: mismatched tag at column 11"),
        (write(""), "Annotations/train 0.xml is empty. Expected XML"),
        (write('{"shapes": []}'), ":1: invalid XML: not well-formed"),
        (write(b'<?xml version="1.0" encoding="shift_jis"?><annotation/>'), "the encoding is not supported"),
        (write(f"{ENTITIES}<annotation>&b;</annotation>"), ":1: the file has a document type declaration"),
        (write('<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><annotation/>'), "a document type declaration"),
        (write("<annotations/>"), "XML file whose root is not <annotation>: Annotations/train 0.xml: <annotations>"),
        (write(OBJECT % ""), "object without <bndbox>: Annotations/train 0.xml:2"),
        (write(OBJECT % CORNERS), "without four numbers.*train 0.xml:2: xmin=1 ymin=1 xmax=2 ymax="),
        (in_first("<xmin>6.5</xmin>", "<xmin>left</xmin>"), r"<bndbox> without four numbers.*: xmin=left ymin=8"),
        (in_first("<xmax>36.5</xmax>", "<xmax>nan</xmax>"), "NaN, infinite or very large coordinates.*xmax=nan"),
        (in_first("<xmax>36.5</xmax>", "<xmax>3</xmax>"), r"xmax below xmin.*train 0.xml:4: xmin=6.5 ymin=8 xmax=3"),
        (in_first("<name>dog</name>", "<name> </name>"), "object without <name>: Annotations/train 0.xml:4"),
        (in_first("bndbox>", "robndbox>", 2), "rotated box.*train 0.xml:4: <robndbox>"),
        (in_first("<difficult>0", "<difficult>7"), "<difficult> that is neither 0 nor 1: Annotations/train 0.xml:4: 7"),
        (in_first("<width>97", "<width>98"), "Annotations/train 0.xml: .*train 0.png is 97 x 61, not 98 x 61"),
        (in_first("<width>97", "<width>wide"), "not a positive integer: Annotations/train 0.xml: 'wide' x 61"),
        (normalized, r"dataset with all coordinates in \[0, 1\] \(expected pixels\): the largest is 0.046"),
        (two_images, "several images of its name.*Annotations/train 0.xml: train 0.jpg, train 0.png"),
        (lambda root: (root / "JPEGImages/train 0.png").unlink(), r"missing image \(of 3\)"),
        (lambda root: (root / FIRST).unlink(), "image without an annotation file: ImageSets/Main/train.txt:1: train 0"),
        (lambda root: void((root / "ImageSets/Main/train.txt").write_text("../a\n")), "annotation file.*txt:1: ../a"),
        (lambda root: void((root / "ImageSets/Main/train.txt").write_text("\n")), "contains no images"),
    ],
)  # fmt: skip
def test_faults(voc: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(voc)
    text = error(voc)
    assert re.search(message, text), text
    assert find_split(voc, "train").path.name == "train.txt"


def test_a_file_that_is_too_large(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    (voc / FIRST).write_text("<annotation>" + " " * 2**20)
    assert "Annotations/train 0.xml is larger than 1 MiB" in error(voc)


def test_deeply_nested_elements(voc: Path) -> None:
    (voc / FIRST).write_text("<annotation>" + "<a>" * 200_000 + "</a>" * 200_000 + "</annotation>")
    assert len(read(voc).images) == 3


def test_images_outside_of_the_folders_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").touch()
    finder = ImageFiles([tmp_path / "images"])
    assert finder.named("../secret.png") is finder.named(str(tmp_path / "secret.png")) is None
    assert finder.with_stem("../secret") == []
