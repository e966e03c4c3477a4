"""Errors a user can cause, and the sentence each one gets.

Every message says what was expected, what came and what to do. The command line prints it and exits with code 2.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The input is at fault, not the program: shown as one sentence, never as a traceback."""


def printable(text: object) -> str:
    """``str(text)`` with what no stream can print spelt out: file names may hold bytes that are no UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest known word, or ``""`` when none is near.

    >>> did_you_mean("deformable-dtr", ["detr", "deformable-detr"])
    " Did you mean 'deformable-detr'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
