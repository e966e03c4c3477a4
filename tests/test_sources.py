"""What the predictor accepts as an image, and what it rejects with one sentence."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrs.errors import UserError
from detrs.sources import _raise, decoded


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (None, "Expected a path.*got None"),
        (7, "got an object of type 'int'"),
        ({"a": 1}, "got an object of type 'dict'"),
        ([None], "got None"),
        ([3], "got an object of type 'int'"),
        ([["a.jpg"]], "got an object of type 'list'"),
        ("", "empty string"),
        ([""], "empty string"),
        (io.StringIO("text"), "binary mode"),
    ],
    ids=["None", "int", "dict", "list of None", "list of int", "nested list", "empty", "list of empty", "text stream"],
)
def test_other_objects_are_not_sources(sources: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(decoded(sources, False, _raise))


def test_an_error_of_an_open_file_is_not_one_of_a_path() -> None:
    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise RuntimeError("device removed")

    with pytest.raises(RuntimeError, match="^device removed$"):
        list(decoded(Broken(), False, _raise))


def test_open_files_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5), (9, 8, 7)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    with open(tmp_path / "a.png", "rb") as file:
        every: list[Any] = [file, io.BytesIO(content), bytearray(content), memoryview(content)]
        images = [image for _, image in decoded(every, False, _raise)]
        assert [tuple(image.shape) for image in images] == [(3, 5, 7)] * 4
        with pytest.raises(UserError, match="no bytes|empty"):
            list(decoded(file, False, _raise))  # its end
    with pytest.raises(UserError, match="Cannot read the open file"):
        list(decoded(file, False, _raise))
