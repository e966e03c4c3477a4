"""What all benchmarks share: results as JSON lines, and the tables of README.md that are generated from them."""

import json
import subprocess
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from detrs.visualization.curves import read_lines

HERE = Path(__file__).parent
README = HERE / "README.md"

Line = dict[str, Any]


def commit() -> str:
    """What is measured: the commit, with ``+`` behind it if files have changed since; ``unknown`` without git."""
    try:
        asked = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def append(results: Path, line: Line) -> None:
    """Keep one result, on a line of its own even if the last one was cut off."""
    results.parent.mkdir(exist_ok=True)
    is_cut = results.exists() and not results.read_bytes().endswith(b"\n")
    with results.open("a") as file:
        file.write("\n" * is_cut + json.dumps(line, allow_nan=False) + "\n")


def newest(results: Path, key: Callable[[Line], Hashable]) -> list[Line]:
    """The last line of each ``key``, in the order in which the keys came first; none without a file.

    Raises:
        UserError: a line is no JSON.
    """
    lines = read_lines(results) if results.exists() else []
    return list({key(line): line for line in lines}.values())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown: names on the left, figures on the right."""
    ruler = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join([f"| {' | '.join(header)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)])


def put(name: str, text: str, readme: Path) -> None:
    """Replace what stands between the marks ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = readme.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    assert found and closed, f"{readme} lacks the marks of {name}"
    readme.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
