"""One picture with its objects, and what every data set offers."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor
from torchvision import tv_tensors

from detrs.structures import Classes


class Sample(NamedTuple):
    """One decoded picture and the objects to find in it. Its tensors may be shared: never change them in place."""

    image: tv_tensors.Image
    """(3, H, W) uint8, RGB, upright."""
    boxes: tv_tensors.BoundingBoxes
    """(N, 4) float32, XYXY in pixels of ``image``; every box has an area. Crowd regions are left out."""
    labels: Int[Tensor, "N"]
    """Contiguous class index (int64)."""
    image_id: int
    """The data set's own id of the picture."""
    original_size: tuple[int, int]
    """(height, width) in pixels of the picture as stored, after EXIF orientation."""
    path: str
    """Where the picture came from."""


@runtime_checkable
class Dataset(Protocol):
    """What the loader, the engine and the evaluator need of a data set."""

    classes: Classes
    image_ids: list[int]
    max_objects: int
    """Largest number of objects in one picture."""
    num_empty: int
    """Pictures without objects."""
    can_be_mirrored: bool
    """Whether an object seen in a mirror is still of its class, for all that is known."""
    notes: list[str]
    """One line for each kind of thing that was skipped, repaired or looks odd."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The decoded, untransformed picture at ``index``.

        Raises:
            UserError: the file cannot be read, is no picture, or has another size than the annotations say.
        """
        ...

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture at ``index``, without decoding it."""
        ...

    def path_of(self, index: int) -> str: ...

    def ground_truth(self) -> dict[str, Any]:
        """A COCO dictionary for the evaluator: the file's own ids, crowd regions kept, annotations numbered from 1."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 of annotations and file list: equal fingerprints mean the same data in the same order."""
        ...
