"""What a reader of an annotation format returns: images, objects and classes as in the files, before they are checked.

Every format has a module in ``detrs.data.formats``. All of them share the checks in ``detrs.data.check``.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from detrs.data.findings import Findings
from detrs.data.objects import Columns

SYNONYMS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
"""Equivalent names of each split."""
UNION = "trainval"
"""The union of ``train`` and ``val`` in Pascal VOC."""


def synonyms(split: str) -> tuple[str, ...]:
    """``split``, then its other names."""
    others = (name for names in SYNONYMS if split in names for name in names if name != split)
    return (split, *others)


def without_year(name: str) -> str:
    """``train`` for ``train2017``."""
    return re.sub(r"(?<=\D)(19|20)\d\d$", "", name)


def split_of(name: str) -> str:
    """``train``, ``val`` or ``test`` for a name such as ``valid2017``; other names as they are."""
    base = without_year(name)
    return next((names[0] for names in SYNONYMS if base in names), name)


def is_usual(name: str) -> bool:
    """Whether a name is that of a split."""
    return any(split_of(name) == names[0] for names in SYNONYMS)


def has_training_images(name: str) -> bool:
    """Whether the split with this name is, or contains, the training images."""
    return split_of(name) == "train" or without_year(name) == UNION


class ImageRow(NamedTuple):
    """An image as in the annotations; the values are not checked yet."""

    id: Any
    """An integer, unique within the split."""
    file_name: Any
    """Path relative to one of the folders of the split."""
    height: Any = None
    """Declared height and width in pixels after EXIF orientation; ``None`` if the annotations do not contain them."""
    width: Any = None
    path: Path | None = None
    """The file, if the format determines it; ``None``: it is searched by ``file_name`` in the folders."""
    place: str | None = None
    """Where the image is annotated, for messages, such as ``Annotations/a.xml``; ``None``: ``image ID``."""


@dataclass(kw_only=True)
class Content:
    """The content of a split."""

    images: list[ImageRow | None]
    """``None`` is an item that is not an object."""
    objects: Columns
    categories: list[Any]
    """``{"id": int, "name": str}`` of each class, as in COCO."""
    folders: tuple[Path, ...] = ()
    """Existing folders that may contain the images, most likely first."""
    digest: bytes = field(repr=False)
    """SHA-256 of everything in the annotation files that determines the content."""


class Split(ABC):
    """One split of a dataset on disk. Each format has its own subclass."""

    name: str
    """As in the files, such as ``train2017``; empty if the dataset is not divided into splits."""
    path: Path
    """Annotation file or folder, named in messages."""

    @property
    def annotation_file(self) -> Path | None:
        """The file on which ``read`` depends besides its arguments; ``None`` if it depends on several files."""
        return None

    @abstractmethod
    def read(self, errors: Findings, notes: Findings) -> Content:
        """Reads all annotations of the split.

        Args:
            errors: Receives faults that would make results wrong. Reading continues, so that all are reported.
            notes: Receives faults of single items that are skipped or repaired.

        Raises:
            UserError: The annotations cannot be read at all.
        """
