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
    try:
        with open_regular(path) as file:  # not a pipe, which would block
            head = file.read(HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()
    except (OSError, UserError):
        return []
    if head.startswith("["):
        return None
    if not head.startswith("{"):
        return []
    keys, depth = [], 0
    for token in _TOKEN.finditer(head):
        if token[0] in "{[":
            depth += 1
        elif token[0] in "}]":
            depth -= 1
        elif depth == 1 and token[2]:
            keys.append(token[1])
    return keys
