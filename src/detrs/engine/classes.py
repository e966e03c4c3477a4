"""The classes of a detector and those of a dataset, which correspond by name."""

from collections.abc import Sequence

from detrs.checkpoints.classes import match
from detrs.checkpoints.format import abbreviated
from detrs.errors import UserError
from detrs.structures import Classes


def scored_classes(names: Sequence[str], classes: Classes) -> tuple[Classes, list[bool]]:
    """The classes of a detector as those of a dataset.

    Args:
        names: of the detector.
        classes: of the dataset.

    Returns:
        For each class of the detector its name, and its id in the dataset (-1: not in it); and whether it is scored.
    """
    ids = {
        row: number
        for row, number in zip(rows_of(names, classes.names), classes.category_ids, strict=True)
        if row is not None
    }
    rows = range(len(names))
    return Classes(tuple(names), tuple(ids.get(row, -1) for row in rows)), [row in ids for row in rows]


def rows_of(names: Sequence[str], of_data: Sequence[str]) -> list[int | None]:
    """The row of a detector for each class of a dataset."""
    if set(names) == set(of_data):  # also a class that is named like an unused one
        return [names.index(name) for name in of_data]
    return match(names, of_data)


def check_classes(names: Sequence[str], of_data: Sequence[str], owner: str, data: str) -> list[str]:
    """Check that a detector has all classes of a dataset.

    Returns:
        The other classes of the detector, which are not scored.

    Raises:
        UserError: with the classes that it does not have.
    """
    rows = rows_of(names, of_data)
    if missing := [name for name, row in zip(of_data, rows, strict=True) if row is None]:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{owner[0].upper()}{owner[1:]} does not have all classes of {data}: {abbreviated(missing)} {are} "
            f"missing. Its classes are {abbreviated(list(names))}. Use a dataset with these classes only, or fine-tune "
            "the checkpoint: detrs train --weights."
        )
    return [name for row, name in enumerate(names) if row not in rows]


def check_same_classes(names: Sequence[str], others: Sequence[str], owner: str, other_owner: str) -> None:
    """Check that two sets of classes are equal; order does not matter.

    Raises:
        UserError: listing both.
    """
    if set(names) != set(others):
        raise UserError(
            f"The classes differ: {owner} has {', '.join(names)}; {other_owner} has {', '.join(others)}. "
            "Both must have the same class names, in any order."
        )
