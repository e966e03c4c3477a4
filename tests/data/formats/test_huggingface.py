"""Image folders with ``metadata.jsonl``."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert import assert_equal_targets, subset, to_imagefolder, train_one_epoch
from PIL import Image

from detrs.cli import main
from detrs.data import FolderDataset
from detrs.data.check import Annotations, read_annotations
from detrs.data.detect import find_split, find_splits
from detrs.data.formats import huggingface
from detrs.data.formats.json_head import HEAD_BYTES
from detrs.errors import UserError

BOXES = [[1, 2, 13, 17], [3.5, 7, 11, 23]]


def row(number: int, **objects: Any) -> dict[str, Any]:
    return {"file_name": f"{number}.png", "objects": {"bbox": BOXES, "category": [0, 1], **objects}}


def write(folder: Path, lines: list[Any], num_images: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(num_images):
        Image.fromarray(random.integers(0, 256, (47, 31, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return folder


def read(root: Path, split: str | None = None) -> Annotations:
    return read_annotations(find_splits(root)[0] if split is None else find_split(root, split))


@pytest.mark.parametrize("of_lists", [True, False])
@pytest.mark.parametrize("names", [True, False])
def test_equal_to_coco(shared: Path, tmp_path: Path, of_lists: bool, names: bool) -> None:
    coco = shared / "data" / "bccd"
    for split in ("train", "val"):
        to_imagefolder(coco, split, tmp_path, of_lists=of_lists, names=names)
    for split in ("train", "val"):
        assert_equal_targets(tmp_path, split, coco)


def test_training_on_the_command_line(shared: Path, tmp_path: Path) -> None:
    coco = subset(shared / "data" / "bccd", tmp_path / "coco")
    for split in ("train", "val"):
        to_imagefolder(coco, split, tmp_path / "set")
    train_one_epoch(tmp_path / "set", tmp_path / "run")


def test_the_layouts(tmp_path: Path) -> None:
    for folder in ("train", "validation", "my split"):
        write(tmp_path / "a" / folder, [row(0)])
        write(tmp_path / "b" / "data" / folder, [row(0)])
    for root in (tmp_path / "a", tmp_path / "b"):
        assert [split.name for split in find_splits(root)] == ["my split", "train", "validation"]
        assert find_split(root, "val").name == "validation"
        assert len(read(root, "train").objects) == 2
    (split,) = find_splits(write(tmp_path / "c", [row(0)]))
    assert split.name == ""
    assert find_splits(tmp_path / "c" / "metadata.jsonl") == [split]


def test_one_metadata_file_for_all_splits(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        shutil.move(write(tmp_path / "x", []), tmp_path / folder)
    lines = [
        row(0) | {"file_name": "train/0.png"},
        row(1) | {"file_name": "train/1.png"},
        row(0) | {"file_name": "test/2.png"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [split.name for split in find_splits(tmp_path)] == ["test", "train"]
    assert [image.path.name for image in read(tmp_path, "train").images] == ["0.png", "1.png"]
    assert [image.path.name for image in read(tmp_path, "test").images] == ["2.png"]
    (tmp_path / "val").mkdir()  # without annotated images
    lines = [{**row(0), "file_name": f"train/{number}.png"} for number in range(2000)] + lines[2:]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (tmp_path / "metadata.jsonl").stat().st_size > 2 * HEAD_BYTES
    assert [split.name for split in find_splits(tmp_path)] == ["test", "train"]


@pytest.mark.parametrize("key", ["category", "categories", "label", "labels", "category_id"])
@pytest.mark.parametrize("nested", [True, False])
def test_keys_of_classes(tmp_path: Path, key: str, nested: bool) -> None:
    objects = {"bbox": BOXES, key: ["dog", "cat"], "id": [7, 8]}
    line = {"file_name": "0.png", "objects": objects} if nested else {"file_name": "0.png", **objects}
    found = read(write(tmp_path, [line]))
    assert found.classes == (("cat", "dog"), (1, 2))
    assert [found.objects[0].category_id, found.objects[1].category_id] == [2, 1]
    assert found.objects[1].bbox == (3.5, 7, 11, 23)


CARD = """---
license: mit
dataset_info:
  features:
  - name: image
    dtype: image
  - name: scene
    dtype:
      class_label:
        names:
          '0': indoor
  - name: objects
    sequence:
    - name: category
      dtype:
        class_label:
          names:
            '0': cat
            '1': 'no'
            '10': owl
            '2': 3
