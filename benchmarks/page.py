"""Results of benchmarks as JSON lines, and the tables that are generated from them in README.md."""

import json
import subprocess
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from detrs.files import write_text
from detrs.visualization.curves import read_lines

HERE = Path(__file__).parent
README = HERE / "README.md"

Line = dict[str, Any]


def commit() -> str:
    """The current commit, followed by ``+`` if files are modified; ``unknown`` without git."""
    try:
        command = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def append(results: Path, line: Line) -> None:
    """Appends one result on a new line, even if the last line is incomplete."""
    results.parent.mkdir(exist_ok=True)
    is_cut = results.exists() and not results.read_bytes().endswith(b"\n")
    with results.open("a") as file:
        file.write("\n" * is_cut + json.dumps(line, allow_nan=False) + "\n")


def newest(results: Path, key: Callable[[Line], Hashable]) -> list[Line]:
    """The last line of each ``key``, in the order in which the keys first appear; empty without a file.

    Raises:
        UserError: A line is not JSON.
    """
    lines = read_lines(results) if results.exists() else []
    return list({key(line): line for line in lines}.values())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is left-aligned, the others are right-aligned."""
    ruler = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join([f"| {' | '.join(header)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)])


def put(name: str, text: str, readme: Path) -> None:
    """Replaces the text between the markers ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``; none: no change."""
    if not text:
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = readme.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    assert found and closed, f"{readme} has no markers for {name}"
    write_text(readme, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
