"""Operators of this library in terms of ONNX."""

from collections.abc import Callable
from typing import Any

import torch

import detrs.ops.suppression  # noqa: F401 (registers the operator)

FLOAT = 1
"""``onnx.TensorProto.FLOAT``."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``torch.onnx.export``: operator -> function that adds its nodes."""
    return {torch.ops.detrs.not_suppressed.default: not_suppressed}


def not_suppressed(boxes: Any, scores: Any, labels: Any, num_classes: int, iou: float) -> Any:
    """``detrs.ops.suppression`` by NonMaxSuppression, which takes a score for each class and has float32 only."""
    from onnxscript import onnx_opset

    op: Any = onnx_opset.opset18
    boxes, unlimited = op.Cast(boxes, to=FLOAT), 2**31 - 1
    scores = op.Unsqueeze(op.Cast(scores, to=FLOAT), [1])  # (B, 1, N)
    classes = op.Reshape(op.Range(0, num_classes, 1), [1, -1, 1])
    is_member = op.Equal(op.Unsqueeze(labels, [1]), classes)  # (B, K, N)
    of_class = op.Where(is_member, scores, op.Constant(value_float=-torch.inf))  # others are below the threshold
    kept = op.NonMaxSuppression(boxes, of_class, unlimited, iou, float(torch.finfo(torch.float32).min))
    image_and_box = op.Gather(kept, [0, 2], axis=1)  # rows of ``kept`` are image, class, box
    zeros = op.Expand(op.Constant(value_float=0.0), op.Shape(labels))
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(kept, start=0, end=1))
    return op.Greater(op.ScatterND(zeros, image_and_box, ones), op.Constant(value_float=0.5))
