"""The catalogue of bad annotation files: each is refused by name, left out with a note, or accepted."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from detrs.data.check import read_annotations
from detrs.data.detect import find_split
from detrs.errors import UserError

Data = dict[str, Any]


def set_(*path: str | int, value: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


def box(*values: Any) -> Callable[[Data], None]:
    return set_("annotations", 1, "bbox", value=list(values))


def every_box(change: Callable[[list[float]], list[float]]) -> Callable[[Data], None]:
    def apply(data: Data) -> None:
        for annotation in data["annotations"]:
            annotation["bbox"] = change(annotation["bbox"])

    return apply


def read(folder: Any) -> Any:
    return read_annotations(find_split(folder.root, "train"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_("images", value=None), "'images' is NoneType, not a list"),
        (drop("images"), "'images' is missing"),
        (drop("annotations"), "'annotations' is missing"),
        (drop("categories"), "'categories' is missing"),
        (set_("categories", value=[]), "'categories' is empty"),
        (set_("images", value=[]), "lists no images"),
        (set_("annotations", value=[]), "3 images, but no object"),
        (set_("images", 1, "id", value=10), "1 x image id used twice: image 10"),
        (set_("images", 1, "id", value="11"), r"image id that is no whole number: images\[1\]: '11'"),
        (set_("images", 1, "id", value=11.5), r"image id that is no whole number: images\[1\]: 11.5"),
        (set_("images", 1, value=3), r"image that is no object: images\[1\]"),
        (set_("images", 1, "file_name", value=""), "image without file_name: image 11"),
        (set_("images", 1, "file_name", value="http://x.org/a.png"), "URL as file_name.*image 11: http"),
        (set_("images", 1, "file_name", value="../set/images/photo 1.png"), "leads out of the image folder: image 11"),
        (set_("images", 1, "file_name", value="/etc/passwd"), "leads out of the image folder: image 11"),
        (set_("images", 1, "file_name", value="C:\\data\\photo 1.png"), "leads out of the image folder: image 11"),
        (set_("images", 1, "file_name", value="..\\photo 1.png"), "leads out of the image folder: image 11"),
        (set_("images", 1, "file_name", value="none.png"), r"1 x missing image \(of 3\): .*none.png"),
        (
            set_("images", 1, "file_name", value="Photo 1.PNG"),
            "spelt differently: image 11: Photo 1.PNG is photo 1.png",
        ),
        (set_("images", 1, "file_name", value="x" * 300), r"missing image \(of 3\)"),
        (set_("images", 1, "file_name", value="\ud800\n.png"), r"missing image \(of 3\): .*\\ud800\\n\.png"),
        (set_("images", 1, "width", value=10**400), "no positive whole number of pixels"),
        (set_("images", 1, "width", value=0), "no positive whole number of pixels: image 11: 0 x 83"),
        (set_("images", 1, "height", value="83"), "no positive whole number of pixels: image 11: 47 x '83'"),
        (set_("categories", 1, "id", value=7), "category id used twice"),
        (set_("categories", 1, "id", value="3"), r"category without a whole number as id: categories\[1\]"),
        (set_("categories", 1, "name", value="cat"), "category name used twice"),
        (set_("categories", 1, "name", value=" "), "category whose name is missing"),
        (set_("categories", 1, "name", value="a\nb"), "category whose name is missing"),
        (drop("categories", 1, "name"), "category whose name is missing"),
        (set_("annotations", 1, "id", value=100), "annotation id used twice, for different boxes: annotation 100"),
        (set_("annotations", 1, "id", value="x"), "annotation id that is no whole number: annotation 'x'"),
        (set_("annotations", 1, "image_id", value="10"), "image_id that is no whole number: annotation 101: '10'"),
        (
            set_("annotations", 1, "image_id", value=99),
            r"annotation \(of 6\) of an image that is not listed: .*101: 99",
        ),
        (set_("annotations", 1, "category_id", value=4), "category_id that no category has: annotation 101: 4"),
        (set_("annotations", 1, "category_id", value="3"), "category_id that no category has: annotation 101: '3'"),
        (set_("annotations", 1, "iscrowd", value="0"), "iscrowd that is neither 0 nor 1: annotation 101: '0'"),
        (set_("annotations", 1, value=[]), r"annotation that is no object: annotations\[1\]"),
        (drop("annotations", 1, "bbox"), "annotation without bbox: annotation 101"),
        (box(1, 2, 3), r"not \[x, y, width, height\]: annotation 101"),
        (box(1, 2, 3, 4, 0.5), "five numbers; rotated"),
        (box(1, 2, 3, "4"), r"not \[x, y, width, height\]"),
        (box(1, 2, 3, None), r"not \[x, y, width, height\]"),
        (set_("annotations", 1, "bbox", value="1 2 3 4"), r"not \[x, y, width, height\]"),
        (box(1, 2, -3, 4), "negative width or height.*annotation 101"),
        (box(1, 2, 1.1e9, 4), "box that is not finite or absurdly large: annotation 101"),
        (box(1, 2, 10**400, 4), "not finite or absurdly large"),
        (every_box(lambda b: [v / 100 for v in b]), r"all lie in \[0, 1\]; they must be in pixels"),
        (every_box(lambda b: [b[0] + 30, b[1] + 30, b[0] + b[2] + 40, b[1] + b[3] + 30]), "may be .x1, y1, x2, y2."),
    ],
)
def test_refused(folder: Any, change: Callable[[Data], None], message: str) -> None:
    change(folder.data)
    path = folder.write()
    with pytest.raises(UserError, match=message) as caught:
        read(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b'{"images": [\n  {"id": 1,]', r"no valid JSON at line 2, column 12 \(byte 24\)"),
        (b'\xef\xbb\xbf{"images": [\n  {"id": 1,]', r"line 2, column 12 \(byte 27\)"),
        (b'{"images": "\xe9"}', "not UTF-8 at byte 12; it may be Latin-1"),
        ('{"images": []}'.encode("utf-16"), "not UTF-8 at byte 0; it may be UTF-16"),
        (b"<annotation><size>", "is XML, perhaps Pascal VOC"),
        (b"0 0.5 0.5 0.1 0.2\n", "no valid JSON at line 1"),
        (b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "looks like detections"),
        (b"[1]", "the top level is a list. Expected an object"),
        (b"3", "the top level is 3"),
        (
            b'{"images": [{"id": 1, "file_name": "photo 0.png"}], "categories": [{"id": 1, "name": "a"}],'
            b'"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 1e999, 1]}]}',
            "not finite or absurdly large",
        ),
        (b'{"images":\n [{"id": NaN}]}', "NaN at line 2, column 10 is no number"),
        (b'{"a": "NaN", "bbox": [1, -Infinity]}', "-Infinity at line 1, column 26"),
        (b'{"images": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 1_000_000 + b"}", "a number that cannot be read"),
    ],
)
def test_refused_as_a_file(folder: Any, content: bytes, message: str) -> None:
    folder.write(content)
    with pytest.raises(UserError, match=message) as caught:
        read(folder)
    assert "Traceback" not in str(caught.value)


def test_any_damage_ends_in_a_sentence(folder: Any) -> None:
    """Values replaced at random: accepted or refused, never another exception."""
    random = Random(4)
    odd: list[Any] = [None, True, -1, 0, 0.5, 10**400, -(10**30), 1e300]
    odd += ["", "x", "\0", "\ud800", "x" * 300, [], {}, {"id": 1}, "../a"]
    original, refused = copy.deepcopy(folder.data), 0
    for _ in range(400):
        folder.data = copy.deepcopy(original)
        for _ in range(random.randint(1, 3)):
            inner: Any = folder.data
            while True:
                key = random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
                if not isinstance(inner[key], dict | list) or not inner[key] or random.random() < 0.1:
                    break
                inner = inner[key]
            inner[key] = copy.deepcopy(random.choice(odd))
        folder.write()
        try:
            folder.open()
        except UserError:
            refused += 1
    assert 100 < refused < 390


def test_all_problems_at_once_with_the_first_places(folder: Any) -> None:
    folder.data["categories"][1]["name"] = ""
    folder.data["images"][2]["width"] = -1
    for number in range(9):
        folder.data["annotations"].append({"id": 200 + number, "image_id": 10, "category_id": 7, "bbox": [1, 1, -1, 1]})
    folder.data["annotations"].append({"id": 300, "image_id": 10, "category_id": 7, "bbox": [1, 1]})
    folder.write()
    with pytest.raises(UserError) as caught:
        read(folder)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("train.json cannot be used:") and len(lines) == 5
    (negative,) = [line for line in lines if "negative" in line]
    assert negative.strip().startswith("9 x box of negative width") and negative.endswith("...")
    assert negative.count("annotation 20") == 5
    assert any("bbox that is not" in line for line in lines)  # other kinds are not hidden by the first
    assert any("category whose name" in line for line in lines)
    assert any("category_id that no category has" in line for line in lines)  # a consequence of the damaged category
    assert any("positive whole number" in line for line in lines)


def add_box(**entry: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        data["annotations"].append({"id": 777, "image_id": 10, "category_id": 7, "iscrowd": 0} | entry)

    return change


@pytest.mark.parametrize(
    ("change", "note", "trainable"),
    [
        (add_box(bbox=[5, 5, 0, 7]), "1 x box without area, not trained on: annotation 777", False),
        (add_box(bbox=[97, 5, 4, 7]), "1 x box outside its image, not trained on: annotation 777", False),
        (add_box(bbox=[-9, 5, 9, 7]), "1 x box outside its image, not trained on: annotation 777", False),
        (add_box(bbox=[96.9999999, 5, 1, 7]), "1 x box outside its image, not trained on: annotation 777", False),
        (add_box(bbox=[90, 5, 12, 7]), "1 x box that leaves its image, clipped for training: annotation 777", True),
        (add_box(bbox=[9, 5, 0.3, 7]), "1 x box thinner than a pixel: annotation 777", True),
        (add_box(bbox=[1, 2, 13, 17]), "1 x box that is there twice, kept once: annotation 777", False),
        (add_box(bbox=[40, 11, 29, 37]), "1 x box that is there in several classes: annotation 777", True),
    ],
)
def test_accepted_with_a_note(folder: Any, change: Callable[[Data], None], note: str, trainable: bool) -> None:
    change(folder.data)
    folder.write()
    annotations = read(folder)
    assert annotations.notes == [note]
    assert [entry.trainable for entry in annotations.objects] == [True] * 6 + [trainable]


@pytest.mark.parametrize(
    "change",
    [
        set_("annotations", 0, "id", value=0),
        drop("annotations", 0, "id"),
        set_("annotations", 0, "id", value=2**60),
        set_("annotations", 0, "id", value=-4),
        set_("images", 0, "id", value=10.0),
        drop("annotations", 0, "iscrowd"),
        drop("annotations", 0, "area"),
        set_("annotations", 0, "area", value=0),
        set_("annotations", 0, "segmentation", value=[[1, 2, 3]]),
        set_("info", value={"year": 2024}),
        set_("categories", 0, "name", value="猫 🐈 قطة"),
        set_("images", 0, "license", value=None),
        box(40, 11, 58.5, 37),  # 1.5 pixels out: rounding
        box(0, 0, 97, 61),
        box(-0.0, -0.0, 5, 5),
    ],
)
def test_accepted_silently(folder: Any, change: Callable[[Data], None]) -> None:
    change(folder.data)
    folder.write()
    annotations = read(folder)
    assert annotations.notes == [] and len(annotations.objects) == 6
    assert all(entry.trainable and entry.area > 0 and not entry.crowd for entry in annotations.objects)


def test_missing_area_is_the_area_of_the_box(folder: Any) -> None:
    del folder.data["annotations"][0]["area"]
    folder.data["annotations"][1]["area"] = 0
    folder.write()
    areas = [entry.area for entry in read(folder).objects]
    assert areas[:2] == [31 * 23, 29 * 37] and areas[2] == 0.5 * 13 * 17


def test_repeated_keys_are_noted(folder: Any) -> None:
    text = json.dumps(folder.data)
    folder.write(text.replace('"iscrowd": 0', '"iscrowd": 1, "iscrowd": 0', 2))
    annotations = read(folder)
    assert annotations.notes == ["2 x key that an object has twice, the last one counts: 'iscrowd', 'iscrowd'"]
    assert not any(entry.crowd for entry in annotations.objects)


def test_byte_order_mark_is_accepted(folder: Any) -> None:
    folder.write(b"\xef\xbb\xbf" + json.dumps(folder.data).encode())
    assert len(read(folder).images) == 3


def test_missing_size_is_read_from_the_file(folder: Any) -> None:
    for image in folder.data["images"]:
        del image["width"], image["height"]
    folder.write()
    assert [entry.size for entry in read(folder).images] == [(61, 97), (83, 47), (59, 59)]
    (folder.images / "photo 2.png").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"image without width and height that cannot be read: image 12: .*a web page"):
        read(folder)


def test_names_are_found_as_people_write_them(folder: Any) -> None:
    names = ("sub\\photo 0.png", "./sub/photo 1.png", "sub/photo 2.png")
    (folder.images / "sub").mkdir()
    for number, (entry, name) in enumerate(zip(folder.data["images"], names, strict=True)):
        (folder.images / f"photo {number}.png").rename(folder.images / "sub" / f"photo {number}.png")
        entry["file_name"] = name
    folder.write()
    assert [entry.path.name for entry in read(folder).images] == ["photo 0.png", "photo 1.png", "photo 2.png"]
    folder.data["images"][2]["file_name"] = "images/sub/photo 2.png"  # one relative to another folder than the rest
    folder.write()
    with pytest.raises(UserError, match="missing image"):
        read(folder)
    for entry, name in zip(folder.data["images"], ("0", "1", "2"), strict=True):
        entry["file_name"] = f"images/sub/photo {name}.png"  # all of them: relative to the root
    folder.write()
    assert all(entry.path.is_file() for entry in read(folder).images)


def test_unicode_forms_of_a_name_are_one_name(folder: Any) -> None:
    (folder.images / "photo 0.png").rename(folder.images / "Zu\u0308rich.png")  # as macOS stores it
    folder.data["images"][0]["file_name"] = "Z\u00fcrich.png"
    folder.write()
    assert read(folder).images[0].path.is_file()


@pytest.mark.parametrize(("missing", "accepted"), [(1, True), (2, False)])
def test_one_percent_may_be_missing(folder: Any, missing: int, accepted: bool) -> None:
    for number in range(missing):
        folder.data["images"].append({"id": 500 + number, "file_name": f"gone {number}.png", "height": 9, "width": 9})
        folder.data["annotations"].append(
            {"id": 600 + number, "image_id": 500 + number, "category_id": 7, "bbox": [0] * 4}
        )
    for number in range(100 - 3 - missing):
        folder.data["images"].append({"id": 900 + number, "file_name": "photo 0.png", "height": 61, "width": 97})
    folder.write()
    if accepted:
        annotations = read(folder)
        assert len(annotations.images) == 99 and len(annotations.objects) == 6
        assert annotations.notes[0].startswith("1 x file listed as several images: photo 0.png")
        assert annotations.notes[1].startswith("1 x missing image, skipped: ") and len(annotations.notes) == 2
    else:
        with pytest.raises(UserError, match=r"2 x missing image \(of 100\): .*gone 0.png, .*gone 1.png"):
            read(folder)


def test_few_stray_annotations_are_skipped(folder: Any) -> None:
    original = copy.deepcopy(folder.data["annotations"][0])
    for number in range(100):
        folder.data["annotations"].append(original | {"id": 900 + number, "bbox": [number / 2, 1, 20, 30]})
    folder.data["annotations"].append(original | {"id": 5, "image_id": 12345})
    folder.write()
    annotations = read(folder)
    assert annotations.notes == ["1 x annotation of an image that is not listed, skipped: annotation 5: 12345"]
    assert len(annotations.objects) == 106


def test_classes_are_ordered_by_id_and_odd_ones_noted(folder: Any) -> None:
    folder.data["categories"] += [{"id": 0, "name": "animal"}, {"id": 90, "name": "Cat "}]
    folder.data["annotations"][0]["category_id"] = 0
    folder.write()
    annotations = read(folder)
    assert annotations.classes == (("animal", "dog", "cat", "Cat "), (0, 3, 7, 90))
    assert annotations.notes == [
        "1 x category name that differs from another only in case or spaces: 'Cat '",
        "1 x class with a single object: 'animal'",
        "1 x class without any object: 'Cat '",
    ]


def test_one_object_reaching_out_does_not_condemn_the_file(folder: Any) -> None:
    folder.data["annotations"] = [folder.data["annotations"][0] | {"bbox": [50, 30, 90, 60]}]
    folder.write()
    assert read(folder).objects[0].trainable


def test_crowd_regions_need_no_mask_and_are_not_trainable(folder: Any) -> None:
    folder.data["annotations"][0]["iscrowd"] = 1
    folder.write()
    first, *rest = read(folder).objects
    assert first.crowd and not first.trainable and all(entry.trainable for entry in rest)


def test_real_files(shared: Path) -> None:
    for name, images, objects in (("bccd", 205, 2804), ("aerial_cars", 88, 2579)):
        annotations = read_annotations(find_split(shared / "data" / name, "train"))
        assert (len(annotations.images), len(annotations.objects)) == (images, objects)
        assert all(entry.trainable for entry in annotations.objects)
