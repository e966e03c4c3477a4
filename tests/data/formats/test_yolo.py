"""Layouts, labels and faults of YOLO datasets."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert import assert_equal_targets, to_yolo
from PIL import Image

from detrs.cli import main
from detrs.data import FolderDataset, open_dataset
from detrs.data.detect import find_split, find_splits
from detrs.errors import UserError

SIZES = {"a": (47, 83), "b": (61, 59), "c": (53, 97)}
"""(height, width)"""
LABELS = {
    "a": "0 0.5 0.5 0.25 0.5\n1 0.25 0.75 0.1 0.2\n",
    "b": "1 0.4 0.3 0.2 0.4\n1 0.7 0.6 0.2 0.4\n0 .2 .2 .1 .1\n",
}


def image(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), sum(path.stem.encode()) % 256, dtype=np.uint8)).save(path)


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def fill(images: Path, labels: Path) -> None:
    for name, size in SIZES.items():
        image(images / f"{name}.png", size)
        write(labels / f"{name}.txt", LABELS.get(name, ""))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset with ``images/train`` and ``labels/train``; ``c`` has no objects."""
    root = tmp_path / "set"
    fill(root / "images" / "train", root / "labels" / "train")
    write(root / "data.yaml", "train: images/train\nval: images/train\nnc: 2\nnames: [cat, dog]\n")
    return root


def opened(path: Path, split: str = "train") -> FolderDataset:
    return FolderDataset(find_split(path, split))


def summary(data: FolderDataset) -> Any:
    """File names, sizes, classes and boxes in pixels; the shared folder of these tests has one content."""
    return [
        (Path(data.path_of(index)).name, data.size_of(index), data[index].labels.tolist(), data[index].boxes.tolist())
        for index in range(len(data))
    ]


def expected(data: FolderDataset) -> None:
    assert data.classes.names == ("cat", "dog") and data.classes.category_ids == (0, 1)
    assert [(name, size) for name, size, _, _ in summary(data)] == [
        (f"{name}.png", size) for name, size in SIZES.items()
    ]
    assert data.image_ids == [1, 2, 3]
    assert [labels for _, _, labels, _ in summary(data)] == [[0, 1], [1, 1, 0], []]
    height, width = SIZES["a"]
    first = [0.375 * width, 0.25 * height, 0.625 * width, 0.75 * height]
    np.testing.assert_allclose(summary(data)[0][3][0], first, rtol=1e-6)


def test_bccd_is_equal_to_its_coco_form(shared: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        to_yolo(shared / "data" / "bccd", split, tmp_path)
    for split in ("train", "val", "test"):
        assert_equal_targets(tmp_path / "data.yaml", split, shared / "data" / "bccd")
    assert opened(tmp_path).fingerprint() == opened(tmp_path / "data.yaml").fingerprint()


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nnames: [cat, dog]",
        "path: .\ntrain: images/train\nnames: {0: cat, 1: dog}",
        "path:\ntrain: images/train/\ntest: # optional\nnames:\n  - cat\n  - dog",
        "path: ../set\ntrain: ./images/train\nnames:\n  0: cat\n  1: dog\nnc: 2",
        "path: ROOT\ntrain: images/train\nnames: [cat, dog]\ndownload: |\n  import os\n  print(1)",
        "path: /content/nowhere\ntrain: images/train\nnames: [cat, dog]",
        "train: ../images/train\nnames: ['cat', 'dog']\nroboflow:\n  workspace: x\n  version: 1",
        "train: ROOT/images/train\nnames: [cat, dog]",
        "train: [images/train]\nnames: [cat, dog]",
        "train: [images/train, images/train/]\nnames: [cat, dog]",
        "train:\n- images/train/a.txt\n- images/list.txt\nnames: [cat, dog]",
        "train: images\\train\nnames: [cat, dog]",
        "train: images/train",
        '\ufefftrain: images/train\r\nnames: ["cat", "dog"]\r\n',
    ],
)
def test_data_yaml(root: Path, yaml: str) -> None:
    write(root / "images" / "train" / "a.txt", "a.png\n")
    write(root / "images" / "list.txt", f"./train/b.png\n{root}/images/train/c.png\n\n")
    write(root / "data.yaml", yaml.replace("ROOT", str(root)))
    if "names" not in yaml:
        write(root / "classes.txt", "cat\ndog\n\n")
    for path in (root, root / "data.yaml"):
        expected(opened(path))


