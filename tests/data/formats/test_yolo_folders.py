"""YOLO datasets whose images are in several folders, some of them without label folders."""

import shutil
from pathlib import Path

import pytest
from test_yolo import file, fill, image, opened, write

from detrs.data.detect import find_splits
from detrs.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folders with three images each, of which two have objects."""
    for name in ("a", "b"):
        fill(tmp_path / name / "images", tmp_path / name / "labels")
    write(tmp_path / "data.yaml", "train: [a/images, b/images]\nnames: [cat, dog]\n")
    return tmp_path


def test_a_misnamed_label_folder(root: Path) -> None:
    assert [len(each.boxes) for each in opened(root)] == [2, 3, 0, 2, 3, 0]
    (root / "b" / "labels").rename(root / "b" / "label")
    with pytest.raises(UserError) as caught:
        opened(root)
    assert f"expected the label files of {root}/b/images in {root}/b/labels, which does not exist." in str(caught.value)
    assert f"Did you mean 'label'? If these images have no objects, create the empty folder {root}/b/labels." in str(
        caught.value
    )
    (root / "b" / "labels").mkdir()
    assert [len(each.boxes) for each in opened(root)] == [2, 3, 0, 0, 0, 0]


def test_a_list_of_images_of_several_folders(root: Path) -> None:
    shutil.rmtree(root / "b" / "labels")
    write(root / "train.txt", "a/images/a.png\nb/images/a.png\n")
    write(root / "data.yaml", "train: train.txt\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match=r"b/labels, which does not exist\. If these images have"):
        opened(root)


def test_label_files_beside_some_of_the_images(root: Path) -> None:
    shutil.rmtree(root / "b" / "labels")
    write(root / "b" / "images" / "a.txt", "0 .5 .5 .2 .2\n")
    assert [len(each.boxes) for each in opened(root)] == [2, 3, 0, 1, 0, 0]


def test_a_subfolder_without_label_folder(root: Path) -> None:
    for name in ("x", "y"):
        image(root / "a" / "images" / "cam3" / f"{name}.png", (41, 67))
    assert [len(each.boxes) for each in opened(root)] == [2, 3, 0, 0, 0, 2, 3, 0]
    expected = "2 x image without a label folder, used as an image without objects: "
    assert expected + "a/images/cam3/x.png, a/images/cam3/y.png" in opened(root).notes
    file("a/labels/cam3/x.txt", "0 .5 .5 .2 .2\n")(root)
    assert not [note for note in opened(root).notes if "label folder" in note]


def test_an_image_whose_label_file_is_named_like_that_of_the_class_names(tmp_path: Path) -> None:
    fill(tmp_path / "images" / "train", tmp_path / "labels" / "train")
    image(tmp_path / "images" / "train" / "classes.png", (41, 67))
    write(tmp_path / "labels" / "train" / "classes.txt", "1 .5 .5 .2 .2\n")
    write(tmp_path / "data.yaml", "train: images/train\nnames: [cat, dog]\n")
    assert [len(each.boxes) for each in opened(tmp_path)] == [2, 3, 0, 1]
    (tmp_path / "images" / "train" / "classes.png").unlink()
    assert [len(each.boxes) for each in opened(tmp_path)] == [2, 3, 0] and opened(tmp_path).notes == []


def test_text_files_that_are_not_lists_of_images(tmp_path: Path) -> None:
    fill(tmp_path / "images" / "train", tmp_path / "labels" / "train")
    write(tmp_path / "LICENSE.txt", "Copyright\n")
    write(tmp_path / "more.txt", "\n./images/train/a.png\n")
    write(tmp_path / "data.yaml", "train: images/train\nlicense: LICENSE.txt\nextra: more.txt\nnames: [cat, dog]\n")
    assert [split.name for split in find_splits(tmp_path)] == ["train", "extra"]
