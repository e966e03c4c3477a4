"""Keys at the top level of a JSON file, without parsing it."""

import os
from pathlib import Path

import pytest

from detrs.data.formats.json_head import HEAD_BYTES, top_level_keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('{"images": [{"id": 1, "shapes": {}}], "annotations" : []}', ["images", "annotations"]),
        ('\ufeff {"version": "5", "flags": {}, "shapes": [{"label": "a"}]', ["version", "flags", "shapes"]),
        (r'{"a\"{": "}\\", "b": "c"}', ['a\\"{', "b"]),
        ('{"a": "text: \\"b\\": 1", "c": 2}', ["a", "c"]),
        (" [1, 2]", None),
        ('"text"', []),
        ("", []),
    ],
)
def test_keys(tmp_path: Path, text: str, keys: list[str] | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert top_level_keys(path) == keys


def test_only_the_head_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": "' + "x" * HEAD_BYTES + '", "b": 1}')
    assert top_level_keys(path) == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    assert top_level_keys(tmp_path / "pipe.json") == []
    assert top_level_keys(tmp_path / "missing.json") == []
