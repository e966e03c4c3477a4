"""Boxes of samples in Python: their format and their type."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import convert_bounding_box_format
from torchvision.tv_tensors import BoundingBoxes

from detrs.data import Sample, SampleDataset, make_sample
from detrs.data.loader import evaluation_batches
from detrs.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
BOXES = [[5.5, 7, 36.5, 30], [40, 11, 69, 48]]


def sample() -> Sample:
    return make_sample(PIXELS, BOXES, [1, 0], 7)


def boxes_as(format: str = "XYXY", dtype: torch.dtype = torch.float32) -> BoundingBoxes:
    """The boxes of the sample in another format or of another type."""
    converted = convert_bounding_box_format(sample().boxes, new_format=format).to(dtype)
    return BoundingBoxes(converted, format=format, canvas_size=(61, 97))


OTHERS = [
    ({"format": "XYWH"}, "torch.float32 and XYWH"),
    ({"format": "CXCYWH"}, "torch.float32 and CXCYWH"),
    ({"dtype": torch.float64}, "torch.float64 and XYXY"),
    ({"dtype": torch.int64}, "torch.int64 and XYXY"),
]


@pytest.mark.parametrize(("options", "got"), OTHERS)
def test_found_at_the_start(options: dict[str, Any], got: str) -> None:
    """The ground truth would be wrong."""
    with pytest.raises(UserError, match=rf"image 7\.boxes: expected float32 boxes of the format XYXY, got {got}"):
        SampleDataset([sample()._replace(boxes=boxes_as(**options))], ["cat", "dog"])


@pytest.mark.parametrize(("options", "got"), OTHERS)
def test_found_when_a_sample_is_loaded(options: dict[str, Any], got: str) -> None:
    dataset = SampleDataset([sample()], ["cat", "dog"])
    dataset.samples = [sample()._replace(boxes=boxes_as(**options))]
    with pytest.raises(UserError, match=rf"sample 0 of the dataset\.boxes: expected float32 boxes .* got {got}"):
        list(evaluation_batches(dataset, (32, 48), 1))


def test_boxes_with_a_format() -> None:
    assert torch.equal(make_sample(PIXELS, sample().boxes, [1, 0], 7).boxes, sample().boxes)
    with pytest.raises(UserError, match=r"boxes_xyxy of image 7: expected the format XYXY, got XYWH: convert them"):
        make_sample(PIXELS, boxes_as("XYWH"), [1, 0], 7)


def test_numbers_that_numpy_does_not_have() -> None:
    with pytest.raises(UserError, match=r"boxes_xyxy of image 7: expected an array of numbers, got torch\.bfloat16"):
        make_sample(PIXELS, torch.tensor(BOXES, dtype=torch.bfloat16), [1, 0], 7)