---
# Pets
"""
INFOS = {
    "default": {"features": {"objects": {"category": {"feature": {"names": ["cat", "no"], "_type": "ClassLabel"}}}}}
}


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("classes.txt", "cat\nno\r\n\n", ("cat", "no")),
        ("README.md", CARD, ("cat", "no", "3", "owl")),
        ("README.md", CARD.replace("\n", "\r\n"), ("cat", "no", "3", "owl")),
        ("dataset_infos.json", json.dumps(INFOS), ("cat", "no")),
        ("README.md", "# No metadata\n", ("class 0", "class 1")),
    ],
)
@pytest.mark.parametrize("place", ["", "train"])
def test_class_names_of_numbers(tmp_path: Path, file: str, content: str, names: tuple[str, ...], place: str) -> None:
    write(tmp_path / "train", [row(0)])
    (tmp_path / place / file).write_bytes(content.encode())
    found = read(tmp_path, "train")
    assert found.classes == (names, tuple(range(len(names))))
    unnamed = [note for note in found.notes if "class without a name (list the names in classes.txt" in note]
    assert len(unnamed) == (names[0] == "class 0")


def test_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    write(tmp_path / "train", [row(0, category=["b", "d"]), row(1, category=["c", "d"])])
    write(tmp_path / "test", [row(0, category=["a", "d"])])
    for split in ("train", "test"):
        assert read(tmp_path, split).classes.names == ("a", "b", "c", "d")
    write(tmp_path / "train", [row(0, category=[7, 3])])
    write(tmp_path / "test", [row(0, category=[3, 90.0])])
    for split in ("train", "test"):
        assert read(tmp_path, split).classes == (("class 3", "class 7", "class 90"), (3, 7, 90))


def test_images_without_objects_crowds_and_sizes(tmp_path: Path) -> None:
    lines = [
        row(2) | {"width": 31, "height": 47},
        {"file_name": "0.png", "objects": {"bbox": [], "category": []}},
        {"file_name": "1.png", "objects": None, "width": None, "height": None},
        row(0, iscrowd=[1, 0], area=[7.5, float("nan")]) | {"file_name": "2.png"},
    ]
    found = read(write(tmp_path, lines))
    assert [image.path.name for image in found.images] == ["0.png", "1.png", "2.png", "2.png"]
    assert [image.id for image in found.images] == [1, 2, 3, 4]
    assert [each.crowd for each in found.objects] == [False, False, True, False]
    assert [each.area for each in found.objects] == [221, 253, 7.5, 253]


def test_the_digest_depends_on_content_and_not_on_the_place(tmp_path: Path) -> None:
    a = read(write(tmp_path / "a", [row(0)])).digest
    assert read(write(tmp_path / "b", [row(0)])).digest == a
    assert read(write(tmp_path / "b", [row(0, category=[1, 0])])).digest != a
    (tmp_path / "a" / "classes.txt").write_text("x\ny\n")
    assert read(tmp_path / "a").digest != a


def test_other_files_are_not_of_this_format(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "metadata.csv").write_text("name,age\n")
    assert huggingface.splits(tmp_path) == []


FAULTS: list[tuple[Any, str]] = [
    (row(1, bbox=[[1, 2, 3, 4, 5], BOXES[0]]), "box with five numbers.*: metadata.jsonl:2: "),
    (row(1, bbox=[[1, 2, 3], BOXES[0]]), r"bbox that is not \[x, y, width, height\]: metadata.jsonl:2: \[1, 2, 3\]"),
    (row(1, bbox=[["1", 2, 3, 4], BOXES[0]]), r"bbox that is not .*: metadata.jsonl:2: "),
    (row(1, bbox=[[1, 2, -3, 4], BOXES[0]]), "negative width or height .*: metadata.jsonl:2: "),
    (row(1, bbox=[[1, float("nan"), 3, 4], BOXES[0]]), "NaN, infinite .*: metadata.jsonl:2: "),
    (row(1, bbox=[None, BOXES[0]]), "annotation without bbox: metadata.jsonl:2: None"),
    (row(1, category=[0]), "lists have different lengths: metadata.jsonl:2: 2 x bbox, 1 x category"),
    (row(1, category=[0, 5]), "unknown category: metadata.jsonl:2: 5"),
    (row(1, category=[0, -1]), "unknown category: metadata.jsonl:2: -1"),
    (row(1, category=["cat", "cow"]), "unknown category: metadata.jsonl:2: 'cow'"),
    (row(1, category=[True, 0]), "unknown category: metadata.jsonl:2: True"),
    (row(1, iscrowd=[2, 0]), "iscrowd that is neither 0 nor 1: metadata.jsonl:2: 2"),
    (row(1) | {"objects": 3}, "neither an object of lists nor a list of objects: metadata.jsonl:2: 3"),
    (row(1) | {"objects": {"category": [0]}}, "objects without a list of boxes 'bbox': metadata.jsonl:2: "),
    (row(1) | {"objects": [3]}, "neither an object of lists nor a list of objects: metadata.jsonl:2: "),
    ('{"file_name": "1.png", "objects": {', "invalid JSON: metadata.jsonl:2, column 36: "),
    ('["1.png"]', r'line that is not an object: metadata.jsonl:2: \["1.png"\]'),
    ('{"file_name": "1.png", "width": ' + "9" * 10_000 + "}", "cannot be read: metadata.jsonl:2"),
    ("[" * 100_000, "cannot be read: metadata.jsonl:2"),
    (row(1) | {"file_name": None}, "image without file_name: metadata.jsonl:2"),
    (row(1) | {"file_name": "https://x.org/1.png"}, "URL .*: metadata.jsonl:2: "),
    (row(1) | {"file_name": "../1.png"}, "outside the image folder: metadata.jsonl:2: "),
    (row(1) | {"file_name": "gone.png"}, "missing image .of 2.: .*gone.png"),
    (row(1) | {"width": 47, "height": 31}, "size .* differs .*: metadata.jsonl:2: .*swapped"),
    (row(1, bbox=[[0.1, 0.2, 0.3, 0.4]] * 2) | {"file_name": "0.png"}, ""),
]


@pytest.mark.parametrize(("line", "message"), FAULTS)
def test_faults(tmp_path: Path, line: Any, message: str) -> None:
    write(tmp_path, [row(0), line])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    if not message:  # a few small boxes are noted only
        read(tmp_path)
        return
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'metadata.jsonl'} has errors:")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row(0, bbox=[[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.2, 0.2]])], r"all boxes in \[0, 1\] \(expected pixels\)"),
        ([row(number, bbox=[[20, 20, 30, 40], [9, 30, 29, 44]]) for number in range(3)], "x1, y1, x2, y2"),
        ([{"file_name": "0.png", "label": "cat"}], "has no objects. Expected lines such as "),
        ([row(0, category=["cat", 3])], "unknown category: metadata.jsonl:1: 3"),
        ([row(0, bbox=[], category=[])], "no objects"),
    ],
)
def test_faults_of_the_whole_file(tmp_path: Path, lines: list[Any], message: str) -> None:
    write(tmp_path, lines)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.csv", b"file_name,objects\n", "metadata.csv cannot be read: expected metadata.jsonl"),
        ("metadata.parquet", b"PAR1\0\0", "metadata.parquet cannot be read: expected metadata.jsonl"),
        ("metadata.jsonl", b'{"file_name": "\xe9"}\n', "line that is not UTF-8: metadata.jsonl:1, byte 15"),
    ],
)
def test_other_files(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", b"caf\xe9\n", r"classes.txt is not UTF-8 at byte 3"),
        ("classes.txt", b"x" * 2**21, r"classes.txt is larger than 1 MiB"),
        ("dataset_infos.json", b"{", "dataset_infos.json: invalid JSON"),
        ("README.md", b"---\nclass_label: [\nx: 1\n---\n", r"README.md:\d: the metadata is not valid YAML"),
        ("README.md", b"---\na: &a [class_label]\nb: [*a, *a]\n---\n", "README.md: aliases"),
        (
            "README.md",
            b"---\na: {class_label: {names: [x, y]}}\nb: {class_label: {names: [y, x]}}\n---\n",
            "README.md has 2 lists of class names. Write those of the objects to classes.txt",
        ),
    ],
)
def test_faulty_lists_of_classes(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    write(tmp_path, [row(0)])
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        write(tmp_path / "set" / split, [row(0, category=[0])])
    arguments = ["train", "deformable-detr-tiny", "--data", str(tmp_path / "set"), "--output", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "lists have different lengths: train/metadata.jsonl:1: 2 x bbox, 1 x category" in capsys.readouterr().err


def test_a_large_file_in_linear_time(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row(number % 3)) + "\n" for number in range(20_000))
    write(tmp_path, [])
    (tmp_path / "metadata.jsonl").write_text(lines)
    assert len(FolderDataset(find_splits(tmp_path)[0])) == 20_000
