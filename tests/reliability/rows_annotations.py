"""Rows 1 to 44: annotation files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catalogue import Case
from dataset import HEIGHT, MANY, WIDTH, Change, Folder, content, prepared, reads, trains
from PIL import Image

Data = dict[str, Any]


def put(*path: str | int, value: Any) -> Change:
    """Set ``data[path[0]][path[1]]...``."""

    def change(data: Data) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(data: Data) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


def drop_everywhere(section: str, *keys: str) -> Change:
    def change(data: Data) -> None:
        for entry in data[section]:
            for key in keys:
                del entry[key]

    return change


def fifo(folder: Folder) -> None:
    folder.annotations.unlink()
    os.mkfifo(folder.annotations)


def missing(folder: Folder) -> None:
    folder.annotations.unlink()


def copied(entry: Data, **changes: Any) -> Data:
    return {**entry, **changes}


def repeated(**changes: Any) -> Change:
    """Append the first annotation again, with changes."""
    return lambda data: data["annotations"].append(copied(data["annotations"][0], **changes))


def ids(start: int) -> Change:
    """New ids of images and annotations from ``start``."""

    def change(data: Data) -> None:
        new = {entry["id"]: start + number for number, entry in enumerate(data["images"])}
        for number, entry in enumerate(data["annotations"]):
            entry["id"], entry["image_id"] = start + number, new[entry["image_id"]]
        for entry in data["images"]:
            entry["id"] = new[entry["id"]]

    return change


def ids_are(start: int) -> Any:
    def check(dataset: Any, folder: Folder) -> None:
        assert dataset.image_ids == [start + number for number in range(len(dataset))]

    return check


def numbered_from_one(dataset: Any, folder: Folder) -> None:
    truth = dataset.ground_truth()["annotations"]
    assert [entry["id"] for entry in truth] == list(range(1, len(truth) + 1))


def categories(*entries: tuple[int, str]) -> Change:
    """Other categories; the annotations use them in turn."""

    def change(data: Data) -> None:
        data["categories"] = [{"id": id_, "name": name} for id_, name in entries]
        for number, entry in enumerate(data["annotations"]):
            entry["category_id"] = entries[number % len(entries)][0]

    return change


def map_is_saved(dataset: Any, folder: Folder) -> None:
    assert dataset.classes.category_ids == (1, 13, 90) and dataset.classes.names == ("a", "b", "c")
    assert {entry["category_id"] for entry in dataset.ground_truth()["annotations"]} == {1, 13, 90}


def no_crowd(dataset: Any, folder: Folder) -> None:
    assert not any(entry["iscrowd"] for entry in dataset.ground_truth()["annotations"])


def area_of_box(dataset: Any, folder: Folder) -> None:
    assert all(entry["area"] == entry["bbox"][2] * entry["bbox"][3] for entry in dataset.ground_truth()["annotations"])


def size_of_file(dataset: Any, folder: Folder) -> None:
    assert all(dataset.size_of(index) == (HEIGHT, WIDTH) for index in range(len(dataset)))


def rotated(folder: Folder) -> None:
    """An image with EXIF orientation 6, annotated with the size as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder.first, exif=exif)


def yolo(folder: Folder) -> None:
    folder.annotations.unlink()
    (folder.root / "labels").mkdir()
    (folder.root / "data.yaml").write_text("names: [cat, dog]\n")


def voc(folder: Folder) -> None:
    folder.annotations.unlink()
    (folder.root / "Annotations").mkdir()


def backslashes(folder: Folder) -> None:
    (folder.images / "sub").mkdir()
    for entry in folder.data["images"]:
        (folder.images / entry["file_name"]).rename(folder.images / "sub" / entry["file_name"])
        entry["file_name"] = f"sub\\{entry['file_name']}"
    folder.write()


def name_of_first(name: str) -> Change:
    return put("images", 0, "file_name", value=name)


def same_file(data: Data) -> None:
    data["images"][1]["file_name"] = data["images"][0]["file_name"]


def other_order(train: Folder, val: Folder) -> None:
    """The val split lists the classes in another order and with other ids."""
    categories((1, "dog"), (2, "cat"))(val.data)


def other_names(train: Folder, val: Folder) -> None:
    categories((1, "dog"), (2, "cow"))(val.data)


def unseen(train: Folder, val: Folder) -> None:
    for folder in (train, val):
        folder.data["categories"].append({"id": 9, "name": "owl"})
    for entry in val.data["annotations"][:3]:
        entry["category_id"] = 9


def in_both(train: Folder, val: Folder) -> None:
    (val.images / "val 0.png").write_bytes((train.images / "train 0.png").read_bytes())


