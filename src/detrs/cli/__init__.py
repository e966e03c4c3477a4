"""``detrs COMMAND ...``: one module per command, imported on demand to keep ``detrs --help`` fast.

Exit codes: 0 for success; 2 for invalid input, with an error message; 130, 141 and 143 for Ctrl-C, a closed pipe and
SIGTERM. Any other exception is a bug and keeps its traceback.
"""

import importlib
import io
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from detrs.cli.flags import with_flags
from detrs.cli.imports import unfrozen_at_end
from detrs.errors import UserError, did_you_mean, printable

COMMANDS = {
    "demo": "train a small detector on built-in images and draw its detections",
    "check": "check a dataset: errors, numbers, copies, advice for a preset",
    "train": "train a preset on your own dataset",
    "evaluate": "compute the COCO AP of a checkpoint, overall and per class",
    "predict": "detect objects in images and videos; write and draw detections",
    "explain": "show attention, sampling points, gradients of detections as pages",
    "export": "write a checkpoint as ONNX or torch.export, checked against it",
    "serve": "answer HTTP requests with the detections of their images",
    "push": "upload a checkpoint with a model card to the Hugging Face Hub",
    "convert": "convert a dataset to COCO or YOLO, or a checkpoint to transformers",
    "presets": "list the presets with published AP and training recipe",
    "checkpoint": "inspect a checkpoint of any supported kind; list published ones",
    "profile": "count parameters and FLOPs, measure the latency of a preset",
    "benchmark": "compare files, the accuracy of presets, or attention operators",
}
"""Command -> summary. ``detrs.cli.COMMAND.run(argv)`` runs it."""

INTERRUPTED = 130
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun and accelerate launch set in every process."""
CLOSED_PIPE = 141
"""Exit code of a process killed by SIGPIPE in a shell, as in ``detrs presets | head``."""
SPIN_COUNT = 30_000
"""Iterations for which a thread of GNU OpenMP waits actively; its default of 300,000 takes milliseconds."""


def usage() -> str:
    """The text of ``detrs --help``."""
    commands = "\n".join(f"  {command:<12}{summary}" for command, summary in COMMANDS.items())
    return (
        "usage: detrs COMMAND [...]\n\n"
        "Train, evaluate and run object detectors of the DETR family.\n\n"
        f"commands:\n{commands}\n\n"
        "detrs COMMAND --help         show the flags of a command\n"
        "detrs train PRESET --help    show all settings of a preset and their defaults\n"
        "detrs --version              show the version"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after ``detrs``. Default: ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "torch" not in sys.modules:  # OpenMP reads the environment when PyTorch is loaded
        os.environ.update(waiting_policy(os.environ))
    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that the stream cannot encode
    try:
        with unfrozen_at_end():
            code = dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not discard_broken(is_closed):
            raise
        return CLOSED_PIPE
    except OSError as error:  # a full disk, or a terminal that was closed
        if not discard_broken(is_failing):
            raise
        print_error(f"Cannot write the output: {error.strerror}.")
        return 2
    except UserError as error:
        print_error(with_flags(str(error), words[0] if words else ""))
        return 2
    except RuntimeError as error:
        # PyTorch raises this at an arbitrary place when a loader process dies
        reason = sys.modules["detrs.data.loader"].worker_failure(error) if "detrs.data.loader" in sys.modules else ""
        if not reason:
            raise
        print_error(reason)
        return 2
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except SystemExit as end:  # from tyro after --help, from the engine after a signal
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def waiting_policy(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that make PyTorch's threads release their cores while they wait.

    By default, a thread of GNU OpenMP spins until the others are finished. If another program uses the core of one of
    them, the time of all is lost, and training becomes several times slower.

    Args:
        environment: the variables of the process. Settings of the user are kept.
    """
    is_set = any(name in environment for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    return {} if is_set else {"GOMP_SPINCOUNT": str(SPIN_COUNT)}


def dispatch(words: list[str]) -> int:
    """Import the command's module and run it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("The working directory was deleted. Change to another directory.") from None
    if not words:
        print(usage(), file=sys.stderr)
        return 2
    command, *rest = words
    if command in ("--help", "-h", "help"):
        print(usage())
    elif command == "--version":
        from detrs import __version__

        print(__version__)
    elif command in COMMANDS:
        check_launcher(os.environ)
        importlib.import_module(f"detrs.cli.{command}").run(rest)
    else:
        raise UserError(f"Unknown command '{command}'.{did_you_mean(command, COMMANDS)} See: detrs --help")
    return 0


def is_closed(stream: TextIO) -> bool:
    """Whether the reading end of ``stream`` is closed. Other pipes can break too, such as those to loader processes."""
    try:
        stream.flush()
        poll = select.poll()  # flush does not retry data that was written in one piece
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError):  # no poll on Windows; not every stream has a file descriptor
        return False


def is_failing(stream: TextIO) -> bool:
    """Whether ``stream`` cannot be written: a line break fails. An error does not contain the stream it came from."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


def discard_broken(is_broken: Callable[[TextIO], bool]) -> bool:
    """Discard further output of the first broken one of stdout and stderr.

    Returns:
        Whether one of them is broken.
    """
    stream = next((stream for stream in (sys.stdout, sys.stderr) if is_broken(stream)), None)
    if stream is not None:
        discard(stream)
    return stream is not None


def discard(stream: TextIO) -> None:
    """Discard further output of ``stream``, so that the flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_missing_streams() -> None:
    """Open the null device for standard streams that are closed; otherwise the next file would take their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open until the process ends)


def check_launcher(environment: Mapping[str, str]) -> None:
    """Check that variables of a launcher of several processes are complete, not left by an earlier command.

    Raises:
        UserError: with the variables to unset.
    """
    present = [name for name in LAUNCHER if name in environment]
    if not {"RANK", "LOCAL_RANK"} & set(present):
        return
    missing = [name for name in LAUNCHER if name not in environment]
    values = [environment.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    if not missing and all(value.isdecimal() for value in values):
        rank, local_rank, world_size = map(int, values)
        if max(rank, local_rank) < world_size:
            return
    reason = f"but not {', '.join(missing)}" if missing else "with values that contradict each other"
    raise UserError(
        f"The environment has {', '.join(present)}, {reason}. Unset them (unset {' '.join(present)}), or start several "
        "processes with torchrun or accelerate launch."
    )


def print_error(message: str) -> None:
    """Print ``error: message`` to stderr, ``error:`` in red on a terminal. Ignored if stderr cannot be written."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("error: ", "bold red"), printable(message))
    try:
        Console(stderr=True, highlight=False).print(text, soft_wrap=True)
        sys.stderr.flush()
    except (OSError, SystemExit):  # rich exits if the pipe is closed
        discard(sys.stderr)
