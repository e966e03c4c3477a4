"""The catalogue of bad inputs as data: what each row is, how it must be handled, and the means to run it.

The rows are in ``rows_annotations.py``, ``rows_boxes.py``, ``rows_images.py`` and ``rows_checkpoints.py``.
"""

import logging
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from detrs.errors import UserError

CLASSES = {"E": "error", "S": "skip", "W": "warn", "A": "accept", "R": "refuse"}
SKIPPED = ("skipped", "ignored")
"""Words of a note about items that are not used."""
ROW_SECONDS = 60.0
"""Time limit of a case, for busy machines; most take less than 0.1 s."""


@dataclass(frozen=True)
class Case:
    """One input of a row."""

    row: int
    name: str
    expected: str
    """One of ``CLASSES``."""
    make: Callable[[Path], Callable[[], Any]]
    """Creates the input in a folder and returns the call that reads it. The call may return ``notes``."""
    message: tuple[str, ...] = ()
    """Texts that the error or the notes must contain: what, where, value."""
    slow: bool = False
    seconds: float = ROW_SECONDS
    """Time limit."""

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name.replace(' ', '-')}"


@dataclass(frozen=True)
class Outcome:
    """What happened."""

    kind: str
    """``E``, ``S``, ``W``, ``A``, ``traceback``, ``hang`` or ``wrong`` (accepted with a wrong result)."""
    text: str
    seconds: float

    def agrees(self, case: Case) -> bool:
        """Whether this is what the catalogue demands. Refusals are errors."""
        expected = "E" if case.expected == "R" else case.expected
        return self.kind == expected and all(part in self.text for part in case.message)

    @property
    def is_silent(self) -> bool:
        return self.kind in ("A", "wrong")


class _Hang(BaseException):
    """The time limit was exceeded."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises ``_Hang`` in the main thread after some seconds, also in a blocking system call."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Collector(logging.Handler):
    """Collects the warnings and notes that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING or " x " in text:
            self.lines.append(text)


BACKGROUND = ("random weights and frozen BatchNorm", "images for a batch size of", "overrides the declared")
"""Warnings of the tiny model and the tiny dataset, which are not about the input."""


def run(case: Case, folder: Path) -> Outcome:
    """Make the input of a case, read it, and classify what happened."""
    began = time.perf_counter()

    def outcome(kind: str, text: str) -> Outcome:
        return Outcome(kind, text, time.perf_counter() - began)

    call = case.make(folder)
    logger, collector = logging.getLogger("detrs"), Collector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    try:
        with time_limit(case.seconds), warnings.catch_warnings():
            warnings.simplefilter("error")
            notes = call() or []
    except UserError as error:
        return outcome("traceback" if "Traceback" in str(error) else "E", str(error))
    except _Hang:
        return outcome("hang", f"no answer within {case.seconds:g} s")
    except AssertionError as error:
        return outcome("wrong", str(error) or traceback.format_exc(limit=-1))
    except Exception:
        return outcome("traceback", traceback.format_exc())
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
    lines = [line for line in [*notes, *collector.lines] if not any(part in line for part in BACKGROUND)]
    text = "\n".join(lines)
    if not lines:
        return outcome("A", "")
    return outcome("S" if any(word in text for word in SKIPPED) else "W", text)


def run_in_new_folder(case: Case) -> Outcome:
    """``run`` in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return run(case, Path(folder))
