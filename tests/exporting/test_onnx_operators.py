"""Operators of this library in ONNX Runtime equal those of PyTorch."""

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from detrs.boxes import xyxy_to_cxcywh
from detrs.exporting.onnx_file import quiet
from detrs.exporting.onnx_operators import translations
from detrs.ops.suppression import not_suppressed
from detrs.postprocess import without_duplicates
from detrs.structures import Boxes

IOU, CLASSES = 0.4, 5


class Suppression(nn.Module):
    """Which boxes remain within their class, and without classes; and the detections that remain."""

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        masks = not_suppressed(boxes, scores, IOU, labels, CLASSES), not_suppressed(boxes, scores, IOU)
        found = Boxes(xyxy_to_cxcywh(boxes / 100), (scores / 10 + 0.5).sort(descending=True).values, labels)
        remaining, places = without_duplicates(found, IOU, CLASSES)
        return *masks, *remaining, places


def inputs(images: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images)
    corner = torch.rand(images, count, 2, generator=generator) * 50 - 10
    size = torch.rand(images, count, 2, generator=generator) * 30 + 1
    labels = torch.randint(0, CLASSES, (images, count), generator=generator)
    scores = torch.rand(images, count, generator=generator) * 10 - 5  # logits
    return torch.cat([corner, corner + size], -1), scores, labels


def test_suppression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic sizes are not of type int
    batch, count = torch.export.Dim("batch", min=1), torch.export.Dim("count", min=2)
    axes = {0: batch, 1: count}
    program = torch.export.export(Suppression(), inputs(3, 40), dynamic_shapes=(axes, axes, axes), strict=False)
    names = ["boxes", "scores", "labels"]
    with quiet():
        converted = torch.onnx.export(
            program, (), input_names=names, custom_translation_table=translations(), opset_version=18, verbose=False
        )
    assert converted is not None
    session = onnxruntime.InferenceSession(
        converted.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for images, number in ((1, 60), (4, 33)):
        tensors = inputs(images, number)
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
        expected = [output.numpy() for output in Suppression()(*tensors)]
        assert (expected[3] == 0).any()
        assert 0 < expected[1].sum() < expected[0].sum() < images * number
        for mask, own in zip(expected, found, strict=True):
            np.testing.assert_allclose(mask, own, atol=1e-6)
