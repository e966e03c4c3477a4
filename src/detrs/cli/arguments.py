"""The arguments of a verb: a dataclass filled by tyro, and one sentence for what does not fit."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from detrs.errors import UserError

T = TypeVar("T")

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A switch that is off unless given."""
Size = Annotated[tuple[int] | tuple[int, int], tyro.conf.arg(metavar="INT [INT]")]
"""One or two numbers; one stands for both."""


def parse(kind: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """``argv`` as an instance of the dataclass ``kind``.

    Args:
        kind: dataclass; its docstrings are the help.
        argv: words after the verb.
        prog: how the command is called, for the help.
        default: values of what ``argv`` does not name.

    Raises:
        UserError: ``argv`` lacks a word, has one too many, a bad value, or a flag that is none.
        SystemExit: 0 after ``--help``.
    """
    missing: Any = tyro.MISSING_NONPROP if default is None else default
    values: T
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            values, unknown = tyro.cli(
                kind,
                args=argv,
                prog=prog,
                default=missing,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),  # which model it is, a preset has decided
            )
    except SystemExit as end:
        if end.code:
            raise UserError(f"{sentence(box.getvalue(), argv)} See: {prog} --help") from None
        raise
    sys.stderr.write(box.getvalue())  # warnings
    if not unknown:
        return values
    flag = next((word for word in unknown if word.startswith("-")), "")
    if not flag:
        raise UserError(f"{prog} does not take '{unknown[0]}'. See: {prog} --help")
    name = flag.partition("=")[0]
    known = ["--help", *flags(values)]
    # a setting is also known by its last word: --num-queries is meant to be --model.num-queries
    words = {flag.rpartition(".")[2]: flag for flag in known if "." in flag} | {flag[2:]: flag for flag in known}
    near = difflib.get_close_matches(name.lstrip("-").replace("_", "-"), words, n=1)
    hint = f" Did you mean '{words[near[0]]}'?" if near else ""
    raise UserError(f"{prog} has no flag '{name}'.{hint} See: {prog} --help")


def sentence(box: str, argv: list[str]) -> str:
    """What tyro says in a frame, above a ruler and the help that it repeats, in one sentence."""
    lines = [line.strip("│|╭╮╰╯+ ") for line in box.splitlines()]
    text = " ".join("\n".join(lines[1:]).split("\n\n")[0].split())  # below the title
    text = re.split(r" [─-]{3,}", text)[0].rstrip(".")
    bad = re.match(r"Error parsing (--\S+):", text)
    wanted = bad and re.search(rf"^{bad[1]} (.+)$", "\n".join(lines), flags=re.MULTILINE)
    if not bad or not wanted:
        return f"{text}."
    words = itertools.takewhile(lambda word: not word.startswith("--"), after(bad[1], argv))
    return f"{bad[1]} expects {wanted[1]}, but was given '{' '.join(words)}'."


def after(flag: str, argv: list[str]) -> list[str]:
    """The words behind a flag, which may be spelt with underscores or hold its value: ``--flag=value``."""
    for number, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == flag.replace("_", "-"):
            return [*([value] if value else []), *argv[number + 1 :]]
    return []


def flags(values: Any, prefix: str = "--") -> Iterator[str]:
    """The flags of the dataclass instance ``values``; a section named ``settings`` has no prefix of its own."""
    for field in dataclasses.fields(values):
        value, name = getattr(values, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from flags(value, prefix if name == "settings" else f"{prefix}{name}.")
        else:
            yield prefix + name


def given(flag: str, argv: list[str]) -> bool:
    """Whether the words hold ``--flag``, be it with the value that it has anyway."""
    name = f"--{flag}".replace("_", "-")
    return any(word.partition("=")[0].replace("_", "-") == name for word in argv)


def check_data(path: str | None) -> None:
    """Refuse ``digits`` where it could mean two things.

    Raises:
        UserError: it is the name of a folder here.
    """
    if path == "digits" and Path(path).is_dir():
        raise UserError(
            "'digits' is the built-in demo set, but there is a folder of that name here, too: write ./digits for the "
            "folder, or call the demo set from another place."
        )


def both(size: tuple[int] | tuple[int, int]) -> tuple[int, int]:
    """``(n,)`` as ``(n, n)``."""
    return (size[0], size[-1])


def new_folder(name: str) -> Path:
    """``runs/NAME-N`` with the first number that is free."""
    number = 1
    while (path := Path("runs", f"{name}-{number}")).exists():
        number += 1
    return path
