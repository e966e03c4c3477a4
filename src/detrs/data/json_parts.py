"""Reads a valid JSON file in blocks: long lists are decoded some items at a time by ``msgspec``.

Peak memory is a few blocks and what is kept of the items. Files that are not strictly valid JSON (NaN, repeated keys,
an encoding other than UTF-8) are not read here but by ``json_file``, which reports what is wrong, and where.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from detrs.files import open_regular

BLOCK_BYTES = 2**16
"""Bytes that are read and decoded at a time: few enough objects that the garbage collector leaves them alone."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
QUOTE, BACKSLASH = b'"\\'
SPACE = b" \t\n\r"

_IS_STRUCTURAL = np.zeros(256, dtype=bool)
_IS_STRUCTURAL[list(b'"\\{}[]')] = True
_KEY = re.compile(rb'(?<!\\)"([^"\\]*)"[ \t\n\r]*:[ \t\n\r]*\Z')
"""A key without escapes; a quote after a backslash does not begin one."""
_KEY_BYTES = 256
"""Longest key of a list that is read in parts, with the space after it."""
_COLON = re.compile(rb"\\u003[aA]")
_Nothing = type(None)
_WITHOUT_COLON = frozenset({int, float, bool, _Nothing})


@runtime_checkable
class Sink(Protocol):
    """Receives the items of a list. A ``list`` is a sink."""

    def extend(self, items: list[Any], /) -> None: ...

    def clear(self) -> None:
        """Removes all items: the list occurs again in the file, and the last one counts."""
        ...


class IrregularError(Exception):
    """The file is not strictly valid JSON, or repeats a key."""


def read_parts(path: Path, sinks: Mapping[str, Sink]) -> tuple[Any, bytes]:
    """The value of a file, in which the lists of ``sinks`` are empty, and the SHA-256 of the file.

    Args:
        path: A file.
        sinks: Key of the top-level object -> receiver of the items of that list.

    Raises:
        IrregularError: See above. ``sinks`` may have received items.
        OSError: The file cannot be read.
        UserError: It is not a regular file.
    """
    digest, reader = hashlib.sha256(), _Reader(sinks)
    try:
        with open_regular(path) as file:
            start = file.read(len(BYTE_ORDER_MARK))
            digest.update(start)
            reader.add(start.removeprefix(BYTE_ORDER_MARK))
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                reader.add(block)
        return reader.finished(), digest.digest()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise IrregularError(str(error)) from None


class _Reader:
    """Divides a text into the items of the lists of ``sinks``, and the rest."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = sinks
        self._sink: Sink | None = None
        """Of the current list."""
        self._num_parts = 0
        """Of the current list."""
        self._rest = bytearray()
        """The text without the items."""
        self._item = bytearray()
        """The beginning of an item whose end has not been read."""
        self._brackets = _Brackets()

    def add(self, block: bytes) -> None:
        """Reads the next block of the text."""
        position, opens, depth = self._brackets.find(block)
        is_list = np.frombuffer(block, dtype=np.uint8)[position] < ord("{")  # [ or ]
        start = 0
        for index in np.flatnonzero(is_list & (depth == 1 + opens)):  # ends of lists at depth 1, starts at depth 2
            at = int(position[index])
            if opens[index]:
                if self._sink is not None:
                    raise IrregularError("unbalanced brackets")
                self._rest += block[start : at + 1]
                start = at + 1
                end = len(self._rest) - 1
                key = _KEY.search(self._rest, max(0, end - _KEY_BYTES), end)
                name = key[1].decode() if key else ""
                if name in self._sinks:
                    self._sink, self._num_parts = self._sinks[name], 0
                    self._sink.clear()
            elif self._sink is not None:
                self._part(bytes(self._item) + block[start:at], is_last=True)
                self._sink, self._item = None, bytearray()
                start = at
        if self._sink is None:
            self._rest += block[start:]
            return
        ends = position[(depth == 2) & ~opens & (position >= start)]
        if len(ends):
            end = int(ends[-1]) + 1
            self._part(bytes(self._item) + block[start:end], is_last=False)
            self._item, start = bytearray(), end
        self._item += block[start:]

    def _part(self, text: bytes, *, is_last: bool) -> None:
        """Decodes some whole items, with the comma before them."""
        text = text.lstrip(SPACE)
        if self._num_parts and text:
            if not text.startswith(b","):
                raise IrregularError("missing comma")
            text = text[1:]
            if not text.strip(SPACE):
                raise IrregularError("trailing comma")
        self._num_parts += 1
        items = _decoded(b"[%b]" % text)
        assert self._sink is not None
        if items or not is_last:
            self._sink.extend(items)

    def finished(self) -> Any:
        """The value without the items of ``sinks``, at the end of the text."""
        if self._sink is not None:
            raise IrregularError("unbalanced brackets")
        data = _decoded(bytes(self._rest))
        if self._sinks and not isinstance(data, dict):
            raise IrregularError("not an object")
        if any(isinstance(data.get(key), list) and data[key] for key in self._sinks):
            raise IrregularError("escaped key")
        return data


class _Brackets:
    """Finds the brackets of a text that are not in strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        """Whether the next byte is escaped."""

    def find(self, block: bytes) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The brackets of the next block: positions (N,), whether they open (N,), and the depth after them (N,)."""
        values = np.frombuffer(block, dtype=np.uint8)
        position = np.flatnonzero(_IS_STRUCTURAL[values])
        if self._is_escaped and len(position) and position[0] == 0:
            position = position[1:]
        found = values[position]
        self._is_escaped = False
        slashes = position[found == BACKSLASH]
        if len(slashes):
            first = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)  # of each sequence of backslashes
            lengths = np.diff(first, append=len(slashes))
            escaped = (slashes[first] + lengths)[lengths % 2 == 1]
            self._is_escaped = bool(len(escaped)) and int(escaped[-1]) == len(block)
            kept = (found != BACKSLASH) & ~((found == QUOTE) & np.isin(position, escaped))
            position, found = position[kept], found[kept]
        is_quote = found == QUOTE
        num_quotes = np.cumsum(is_quote, dtype=np.int64) + self._in_string
        self._in_string = bool(num_quotes[-1] % 2) if len(num_quotes) else self._in_string
        outside = ~is_quote & (num_quotes % 2 == 0)
        position, found = position[outside], found[outside]
        opens = found & 2 > 0  # { is 0x7b and [ is 0x5b, } is 0x7d and ] is 0x5d
        depth = np.cumsum(np.where(opens, 1, -1)) + self._depth
        self._depth = int(depth[-1]) if len(depth) else self._depth
        return position, opens, depth


def _decoded(text: bytes) -> Any:
    """The value of a JSON text in which no object repeats a key."""
    value, num_colons = msgspec.json.decode(text), text.count(b":")
    if isinstance(value, list) and {*map(type, value)} == {dict} and sum(map(len, value)) == num_colons:
        return value
    if _num_colons(value) != num_colons or _COLON.search(text):
        raise IrregularError("repeated key")
    return value


def _num_colons(value: Any) -> int:
    """The number of colons in the text of a value; a text with repeated keys has more of them."""
    if isinstance(value, dict):
        count = len(value)
        for key, each in value.items():
            if type(each) not in _WITHOUT_COLON:
                count += _num_colons(each)
            if ":" in key:
                count += key.count(":")
        return count
    if isinstance(value, list):
        return 0 if {*map(type, value)} <= _WITHOUT_COLON else sum(map(_num_colons, value))
    return value.count(":") if isinstance(value, str) else 0
