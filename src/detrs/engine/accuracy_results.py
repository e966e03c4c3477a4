"""The file of results of ``engine.accuracy``: one JSON line for each finished run, which is not repeated."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrs.config import Experiment
from detrs.errors import UserError
from detrs.files import is_present, os_errors
from detrs.schema import to_dict
from detrs.visualization.curves import read_lines

Line = dict[str, Any]
"""A finished run: ``subject``, ``seed``, ``setting``, ``recipe``, ``best``, ``last``, ``points``, ``images``, ..."""


def recipe_digest(experiment: Experiment) -> str:
    """Digest of all settings of a run but its seed and the place of its data."""
    runtime = replace(experiment.runtime, threads=None)  # a part of the setting
    neutral = replace(experiment, seed=0, runtime=runtime, data=replace(experiment.data, path=None))
    return hashlib.sha256(json.dumps(to_dict(neutral), sort_keys=True).encode()).hexdigest()[:16]


def key(experiment: Experiment, setting: Line) -> Line:
    """What identifies a run in a file of results."""
    name, recipe = experiment.name, recipe_digest(experiment)
    return {"subject": name, "seed": experiment.seed, "setting": setting, "recipe": recipe}


def finished(results: Path, wanted: Line) -> Line | None:
    """The newest line of ``results`` with all values of ``wanted``, or ``None``.

    Raises:
        UserError: the file cannot be read, or a line is not JSON.
    """
    same = (line for line in reversed(runs_in(results)) if all(line.get(key) == value for key, value in wanted.items()))
    return next(same, None)


def runs_in(results: Path) -> list[Line]:
    """The lines of ``results``; none if there is no such file.

    Raises:
        UserError: the file cannot be read, or has other content than results of this comparison.
    """
    other = f"'{results}' has other content than results of this comparison: choose another file with --output."
    with os_errors(f"Cannot read '{results}'"):
        if not is_present(results):
            return []
        try:
            lines: list[Any] = read_lines(results)
        except UnicodeDecodeError:
            raise UserError(other) from None
    if not all(isinstance(line, dict) and {"subject", "seed", "setting"} <= line.keys() for line in lines):
        raise UserError(other)
    return lines


def threads_of(results: Path, data: str, minutes: float) -> int | None:
    """The threads of the newest run in ``results`` on the same data for the same minutes, so that the command can be
    repeated while the machine is loaded differently; ``None`` if there is none."""
    for line in reversed(runs_in(results)):
        setting = line["setting"]
        if (setting.get("data"), setting.get("minutes")) == (data, minutes):
            threads: int | None = setting.get("threads")
            return threads
    return None


def check_writable(results: Path) -> None:
    """Check that lines can be appended, before the first run takes its minutes.

    Raises:
        UserError: they cannot.
    """
    with os_errors(f"Cannot write to '{results}'"):
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("ab"):
            pass


def append(results: Path, line: Line) -> None:
    """Append a line, after an incomplete last one, as a full disk leaves it, is removed.

    Raises:
        UserError: the file cannot be written.
    """
    with os_errors(f"Cannot write to '{results}'"):
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a+b") as file:
            file.seek(0)
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end < len(content) and is_json(content[end:]):
                file.write(b"\n")
            else:
                file.truncate(end)
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def is_json(line: bytes) -> bool:
    """Whether a line without its end is complete."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
