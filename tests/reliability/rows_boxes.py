"""Rows 45 to 65: boxes."""

from typing import Any

from dataset import HEIGHT, MANY, WIDTH, Change, Folder, reads, trains
from rows_annotations import Data, case, put, repeated


def box(*values: Any) -> Change:
    """Another box for annotation 101."""
    return put("annotations", 1, "bbox", value=list(values))


def every_box(change: Any) -> Change:
    def apply(data: Data) -> None:
        for entry in data["annotations"]:
            entry["bbox"] = change(entry["bbox"])

    return apply


def several(count: int, bbox: list[float]) -> Change:
    """The same fault in the first ``count`` images."""

    def change(data: Data) -> None:
        for entry in data["annotations"][: 2 * count : 2]:
            entry["bbox"] = bbox

    return change


def both(*changes: Change) -> Change:
    def change(data: Data) -> None:
        for each in changes:
            each(data)

    return change


def xyxy(bbox: list[float]) -> list[float]:
    """Corners instead of sizes, of a box in the lower right half."""
    x, y, width, height = bbox
    return [x + 25, y + 9, x + 25 + width * 0.5, y + 9 + height * 0.5]


def few_boxes(data: Data) -> None:
    """Three normalized boxes in all."""
    del data["annotations"][3:]
    every_box(lambda bbox: [value / 100 for value in bbox])(data)


def crowds_of_first(data: Data) -> None:
    for entry in data["annotations"][:2]:
        entry["iscrowd"] = 1


def all_crowds(data: Data) -> None:
    for entry in data["annotations"]:
        entry["iscrowd"] = 1


def crowds_are_kept(dataset: Any, folder: Folder) -> None:
    assert len(dataset[0].boxes) == 0
    assert [entry["iscrowd"] for entry in dataset.ground_truth()["annotations"]][:3] == [1, 1, 0]


def crowds_train(train: Folder, val: Folder) -> None:
    crowds_of_first(train.data)


def polygons(data: Data) -> None:
    for entry in data["annotations"]:
        del entry["bbox"]
        entry["segmentation"] = [[1, 2, 30, 2, 30, 40]]


def more_than_queries(count: int) -> Any:
    def prepare(train: Folder, val: Folder) -> None:
        first = train.data["annotations"][0]
        train.data["annotations"] += [
            {**first, "id": 1000 + number, "bbox": [number % 41, number % 31, 3 + number / count, 4]}
            for number in range(count - 2)
        ]

    return prepare


def without_objects(train: Folder, val: Folder) -> None:
    """A batch without objects: only one image of six has some."""
    del train.data["annotations"][2:]
    train.data["annotations"].append({**train.data["annotations"][0], "id": 7, "bbox": [1, 2, 30, 20]})
    train.data["annotations"].append({**train.data["annotations"][1], "id": 8, "bbox": [3, 2, 30, 20]})


def first_is_empty(dataset: Any, folder: Folder) -> None:
    assert dataset[0].boxes.shape == (0, 4) and len(dataset) == len(folder.data["images"])


def clipped(dataset: Any, folder: Folder) -> None:
    x1, y1, x2, y2 = dataset[0].boxes[1].tolist()
    assert 0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT


def kept(dataset: Any, folder: Folder) -> None:
    assert len(dataset[0].boxes) == 2


def left_out(dataset: Any, folder: Folder) -> None:
    assert len(dataset[0].boxes) == 1


ROTATED = put("annotations", 1, "attributes", value={"rotation": 30.0})

CASES = [
    case(45, "zero width", "S", reads(box(5, 5, 0, 7), images=MANY, check=left_out), "1 x ", "annotation 101"),
    case(45, "zero height", "S", reads(box(5, 5, 7, 0), images=MANY, check=left_out), "1 x ", "annotation 101"),
    case(45, "many zero-area boxes", "E", reads(several(5, [5, 5, 0, 7]), images=MANY), "annotation 100"),
    case(46, "negative width", "E", reads(box(9, 9, -3, 4)), "negative", "annotation 101", "-3", "x1, y1, x2, y2"),
    case(47, "infinite", "E", reads(box(9, 9, 10**400, 4)), "infinite", "annotation 101"),
    case(47, "NaN", "E", reads(box(float("nan"), 9, 4, 4)), "NaN", "line 1"),
    case(48, "outside", "S", reads(box(WIDTH + 1, 5, 9, 7), images=MANY, check=left_out), "1 x ", "annotation 101"),
    case(49, "1.5 pixels outside", "A", reads(box(40, 11, WIDTH - 38.5, 30), check=clipped)),
    case(49, "partly outside", "W", reads(box(40, 11, 40, 30), check=clipped), "clipped", "annotation 101"),
    case(50, "less than a pixel", "W", reads(box(9, 5, 0.3, 7), check=kept), "one pixel", "annotation 101"),
    case(51, "whole image", "A", reads(box(0, 0, WIDTH, HEIGHT), check=kept)),
    case(52, "corners", "E", reads(every_box(xyxy)), "[x1, y1, x2, y2]"),
    case(53, "normalized", "E", reads(every_box(lambda bbox: [value / 100 for value in bbox])), "[0, 1]", "pixels"),
    case(53, "three normalized boxes", "E", reads(few_boxes), "[0, 1]", "pixels"),
    case(54, "three numbers", "E", reads(box(1, 2, 3)), "annotation 101", "[1, 2, 3]"),
    case(54, "five numbers", "E", reads(box(1, 2, 3, 4, 5)), "annotation 101", "five numbers"),
    case(54, "string", "E", reads(box(1, 2, 3, "4")), "annotation 101", "'4'"),
    case(54, "null", "E", reads(box(1, 2, 3, None)), "annotation 101", "None"),
    case(55, "rotated", "E", reads(box(10, 10, 9, 9, 0.5)), "rotated", "annotation 101"),
    case(55, "rotation attribute", "E", reads(ROTATED), "rotat", "annotation 101"),
    case(56, "exact duplicate", "S", reads(repeated(id=999), images=MANY), "1 x duplicate box", "annotation 999"),
    case(57, "two classes", "W", reads(repeated(id=999, category_id=3)), "several classes", "annotation 999"),
    case(58, "only crowd in an image", "A", reads(crowds_of_first, images=MANY, check=crowds_are_kept)),
    case(58, "only crowd in an image, trained", "A", trains(crowds_train, images=30)),
    case(58, "many crowd regions", "W", reads(crowds_of_first), "2 x crowd region", "annotation 100", "iscrowd"),
    case(58, "only crowd regions", "E", reads(all_crowds), "all 8 annotations are crowd regions", "iscrowd"),
    case(59, "crowd without mask", "A", reads(put("annotations", 0, "iscrowd", value=1), images=MANY)),
    case(60, "segmentation only", "E", reads(polygons), "without bbox", "annotation 100"),
    case(61, "more objects than queries", "E", trains(more_than_queries(18)), "18 objects", "17 queries"),
    case(62, "image without objects", "A", reads(lambda data: data["annotations"].__delitem__(slice(0, 2)),
                                                 check=first_is_empty)),
    case(63, "batch without objects", "A", trains(without_objects)),
    case(63, "split without objects", "E", reads(put("annotations", value=[])), "no objects", "4 images"),
    case(64, "10,000 boxes", "E", trains(more_than_queries(10_000)), "10000 objects", "--model.num-queries"),
    case(65, "10^9 pixels", "E", reads(box(1.1e9, 5, 9, 7)), "very large", "annotation 101"),
    case(65, "negative zero", "A", reads(box(-0.0, -0.0, 9, 7), check=kept)),
]  # fmt: skip
