"""Flags that choose among several kinds of settings: ``--criterion.denoising.kind ContrastiveDenoising``.

Such a setting is one of several dataclasses (``detrs.schema.variants``), with different flags. So the kind is chosen
before the other flags are parsed; its settings start with their defaults.
"""

import dataclasses
import typing
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from detrs.errors import UserError, did_you_mean
from detrs.schema import hints_of, variants

C = typing.TypeVar("C")
FIXED = ("model",)
"""The preset decides these."""


def choices(config: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, type]]]:
    """Each setting of ``config`` with several kinds, and the kinds by name."""
    for name, hint in hints_of(type(config)).items():
        value, place = getattr(config, name), prefix + name
        if not dataclasses.is_dataclass(value):
            continue
        if (known := variants(hint)) and place not in FIXED:
            yield place, known
        yield from choices(value, f"{place}.")


def with_kinds(config: C, argv: list[str]) -> tuple[C, list[str]]:
    """``config`` with the kinds that ``argv`` chooses, and the other arguments.

    Raises:
        UserError: a kind is missing or unknown, or a setting is of another kind.
    """
    known = {f"--{place}.kind".replace("_", "-"): (place, kinds) for place, kinds in choices(config)}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, _, name = word.partition("=")
        place, kinds = known.get(flag.replace("_", "-"), ("", {}))
        if not place:
            rest.append(word)
            continue
        name = name or next(words, "")
        if name not in kinds:
            got = f"got '{name}'.{did_you_mean(name, kinds)}" if name else "got nothing."
            raise UserError(f"{flag} expects one of {', '.join(kinds)}; {got}")
        config = _replaced(config, place.split("."), kinds[name])
    for word in rest:
        _check_kind(word.partition("=")[0].replace("_", "-"), config)
    return config, rest


def _check_kind(flag: str, config: Any) -> None:
    """Check that ``flag`` is not a setting of another kind than that of ``config``.

    Raises:
        UserError: it is; with the flag that chooses this kind.
    """
    for place, kinds in choices(config):
        own, section = type(attrgetter(place)(config)), f"--{place}".replace("_", "-")
        having = [name for name, kind in kinds.items() if flag in _flags(section, kind)]
        if having and own.__name__ not in having:
            raise UserError(
                f"{flag} is a setting of {' and '.join(having)}, but the kind of {section} is {own.__name__}: add "
                f"{section}.kind {having[0]}."
            )


def _flags(section: str, kind: type) -> set[str]:
    return {f"{section}.{field.name}".replace("_", "-") for field in dataclasses.fields(kind)}


def _replaced(config: Any, place: list[str], kind: type) -> Any:
    """``config`` with the default settings of ``kind`` at ``place``; unchanged if it is of this kind."""
    value = getattr(config, place[0])
    if len(place) > 1:
        value = _replaced(value, place[1:], kind)
    elif type(value) is not kind:
        value = kind()
    changed: dict[str, Any] = {place[0]: value}
    return dataclasses.replace(config, **changed)
