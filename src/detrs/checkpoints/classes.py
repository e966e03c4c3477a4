"""Class names of checkpoints: the tables of COCO, and which classes of two lists are the same."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from detrs.errors import UserError, did_you_mean
from detrs.structures import Classes

COCO = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
"""COCO's category ids -> names. Eleven ids of 0 .. 90 have no objects."""
NUM_IDS = 91
"""Rows of a class head whose row is the category id."""
UNUSED = re.compile(r"N/A(?: \d+)?")


def coco_classes(num_rows: int) -> Classes:
    """The classes of a class head that was published without names.

    Args:
        num_rows: number of classes, without "no object" and background. 91: row i is category id i, and the unused ids
            are named ``N/A i`` (DETR and its successors). 90: the same without id 0 (torchvision, whose row 0 is
            background). 80: the categories in the order of their ids (Sparse R-CNN, mmdetection). Others: ``class i``.

    >>> coco_classes(80).names[11], coco_classes(80).category_ids[11], coco_classes(91).names[11:14]
    ('stop sign', 13, ('fire hydrant', 'N/A 12', 'stop sign'))
    """
    if num_rows == len(COCO):
        return Classes(tuple(COCO.values()), tuple(COCO))
    if num_rows in (NUM_IDS, NUM_IDS - 1):
        ids = tuple(range(NUM_IDS - num_rows, NUM_IDS))
        return Classes(tuple(COCO.get(i, f"N/A {i}") for i in ids), ids)
    return Classes(tuple(f"class {i}" for i in range(num_rows)), tuple(range(num_rows)))


def is_unused(name: str) -> bool:
    """Whether a class is a category id of COCO without objects: ``N/A``, or ``N/A 12``."""
    return UNUSED.fullmatch(name) is not None


def match(source_names: Sequence[str], target_names: Sequence[str]) -> list[int | None]:
    """The row of the source for each target class; ``None``: the source does not have the class.

    Equal names are the same class. Of the others, those are that are equal without regard to case, surrounding space,
    and ``_`` or ``-`` instead of a space. Unused names never match.

    Args:
        source_names: unique names, for example those of a checkpoint.
        target_names: unique names, for example those of a dataset.

    Raises:
        UserError: a name matches several.

    >>> match(["N/A 0", "person", "traffic light"], ["Traffic_Light", "dog", "person"])
    [2, None, 1]
    """
    exact = {name: row for row, name in enumerate(source_names)}
    rows = [None if is_unused(name) else exact.get(name) for name in target_names]
    taken = set(rows)
    similar: dict[str, list[int]] = {}
    for row, name in enumerate(source_names):
        if row not in taken and not is_unused(name):
            similar.setdefault(normalized(name), []).append(row)
    origin: dict[int, str] = {}
    for target, name in enumerate(target_names):
        if rows[target] is not None or is_unused(name):
            continue
        candidates = similar.get(normalized(name), [])
        if len(candidates) > 1:
            several = " and ".join(f"'{source_names[row]}'" for row in candidates)
            raise UserError(f"The class '{name}' matches several classes: {several}. Rename it to one of them.")
        for row in candidates:
            if row in origin:
                raise UserError(
                    f"The classes '{origin[row]}' and '{name}' both match the class '{source_names[row]}': rename one."
                )
            origin[row], rows[target] = name, row
    return rows


def normalized(name: str) -> str:
    """``name`` in a form that is equal for spellings of the same class."""
    return " ".join(re.sub(r"[_-]", " ", unicodedata.normalize("NFC", name)).casefold().split())


def labels_of(wanted: str | Iterable[str], names: Sequence[str]) -> frozenset[int]:
    """The labels of the classes ``wanted``, one name or several.

    Raises:
        UserError: a name is unknown, or there is none.
    """
    given = [wanted] if isinstance(wanted, str) else list(wanted)
    if not given:
        raise UserError(f"classes: expected some of {_listed(names)}, got none.")
    labels = []
    for name in given:
        if name not in names:
            same = [each for each in names if normalized(each) == normalized(str(name))]
            hint = f" Did you mean '{same[0]}'?" if same else did_you_mean(str(name), names)
            raise UserError(f"The detector has no class '{name!s:.80}'.{hint} Its classes are {_listed(names)}.")
        labels.append(names.index(name))
    return frozenset(labels)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