@pytest.mark.parametrize("folder", ["~nobody-of-this-name/x", "x" * 300])
def test_folders_in_data_yaml_that_are_not_valid(root: Path, folder: str) -> None:
    write(root / "data.yaml", f"path: {folder}\ntrain: images/train\nnc: 2\nnames: [cat, dog]\n")
    assert [split.name for split in find_splits(root)] == ["train"]  # relative to data.yaml
    write(root / "data.yaml", f"train: {folder}\nnc: 2\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match=r"data\.yaml:1: the images of the split 'train' are expected in "):
        open_dataset(str(root), "train")


def test_data_yaml_elsewhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "data.yaml").unlink()
    configs = root.parent / "configs"
    for text in ("path: ../set", f"path: {root}", "path: set"):
        write(configs / "pets.yml", f"{text}\ntrain: images/train\nnames: [cat, dog]\n")
        monkeypatch.chdir(root.parent)
        expected(opened(configs / "pets.yml"))
        expected(opened(Path("configs/pets.yml")))
        monkeypatch.chdir(root.parent / "set")
    expected(opened(configs / "pets.yml" if text != "path: set" else _relocated(configs, root)))


def _relocated(configs: Path, root: Path) -> Path:
    write(root / "pets.yaml", (configs / "pets.yml").read_text())  # the path is replaced by the folder of the file
    return root / "pets.yaml"


@pytest.mark.parametrize("name", ["images/train:labels/train", "train/images:train/labels", "train:train", ".:."])
@pytest.mark.parametrize("classes", ["classes.txt", "LABELS/classes.txt", "obj.names", "LABELS/_darknet.labels"])
def test_without_data_yaml(tmp_path: Path, name: str, classes: str) -> None:
    images, labels = name.split(":")
    fill(tmp_path / images, tmp_path / labels)
    write(tmp_path / classes.replace("LABELS", labels), "cat\ndog\n")
    split = "" if name == ".:." else "train"
    assert [each.name for each in find_splits(tmp_path)] == [split]
    expected(FolderDataset(find_splits(tmp_path)[0]))


def test_flat_images_and_labels(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "labels")
    write(tmp_path / "labels" / "classes.txt", "cat\ndog\n")
    assert [each.name for each in find_splits(tmp_path)] == [""]
    expected(FolderDataset(find_splits(tmp_path)[0]))


