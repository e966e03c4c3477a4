"""A file that is read in blocks has the content that ``json`` finds in it, or is refused."""

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from detrs.data import json_parts
from detrs.data.findings import Findings
from detrs.data.json_file import read_json
from detrs.data.json_parts import IrregularError, read_parts

STRINGS = (
    "",
    "a",
    'quote " here',
    "back\\slash",
    'end\\"',
    "\\\\",
    "{[",
    "]}",
    "a: b, c",
    "ü€😀",
    "line\nbreak",
    "\x00",
)


def value(numbers: random.Random, depth: int = 0) -> Any:
    kind = numbers.randrange(4 if depth > 3 else 6)
    if kind == 4:
        return [value(numbers, depth + 1) for _ in range(numbers.randrange(4))]
    if kind == 5:
        return {f"{key}{numbers.choice(STRINGS)}": value(numbers, depth + 1) for key in range(numbers.randrange(4))}
    return (numbers.choice(STRINGS), numbers.randint(-(10**20), 10**20), numbers.uniform(-1e9, 1e9), None)[kind]


def document(numbers: random.Random) -> dict[str, Any]:
    keys = ["info", "images", "annotations", "categories", "x"]
    numbers.shuffle(keys)
    lists = {"images", "annotations"}
    return {
        key: [value(numbers, 1) for _ in range(numbers.randrange(9))] if key in lists else value(numbers)
        for key in keys[: numbers.randint(2, 5)]
    }


def read(path: Path) -> tuple[Any, dict[str, list[Any]], bytes]:
    sinks: dict[str, list[Any]] = {"images": [], "annotations": []}
    data, digest = read_parts(path, sinks)
    return data, sinks, digest


@pytest.mark.parametrize("block", [1, 7, 64, 65536])
def test_any_document_is_read_as_json_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(json_parts, "BLOCK_BYTES", block)
    numbers, path = random.Random(block), tmp_path / "a.json"
    for number in range(150):
        content = document(numbers)
        text = json.dumps(content, indent=numbers.choice([None, 1]), ensure_ascii=numbers.choice([True, False]))
        path.write_bytes(b"\xef\xbb\xbf" * (number % 2) + text.encode())
        data, sinks, digest = read(path)
        assert {key: data[key] or sinks.get(key, data[key]) for key in data} == content
        assert digest == hashlib.sha256(path.read_bytes()).digest()


@pytest.mark.parametrize("block", [3, 65536])
def test_damaged_documents_are_never_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """One changed byte: the document is refused, or it is valid and equal to what ``json`` reads."""
    monkeypatch.setattr(json_parts, "BLOCK_BYTES", block)
    numbers, path, refused = random.Random(block), tmp_path / "a.json", 0
    for _ in range(400):
        text = bytearray(json.dumps(document(numbers)).encode())
        at = numbers.randrange(len(text))
        text[at : at + numbers.randrange(2)] = numbers.choice(
            [b"", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"1"]
        )
        path.write_bytes(text)
        try:
            data, sinks, _ = read(path)
        except IrregularError:
            refused += 1
            continue
        expected = json.loads(bytes(text))
        assert {key: data[key] or sinks.get(key, data[key]) for key in data} == expected
    assert 100 < refused < 400


@pytest.mark.parametrize(
    "text",
    [
        '{"annotations": [{"a": 1, "a": 2}]}',
        '{"annotations": [{"a": {"b": [{"c": 1, "c": 1}]}}]}',
        '{"annotations": [{"a": ":", "a": "b"}]}',
        '{"annotations": [{"a": "\\u003a", "a": "b"}]}',
        '{"annotations": [{"a": 1}], "annotations": [{"a": 2}]}',
        '{"annotations": [], "x": {"y": 1, "y": 1}}',
        '{"annot\\u0061tions": [{"a": 1}]}',
        '{"annotations": [{"a": NaN}]}',
        '{"annotations": [{"a": 1e999}]}',
        '{"annotations": [{"a": "\\ud800"}]}',
        '{"annotations": [{"a": 1},]}',
        '{"annotations": [{"a": 1} {"a": 2}]}',
        '{"annotations": [,{"a": 1}]}',
        '{"annotations": [{"a": 1}]',
        '{"annotations": [{"a": 1}}',
        '{"annotations": [{"a": 1}]} x',
        '[{"a": 1}]',
        "",
    ],
)
@pytest.mark.parametrize("block", [1, 65536])
def test_irregular_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int) -> None:
    monkeypatch.setattr(json_parts, "BLOCK_BYTES", block)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(IrregularError):
        read(tmp_path / "a.json")


KEYS = (
    "annotations",
    "images",
    "info",
    r"\u0061nnotations",
    r"annotation\u0073",
    r"a\"annotations",
    r"\"annotations",
    r"\\\"annotations",
    r"\\annotations",
    r"annotations\"",
    r"annotations\\",
    r"a\": [\"annotations",
    r"\"annotations\": [1, 2], \"b",
    r"\u0022annotations",
    r"\u005c\"images",
    "annotations ",
)
"""Of the text, between quotes."""
SPACES = ("", " ", "\n", "\t \r\n", " " * 300)


def hostile(numbers: random.Random) -> str:
    """A valid document whose keys and strings contain quotes, backslashes and names of lists."""
    lists = ("[]", "[1]", '[{"a": 1}, {"a": 2}]', '["b\\"", [2]]', '{"annotations": [3]}', '"annotations"', "4")
    values = (*lists, *(f'"{key}"' for key in KEYS), *(f'{{"{key}": [5]}}' for key in KEYS))
    space = numbers.choice(SPACES)
    pairs = [
        f'{space}"{numbers.choice(KEYS)}"{space}:{numbers.choice(SPACES)}{numbers.choice(values)}{space}'
        for _ in range(numbers.randint(1, 4))
    ]
    return f"{{{','.join(pairs)}}}"


@pytest.mark.parametrize("block", [1, 5, 65536])
def test_keys_are_those_that_json_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(json_parts, "BLOCK_BYTES", block)
    numbers, path, accepted = random.Random(block), tmp_path / "a.json", 0
    for _ in range(800):
        text = hostile(numbers)
        path.write_text(text, newline="")
        try:
            data, sinks, _ = read(path)
        except IrregularError:
            continue
        accepted += 1
        expected = json.loads(text)
        assert {key: data[key] or sinks.get(key, data[key]) for key in data} == expected, text
        assert not any(items for key, items in sinks.items() if key not in data), text
    assert 200 < accepted < 800


def test_keys_that_end_with_the_name_of_a_list_are_others(tmp_path: Path) -> None:
    edge = " " * (json_parts._KEY_BYTES - len('"annotations":'))  # the search begins at the escaped quote
    for key, space in itertools.product((r"a\"annotations", r"\\\"annotations"), ("", " ", edge, edge + " ")):
        text = f'{{"{key}":{space}[{{"a": 1}}]}}'
        (tmp_path / "a.json").write_text(text)
        data, sinks, _ = read(tmp_path / "a.json")
        assert data == json.loads(text) and not sinks["annotations"]


def test_a_list_that_occurs_twice_counts_once(tmp_path: Path) -> None:
    """The first part of the file is read in blocks, before the reader finds that it must start again."""
    path, notes = tmp_path / "a.json", Findings()
    path.write_text('{"annotations": [{"a": 1}, {"a": 2}], "annotations": [{"a": 3}]}')
    items: list[Any] = []
    read_json(path, {"annotations": items}, Findings(), notes)
    assert items == [{"a": 3}]
    assert notes.lines() == ["1 x duplicate key of an object, last value used: 'annotations'"]
