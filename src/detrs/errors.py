"""Errors caused by the user's input.

Every message states what was expected, what was given and what to do. The command line prints it and exits with code 2.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Invalid input. The command line shows the message without a traceback."""


def printable(text: object) -> str:
    """``str(text)`` with characters escaped that cannot be printed: file names may contain bytes that are not UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "image"), counted(1234, "image"), counted(0, "class", "classes")
    ('1 image', '1,234 images', '0 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` with the most similar known word, or ``""`` if none is similar.

    >>> did_you_mean("deformable-dtr", ["detr", "deformable-detr"])
    " Did you mean 'deformable-detr'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def abbreviated(names: list[str]) -> str:
    """The first five names and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
