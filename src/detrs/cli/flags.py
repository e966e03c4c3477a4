"""Names of flags instead of settings in messages: the library reports settings, and users of the command type flags."""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

TRAIN = {
    "data.path": "data",
    "schedule.epochs": "epochs",
    "data.val_fraction": "val-fraction",
    "data.batch_size": "batch-size",
    "data.resize_to": "image-size",
    "optimizer.lr": "lr",
    "runtime.device": "device",
    "runtime.precision": "precision",
    "runtime.workers": "workers",
    "runtime.threads": "threads",
    "schedule.max_minutes": "max-minutes",
    "runtime.track": "track",
    "initial": "weights",
}
EVALUATE = {
    "data.path": "data",
    "data.val_split": "split",
    "data.resize_to": "image-size",
    "evaluation.batch_size": "batch-size",
    "evaluation.max_detections": "max-detections",
    "runtime.device": "device",
    "runtime.precision": "precision",
    "runtime.workers": "workers",
}
DEMO = {"schedule.max_minutes": "minutes", "runtime.device": "device", "runtime.threads": "threads"}
CHECK = {"data.resize_to": "image-size"}
SHORT = {"check": CHECK, "train": TRAIN, "evaluate": EVALUATE, "demo": DEMO}
"""Command -> setting -> common flag. ``detrs train`` has a flag for every setting, the others only for these."""

NAME = re.compile(r"(?<![\w./\\-])((?:[a-z]\w*\.)+[a-z]\w*|^seed|^initial)(?![\w/.]*\w*[/(])(?=\W|$)")
"""Candidates for a setting, such as ``model.backbone.name``: not a part of a path, of a flag, or a call."""


def with_flags(message: str, command: str) -> str:
    """``message`` with flags of ``command`` instead of settings.

    >>> with_flags("model.num_queries is 0, but must be at least 1.", "train")
    '--model.num-queries is 0, but must be at least 1.'
    """
    if command not in SHORT or "detrs.config" not in sys.modules:  # no settings without the module
        return message
    known = settings(sys.modules["detrs.config"].Experiment)
    return NAME.sub(lambda found: flag(found[1], command, known), message)


def flag(name: str, command: str, known: frozenset[str]) -> str:
    """The flag of the setting ``name``, or ``name`` if it is not a setting or has no flag."""
    short: Mapping[str, str] = SHORT[command]
    if name in short:
        return f"--{short[name]}"
    return f"--{name}".replace("_", "-") if name in known and command == "train" else name


def settings(experiment: Any) -> frozenset[str]:
    """All settings with their sections, of every detector."""
    from detrs.schema import hints_of, variants

    def names(kind: type, prefix: str) -> Iterator[str]:
        for name, hint in hints_of(kind).items():
            sections = [*variants(hint).values()] or [hint]
            nested = [section for section in sections if dataclasses.is_dataclass(section)]
            if not nested:
                yield prefix + name
            for section in nested:
                assert isinstance(section, type)
                yield from names(section, f"{prefix}{name}.")

    return frozenset(names(experiment, ""))
