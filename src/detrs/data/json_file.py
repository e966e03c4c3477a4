"""Reads a JSON file whose long lists are processed in parts, so that they are never in memory as objects.

Files that are strictly valid are read by ``json_parts``. All others are parsed by ``json``, item by item, so that NaN,
repeated keys and errors are reported with exact positions; peak memory is the file and its text then.
"""

import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from detrs.data.findings import Findings
from detrs.data.json_parts import IrregularError, Sink, read_parts
from detrs.errors import UserError

NOT_A_NUMBER = "NaN or Infinity, which is not a valid number (correct or remove it)"

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING_OR_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity', re.DOTALL)


def read_json(
    path: Path,
    sinks: Mapping[str, Sink],
    errors: Findings,
    notes: Findings,
    *,
    what: str = "COCO annotations",
    place: str = "",
) -> tuple[Any, bytes]:
    """Parses a JSON file.

    Args:
        path: A regular file.
        sinks: Key of the top-level object -> receiver of the items of that list.
        errors: Receives NaN and Infinity, which are parsed as floats so that the rest of the file is checked, too.
        notes: Receives duplicate keys.
        what: The expected content, for messages.
        place: Start of the places in ``errors`` and ``notes``, such as ``"a.json: "`` if there are several files.

    Returns:
        The value, in which the lists of ``sinks`` are empty, and the SHA-256 of the file.

    Raises:
        UserError: The file cannot be read, is not UTF-8 or is not valid JSON.
    """
    found = errors.copied(), notes.copied()
    try:
        return read_parts(path, sinks)
    except (IrregularError, OSError, UserError):  # the reason is found below
        errors.reset(found[0])
        notes.reset(found[1])
        for sink in sinks.values():
            sink.clear()
    text, digest, offset = _text(path, what)
    places = _literal_places(text)

    def literal(_: str) -> float:
        errors.add(NOT_A_NUMBER, f"{place}{next(places)}")
        return float("nan")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                if count > 1:
                    notes.add("duplicate key of an object, last value used", f"{place}{key!r:.40}")
        return content

    decoder = json.JSONDecoder(parse_constant=literal, object_pairs_hook=unique)
    try:
        data = _parse(text, decoder, sinks, unique)
    except json.JSONDecodeError as error:
        byte = offset + len(text[: error.pos].encode(errors="surrogatepass"))
        position = f"line {error.lineno}, column {error.colno} (byte {byte})"
        raise UserError(f"{path}: invalid JSON at {position}: {error.msg}. The file may be truncated.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be {what}.") from None
    except ValueError as error:  # Python's limit on the number of digits
        raise UserError(f"{path} contains a number that cannot be read: {error}.") from None
    return data, digest


def _text(path: Path, what: str) -> tuple[str, bytes, int]:
    """The text of a file, its SHA-256, and the number of bytes before the text."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe could block forever
            raise UserError(f"{path} is not a regular file. Expected {what} in a JSON file.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not content.strip():
        raise UserError(f"{path} is empty. Expected {what}.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1"
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; it may be {guess}. Save it as UTF-8.") from None
    if text[:100].lstrip().startswith("<"):
        raise UserError(f"{path} is XML, perhaps Pascal VOC. Expected {what} in JSON.")
    return text, hashlib.sha256(content).digest(), 3 if content.startswith(b"\xef\xbb\xbf") else 0


def _literal_places(text: str) -> Any:
    """``"NaN at line 2, column 10"`` for each NaN and Infinity outside of strings, in the order of the text."""
    line, start_of_line, counted = 1, 0, 0
    for match in _STRING_OR_LITERAL.finditer(text):
        if not match.group().startswith('"'):
            line += text.count("\n", counted, match.start())
            start_of_line = text.rfind("\n", 0, match.start()) + 1
            counted = match.start()
            yield f"{match.group()} at line {line}, column {match.start() - start_of_line + 1}"


def _parse(text: str, decoder: json.JSONDecoder, sinks: Mapping[str, Sink], unique: Any) -> Any:
    """``decoder.decode(text)``, except that the lists of ``sinks`` at the top level are parsed item by item."""
    position = _skip(text, 0)
    if not text.startswith("{", position):
        return decoder.decode(text)
    pairs: list[tuple[str, Any]] = []
    position = _skip(text, position + 1)
    closed = text.startswith("}", position)
    while not closed:
        if not text.startswith('"', position):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, position)
        key, position = scanstring(text, position + 1, True)
        position = _skip(text, position)
        if not text.startswith(":", position):
            raise json.JSONDecodeError("Expecting ':' delimiter", text, position)
        position = _skip(text, position + 1)
        value: Any = []
        if key in sinks and text.startswith("[", position):
            sinks[key].clear()
            position = _parse_items(text, position, decoder, sinks[key])
        else:
            value, position = decoder.raw_decode(text, position)
        pairs.append((key, value))
        position, closed = _next(text, position, "}")
    end = _skip(text, position + 1)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return unique(pairs)


def _parse_items(text: str, position: int, decoder: json.JSONDecoder, sink: Sink) -> int:
    """Parses the list that starts at ``position`` and returns the position after it."""
    position = _skip(text, position + 1)
    closed = text.startswith("]", position)
    while not closed:
        item, position = decoder.raw_decode(text, position)
        sink.extend([item])
        position, closed = _next(text, position, "]")
    return position + 1


def _next(text: str, position: int, bracket: str) -> tuple[int, bool]:
    """The position of the next item, or that of the closing bracket and True."""
    position = _skip(text, position)
    if text.startswith(bracket, position):
        return position, True
    if not text.startswith(",", position):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    return _skip(text, position + 1), False


def _skip(text: str, position: int) -> int:
    """The position of the next character that is not white space."""
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()
