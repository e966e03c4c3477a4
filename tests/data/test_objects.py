"""What annotations mean: targets, crowd regions, rotation, units, duplicates; and what reading them costs."""

import json
import os
import tracemalloc
from typing import Any

import pytest
from PIL import Image

from detrs.data.check import read_annotations
from detrs.data.detect import find_split
from detrs.errors import UserError


def read(folder: Any) -> Any:
    return read_annotations(find_split(folder.root, "train"))


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ([5, 5, 0, 7], "without area"),
        ([5, 5, 7, 0], "without area"),
        ([97, 5, 4, 7], "outside its image"),
        ([-9, 5, 9, 7], "outside its image"),
        ([96.9999999, 5, 1, 7], "outside its image"),
    ],
)
@pytest.mark.parametrize("num_bad", [1, 2])
def test_one_percent_of_the_boxes_may_be_unusable(folder: Any, bbox: list[float], kind: str, num_bad: int) -> None:
    for number in range(100 - 6 - num_bad):
        folder.data["annotations"].append(
            {"id": 500 + number, "image_id": 10, "category_id": 7, "bbox": [number / 2, 1, 20, 30]}
        )
    for number in range(num_bad):
        folder.data["annotations"].append({"id": 777 + number, "image_id": 10, "category_id": 7, "bbox": bbox})
    folder.write()
    if num_bad == 1:
        annotations = read(folder)
        assert annotations.notes == [f"1 x box {kind}, ignored in training: annotation 777"]
        assert [entry.trainable for entry in annotations.objects] == [True] * 99 + [False]
    else:
        with pytest.raises(UserError, match=rf"2 x box \(of 100\) {kind}: annotation 777, annotation 778"):
            read(folder)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_few_normalized_boxes_are_detected(folder: Any, number: int) -> None:
    del folder.data["annotations"][number:]
    for annotation in folder.data["annotations"]:
        annotation["bbox"] = [0, 0, 1, 1]
    folder.write()
    with pytest.raises(UserError, match=r"file with all boxes in \[0, 1\] \(expected pixels\): the first is \[0.0, 0"):
        read(folder)


def test_a_box_as_large_as_a_tiny_image_is_in_pixels(folder: Any) -> None:
    Image.new("RGB", (1, 1)).save(folder.images / "photo 0.png")
    folder.data["images"][0] |= {"width": 1, "height": 1}
    folder.data["annotations"] = [folder.data["annotations"][0] | {"bbox": [0, 0, 1, 1]}]
    folder.write()
    assert len(read(folder).objects) == 1


@pytest.mark.parametrize("rotation", [30.0, -0.5, 90])
@pytest.mark.parametrize("nested", [True, False])
def test_rotated_rectangles_are_errors(folder: Any, rotation: float, nested: bool) -> None:
    extra = {"rotation": rotation}
    folder.data["annotations"][1] |= {"attributes": extra} if nested else extra
    folder.write()
    with pytest.raises(UserError, match=rf"1 x rotated box .*export the upright box.*: annotation 101: {rotation}"):
        read(folder)


@pytest.mark.parametrize("attributes", [{"rotation": 0.0, "occluded": False}, {"rotation": 180}, {}, None, "rotation"])
def test_boxes_without_rotation_are_accepted(folder: Any, attributes: Any) -> None:
    folder.data["annotations"][1]["attributes"] = attributes
    folder.write()
    assert read(folder).notes == []


def test_ignored_objects_are_not_targets(folder: Any) -> None:
    folder.data["annotations"][1]["ignore"] = 1
    folder.data["annotations"][2]["ignore"] = 0
    folder.write()
    annotations = read(folder)
    assert [entry.trainable for entry in annotations.objects] == [True, False, True, True, True, True]
    assert [entry.crowd for entry in annotations.objects] == [False, True, False, False, False, False]
    assert annotations.notes == [
        '1 x annotation with "ignore": 1, not a target, handled as a crowd region: annotation 101'
    ]


def test_many_crowd_regions_are_noted_and_only_crowd_regions_are_an_error(folder: Any) -> None:
    for annotation in folder.data["annotations"][:4]:
        annotation["iscrowd"] = 1
    folder.write()
    first, second = read(folder).notes
    assert first.startswith("4 x crowd region (of 6 annotations), not a training target (some tools export masks with ")
    assert first.endswith("annotation 100, annotation 101, annotation 102, annotation 103")
    assert second == "2 x class with a single object: 'dog', 'cat'"
    for annotation in folder.data["annotations"]:
        annotation["iscrowd"] = 1
    folder.write()
    with pytest.raises(UserError, match=r'all 6 annotations are crowd regions .*set "iscrowd": 0'):
        read(folder)


