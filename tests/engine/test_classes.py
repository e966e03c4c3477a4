"""The classes of a detector as those of a dataset. ``test_evaluate.py`` and ``test_run.py`` have the messages."""

from detrs.engine.classes import scored_classes
from detrs.structures import Classes


def test_equal_names_are_equal_classes() -> None:
    """Also where they are unused, or differ in case only: any dataset can have such names."""
    classes = Classes(("a", "A", "N/A"), (5, 6, 7))
    assert scored_classes(("N/A", "A", "a"), classes) == (Classes(("N/A", "A", "a"), (7, 6, 5)), [True] * 3)


def test_classes_that_are_not_in_the_dataset_have_no_id() -> None:
    classes = Classes(("bus", "car"), (40, 30))
    assert scored_classes(("car", "truck", "bus"), classes) == (
        Classes(("car", "truck", "bus"), (30, -1, 40)),
        [True, False, True],
    )