def test_export_of_cvat(tmp_path: Path) -> None:
    """``data`` in the list is not on disk."""
    fill(tmp_path / "obj_train_data", tmp_path / "obj_train_data")
    write(tmp_path / "train.txt", "".join(f"data/obj_train_data/{name}.png\n" for name in SIZES))
    write(tmp_path / "obj.names", "cat\ndog\n")
    write(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    expected(opened(tmp_path))


def test_other_folders_are_not_claimed(tmp_path: Path) -> None:
    image(tmp_path / "train" / "a.png", (47, 83))
    write(tmp_path / "train" / "a.txt", "a photo of a cat on a sofa\n")
    write(tmp_path / "mkdocs.yml", "site_name: x\nnav: []\n")
    write(tmp_path / "notes.txt", "1 2 3 4 5\n")
    assert find_splits(tmp_path) == []


def test_a_folder_of_another_dataset_is_not_used(root: Path) -> None:
    """Roboflow's ``../train/images`` may be ``train/images``, but not if both exist."""
    names = "names: [cat, dog]\nroboflow:\n  workspace: x\n"
    write(root / "data.yaml", f"train: ../train/images\nval: ../train/images\ntest: ../test/images\n{names}")
    fill(root / "train" / "images", root / "train" / "labels")
    assert [split.name for split in find_splits(root)] == ["train", "val"]  # there are no test images
    expected(opened(root))
    shutil.copytree(root / "train", root.parent / "train")
    with pytest.raises(
        UserError, match=r"data.yaml:1: expected one folder for '../train/images', but .* and .* exist."
    ):
        opened(root)
    write(root / "data.yaml", f"train: {root.parent}/train/images\nval: train/images\n{names}")
    assert opened(root).path_of(0).startswith(str(root.parent / "train"))
    assert opened(root, "val").path_of(0).startswith(str(root / "train"))
    write(root / "data.yaml", f"train: train/images\nval: ../val/images\ntest: test/images\n{names}")
    with pytest.raises(UserError, match="data.yaml:2: the images of the split 'val' .* which does not exist"):
        opened(root, "val")


def test_labels_without_class_names_beside_pascal_voc(root: Path) -> None:
    (root / "data.yaml").unlink()
    with pytest.raises(UserError, match="has no class names. Add data.yaml"):
        opened(root)
    box = "<object><name>cow</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>7</ymax></bndbox></object>"
    for name in SIZES:
        write(root / "annotations" / "train" / f"{name}.xml", f"<annotation>{box}</annotation>")
    assert opened(root).classes.names == ("cow",)
    write(root / "classes.txt", "cat\ndog\n")
    expected(opened(root))


def test_names_of_other_types_in_yaml(root: Path) -> None:
    write(root / "data.yaml", "train: images/train\nnames: [no, 0o7]\n")
    assert opened(root).classes.names == ("no", "0o7")
    write(root / "data.yaml", "train: images/train\nnames: {'0': 1, 1: null, 5: !!python/object:os.system x}\n")
    assert opened(root).classes.names == ("1", "null", "x")


def test_a_split_of_another_name(root: Path) -> None:
    write(root / "data.yaml", "train: images/train\nminival: images/train\nlicense: MIT\nnames: [cat, dog]\n")
    assert [each.name for each in find_splits(root)] == ["train", "minival"]
    expected(opened(root, "minival"))


def test_polygons(root: Path) -> None:
    """Polygons become their boxes, beside boxes in one file; a triangle is a polygon if there are others."""
    write(
        root / "labels" / "train" / "a.txt",
        "0 .1 .2 .5 .3 .4 .6 .2 .5 .1 .4\n1 0.5 0.5 0.25 0.5\n0 .1 .1 .3 .1 .2 .4\n",
    )
    data = opened(root)
    height, width = SIZES["a"]
    boxes = np.array([[0.1, 0.2, 0.5, 0.6], [0.375, 0.25, 0.625, 0.75], [0.1, 0.1, 0.3, 0.4]])
    np.testing.assert_allclose(summary(data)[0][3], boxes * [width, height, width, height], rtol=1e-6)
    assert not any("polygon" in note for note in data.notes)


def test_oriented_boxes_are_replaced_by_their_upright_box(root: Path) -> None:
    write(root / "labels" / "train" / "a.txt", "0 .4 .2 .6 .4 .4 .6 .2 .4\n")
    data = opened(root)
    height, width = SIZES["a"]
    np.testing.assert_allclose(summary(data)[0][3], [[0.2 * width, 0.2 * height, 0.6 * width, 0.6 * height]], rtol=1e-6)
    assert any("1 x polygon with four points, perhaps an oriented box" in note for note in data.notes)


def test_pose_labels(root: Path) -> None:
    write(root / "data.yaml", "train: images/train\nnames: [cat, dog]\nkpt_shape: [2, 3]\n")
    write(root / "labels" / "train" / "a.txt", "0 0.5 0.5 0.25 0.5 .1 .2 2 .3 .4 1\n1 0.25 0.75 0.1 0.2 0 0 0 0 0 0\n")
    data = opened(root)
    expected(data)
    assert any("2 x pose label" in note for note in data.notes)


def test_missing_and_empty_label_files(root: Path) -> None:
    before = opened(root)
    assert before.num_empty == 1 and not before.notes
    (root / "labels" / "train" / "c.txt").unlink()
    data = opened(root)
    assert not data.notes and data.fingerprint() == before.fingerprint()
    (root / "labels" / "train" / "b.txt").unlink()
    data = opened(root)
    assert data.num_empty == 2
    assert any("2 x image without a label file" in note and "images/train/b.png" in note for note in data.notes)


def test_the_fingerprint_depends_on_content_not_on_place(root: Path) -> None:
    before = opened(root).fingerprint()
    moved = root.rename(root.parent / "moved")
    assert opened(moved).fingerprint() == before == opened(moved, "val").fingerprint()
    os.utime(moved / "labels" / "train" / "a.txt", (0, 0))
    assert opened(moved).fingerprint() == before
    write(moved / "labels" / "train" / "a.txt", LABELS["a"].replace("0.25", "0.26"))
    after = opened(moved).fingerprint()
    write(moved / "data.yaml", "train: images/train\nnames: [cat, cow]\n")
    assert len({before, after, opened(moved).fingerprint()}) == 3


def test_nested_folders_and_unicode_forms(root: Path) -> None:
    """Images in subfolders have labels in the same subfolders; names from macOS have another Unicode form."""
    image(root / "images" / "train" / "sub" / "cafe\u0301.JPG", (31, 37))
    write(root / "labels" / "train" / "sub" / "caf\u00e9.txt", "1 .5 .5 .2 .2\n")
    image(root / "images" / "train" / "sub" / "d\u00e9j\u00e0.jpg", (31, 41))
    write(root / "labels" / "train" / "sub" / "de\u0301ja\u0300.txt", "0 .5 .5 .2 .2\n")
    write(root / "images" / "train" / ".hidden.png", b"")
    (root / "images" / "train" / "loop").symlink_to(root / "images" / "train", target_is_directory=True)
    data = opened(root)
    assert len(data) == 5 and [data[index].labels.tolist() for index in (3, 4)] == [[1], [0]]


def test_the_last_folder_images_becomes_labels(tmp_path: Path) -> None:
    root = tmp_path / "images" / "set"
    fill(root / "images" / "train", root / "labels" / "train")
    (tmp_path / "labels" / "set" / "images" / "train").mkdir(parents=True)
    write(root / "data.yaml", "train: images/train\nnames: [cat, dog]")
    expected(opened(root))


def test_labels_beside_images_in_a_folder_named_images(tmp_path: Path) -> None:
    fill(tmp_path / "images" / "train", tmp_path / "images" / "train")
    write(tmp_path / "data.yaml", "train: images/train\nnames: [cat, dog]")
    expected(opened(tmp_path))


def label(text: str | bytes) -> Callable[[Path], None]:
    return lambda root: write(root / "labels" / "train" / "a.txt", text)


def file(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: write(root / name, text)


def data_yaml(text: str | bytes) -> Callable[[Path], None]:
    return lambda root: write(root / "data.yaml", text)


def missing_label_folder(root: Path) -> None:
    (root / "labels").rename(root / "Labels")


def duplicate_stems(root: Path) -> None:
    image(root / "images" / "train" / "a.jpg", (47, 83))


def other_label_format(root: Path) -> None:
    for path in list((root / "labels" / "train").iterdir()):
        path.rename(path.with_suffix(".xml"))


def pipe(root: Path) -> None:
    (root / "labels" / "train" / "a.txt").unlink()
    os.mkfifo(root / "labels" / "train" / "a.txt")


def pipe_as_data(root: Path) -> None:
    (root / "data.yaml").unlink()
    os.mkfifo(root / "data.yaml")


def listed(text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        write(root / "train.txt", text)
        write(root / "data.yaml", "train: train.txt\nnames: [cat, dog]\n")

    return change


def without_yaml(*files: tuple[str, str]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / "data.yaml").unlink()
        for name, text in files:
            write(root / name, text)

    return change


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (label("0 .5 .5 .2 .2\n2 .5 .5 .2 .2\n"), "outside the 2 class names (0 to 1): labels/train/a.txt:2: 2"),
    (label("-1 .5 .5 .2 .2\n"), "outside the 2 class names (0 to 1): labels/train/a.txt:1: -1"),
    (label("1.5 .5 .5 .2 .2\n"), "class that is not an integer (expected its index in the class names): labels"),
    (label("\ncat .5 .5 .2 .2\n"), "labels/train/a.txt:2: 'cat'"),
    (label("nan .5 .5 .2 .2\n"), "class that is not an integer"),
    (label("0 .5 .5 .2 .2 .2 .1\n"), "points of a polygon): labels/train/a.txt:1: 7 values"),
    (label("0 .5 .5 .2\n"), "labels/train/a.txt:1: 4 values"),
    (label("0\n"), "labels/train/a.txt:1: 1 values"),
    (label("0 .5 .5 .2 .2 .97\n"), "labels/train/a.txt:1: 6 values, perhaps with a score, as in predictions"),
    (label("0 .1 .2 .3 .4 .5 .6 .7\n"), "labels/train/a.txt:1: 8 values"),
    (label("0 .5 nan .2 .2\n"), "box with NaN, infinite or very large coordinates: labels/train/a.txt:1: nan"),
    (label("0 .5 .5 inf .2\n"), "box with NaN, infinite or very large coordinates: labels/train/a.txt:1: inf"),
    (label("0 41 23 20 11\n"), "value above 1 (expected fractions of the image: divide pixels by its width and"),
    (label("0 .5 1.2 .2 .2\n"), "labels/train/a.txt:1: 1.2"),
    (label("0 .1 .2 .3 .4 .5 60\n"), "labels/train/a.txt:1: 60"),
    (label("0 .5 .5 -.2 .2\n"), "expected fractions of the image, from 0 to 1): labels/train/a.txt:1: -0.2"),
    (label("0 .5 .5 -.005 .2\n"), "negative value"),
    (label("0 .5 .5 .2 x\n"), "value that is not a number: labels/train/a.txt:1: 'x'"),
    (label("0,.5,.5,.2,.2\n"), "values separated by commas (expected spaces): labels/train/a.txt:1: '0,.5,.5,.2,.2'"),
    (label(b"\x80\x02}q\x00."), "label file that is not text: labels/train/a.txt (byte 0)"),
    (label("0 .5 .5 .2 .2\n".encode("utf-16")), "label file that is not text: labels/train/a.txt"),
    (label("0 .5 .5 0 .2\n"), "box (of 4) without area: labels/train/a.txt:1"),
    (pipe, "is a named pipe"),
    (duplicate_stems, "images with the same label file: labels/train/a.txt: images/train/a.jpg and images/train/a.png"),
    (file("labels/train/z.txt", "0 .5 .5 .2 .2"), "label file without an image (of 3 images): labels/train/z.txt"),
    (missing_label_folder, "labels/train, which does not exist. Did you mean 'Labels'?"),
    (other_label_format, "which has none with the name of an image. It contains .xml files."),
    (file("images/train/a.heic", ""), "image in an unsupported format (of 4): images/train/a.heic"),
    (file("images/train/a.png", "x"), "unreadable image (of 3): images/train/a.png"),
    (data_yaml("train: images/trian\nnames: [x]\n"), "data.yaml:1: the images of the split 'train' are expected in"),
    (data_yaml("train: images/trian\nnames: [cat, dog]\n"), "Did you mean 'train'?"),
    (data_yaml("train: data.yaml\nnames: [cat, dog]\n"), "neither a folder of images nor a list of image files (.txt)"),
    (data_yaml("train: {a: b}\nnames: [cat, dog]\n"), "data.yaml:1: expected a single value, got a mapping."),
    (data_yaml("train: images/train\nnc: 3\nnames: [cat, dog]\n"), "data.yaml:2: nc is 3, but names has 2 classes."),
    (data_yaml("train: images/train\nnames: {a: cat}\n"), ":2: expected a class index from 0 in 'names', got 'a'."),
    (data_yaml("train: images/train\nnames: {0: cat, 0: dog}\n"), "data.yaml:2: duplicate key '0' (also in line 2)."),
    (data_yaml("train: images/train\nnames: cat\n"), "data.yaml:2: expected a list of class names, got 'cat'."),
    (data_yaml("train: images/train\nnames: [cat, [dog]]\n"), "data.yaml:2: expected a single value, got a list."),
    (data_yaml("train: images/train\nnames: [cat, cat]\n"), "duplicate category name: categories[1]: 'cat'"),
    (data_yaml("train: images/train\nnames: [cat]\n"), "outside the 1 class names (0 to 0)"),
    (data_yaml("train: images/train\nnc: 2\n"), "has no class names. Add 'names: [...]' to it, or classes.txt"),
    (data_yaml("train: images/train\nnames: [cat, dog]\nkpt_shape: 17\n"), "expected two integers in 'kpt_shape'"),
    (data_yaml("train: images/train\nnames: [cat\nval: x\n"), "data.yaml:3: invalid YAML: "),
    (data_yaml("train: images/train\nnames: [cat, dog]\n\tval: x\n"), "data.yaml:3: invalid YAML: "),
    (data_yaml("names: &a [x, x]\ntrain: [*a, *a]\n"), "data.yaml:2: invalid YAML: aliases (*name) are not supported."),
    (data_yaml(b"train: \xff\nnames: [x]"), "data.yaml is not UTF-8 at byte 7"),
    (data_yaml("train: images/train\nnames: " + "[" * 5000), "data.yaml"),
    (data_yaml("train: images/train\nnames: [a]\n#" + "x" * 2**20), "has more than 524,288 bytes"),
    (data_yaml("train: \x07\nnames: [x]"), "invalid YAML: special characters are not allowed at character 7."),
    (pipe_as_data, "has no class names"),
    (listed("images/train/a.png\nimages/train/q.png\n"), "missing image (of 2): train.txt:2: images/train/q.png"),
    (listed(""), "contains no images"),
    (without_yaml(), "has no class names. Add data.yaml with 'names: [...]', or classes.txt with one name per line"),
    (without_yaml(("classes.txt", "cat\n\ndog\n")), "missing, empty or has several lines: categories[1]"),
    (without_yaml(("classes.txt", "cat\ndog"), ("obj.names", "dog\ncat")), "differ. Expected one list for all splits."),
    (without_yaml(("a.yaml", "val: x\nnc: 1"), ("b.yml", "val: x\nnc: 1")), "several YOLO dataset files: a.yaml, b"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=range(len(FAULTS)))
def test_faults(root: Path, change: Callable[[Path], None], message: str) -> None:
    change(root)
    with pytest.raises(UserError) as caught:
        opened(root)
    assert message in str(caught.value)
    assert str(root) in str(caught.value)


def test_a_fault_on_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / "labels" / "train" / "a.txt", "7 .5 .5 .2 .2\n")
    words = ["train", "deformable-detr-tiny", "--data", str(root / "data.yaml"), "--output", str(root.parent / "run")]
    assert main(words) == 2
    assert "outside the 2 class names (0 to 1): labels/train/a.txt:1: 7" in " ".join(capsys.readouterr().err.split())
    shutil.copy(root / "data.yaml", root.parent / "notes.md")
    assert main([*words[:3], str(root.parent / "notes.md")]) == 2
    assert "not a file of a dataset. Expected a folder" in capsys.readouterr().err


def test_test_images_that_were_not_exported(root: Path) -> None:
    write(root / "data.yaml", "train: images/train\nval: images/train\ntest: ../test/images\nnames: [cat, dog]\n")
    assert [split.name for split in find_splits(root)] == ["train", "val"]
    note = "1 x split 'test' whose images do not exist, ignored: data.yaml:3: ../test/images"
    assert note in opened(root).notes and note not in opened(root, "val").notes
    image(root / "test" / "images" / "a.png", (50, 70))
    write(root / "test" / "labels" / "a.txt", LABELS["a"])
    assert [split.name for split in find_splits(root)] == ["train", "val", "test"]
    assert not [each for each in opened(root).notes if "test" in each]


def test_missing_splits_are_listed(root: Path) -> None:
    with pytest.raises(UserError, match=r"has no split 'test'. Available splits: train, val."):
        open_dataset(str(root / "data.yaml"), "test")


def test_ten_thousand_files_are_read_in_seconds(tmp_path: Path) -> None:
    """Label files only: the images are empty, and are not read by the format."""
    import time

    from detrs.data.findings import Findings

    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(10_000):
        (tmp_path / "images" / "train" / f"{number}.jpg").touch()
        (tmp_path / "labels" / "train" / f"{number}.txt").write_text("0 .5 .5 .2 .2\n" * 5)
    write(tmp_path / "data.yaml", "train: images/train\nnames: [cat]")
    start = time.process_time()
    content = find_split(tmp_path, "train").read(Findings(), Findings())
    assert len(content.objects) == 50_000
    assert time.process_time() - start < 6  # 0.6 s