def nearly_in_both(train: Folder, val: Folder) -> None:
    image = Image.open(train.images / "train 0.png")
    image.putpixel((3, 5), (1, 2, 3))
    image.save(val.images / "val 0.png")


def large(root: Path) -> Callable[[], list[str]]:
    """40 MB of annotations may take three times as much memory."""
    import subprocess
    import sys

    folder = Folder(root / "set")
    first = folder.data["annotations"][0]
    # every box differs, else the duplicates are noted
    folder.data["annotations"] = [
        copied(first, id=number, bbox=[number % 31, number % 23, 5 + number / 1e5, 6], segmentation=[[1.5] * 8])
        for number in range(250_000)
    ]
    folder.write()
    size = folder.annotations.stat().st_size
    script = (
        "import re, sys; from detrs.data import open_dataset\n"
        "peak = lambda: 1024 * int(re.search('VmHWM:\\\\s+(\\\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak(); open_dataset(sys.argv[1], 'train'); print(peak() - before)"
    )

    def call() -> list[str]:
        done = subprocess.run([sys.executable, "-c", script, str(folder.root)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert int(done.stdout) <= 3 * size, f"{int(done.stdout) / size:.1f} times the size of the file"
        return []

    return call


def case(row: int, name: str, expected: str, make: Any, *message: str) -> Case:
    return Case(row, name, expected, make, message)


CASES = [
    case(1, "missing", "E", prepared(missing), "train", "annotations"),
    Case(1, "named pipe", "E", prepared(fifo), ("train.json",), seconds=2),
    case(2, "empty", "E", content(b""), "train.json", "is empty"),
    case(2, "white space", "E", content(b" \n\t"), "train.json", "is empty"),
    case(3, "truncated", "E", content(lambda text: text[:200]), "line 16, column 12", "byte 200"),
    case(4, "byte order mark", "A", content(lambda text: b"\xef\xbb\xbf" + text.encode())),
    case(5, "latin-1", "E", content(lambda text: text.replace("cat", "c\xe4t").encode("latin-1")), "byte ", "Latin-1"),
    case(5, "utf-16", "E", content(lambda text: text.encode("utf-16")), "byte 0", "UTF-16"),
    case(6, "detections", "E", content(b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]'), "detections"),
    case(7, "images missing", "E", reads(drop("images")), "'images' is missing"),
    case(7, "images null", "E", reads(put("images", value=None)), "'images'"),
    case(8, "annotations missing", "E", reads(drop("annotations")), "'annotations' is missing"),
    case(9, "categories missing", "E", reads(drop("categories")), "'categories' is missing"),
    case(9, "categories empty", "E", reads(put("categories", value=[])), "'categories' is empty"),
    case(10, "NaN", "E", reads(put("annotations", 1, "area", value=float("nan"))), "NaN", "line 1, column"),
    case(10, "Infinity", "E", reads(put("images", 1, "width", value=float("inf"))), "Infinity", "line 1, column"),
    case(11, "a million digits", "R", content(b'{"images": ' + b"9" * 1_000_000 + b"}"), "number", "digits"),
    case(11, "deep nesting", "R", content(b'{"images": ' + b"[" * 10_000), "nested too deeply"),
    Case(12, "40 MB of JSON", "A", large, slow=True, seconds=300),
    case(13, "duplicate keys", "W", content(lambda text: text.replace('"iscrowd"', '"iscrowd": 1, "iscrowd"', 1)),
         "duplicate key", "'iscrowd'"),
    case(14, "duplicate image id", "E", reads(put("images", 1, "id", value=10)), "duplicate image id", "image 10"),
    case(15, "duplicate annotation id, other box", "E", reads(repeated(bbox=[1, 1, 9, 9])), "annotation 100"),
    case(15, "duplicate annotation", "S", reads(repeated(), images=MANY), "1 x ", "annotation 100"),
    case(15, "annotation id in two images", "E", reads(repeated(image_id=12)), "annotation 100"),
    case(16, "annotation id 0", "A", reads(put("annotations", 0, "id", value=0), check=numbered_from_one)),
    case(17, "no annotation ids", "A", reads(drop_everywhere("annotations", "id"), check=numbered_from_one)),
    case(18, "string image id", "E", reads(put("images", 1, "id", value="1")), "not an integer", "images[1]", "'1'"),
    case(18, "string annotation id", "E", reads(put("annotations", 1, "id", value="1")), "not an integer", "'1'"),
    case(18, "string image_id", "E", reads(put("annotations", 1, "image_id", value="10")), "annotation 101", "'10'"),
    case(18, "string category_id", "E", reads(put("annotations", 1, "category_id", value="3")), "101", "'3'"),
    case(19, "integral floats", "A", reads(ids(1.0), check=ids_are(1))),  # type: ignore[arg-type]
    case(19, "fractions", "E", reads(put("images", 1, "id", value=1.5)), "images[1]", "1.5"),
    case(20, "large ids", "A", reads(ids(2**53 + 1), check=ids_are(2**53 + 1))),
    case(20, "negative ids", "A", reads(ids(-999), check=ids_are(-999))),
    case(21, "unknown image", "S", reads(put("annotations", 1, "image_id", value=7777), images=MANY),
         "1 x ", "unknown image_id", "annotation 101: 7777"),
    case(21, "many unknown images", "E", reads(put("annotations", 1, "image_id", value=7777)), "annotation 101: 7777"),
    case(22, "unknown category", "E", reads(put("annotations", 1, "category_id", value=4)), "annotation 101: 4"),
    case(23, "category id 0", "A", reads(categories((0, "a"), (1, "b")))),
    case(24, "ids with gaps", "A", reads(categories((1, "a"), (13, "b"), (90, "c")), check=map_is_saved)),
    case(25, "one name twice", "E", reads(put("categories", 1, "name", value="cat")), "duplicate category", "'cat'"),
    case(26, "name differs in case", "W", reads(put("categories", 1, "name", value="Cat ")), "case or spaces", "Cat"),
    case(27, "class without objects", "W", reads(lambda data: data["categories"].append({"id": 1, "name": "owl"})),
         "without objects", "'owl'"),
    case(28, "class with one object", "W", reads(lambda data: (
        data["categories"].append({"id": 1, "name": "owl"}), put("annotations", 0, "category_id", value=1)(data))),
         "single object", "'owl'"),
    case(29, "classes in another order", "A", trains(other_order)),
    case(29, "other classes", "E", trains(other_names), "cat", "cow", "'train'", "'val'"),
    case(30, "validation class without training objects", "W", trains(unseen), "without objects", "'owl'"),
    case(31, "empty name", "E", reads(put("categories", 1, "name", value="")), "category name", "categories[1]"),
    case(31, "newline in a name", "E", reads(put("categories", 1, "name", value="a\nb")), "categories[1]"),
    case(31, "emoji and right-to-left", "A", reads(put("categories", 1, "name", value="猫 🐈 قطة"))),
    case(31, "10 kB name", "A", reads(put("categories", 1, "name", value="x" * 10_000))),
    case(32, "no iscrowd", "A", reads(drop_everywhere("annotations", "iscrowd"), check=no_crowd)),
    case(33, "no area", "A", reads(drop_everywhere("annotations", "area"), check=area_of_box)),
    case(33, "area 0", "A", reads(lambda data: [entry.update(area=0) for entry in data["annotations"]],
                                  check=area_of_box)),
    case(34, "no sizes", "A", reads(drop_everywhere("images", "width", "height"), check=size_of_file)),
    case(35, "other size", "E", reads(put("images", 1, "width", value=63)), "image 11", "train 1.png is 61 x 47"),
    case(35, "size without EXIF rotation", "E", prepared(rotated), "image 10", "EXIF"),
    case(36, "Pascal VOC file", "E", content(b"<annotation><size>"), "Pascal VOC"),
    case(36, "Pascal VOC folder", "E", prepared(voc), "Pascal VOC"),
    case(36, "YOLO folder", "E", prepared(yolo), "YOLO"),
    case(37, "parent folder", "R", reads(name_of_first("../images/train 0.png")), "outside", "image 10"),
    case(37, "absolute", "R", reads(name_of_first("/etc/passwd")), "outside", "image 10", "/etc/passwd"),
    case(38, "backslashes", "A", prepared(backslashes)),
    case(39, "URL", "R", reads(name_of_first("http://127.0.0.1:9/a.png")), "URL", "image 10", "not downloaded"),
    case(39, "file URL", "R", reads(name_of_first("file:///etc/passwd")), "URL", "image 10"),
    case(40, "one file twice", "W", reads(same_file), "file used by several images", "train 0.png"),
    case(41, "upper case", "E", reads(name_of_first("Train 0.PNG")), "image 10", "Train 0.PNG is train 0.png"),
    case(42, "no images", "E", reads(lambda data: data.update(images=[], annotations=[])), "no images"),
    case(43, "image in both splits", "W", trains(in_both), "1 x validation image", "val 0.png is"),
    case(44, "near-duplicate in both splits", "A", trains(nearly_in_both)),
]  # fmt: skip
