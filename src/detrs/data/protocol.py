"""Checks of datasets that are Python objects: the protocol at the start, each sample when it is loaded."""

from typing import Any

import torch

from detrs.data.folder_dataset import FolderDataset
from detrs.data.sample import Dataset, Sample, check_boxes
from detrs.errors import UserError
from detrs.structures import Classes

MEMBERS = (
    *("classes", "image_ids", "max_objects", "num_empty", "can_be_mirrored", "notes"),
    *("__len__", "__getitem__", "size_of", "path_of", "ground_truth", "fingerprint"),
)


def check_protocol(dataset: Any, name: str) -> None:
    """Check that an object has the ``Dataset`` protocol: its members and their values.

    Args:
        dataset: any object.
        name: what messages call it.

    Raises:
        UserError: naming what is missing, or the member with a wrong value.
    """
    missing = [member for member in MEMBERS if not hasattr(dataset, member)]
    if missing:
        raise UserError(
            f"{name}: expected a dataset, for example detrs.data.SampleDataset(samples, names), got "
            f"{type(dataset).__name__} without {', '.join(missing)} of the detrs.data.Dataset protocol."
        )
    for ok, member, expected in (
        (isinstance(dataset.classes, Classes), "classes", "a detrs.data.Classes"),
        (type(dataset.max_objects) is int, "max_objects", "an integer"),
        (type(dataset.num_empty) is int, "num_empty", "an integer"),
        (type(dataset.can_be_mirrored) is bool, "can_be_mirrored", "a bool"),
        (isinstance(dataset.notes, list | tuple), "notes", "a list of strings"),
    ):
        if not ok:
            raise UserError(f"{name}.{member}: expected {expected}, got {getattr(dataset, member)!r:.80}.")
    if not len(dataset) or len(dataset.image_ids) != len(dataset):
        raise UserError(
            f"{name}: expected at least one image and one of image_ids per image, got {len(dataset)} images and "
            f"{len(dataset.image_ids)} image_ids."
        )
    if not isinstance(fingerprint := dataset.fingerprint(), str):
        raise UserError(f"{name}.fingerprint(): expected a string, got {fingerprint!r:.80}.")


def checked_ground_truth(dataset: Dataset) -> dict[str, Any]:
    """The ground truth of a dataset, a COCO dictionary. That of a ``FolderDataset`` has ``AnnotationRows``.

    Raises:
        UserError: it is something else.
    """
    if isinstance(dataset, FolderDataset) and type(dataset).ground_truth is FolderDataset.ground_truth:
        return dataset.ground_truth_rows()
    truth = dataset.ground_truth()
    if not isinstance(truth, dict) or not {"images", "annotations", "categories"} <= truth.keys():
        raise UserError(
            "ground_truth() of the dataset: expected a COCO dictionary with images, annotations and categories, got "
            f"{truth!r:.80}."
        )
    return truth


def check_sample(sample: Any, dataset: Dataset, index: int) -> None:
    """Check a sample that a dataset returned.

    Raises:
        UserError: naming the field with a wrong value.
    """
    name = f"sample {index} of the dataset"
    if not isinstance(sample, Sample):
        raise UserError(f"{name}: expected a detrs.data.Sample (see make_sample), got {type(sample).__name__}.")
    check_boxes(sample, name)
    if not isinstance(sample.image, torch.Tensor) or sample.image.dtype != torch.uint8 or sample.image.ndim != 3:
        raise UserError(f"{name}.image: expected a uint8 tensor (3, H, W); make_sample makes one from any image.")
    labels, num_classes = sample.labels.tolist(), len(dataset.classes.names)
    if labels and not 0 <= min(labels) <= max(labels) < num_classes:
        raise UserError(f"{name}.labels: expected 0 to {num_classes - 1}, got {sorted(set(labels))}.")
    if len(labels) > dataset.max_objects:
        raise UserError(f"{name}: {len(labels)} objects, but max_objects is {dataset.max_objects}.")
    sizes = (sample.image.shape[1], sample.image.shape[2]), tuple(sample.original_size), tuple(dataset.size_of(index))
    if len(set(sizes)) > 1:
        raise UserError(
            f"{name}: expected one (height, width), got {sizes[0]} for the image, {sizes[1]} as original_size and "
            f"{sizes[2]} from size_of."
        )
