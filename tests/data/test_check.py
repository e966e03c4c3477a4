"""The catalogue of bad annotation files: each is refused by name, left out with a note, or accepted."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

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
        (set_("images", value=[]), "contains no images"),
        (set_("annotations", value=[]), "3 images, but no object"),
        (set_("images", 1, "id", value=10), "1 x duplicate image id: image 10"),
        (set_("images", 1, "id", value="11"), r"image id that is not an integer: images\[1\]: '11'"),
        (set_("images", 1, "id", value=11.5), r"image id that is not an integer: images\[1\]: 11.5"),
        (set_("images", 1, value=3), r"image that is not an object: images\[1\]"),
        (set_("images", 1, "file_name", value=""), "image without file_name: image 11"),
        (set_("images", 1, "file_name", value="http://x.org/a.png"), "file_name that is a URL.*image 11: http"),
        (set_("images", 1, "file_name", value="../set/images/photo 1.png"), "outside the image folder: image 11"),
        (set_("images", 1, "file_name", value="/etc/passwd"), "outside the image folder: image 11"),
        (set_("images", 1, "file_name", value="C:\\data\\photo 1.png"), "outside the image folder: image 11"),
        (set_("images", 1, "file_name", value="..\\photo 1.png"), "outside the image folder: image 11"),
        (set_("images", 1, "file_name", value="none.png"), r"1 x missing image \(of 3\): .*none.png"),
        (
            set_("images", 1, "file_name", value="Photo 1.PNG"),
            "different upper and lower case: image 11: Photo 1.PNG is photo 1.png",
        ),
        (set_("images", 1, "file_name", value="x" * 300), r"missing image \(of 3\)"),
        (set_("images", 1, "file_name", value="\ud800\n.png"), r"missing image \(of 3\): .*\\ud800\\n\.png"),
        (set_("images", 1, "width", value=10**400), "not a positive integer"),
        (set_("images", 1, "width", value=0), "not a positive integer: image 11: 0 x 83"),
        (set_("images", 1, "height", value="83"), "not a positive integer: image 11: 47 x '83'"),
        (set_("categories", 1, "id", value=7), "duplicate category id"),
        (set_("categories", 1, "id", value="3"), r"category id that is not an integer: categories\[1\]"),
        (set_("categories", 1, "name", value="cat"), "duplicate category name"),
        (set_("categories", 1, "name", value=" "), "category name that is missing"),
        (set_("categories", 1, "name", value="a\nb"), "category name that is missing"),
        (drop("categories", 1, "name"), "category name that is missing"),
        (set_("annotations", 1, "id", value=100), "duplicate annotation id with different boxes: annotation 100"),
        (set_("annotations", 1, "id", value="x"), "annotation id that is not an integer: annotation 'x'"),
        (set_("annotations", 1, "image_id", value="10"), "image_id that is not an integer: annotation 101: '10'"),
        (
            set_("annotations", 1, "image_id", value=99),
            r"annotation \(of 6\) with unknown image_id: .*101: 99",
        ),
        (set_("annotations", 1, "category_id", value=4), "unknown category_id: annotation 101: 4"),
        (set_("annotations", 1, "category_id", value="3"), "unknown category_id: annotation 101: '3'"),
        (set_("annotations", 1, "iscrowd", value="0"), "iscrowd that is neither 0 nor 1: annotation 101: '0'"),
        (set_("annotations", 1, value=[]), r"annotation that is not an object: annotations\[1\]"),
        (drop("annotations", 1, "bbox"), "annotation without bbox: annotation 101"),
        (box(1, 2, 3), r"not \[x, y, width, height\]: annotation 101"),
        (box(1, 2, 3, 4, 0.5), "five numbers .rotated"),
        (box(1, 2, 3, "4"), r"not \[x, y, width, height\]"),
        (box(1, 2, 3, None), r"not \[x, y, width, height\]"),
        (set_("annotations", 1, "bbox", value="1 2 3 4"), r"not \[x, y, width, height\]"),
        (box(1, 2, -3, 4), "negative width or height.*annotation 101"),
        (box(1, 2, 1e9, 4), "box with NaN, infinite or very large coordinates: annotation 101"),
        (set_("annotations", 1, "ignore", value="yes"), "ignore that is neither 0 nor 1: annotation 101: 'yes'"),
        (box(1, 2, 1.1e9, 4), "box with NaN, infinite or very large coordinates: annotation 101"),
        (box(1, 2, 10**400, 4), "infinite or very large"),
        (every_box(lambda b: [v / 100 for v in b]), r"all boxes in \[0, 1\] \(expected pixels\)"),
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
        (b'{"images": [\n  {"id": 1,]', r"invalid JSON at line 2, column 12 \(byte 24\)"),
        (b'\xef\xbb\xbf{"images": [\n  {"id": 1,]', r"line 2, column 12 \(byte 27\)"),
        (b'{"images": "\xe9"}', "not UTF-8 at byte 12; it may be Latin-1"),
        ('{"images": []}'.encode("utf-16"), "not UTF-8 at byte 0; it may be UTF-16"),
        (b"<annotation><size>", "is XML, perhaps Pascal VOC"),
        (b"0 0.5 0.5 0.1 0.2\n", "invalid JSON at line 1"),
        (b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "looks like detections"),
        (b"[1]", "the top level is a list. Expected an object"),
        (b"3", "the top level is 3"),
        (
            b'{"images": [{"id": 1, "file_name": "photo 0.png"}], "categories": [{"id": 1, "name": "a"}],'
            b'"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 1e999, 1]}]}',
            "infinite or very large",
        ),
        (b"NaN", "1 x NaN or Infinity, which is not a valid number .*: NaN at line 1, column 1$"),
        (b'{"images":\n [{"id": NaN}]}', "not a valid number .*: NaN at line 2, column 10$"),
        (b'{"a": "NaN", "bbox": [1, -Infinity]}', "-Infinity at line 1, column 26$"),
        (
            b'{"a": "\\"NaN,", "b": ["\\\\",\n "NaN", NaN,\nInfinity]}',
            "NaN at line 2, column 9, Infinity at line 3, column 1$",
        ),
        (b'{"images": [] "a"}', r"invalid JSON at line 1, column 15 \(byte 14\): Expecting ',' delimiter"),
        (b'{"images": [1 2]}', r"line 1, column 15 \(byte 14\): Expecting ',' delimiter"),
        (b'{"images" [1]}', r"line 1, column 11 \(byte 10\): Expecting ':' delimiter"),
        (b'{"images": [], 5: 6}', r"line 1, column 16 \(byte 15\): Expecting property name"),
        (b'{"images": [,]}', r"line 1, column 13 \(byte 12\): Expecting value"),
        (b'{"images": []} {', r"line 1, column 16 \(byte 15\): Extra data"),
        (b'{"images": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 1_000_000 + b"}", "a number that cannot be read"),
    ],
)
def test_refused_as_a_file(folder: Any, content: bytes, message: str) -> None:
    folder.write(content)
    with pytest.raises(UserError, match=message) as caught:
        read(folder)
    assert "Traceback" not in str(caught.value)


def test_any_damage_raises_user_error(folder: Any) -> None:
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
    assert first.endswith("train.json has errors:") and len(lines) == 5
    (negative,) = [line for line in lines if "negative" in line]
    assert negative.strip().startswith("9 x box with negative width") and negative.endswith("...")
    assert negative.count("annotation 20") == 5
    assert any("bbox that is not" in line for line in lines)  # other kinds are not hidden by the first
    assert any("category name that" in line for line in lines)
    assert any("unknown category_id" in line for line in lines)  # a consequence of the damaged category
    assert any("positive integer" in line for line in lines)


def add_box(**entry: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        data["annotations"].append({"id": 777, "image_id": 10, "category_id": 7, "iscrowd": 0} | entry)

    return change


@pytest.mark.parametrize(
    ("change", "note", "trainable"),
    [
        (add_box(bbox=[90, 5, 12, 7]), "1 x box that exceeds its image, clipped in training: annotation 777", True),
        (add_box(bbox=[9, 5, 0.3, 7]), "1 x box less than one pixel wide or high: annotation 777", True),
        (add_box(bbox=[1, 2, 13, 17]), "1 x duplicate box, ignored in training: annotation 777", False),
        (add_box(bbox=[40, 11, 29, 37]), "1 x box with several classes: annotation 777", True),
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
    assert annotations.notes == ["2 x duplicate key of an object, last value used: 'iscrowd', 'iscrowd'"]
    assert not any(entry.crowd for entry in annotations.objects)


def test_byte_order_mark_is_accepted(folder: Any) -> None:
    folder.write(b"\xef\xbb\xbf" + json.dumps(folder.data).encode())
    assert len(read(folder).images) == 3


def test_missing_size_is_read_from_the_file(folder: Any) -> None:
    for image in folder.data["images"]:
        del image["width"], image["height"]
    folder.write()
    assert [entry.size for entry in read(folder).images] == [(61, 97), (83, 47), (59, 59)]


def test_every_file_is_opened_and_all_faults_are_reported_at_once(folder: Any) -> None:
    for number in range(3):
        Image.new("RGB", (97, 61)).save(folder.images / f"more {number}.jpg")
        folder.data["images"].append({"id": 20 + number, "file_name": f"more {number}.jpg", "height": 61, "width": 97})
    (folder.images / "photo 2.png").write_bytes(b"<html>")
    jpeg = folder.images / "more 0.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-40])  # its header is intact
    folder.data["images"][0] |= {"height": 97, "width": 61}
    folder.data["images"][1] |= {"height": 84}
    folder.write()
    with pytest.raises(UserError) as caught:
        read(folder)
    sizes, unreadable = (line for line in str(caught.value).splitlines() if " image" in line and " x " in line)
    assert sizes.strip().startswith(
        "2 x image whose size (width x height) differs from the annotation file: image 10: "
    )
    assert "photo 0.png is 97 x 61, not 61 x 97, width and height are swapped in the annotation file" in sizes
    assert sizes.endswith("photo 1.png is 47 x 83, not 47 x 84")
    assert unreadable.strip().startswith("2 x unreadable image (of 6): image 12: ")
    assert "photo 2.png is a web page" in unreadable and "more 0.jpg" in unreadable and "truncated" in unreadable
    assert "more 1.jpg" not in unreadable


@pytest.mark.parametrize(
    ("orientation", "hint"),
    [
        (6, "annotated without its EXIF orientation"),
        (1, "width and height are swapped"),
        (3, "width and height are sw"),
    ],
)
def test_swapped_sides(folder: Any, orientation: int, hint: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = (61, 97) if orientation == 6 else (97, 61)
    Image.new("RGB", size).save(folder.images / "photo 0.png", exif=exif)
    folder.data["images"][0] |= {"height": 97, "width": 61}
    folder.write()
    with pytest.raises(UserError, match=f"photo 0.png is 97 x 61, not 61 x 97, {hint}"):
        read(folder)


def test_bytes_after_the_end_of_an_image_are_ignored(folder: Any) -> None:
    Image.new("RGB", (97, 61)).save(folder.images / "photo 0.png", format="JPEG")
    for path in (folder.images / "photo 0.png", folder.images / "photo 1.png"):
        path.write_bytes(path.read_bytes() + bytes(10_000))
    folder.write()
    assert len(read(folder).images) == 3


@pytest.mark.parametrize(("unreadable", "accepted"), [(1, True), (2, False)])
def test_one_percent_may_be_unreadable(folder: Any, unreadable: int, accepted: bool) -> None:
    for number in range(unreadable):
        (folder.images / f"page {number}.jpg").write_text("<!DOCTYPE html>")
        folder.data["images"].append({"id": 500 + number, "file_name": f"page {number}.jpg", "height": 9, "width": 9})
        folder.data["annotations"].append(
            {"id": 600 + number, "image_id": 500 + number, "category_id": 7, "bbox": [1, 1, 5, 5]}
        )
    for number in range(100 - 3 - unreadable):
        folder.data["images"].append({"id": 900 + number, "file_name": "photo 0.png", "height": 61, "width": 97})
    folder.write()
    if accepted:
        annotations = read(folder)
        assert len(annotations.images) == 99 and len(annotations.objects) == 6
        (note,) = (note for note in annotations.notes if "readable" in note)
        assert note.startswith("1 x unreadable image, skipped: image 500: ") and "a web page" in note
    else:
        with pytest.raises(UserError, match=r"2 x unreadable image \(of 100\): image 500: .*image 501: "):
            read(folder)


def test_usual_spellings_of_paths_are_found(folder: Any) -> None:
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
        assert annotations.notes[0].startswith("1 x file used by several images: photo 0.png")
        assert annotations.notes[1].startswith("1 x missing image, skipped: ") and len(annotations.notes) == 2
    else:
        with pytest.raises(UserError, match=r"2 x missing image \(of 100\): .*gone 0.png, .*gone 1.png"):
            read(folder)


def test_few_annotations_with_unknown_images_are_skipped(folder: Any) -> None:
    original = copy.deepcopy(folder.data["annotations"][0])
    for number in range(100):
        folder.data["annotations"].append(original | {"id": 900 + number, "bbox": [number / 2, 1, 20, 30]})
    folder.data["annotations"].append(original | {"id": 5, "image_id": 12345})
    folder.write()
    annotations = read(folder)
    assert annotations.notes == ["1 x annotation with unknown image_id, skipped: annotation 5: 12345"]
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
        "1 x class without objects: 'Cat '",
    ]


def test_one_box_outside_its_image_is_not_an_error(folder: Any) -> None:
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


def test_an_image_folder_that_may_not_be_read(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Any) -> None:
        raise PermissionError(13, "Permission denied")

    folder.write()
    monkeypatch.setattr("detrs.data.locate.os.listdir", fail)
    with pytest.raises(UserError, match=r"image folder .* cannot be read: Permission denied\."):
        read(folder)
