"""The images of a split as arrays: about 80 bytes per image, without an object for each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray


class ImageEntry(NamedTuple):
    id: int
    path: Path
    size: tuple[int, int]
    """(height, width) in pixels, after EXIF orientation."""


@dataclass(frozen=True, eq=False)
class Images(Sequence[ImageEntry]):
    """The images of a split in the order of the annotations; N images."""

    ids: NDArray[Any]
    """(N,) int64, or objects if an id does not fit."""
    sizes: NDArray[Any]
    """(N, 2) int32, height and width in pixels, after EXIF orientation."""
    folders: tuple[str, ...]
    folder: NDArray[Any]
    """(N,) int32, index in ``folders``."""
    names: NDArray[Any]
    """uint8, all file names, one after another."""
    ends: NDArray[Any]
    """(N,) int64, end of each file name in ``names``."""
    contents: NDArray[Any]
    """(N, 32) uint8, a hash of each file (see ``hash_files``); 0 if it is unknown."""

    def __len__(self) -> int:
        return len(self.folder)

    @overload
    def __getitem__(self, index: int) -> ImageEntry: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageEntry]: ...

    def __getitem__(self, index: int | slice) -> ImageEntry | list[ImageEntry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return ImageEntry(int(self.ids[index]), Path(self.path(index)), self.size(index))

    def path(self, index: int) -> str:
        return os.path.join(self.folders[self.folder[index]], os.fsdecode(self.name(index)))

    def name(self, index: int) -> bytes:
        """The file name without its folder, encoded by ``os.fsencode``."""
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : self.ends[index]].tobytes()

    def size(self, index: int) -> tuple[int, int]:
        height, width = self.sizes[index].tolist()
        return height, width

    def content(self, index: int) -> bytes:
        """The hash of a file; empty if it is unknown."""
        content = self.contents[index].tobytes()
        return content if any(content) else b""


def image_table(ids: Sequence[int], paths: Sequence[str], sizes: NDArray[Any], contents: NDArray[Any]) -> Images:
    """The images of N files."""
    folders: dict[str, int] = {}
    folder = np.zeros(len(paths), dtype=np.int32)
    names, ends = bytearray(), np.zeros(len(paths), dtype=np.int64)
    for index, path in enumerate(paths):
        parent, name = os.path.split(path)
        folder[index] = folders.setdefault(parent, len(folders))
        names += os.fsencode(name)
        ends[index] = len(names)
    try:
        numbers = np.array(ids, dtype=np.int64)
    except OverflowError:
        numbers = np.array(ids, dtype=object)
    return Images(numbers, sizes, tuple(folders), folder, np.frombuffer(names, np.uint8), ends, contents)
