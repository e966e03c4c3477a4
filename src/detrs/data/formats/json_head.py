"""Distinguishes JSON formats by their first keys, without parsing whole files."""

import re
from pathlib import Path

from detrs.errors import UserError
from detrs.files import open_regular

HEAD_BYTES = 65536

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[{}\[\]]', re.DOTALL)


def top_level_keys(path: Path) -> list[str] | None:
    """The keys of the object at the top level of a JSON file, as far as its first 64 KiB contain them.

    Returns:
        The keys in their order; an empty list for anything else than an object, and for a file that cannot be read;
        ``None`` if the file starts a list.
    """
    head = _head(path)
    return None if head.startswith("[") else _keys(head)


def first_item_keys(path: Path) -> list[str]:
    """As ``top_level_keys``, of the first item of the list at the top level; empty if there is none."""
    head = _head(path)
    return _keys(head[1:].lstrip()) if head.startswith("[") else []


def _head(path: Path) -> str:
    try:
        with open_regular(path) as file:  # not a pipe, which would block
            return file.read(HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()
    except (OSError, UserError):
        return ""


def _keys(head: str) -> list[str]:
    """The keys of the object that ``head`` starts; empty if it does not start an object."""
    if not head.startswith("{"):
        return []
    keys, depth = [], 0
    for token in _TOKEN.finditer(head):
        if token[0] in "{[":
            depth += 1
        elif token[0] in "}]":
            depth -= 1
            if not depth:
                break
        elif depth == 1 and token[2]:
            keys.append(token[1])
    return keys
