"""``detrs VERB ...``: one file per verb, loaded when asked for, so that ``detrs --help`` answers at once.

Exit codes: 0; 2 for a fault of the input, told in one sentence; 130, 141 and 143 for Ctrl-C, a closed pipe and SIGTERM.
Any other exception is a fault of ours and keeps its traceback.
"""

import importlib
import importlib.metadata
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import TextIO

from detrs.errors import UserError, did_you_mean, printable

VERBS = {
    "demo": "train a small detector on built-in pictures, in minutes, and show what it finds",
    "train": "train a preset on your own pictures",
    "evaluate": "score a checkpoint: COCO AP, each class",
    "predict": "find objects in files and folders: JSON and annotated pictures",
    "presets": "list the detectors and their recipes",
    "profile": "parameters, multiply-adds and latency of a preset",
    "benchmark": "how fast the operator is, against its peers",
}
"""Verb -> what it does. ``detrs.cli.VERB.run(argv)`` does it."""

INTERRUPTED = 130
CLOSED_PIPE = 141
"""What a shell gives for a program whose reader has gone, as in ``detrs presets | head``."""


def usage() -> str:
    """What ``detrs --help`` says."""
    verbs = "\n".join(f"  {verb:<10}{what}" for verb, what in VERBS.items())
    return (
        "usage: detrs VERB [...]\n\n"
        "The DETR family, practical for everyone who trains a detector on their own images.\n\n"
        f"{verbs}\n\n"
        "detrs VERB --help lists the flags of a verb, detrs train PRESET --help all settings of a preset.\n"
        "detrs --version prints the version."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: words of the command line after ``detrs``; by default those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that no stream can print
    try:
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not is_closed(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more can be said, not even at exit
        return CLOSED_PIPE
    except UserError as error:
        complain(str(error))
        return 2
    except RuntimeError as error:
        # the death of a loader process is raised by PyTorch wherever this process is
        reason = sys.modules["detrs.data.loader"].worker_failure(error) if "detrs.data.loader" in sys.modules else ""
        if not reason:
            raise
        complain(reason)
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except SystemExit as end:  # tyro's after --help, the engine's after a signal
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def dispatch(words: list[str]) -> int:
    """Find the verb and run it."""
    if not words:
        print(usage(), file=sys.stderr)
        return 2
    verb, *rest = words
    if verb in ("--help", "-h", "help"):
        print(usage())
    elif verb == "--version":
        print(importlib.metadata.version("detrs"))
    elif verb in VERBS:
        importlib.import_module(f"detrs.cli.{verb}").run(rest)
    else:
        raise UserError(f"detrs has no verb '{verb}'.{did_you_mean(verb, VERBS)} See: detrs --help")
    return 0


def is_closed(stream: TextIO) -> bool:
    """Whether the reader of ``stream`` has gone; other pipes break, too, as those to loader processes."""
    try:
        stream.flush()
        poll = select.poll()  # what was written in one piece is not tried again by a flush
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError):  # Windows has no poll, and not every stream is a file
        return False


def complain(sentence: str) -> None:
    """One sentence on the standard error stream, after a red ``error:`` where that is a terminal."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("error: ", "bold red"), printable(sentence))
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)
