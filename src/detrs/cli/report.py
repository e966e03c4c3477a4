"""Where a verb says what: tables for people, or one JSON object as the last line of the standard output."""

import json
from typing import Any

from rich.console import Console


def console(*, as_json: bool) -> Console:
    """For tables: the standard output, or the standard error stream where the output is for programs."""
    return Console(stderr=as_json, highlight=False, markup=False, emoji=False)  # names with [brackets] stay as they are


def print_json(values: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(values, allow_nan=False), flush=True)
