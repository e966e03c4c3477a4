"""Two-way tables of tensor names: a foreign state dict to ours and back, bit-exact in both directions.

A table is a list of rules. A rule relates patterns of names, in which ``{rest}`` stands for any remainder and every
other ``{placeholder}`` for a number::

    Renaming([
        Rename("encoder.layers.{i}.linear1.{rest}", "encoder.layers.{i}.feedforward.expand.{rest}"),
        Pack("encoder.layers.{i}.self_attn.in_proj_{rest}", qkv("encoder.layers.{i}.attention.attention")),
        Rename("class_embed.{rest}", tuple(f"decoder.heads.{k}.classes.{{rest}}" for k in range(6))),
    ])

Both directions start from the names of our model: ``read`` finds the foreign tensors of a model that was built from its
settings, and ``write`` returns all foreign tensors of a model.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detrs.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
Names = str | tuple[str, ...]

IGNORED = frozenset({"num_batches_tracked", "total_params", "total_ops"})
"""Last parts of names without weights: counters of BatchNorm, and results of a profiler in official files."""
LISTED = 5
"""Differences of each kind that a message lists."""


@dataclass(frozen=True)
class Rename:
    """One tensor with a name, or with several names that have equal values (a head shared by several layers)."""

    theirs: Names
    """Patterns of their names. Reading needs one of them; writing writes all."""
    ours: Names
    """Patterns of our names; all are filled, and all have equal values."""
    spellings: tuple[str, ...] = ()
    """Further names that are read but not written."""


@dataclass(frozen=True)
class Pack:
    """One tensor of theirs whose rows are several tensors of ours, such as queries, keys and values in ``in_proj``."""

    theirs: str
    ours: tuple[str, ...]
    """In the order of the rows; all have the same number of rows."""


Rule = Rename | Pack


def qkv(attention: str) -> tuple[str, str, str]:
    """Our names of the rows of ``in_proj_{rest}``, for the module ``attention``."""
    return (f"{attention}.query_proj.{{rest}}", f"{attention}.key_proj.{{rest}}", f"{attention}.value_proj.{{rest}}")


class Link(NamedTuple):
    """A rule applied to actual names."""

    written: tuple[str, ...]
    read: tuple[str, ...]
    """``written``, then other spellings."""
    ours: tuple[str, ...]
    packed: bool

    def expected(self, shapes: Shapes) -> tuple[int, ...]:
        """Shape of their tensor, given the shapes of ours."""
        first, *further = shapes[self.ours[0]]
        return (first * len(self.ours), *further) if self.packed else shapes[self.ours[0]]


class Renaming:
    """A table of names.

    Args:
        rules: the first rule with a pattern for one of our names is used.
        ignored: patterns of further names of theirs that are ignored.
    """

    def __init__(self, rules: Iterable[Rule], ignored: Iterable[str] = ()) -> None:
        self.rules = tuple(rules)
        self.ignored = tuple(ignored)

    def read(self, tensors: Mapping[str, Tensor], shapes: Shapes, source: object) -> dict[str, Tensor]:
        """Our state dict.

        Args:
            tensors: their state dict.
            shapes: name and shape of every tensor of our model.
            source: the file, for messages.

        Returns:
            A tensor for each name in ``shapes``, except the counters of BatchNorm. Tensors may share memory with
            ``tensors`` and with each other.

        Raises:
            UserError: with the tensors that are missing, unknown, of another shape, or that have different values
                although the model has one tensor for them.
        """
        links = self.links(shapes)
        if wrong := self._differences(tensors, shapes, links):
            raise UserError(f"The weights in '{source}' do not fit the model that its settings describe: {wrong}.")
        found: dict[str, Tensor] = {}
        for link in links:
            tensor = next(tensors[name] for name in link.read if name in tensors)
            parts = tensor.chunk(len(link.ours)) if link.packed else (tensor,) * len(link.ours)
            found |= zip(link.ours, parts, strict=True)
        return {name: found[name] for name in shapes if name in found}

    def write(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their state dict.

        Args:
            tensors: state dict of our model.

        Returns:
            All names of theirs; names of one tensor share its memory.

        Raises:
            UserError: layers of ours have different values although their layout has one tensor for them.
        """
        found: dict[str, Tensor] = {}
        for link in self.links(tensors):
            if link.packed:
                tensor = torch.cat([tensors[name] for name in link.ours])
            else:
                tensor = tensors[link.ours[0]]
                if differ := different(link.ours, tensors):
                    raise UserError(
                        f"The layout has one tensor '{link.written[0]}', but {differ} have different values."
                    )
            found |= dict.fromkeys(link.written, tensor)
        return found

    def links(self, ours: Iterable[str]) -> list[Link]:
        """Their names of all our names, except the counters of BatchNorm.

        Raises:
            LookupError: a name without a rule: the table does not fit the model.
        """
        links: dict[Link, None] = {}  # a set in the order of insertion
        for name in ours:
            if name.rsplit(".", 1)[-1] not in IGNORED:
                links[self._link(name)] = None
        return list(links)

    def _link(self, name: str) -> Link:
        for rule in self.rules:
            ours = as_tuple(rule.ours)
            for pattern in ours:
                if matched := expression(pattern).fullmatch(name):
                    values = matched.groupdict()
                    written = tuple(filled(as_tuple(rule.theirs), values))
                    spellings = filled(rule.spellings, values) if isinstance(rule, Rename) else ()
                    return Link(written, (*written, *spellings), tuple(filled(ours, values)), isinstance(rule, Pack))
        raise LookupError(f"no rule for '{name}'")

    def _differences(self, tensors: Mapping[str, Tensor], shapes: Shapes, links: Iterable[Link]) -> str:
        missing, mismatching, conflicting, known = [], [], [], set[str]()
        for link in links:
            known |= set(link.read)
            present = [name for name in link.read if name in tensors]
            if not present:
                missing.append(link.read[0])
            expected = link.expected(shapes)
            wrong = [name for name in present if tuple(tensors[name].shape) != expected]
            mismatching += [f"{name} {tuple(tensors[name].shape)}, expected {expected}" for name in wrong]
            if not wrong and (differ := different(present, tensors)):
                conflicting.append(differ)
        unknown = [name for name in tensors if name not in known and not self.is_ignored(name)]
        kinds = {
            "missing": missing,
            "unknown": unknown,
            "of another shape": mismatching,
            "with different values although the model has one tensor for them": conflicting,
        }
        return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor of theirs has no meaning for the model."""
        return name.rsplit(".", 1)[-1] in IGNORED or any(
            expression(pattern).fullmatch(name) for pattern in self.ignored
        )


def different(names: Iterable[str], tensors: Mapping[str, Tensor]) -> str:
    """``"a, b"`` if ``a``, the first, and ``b`` have different values; ``""`` if all are equal."""
    first, *others = list(names) or [""]
    for other in others:
        one, two = tensors[first], tensors[other]
        if one is not two and not one.is_meta and not torch.equal(one, two):
            return f"{first}, {other}"
    return ""


def listed(names: list[str]) -> str:
    """The first names of a list, separated by commas."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def as_tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def filled(patterns: Iterable[str], values: Mapping[str, str]) -> Iterator[str]:
    """Patterns with their placeholders replaced."""
    for pattern in patterns:
        yield pattern.format_map(values)


@functools.cache
def expression(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern."""
    text = ""
    for i, part in enumerate(re.split(r"\{(\w+)\}", pattern)):
        if i % 2 == 0:
            text += re.escape(part)
        elif f"(?P<{part}>" in text:
            text += f"(?P={part})"
        else:
            text += f"(?P<{part}>.+)" if part == "rest" else rf"(?P<{part}>\d+)"
    return re.compile(text)
