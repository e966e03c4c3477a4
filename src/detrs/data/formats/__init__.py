"""Annotation formats, one module each.

Every module has ``NAME``; ``LAYOUTS``, its folder layouts for messages, in which ``{split}`` is the name of a split;
and ``splits(path)``, which returns the splits of a dataset at ``path``, or an empty list if ``path`` is not of this
format. ``splits`` reads names of files and heads of files only; all other faults are found by ``Split.read``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from detrs.data.content import Split
from detrs.data.formats import (
    coco,
    cvat,
    fiftyone,
    huggingface,
    huggingface_datasets,
    label_studio,
    labelme,
    voc,
    yolo,
)


class Format(Protocol):
    """The members of the module of a format."""

    @property
    def NAME(self) -> str: ...

    @property
    def LAYOUTS(self) -> tuple[str, ...]: ...

    def splits(self, path: Path) -> list[Split]: ...


@dataclass(frozen=True)
class _UnnamedYolo:
    """YOLO without class names, which is an error, for folders without annotations in another format."""

    NAME: str = yolo.NAME
    LAYOUTS: tuple[str, ...] = ()

    def splits(self, path: Path) -> list[Split]:
        return yolo.unnamed_splits(path)


FORMATS: tuple[Format, ...] = (
    *(coco, label_studio, yolo, voc, cvat, labelme),
    *(fiftyone, huggingface_datasets, huggingface, _UnnamedYolo()),
)
"""In the order in which they are tried; the first format with a split at the path is used."""
