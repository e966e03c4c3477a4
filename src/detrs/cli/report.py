"""Output of the commands: tables for people, or one JSON object as the last line of stdout."""

import json
from typing import Any

from rich.console import Console


def console(*, as_json: bool) -> Console:
    """The console for tables: stdout, or stderr with ``--json``, which reserves stdout for the JSON object."""
    return Console(stderr=as_json, highlight=False, markup=False, emoji=False)  # names may contain [brackets]


def print_json(values: dict[str, Any]) -> None:
    """Print ``values`` as one line of JSON."""
    print(json.dumps(values, allow_nan=False), flush=True)
