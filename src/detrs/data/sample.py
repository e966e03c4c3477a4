"""One image with its objects, and the protocol of datasets."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torchvision import tv_tensors

from detrs.errors import UserError
from detrs.structures import Classes


class Sample(NamedTuple):
    """One decoded image and its objects. Tensors may be shared: never change them in place."""

    image: tv_tensors.Image
    """(3, H, W) uint8, RGB, upright."""
    boxes: tv_tensors.BoundingBoxes
    """(N, 4) float32, XYXY in pixels of ``image``; every box has an area. Crowd regions are excluded."""
    labels: Int[Tensor, "N"]
    """Contiguous class index (int64)."""
    image_id: int
    """The dataset's own id of the image."""
    original_size: tuple[int, int]
    """(height, width) in pixels of the image as stored, after EXIF orientation."""
    path: str
    """File of the image, for messages."""


def check_boxes(sample: Sample, name: str) -> None:
    """Check the type, shape, format and dtype of the boxes of a sample.

    Args:
        sample: the sample.
        name: what messages call it.

    Raises:
        UserError: naming what is wrong.
    """
    boxes = sample.boxes
    if not isinstance(boxes, tv_tensors.BoundingBoxes) or boxes.shape != (len(sample.labels), 4):
        raise UserError(
            f"{name}.boxes: expected one torchvision.tv_tensors.BoundingBoxes row per label, got "
            f"{type(boxes).__name__} {tuple(boxes.shape)} for {len(sample.labels)} labels."
        )
    if boxes.format != tv_tensors.BoundingBoxFormat.XYXY or boxes.dtype != torch.float32:
        raise UserError(
            f"{name}.boxes: expected float32 boxes of the format XYXY, got {boxes.dtype} and {boxes.format.name}; "
            "make_sample makes a sample from any numbers in this order."
        )


@runtime_checkable
class Dataset(Protocol):
    """The interface of datasets for training and evaluation.

    Any object with these members is accepted; ``SampleDataset`` makes one from a sequence of samples.
    """

    classes: Classes
    image_ids: list[int]
    max_objects: int
    """Largest number of objects in one image."""
    num_empty: int
    """Number of images without objects."""
    can_be_mirrored: bool
    """False if a horizontal flip changes the class of objects (digits, for example)."""
    notes: list[str]
    """One line for each kind of problem that was skipped or repaired."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The decoded image at ``index``, before augmentation.

        Raises:
            UserError: the file cannot be read, is not an image, or has another size than declared.
        """
        ...

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the image at ``index``, without decoding it."""
        ...

    def path_of(self, index: int) -> str:
        """File of the image at ``index``, for messages."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """A COCO dictionary for the evaluation: the dataset's own ids, with crowd regions, annotation ids from 1."""
        ...

    def fingerprint(self) -> str:
        """Hex SHA-256 of annotations and file list: equal fingerprints mean the same data in the same order."""
        ...
