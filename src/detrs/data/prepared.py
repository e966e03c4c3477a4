"""A checked split as arrays: everything that training and evaluation need besides the pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from detrs.data.array_file import ArrayFile, read_arrays
from detrs.data.check import Annotations
from detrs.data.image_table import Images
from detrs.data.objects import Objects
from detrs.data.targets import Targets, trainable_objects
from detrs.errors import UserError
from detrs.structures import Classes

IMAGE_COLUMNS = ("ids", "sizes", "folder", "names", "ends", "contents")
OBJECT_COLUMNS = ("image", "label", "boxes", "area", "crowd", "trainable")


@dataclass(frozen=True)
class Source:
    """The file of which the arrays are a view, so that its inode is not given to another file."""

    path: Path
    digest: bytes
    identity: tuple[int, int, int]
    """Device, inode and length."""

    def is_current(self) -> bool:
        """Whether the file is still there and has not been replaced."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino, status.st_size) == self.identity


@dataclass(frozen=True, eq=False)
class Prepared:
    """The annotations of a split, without errors.

    Another process gets the name of the file instead of the arrays, if they are in a file.
    """

    classes: Classes
    notes: tuple[str, ...]
    num_skipped: int
    """Annotated images that are missing or unreadable."""
    digest: bytes
    """SHA-256 of the annotation files."""
    images: Images
    objects: Objects
    """All of them, in the order of the files."""
    targets: Targets
    """Those that are trained on."""
    source: Source | None = None

    def __reduce__(self) -> Any:
        if self.source is not None and self.source.is_current():
            return reopened, (self.source.path, self.source.digest)
        values = (self.classes, self.notes, self.num_skipped, self.digest, self.images, self.objects, self.targets)
        return Prepared, values

    def meta(self) -> dict[str, Any]:
        """What is not in ``arrays``, as a JSON value."""
        return {
            "classes": [self.classes.names, self.classes.category_ids],
            "notes": self.notes,
            "num_skipped": self.num_skipped,
            "digest": self.digest.hex(),
            "folders": self.images.folders,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        images = {name: getattr(self.images, name) for name in IMAGE_COLUMNS}
        objects = {f"objects.{name}": getattr(self.objects, name) for name in OBJECT_COLUMNS}
        return images | objects | {f"targets.{name}": each for name, each in self.targets._asdict().items()}


def prepared(read: Annotations) -> Prepared:
    """The annotations of a split with their targets."""
    targets = trainable_objects(read.images, read.objects)
    return Prepared(read.classes, tuple(read.notes), read.num_skipped, read.digest, read.images, read.objects, targets)


def from_file(path: Path, file: ArrayFile) -> Prepared:
    """What ``meta`` and ``arrays`` of an object returned when the file was written."""
    meta, arrays = file.meta["prepared"], file.arrays
    names, ids = meta["classes"]
    columns = {name: arrays[name] for name in IMAGE_COLUMNS}
    images = Images(folders=tuple(meta["folders"]), **columns)
    objects = Objects(images.ids, tuple(ids), **{name: arrays[f"objects.{name}"] for name in OBJECT_COLUMNS})
    return Prepared(
        Classes(tuple(names), tuple(ids)),
        tuple(meta["notes"]),
        meta["num_skipped"],
        bytes.fromhex(meta["digest"]),
        images,
        objects,
        Targets(**{name: arrays[f"targets.{name}"] for name in Targets._fields}),
        Source(path, file.digest, file.identity),
    )


def reopened(path: Path, digest: bytes) -> Prepared:
    """The same arrays in another process.

    Raises:
        UserError: The file was removed or replaced meanwhile.
    """
    try:
        return from_file(path, read_arrays(path, digest))
    except (OSError, ValueError, UserError):
        raise UserError(f"{path} was removed or replaced while a loader process started. Start again.") from None
