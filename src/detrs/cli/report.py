"""Output of the commands: tables for people, or one JSON object as the last line of stdout."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress


def console(*, as_json: bool) -> Console:
    """The console for tables: stdout, or stderr with ``--json``, which reserves stdout for the JSON object."""
    return Console(stderr=as_json, highlight=False, markup=False, emoji=False)  # names may contain [brackets]


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, which disappears at the end; nothing if stderr is not a terminal.

    Yields:
        The function to call with the number of images done, and of all images.
    """
    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(description, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{description} {done}/{total}")

        yield show


def print_json(values: dict[str, Any]) -> None:
    """Print ``values`` as one line of JSON."""
    print(json.dumps(values, allow_nan=False), flush=True)
