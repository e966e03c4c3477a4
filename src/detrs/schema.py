"""Configuration dataclasses as plain data and back, and the ranges that annotate their fields.

Ranges are metadata of ``annotated-types``: ``lr: Annotated[float, Gt(0)]``. A field that takes one of several
dataclasses is a union of them; in JSON each carries its class name under ``kind``.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from detrs.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """Annotates a field with the configuration classes it takes: the keys of a table that can grow."""

    table: Mapping[type, Any]


def to_dict(config: Any) -> Any:
    """A configuration as plain JSON data."""
    if is_dataclass(config):
        hints = hints_of(type(config))
        return {name: _to_dict(getattr(config, name), hint) for name, hint in hints.items()}
    return [to_dict(value) for value in config] if isinstance(config, tuple) else config


def _to_dict(value: Any, hint: Any) -> Any:
    values = to_dict(value)
    return {"kind": type(value).__name__, **values} if variants(hint) and is_dataclass(value) else values


def from_dict(hint: Any, values: Any, where: str = "experiment") -> Any:
    """The inverse of ``to_dict``.

    Args:
        hint: type of the result: a configuration class, or the type of one of its fields.
        values: plain JSON data.
        where: name of the setting, for messages.

    Raises:
        UserError: for an unknown key (with the nearest known one), a value of another type or an unknown ``kind``.
    """
    if values is None and type(None) in typing.get_args(_bare(hint)):
        return None
    if known := variants(hint):
        name = values.get("kind") if isinstance(values, dict) else None
        if not isinstance(name, str) or name not in known:
            raise UserError(
                f"{where}: expected a 'kind' out of {', '.join(known)}, got {name!r}.{did_you_mean(str(name), known)}"
            )
        hint, values = known[name], {key: value for key, value in values.items() if key != "kind"}
    hint = _only_class(_bare(hint))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected an object of settings, got {values!r:.80}.")
        hints = hints_of(hint)
        for key in values:
            if key not in hints:
                raise UserError(f"{where}: unknown setting '{key}'.{did_you_mean(key, hints)}")
        prefix = f"{where}." if where else ""
        return hint(**{key: from_dict(hints[key], value, prefix + key) for key, value in values.items()})
    return _typed(hint, values, where)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """``value`` if it has the type ``hint`` (lists become tuples); raises ``UserError`` otherwise."""
    hint = _bare(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}.")
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(value) == len(arguments):
            return tuple(_typed(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(arguments, value, strict=True)))
    elif _is_union(hint):
        if value is None and type(None) in arguments:
            return None
        (option,) = (a for a in arguments if a is not type(None))  # a field has one type, or several dataclasses
        return _typed(option, value, where)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UserError(f"{where}: expected {_name(hint)}, got {value!r:.80}.")


def check(config: Any, where: str = "") -> None:
    """Check the type and the range of every setting. Numbers must be finite.

    Args:
        config: an instance of a configuration class; its sections are checked, too.
        where: name of the section, for messages.

    Raises:
        UserError: naming the setting, its value and its range.
    """
    _check_tuples(config, where)
    _check_ranges(from_dict(type(config), to_dict(config), where), where)


def _check_tuples(config: Any, where: str) -> None:
    """Check that there are no lists, which would differ from equal tuples."""
    for name in hints_of(type(config)):
        value, setting = getattr(config, name), f"{where}.{name}".lstrip(".")
        if is_dataclass(value):
            _check_tuples(value, setting)
        elif isinstance(value, list):
            raise UserError(f"{setting}: expected a tuple, {tuple(value)!r:.80}, got the list {value!r:.80}.")


def _check_ranges(config: Any, where: str) -> None:
    for name, hint in hints_of(type(config)).items():
        value, setting = getattr(config, name), f"{where}.{name}".lstrip(".")
        if is_dataclass(value):
            _check_ranges(value, setting)
            continue
        absent = ", or None" if _is_union(hint) else ""
        for number, limits in _limited(value, hint):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{setting} is {value}, but must be finite{absent}.")
            if not all(_holds(number, limit) for limit in limits):
                raise UserError(f"{setting} is {value!s:.80}, but must be {describe(limits)}{absent}.")


def _limited(value: Any, hint: Any) -> Iterator[tuple[float, list[Any]]]:
    """Every number in ``value``, and the limits that annotate it."""
    limits: list[Any] = []
    if typing.get_origin(hint) is Annotated:
        limits = [limit for limit in hint.__metadata__ if isinstance(limit, Ge | Gt | Le | Lt)]
        hint = hint.__origin__
    if _is_union(hint):  # Annotated[int, Ge(1)] | None
        if value is not None:
            yield from _limited(value, next(option for option in typing.get_args(hint) if option is not type(None)))
    elif isinstance(value, tuple):
        hints = typing.get_args(hint)
        for index, item in enumerate(value):
            yield from _limited(item, hints[0] if hints[-1] is Ellipsis else hints[min(index, len(hints) - 1)])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value, limits


def _holds(number: float, limit: Any) -> bool:
    match limit:
        case Ge():
            return number >= limit.ge  # type: ignore[operator]
        case Gt():
            return number > limit.gt  # type: ignore[operator]
        case Le():
            return number <= limit.le  # type: ignore[operator]
        case _:
            return number < limit.lt


def describe(limits: list[Any]) -> str:
    """A range in words.

    >>> describe([Gt(0), Le(1)])
    'in (0, 1]'
    >>> describe([Ge(1)])
    'at least 1'
    """
    low = next((limit for limit in limits if isinstance(limit, Ge | Gt)), None)
    high = next((limit for limit in limits if isinstance(limit, Le | Lt)), None)
    text = {Ge: "at least {}", Gt: "above {}", Le: "at most {}", Lt: "below {}"}
    if low is not None and high is not None:
        opening, closing = "[" if isinstance(low, Ge) else "(", "]" if isinstance(high, Le) else ")"
        return f"in {opening}{_number(low)}, {_number(high)}{closing}"
    return " and ".join(text[type(limit)].format(_number(limit)) for limit in (low, high) if limit is not None)


def _number(limit: Any) -> Any:
    number = next(iter(dataclasses.asdict(limit).values()))
    return "2^63" if number == 2**63 else number


def hints_of(kind: type) -> dict[str, Any]:
    """Field -> type with its annotations. Class variables are not settings."""
    every = typing.get_type_hints(kind, include_extras=True)
    return {field.name: every[field.name] for field in dataclasses.fields(kind)}


def variants(hint: Any) -> dict[str, type]:
    """The configuration classes that a field takes, by name; empty for a field with one type."""
    if typing.get_origin(hint) is Annotated:
        tables = [item.table for item in hint.__metadata__ if isinstance(item, OneOf)]
        return {kind.__name__: kind for kind in tables[0]} if tables else variants(hint.__origin__)
    arguments: list[Any] = [*typing.get_args(hint)] if _is_union(hint) else []
    kinds: list[Any] = [kind for kind in arguments if dataclasses.is_dataclass(kind)]
    return {kind.__name__: kind for kind in kinds} if len(kinds) > 1 else {}


def is_dataclass(value: Any) -> bool:
    """Whether ``value`` is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _only_class(hint: Any) -> Any:
    """The dataclass of an optional section; any other hint as it is."""
    options = [option for option in typing.get_args(hint) if option is not type(None)] if _is_union(hint) else []
    return options[0] if len(options) == 1 and dataclasses.is_dataclass(options[0]) else hint


def _name(hint: Any) -> str:
    """A type in messages: ``int``, ``tuple[float, float]``."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _bare(hint: Any) -> Any:
    return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)