def test_a_class_of_crowd_regions_is_noted(folder: Any) -> None:
    for annotation in folder.data["annotations"]:
        annotation["iscrowd"] = int(annotation["category_id"] == 7)
    folder.write()
    assert read(folder).notes[-1] == "1 x class with crowd regions only: 'cat'"


def test_an_annotation_id_in_two_images_is_an_error(folder: Any) -> None:
    folder.data["annotations"][3] |= {"id": 100, "bbox": folder.data["annotations"][0]["bbox"]}
    folder.write()
    with pytest.raises(UserError, match="1 x duplicate annotation id in several images: annotation 100"):
        read(folder)


@pytest.mark.parametrize(
    "bbox",
    [
        [66.1, 7, 30.9, 23],  # ends at the border, except for rounding
        [66, 7, 33, 23],  # exceeds it by exactly the tolerance
        [96.5, 7, 0.5, 23],
        [-2, -2, 20, 20],
    ],
)
def test_boxes_at_the_limit_are_accepted(folder: Any, bbox: list[float]) -> None:
    folder.data["annotations"][1]["bbox"] = bbox
    folder.write()
    annotations = read(folder)
    assert annotations.objects[1].trainable
    assert [note for note in annotations.notes if "less than one pixel" not in note] == []


def test_nan_does_not_hide_other_findings(folder: Any) -> None:
    folder.data["annotations"][0]["bbox"][0] = float("nan")
    folder.data["annotations"][4]["category_id"] = 55
    folder.data["images"][2]["file_name"] = "none.png"
    path = folder.write(json.dumps(folder.data, indent=1))
    line, text = next((n, t) for n, t in enumerate(path.read_text().splitlines(), 1) if "NaN" in t)
    with pytest.raises(UserError) as caught:
        read(folder)
    message = str(caught.value)
    assert f"NaN at line {line}, column {text.index('NaN') + 1}" in message
    assert "box with NaN, infinite or very large coordinates: annotation 100" in message
    assert "unknown category_id: annotation 104: 55" in message and "missing image" in message


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(folder: Any, kind: str) -> None:
    path = folder.write()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=r"train\.json is not a regular file\. Expected COCO annotations"):
        read(folder)


def test_the_last_of_duplicate_lists_is_used(folder: Any) -> None:
    text = json.dumps(folder.data)
    folder.write(f'{{"annotations": {json.dumps(folder.data["annotations"][:2])}, {text[1:]}')
    annotations = read(folder)
    assert annotations.notes == ["1 x duplicate key of an object, last value used: 'annotations'"]
    assert len(annotations.objects) == 6


@pytest.mark.parametrize("layout", ["wide", "indented", "reversed"])
def test_any_layout_of_the_file_gives_the_same(folder: Any, layout: str) -> None:
    folder.write()
    expected = read(folder)
    data = dict(reversed(folder.data.items())) if layout == "reversed" else folder.data
    data = {"info": {"images": [1]}, **data, "licenses": [], "extra": None}
    text = json.dumps(data, indent={"wide": None, "indented": 3, "reversed": 0}[layout])
    folder.write(f" \n{text}\r\n\t" if layout == "wide" else text)
    found = read(folder)
    assert list(found.objects) == list(expected.objects) and list(found.images) == list(expected.images)


def test_reading_takes_less_than_three_times_the_size_of_the_file(folder: Any) -> None:
    template = folder.data["annotations"][0]
    folder.data["annotations"] = [
        template | {"id": number, "bbox": [number % 7 + 0.1, number % 11 + 0.3, 20.0 + number / 7e3, 30.25]}
        for number in range(60_000)
    ]
    size = folder.write().stat().st_size
    folder.data.clear()
    split = find_split(folder.root, "train")
    tracemalloc.start()
    try:
        annotations = read_annotations(split)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(annotations.objects) == 60_000
    assert peak < 3 * size and kept < size


def test_skipped_images_are_counted(folder: Any) -> None:
    (folder.images / "page.jpg").write_text("<!DOCTYPE html>")
    folder.data["images"].append({"id": 500, "file_name": "page.jpg", "height": 9, "width": 9})
    for number in range(196):
        folder.data["images"].append({"id": 900 + number, "file_name": "photo 0.png", "height": 61, "width": 97})
    assert folder.open().num_skipped == 1
