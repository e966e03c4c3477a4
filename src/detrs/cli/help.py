"""Help texts of the commands: docstrings without RST marks, wrapped to the width of the terminal."""

import dataclasses
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

REGISTRY = ConstructorRegistry()
"""Rules for tyro that turn docstrings into plain help texts; active inside ``with REGISTRY:``."""
WITHOUT_FLAG = {"Experiment": ("name", "initial")}
"""Name of a dataclass -> fields without a flag: the preset sets ``name``, and ``--weights`` sets ``initial``."""
_PLAIN = object()
"""Marks the types to which the rule has been applied."""
_METAVARS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
_WIDTH = 80


def plain_text(docstring: str) -> str:
    """``docstring`` without RST marks, each paragraph on one line.

    >>> plain_text("``step``: x 0.1 at each\\n    of ``drop_at``.")
    'step: x 0.1 at each of drop_at.'
    """
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", inspect.cleandoc(docstring))
    paragraphs = re.sub(r"`+([^`]*)`+", r"\1", text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def description(kind: type) -> str:
    """The docstring of a dataclass, wrapped: tyro itself wraps only framed text."""
    width = min(shutil.get_terminal_size().columns, _WIDTH)
    paragraphs = plain_text(kind.__doc__ or "").split("\n\n")
    indent = "  "  # tyro would join lines that start with a letter
    return "\n".join(textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent) for text in paragraphs)


@REGISTRY.struct_rule
def _plain_fields(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Fields of a dataclass as tyro finds them, with plain help texts."""
    if _PLAIN in info.markers or not dataclasses.is_dataclass(info.type):
        return None
    found = ConstructorRegistry.get_struct_spec(dataclasses.replace(info, markers=(*info.markers, _PLAIN)))
    if not isinstance(found, StructConstructorSpec):
        return None
    hidden = WITHOUT_FLAG.get(info.type.__name__, ())
    fields = (_without_flag(field) if field.name in hidden else _plain_field(field) for field in found.fields)
    return dataclasses.replace(found, fields=tuple(fields))


def _without_flag(field: StructFieldSpec) -> StructFieldSpec:
    """The field keeps its default value, and has neither a flag nor a help text."""
    kind: Any = Annotated[field.type, tyro.conf.Fixed, tyro.conf.Suppress]
    return dataclasses.replace(field, type=kind)


def _plain_field(field: StructFieldSpec) -> StructFieldSpec:
    section = dataclasses.is_dataclass(field.default)

    def text() -> str | None:
        found = field.helptext() if callable(field.helptext) else field.helptext
        if found is None and section:
            found = type(field.default).__doc__
        return found and plain_text(found)

    if section:
        return dataclasses.replace(field, helptext=text)
    kind: Any = Annotated[field.type, tyro.conf.arg(help_behavior_hint=_default_of(field))]
    if name := _metavar(field.type):
        kind = Annotated[kind, tyro.conf.arg(metavar=name if field.default is None else f"{name}|None")]
    return dataclasses.replace(field, type=kind, helptext=text)


def _metavar(optional: Any) -> str | None:
    """``PATH`` for ``Path | None``, where tyro shows ``{None}|PATH``."""
    options = typing.get_args(_bare(optional))
    kinds = [kind for kind in options if kind is not type(None)]
    if len(kinds) != 1 or len(options) != 2:
        return None
    given = (getattr(conf, "metavar", None) for conf in getattr(kinds[0], "__metadata__", ()))
    bare = _bare(kinds[0])
    if typing.get_origin(bare) is tuple:
        return " ".join(_METAVARS.get(_bare(each), "") for each in typing.get_args(bare))
    return next(filter(None, given), None) or _METAVARS.get(bare)


def _bare(kind: Any) -> Any:
    """``X`` for ``Annotated[X, ...]``."""
    return kind.__origin__ if typing.get_origin(kind) is Annotated else kind


def _default_of(field: StructFieldSpec) -> Callable[[str], str]:
    """The default value in brackets; empty for an absent value, which the help text of the flag explains."""
    switch = tyro.conf.FlagCreatePairsOff in getattr(field.type, "__metadata__", ())
    absent = field.default is None or field.default == "" or field.default == () or (switch and field.default is False)
    return lambda label: "" if absent else f"(default: {label})"
