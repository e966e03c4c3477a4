"""Tiles of large images: where they are."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, NamedTuple

from detrs.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIZE = 32
"""Of a tile in pixels."""
MAX_OVERLAP = 0.9
MAX_TILES = 4096
"""Of one image."""


class Window(NamedTuple):
    """A part of an image in pixels; ``right`` and ``bottom`` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    def of(self, image: "Tensor") -> "Tensor":
        """This part of an image (3, H, W)."""
        return image[:, self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How large images are divided into overlapping tiles, in each of which objects are detected.

    Raises:
        UserError: a value is out of range.
    """

    size: int
    """Sides of a tile in pixels of the image, before it is resized."""
    overlap: float = 0.2
    """Smallest overlap of neighboring tiles as a part of their side. Objects that are smaller are complete in one of
    the tiles."""
    whole_image: bool = True
    """Also detect objects in the whole image, resized as without tiles, for those that are larger than a tile."""

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, Integral) or self.size < MIN_SIZE:
            raise UserError(f"tile is {self.size!r}, but must be an integer of at least {MIN_SIZE} (pixels).")
        if not isinstance(self.overlap, Real) or not 0 <= self.overlap <= MAX_OVERLAP:
            raise UserError(f"overlap is {self.overlap!r}, but must be in [0, {MAX_OVERLAP}], a fraction of the tile.")

    def tiles(self, image_size: tuple[int, int]) -> list[Window]:
        """The tiles of an image, row by row: all of equal size, as few as possible and evenly distributed.

        Args:
            image_size: (height, width) in pixels.

        Raises:
            UserError: there are more than ``MAX_TILES``.
        """
        rows, columns = (self._starts(side) for side in image_size)
        if (count := len(rows) * len(columns)) > MAX_TILES:
            height, width = image_size
            raise UserError(
                f"An image of {width} x {height} pixels has {count:,} tiles of {self.size} pixels with an overlap of "
                f"{self.overlap}, but at most {MAX_TILES:,} are allowed: use larger tiles or less overlap."
            )
        height, width = (min(self.size, side) for side in image_size)
        return [Window(left, top, left + width, top + height) for top in rows for left in columns]

    def views(self, image_size: tuple[int, int]) -> list[Window]:
        """The tiles of an image, followed by the whole image if it is used. An image that fits one tile has one view.

        Raises:
            UserError: as ``tiles``.
        """
        tiles = self.tiles(image_size)
        return tiles if len(tiles) == 1 or not self.whole_image else [*tiles, whole(image_size)]

    def _starts(self, side: int) -> list[int]:
        """Where the tiles of one axis start."""
        last = max(side - self.size, 0)
        count = math.ceil(last / max(self.size - math.ceil(self.size * self.overlap), 1))
        return [round(number * last / count) for number in range(count + 1)] if count else [0]


def tiling_of(tile: int | None, overlap: float, whole_image: bool) -> Tiling | None:
    """The tiling of these arguments; ``None`` without ``tile``, in which case the others have no effect.

    Raises:
        UserError: as ``Tiling``.
    """
    return None if tile is None else Tiling(size=tile, overlap=overlap, whole_image=whole_image)


def whole(image_size: tuple[int, int]) -> Window:
    """The window of a whole image of ``image_size`` (height, width)."""
    return Window(0, 0, image_size[1], image_size[0])
