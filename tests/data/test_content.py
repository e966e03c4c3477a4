"""Names of splits."""

import pytest

from detrs.data.content import has_training_images, is_usual, split_of, without_year


@pytest.mark.parametrize(
    ("name", "base", "split", "is_known", "is_training"),
    [
        ("train", "train", "train", True, True),
        ("training2014", "training", "train", True, True),
        ("trainval2012", "trainval", "trainval2012", False, True),
        ("valid1999", "valid", "val", True, False),
        ("test2101", "test2101", "test2101", False, False),
        ("2017", "2017", "2017", False, False),
        ("fold12017", "fold12017", "fold12017", False, False),
        ("", "", "", False, False),
    ],
)
def test_names(name: str, base: str, split: str, is_known: bool, is_training: bool) -> None:
    assert (without_year(name), split_of(name), is_usual(name)) == (base, split, is_known)
    assert has_training_images(name) is is_training
