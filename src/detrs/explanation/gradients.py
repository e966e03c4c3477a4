"""Gradients of a detection with respect to the image: which pixels would change its score, position or size.

Training stops gradients at references: a layer does not learn through the boxes of the layer before (Deformable DETR,
A.2), nor queries through the proposals that they start from. The derivative of an output with respect to the image has
no such exceptions, so they are disabled here. Constants, as in any derivative, are choices: which queries are the best,
which cells a region is pooled from; and the proposals of Faster R-CNN, which are computed without gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detrs.devices import memory_errors
from detrs.explanation.recording import recording
from detrs.explanation.tracing import Tracer
from detrs.explanation.views import Gradients
from detrs.models.detector import Model

NAMES = ("score", "x", "y", "w", "h")


class WithoutDetach(TorchFunctionMode):
    """While active in this thread, ``tensor.detach()`` is the tensor itself."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.detach:
            return args[0]
        return func(*args, **(kwargs or {}))


def gradients(
    model: Model,
    tracer: Tracer,
    images: Tensor,
    padding: Tensor,
    max_detections: int,
    answers: Sequence[tuple[int, int]],
) -> tuple[Gradients, ...]:
    """The norms over the color channels of ``derivatives``, for some of the detections of an image.

    Args:
        model: in evaluation mode. Its parameters receive no gradients.
        tracer: of its class.
        images: (1, 3, H, W), normalized.
        padding: (1, H, W).
        max_detections: as for ``detect``.
        answers: query and class of each detection.
    """
    found = []
    for index, maps in enumerate(derivatives(model, tracer, images, padding, max_detections, answers)):
        norms = {name: each.norm(dim=0).float().cpu() for name, each in zip(NAMES, maps, strict=True)}
        found.append(Gradients(index, norms))
    return tuple(found)


def derivatives(
    model: Model,
    tracer: Tracer,
    images: Tensor,
    padding: Tensor,
    max_detections: int,
    answers: Sequence[tuple[int, int]],
) -> list[list[Tensor]]:
    """Derivatives (3, H, W) of score, x, y, w and h, as ``detect`` returns them, of each of the answers."""
    if not answers:
        return []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        memory_errors(images, "Ask for explanations without gradients, or lower the image size"),
    ):
        leaf = images.detach().clone().requires_grad_()
        with recording(model, tracer.classes(model)) as calls, WithoutDetach():
            # The arithmetic with gradients can differ in the last bit, and so the order of equal scores: among twice as
            # many detections, none of the answers is missing.
            boxes = model.detect(leaf, padding.clone(), 2 * max_detections)
        trace = tracer.trace(model, calls, 2 * max_detections)
        order = list(zip(trace.queries.tolist(), trace.labels.tolist(), strict=True))
        found = []
        for answer in answers:
            index = order.index(answer)
            values = (boxes.scores[0, index], *boxes.boxes[0, index])
            found.append([gradient(value, leaf) for value in values])
    return found


def gradient(value: Tensor, image: Tensor) -> Tensor:
    """d value / d image, (3, H, W)."""
    (found,) = torch.autograd.grad(value, image, retain_graph=True)
    return found[0]
