"""Parse the arguments of a command into a dataclass with tyro, and report invalid ones in one line."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from detrs.cli.help import REGISTRY, WITHOUT_FLAG, description
from detrs.errors import UserError, did_you_mean

T = TypeVar("T")

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A switch, off by default."""
Size = Annotated[tuple[int] | tuple[int, int], tyro.conf.arg(metavar="INT [INT]")]
"""One or two numbers; one number is used for both."""

CHOICE = re.compile(r"invalid choice '([^']*)' for argument \S+ Expected one of \((.*)\)")
"""The start of a message of tyro."""
QUOTED = re.compile(r"'([^']*)'")


def parse(kind: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Parse ``argv`` into an instance of the dataclass ``kind``.

    Args:
        kind: dataclass; its docstrings are the help texts.
        argv: arguments after the command.
        prog: name of the command in help and error messages.
        default: values of the arguments that ``argv`` does not contain.

    Raises:
        UserError: an argument is missing, unknown or has an invalid value.
        SystemExit: with code 0, after ``--help``.
    """
    missing: Any = tyro.MISSING_NONPROP if default is None else default
    values: T
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), REGISTRY:
            values, unknown = tyro.cli(
                kind,
                args=argv,
                prog=prog,
                description=description(kind),
                default=missing,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),  # the preset fixes the type of the model
            )
    except SystemExit as end:
        if end.code:
            raise UserError(f"{one_line(stderr.getvalue(), argv)} See: {prog} --help") from None
        raise
    sys.stderr.write(stderr.getvalue())  # warnings
    if not unknown:
        return values
    flag = next((word for word in unknown if word.startswith("-")), "")
    if not flag:
        raise UserError(f"Unexpected argument '{unknown[0]}'. See: {prog} --help")
    name = flag.partition("=")[0]
    known = ["--help", *flags(values)]
    # match the last part of a name too: --num-queries suggests --model.num-queries
    words = {flag.rpartition(".")[2]: flag for flag in known if "." in flag} | {flag[2:]: flag for flag in known}
    near = difflib.get_close_matches(name.lstrip("-").replace("_", "-"), words, n=1)
    hint = f" Did you mean '{words[near[0]]}'?" if near else ""
    raise UserError(f"Unknown flag '{name}'.{hint} See: {prog} --help")


def one_line(message: str, argv: list[str]) -> str:
    """The framed error message of tyro as one line, without the help text below its ruler."""
    if missing := missing_argument(message):
        return missing
    lines = [line.strip("│|╭╮╰╯+ ") for line in message.splitlines()]
    if len(lines) > 1 and not lines[1].strip("-"):  # without UTF-8, a ruler is below the title
        del lines[1]
    text = " ".join("\n".join(lines[1:]).split("\n\n")[0].split())  # below the title
    text = re.split(r" [─-]{3,}", text)[0].rstrip(".")
    if choice := CHOICE.match(text):
        return f"{text}.{did_you_mean(choice[1], re.findall(QUOTED, choice[2]))}"
    bad = re.match(r"Error parsing (--\S+):", text)
    wanted = bad and re.search(rf"^{bad[1]} (.+)$", "\n".join(lines), flags=re.MULTILINE)
    if not bad or not wanted:
        return f"{text}."
    words = itertools.takewhile(lambda word: not word.startswith("--"), after(bad[1], argv))
    return f"{bad[1]} expects {wanted[1]}, got '{' '.join(words)}'."


def missing_argument(message: str) -> str | None:
    """``Missing argument NAME (help text).`` for the first required argument in tyro's message, if it lists any."""
    lines = [line.strip("│|").rstrip() for line in message.splitlines()]
    start = next((number for number, line in enumerate(lines) if line.strip().startswith("Missing from ")), None)
    if start is None:
        return None
    name, *rest = lines[start + 1 :]

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip())

    texts = itertools.takewhile(lambda line: indent(line) > indent(name), rest)
    text = " ".join(" ".join(texts).split()).removesuffix("(required)").rstrip(" .")
    return f"Missing argument {name.strip()}" + (f" ({text[0].lower()}{text[1:]})." if text else ".")


def after(flag: str, argv: list[str]) -> list[str]:
    """The arguments that follow ``flag``, including ``value`` in ``--flag=value``; underscores match hyphens."""
    for number, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == flag.replace("_", "-"):
            return [*([value] if value else []), *argv[number + 1 :]]
    return []


def flags(values: Any, prefix: str = "--") -> Iterator[str]:
    """The flags of the dataclass instance ``values``; the field ``settings`` adds no prefix."""
    for field in dataclasses.fields(values):
        if field.name in WITHOUT_FLAG.get(type(values).__name__, ()):
            continue
        value, name = getattr(values, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from flags(value, prefix if name == "settings" else f"{prefix}{name}.")
        else:
            yield prefix + name


def is_given(flag: str, argv: list[str]) -> bool:
    """Whether ``argv`` contains ``--flag``, even with its default value."""
    name = f"--{flag}".replace("_", "-")
    return any(word.partition("=")[0].replace("_", "-") == name for word in argv)


def check_tile_flags(tile: int | None, argv: list[str]) -> None:
    """Reject the flags that only have an effect with ``--tile``.

    Raises:
        UserError: ``argv`` has one of them, but ``tile`` is ``None``.
    """
    for flag in ("overlap", "tiles-only"):
        if tile is None and is_given(flag, argv):
            raise UserError(f"--{flag} has no effect without --tile SIZE: add it, or remove --{flag}.")


def check_data(path: str | None) -> None:
    """Reject the name ``digits`` when it is ambiguous.

    Raises:
        UserError: ``path`` is ``digits`` and the working folder contains a folder of this name.
    """
    if path == "digits" and Path(path).is_dir():
        raise UserError(
            "'digits' is ambiguous: it names the built-in demo dataset and a folder in the working directory. "
            "Use ./digits for the folder. To use the demo dataset, run the command in another directory."
        )


def as_pair(size: tuple[int] | tuple[int, int]) -> tuple[int, int]:
    """``(n,)`` as ``(n, n)``."""
    return (size[0], size[-1])


def new_folder(name: str) -> Path:
    """The first path ``runs/NAME-N`` that does not exist, N = 1, 2, ..."""
    number = 1
    while (path := Path("runs", f"{name}-{number}")) and os.path.lexists(path):
        number += 1
    return path
