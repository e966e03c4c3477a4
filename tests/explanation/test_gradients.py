"""Gradients are derivatives of what ``detect`` returns: central finite differences in float64 give the same."""

from typing import Any

import pytest
import torch
from explained import EVERY_TINY, photograph, shared_tiny, tiny
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detrs.explanation.builders import TRACERS
from detrs.explanation.explain import explain
from detrs.explanation.gradients import derivatives
from detrs.explanation.recording import recording
from detrs.models.faster_rcnn import FasterRCNN
from detrs.ops import use
from detrs.predictor import Predictor

SIZE = (67, 83)
STEP = 1e-6


class InFloat64(TorchFunctionMode):
    """Modules convert some tensors to float32, in which differences of outputs would be rounding errors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def inputs(detector: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The normalized photograph and its padding."""
    pixels = photograph(size)[None].double() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (detector.preprocessing.mean, detector.preprocessing.std))
    return (pixels - mean) / std, torch.zeros(1, *size, dtype=torch.bool)


@pytest.mark.parametrize("name", EVERY_TINY)
def test_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = tiny(name, SIZE)
    model: Any = detector.module.double()
    images, padding = inputs(detector, SIZE)
    tracer, count = TRACERS[type(model)], detector.experiment.evaluation.max_detections
    if isinstance(model, FasterRCNN):  # proposals are constants
        propose, known = model.rpn.propose, []

        def constant(*arguments: Any) -> Any:
            known.extend([] if known else [propose(*arguments)])
            return known[0]

        monkeypatch.setattr(model.rpn, "propose", constant)
    with InFloat64(), use("reference"):
        first = model.detect(images, padding, count)
        with torch.no_grad(), recording(model, tracer.classes(model)) as calls:
            model.detect(images, padding, count)
        trace = tracer.trace(model, calls, count)
        answers = list(zip(trace.queries.tolist(), trace.labels.tolist(), strict=True))
        position = 1  # of the detection that is compared
        (found,) = derivatives(model, tracer, images, padding, count, answers[position : position + 1])

        def values(changed: Tensor) -> Tensor:
            boxes = model.detect(changed, padding, count)
            near = (boxes.boxes[0] - first.boxes[0, position]).abs().sum(1) + (
                boxes.labels[0] != first.labels[0, position]
            )
            index = near.argmin()
            return torch.cat([boxes.scores[0, index, None], boxes.boxes[0, index]])

        strongest = int(found[1].abs().flatten().argmax())
        generator = torch.Generator().manual_seed(3)
        random = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        pixel = torch.zeros_like(images).flatten()
        pixel[strongest] = 1.0
        with torch.no_grad():
            for direction in (random / random.norm(), pixel.view_as(images)):
                difference = (values(images + STEP * direction) - values(images - STEP * direction)) / (2 * STEP)
                expected = torch.stack([(each * direction[0]).sum() for each in found])
                assert expected.abs().min() > 0
                assert torch.allclose(expected, difference, rtol=1e-4, atol=1e-9), (expected, difference)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["detr-tiny", "anchor-detr-tiny"])
def test_maps_are_norms_over_the_colors(name: str) -> None:
    """Of detectors without references that training detaches, autograd alone gives the same."""
    detector = shared_tiny(name)
    (explanation,) = explain(detector, photograph(), threshold=0.2, num_gradients=2, device="cpu")
    assert [each.detection for each in explanation.gradients] == [0, 1]
    seen: list[Any] = []
    handle = detector.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    Predictor(detector, "cpu")(photograph(), threshold=0.2)
    handle.remove()
    ((images, padding),) = seen
    images = images.clone().requires_grad_()
    boxes = detector.module.detect(images, padding, detector.experiment.evaluation.max_detections)
    for index, each in enumerate(explanation.gradients):
        assert tuple(each.maps) == ("score", "x", "y", "w", "h")
        for quantity, value in zip(each.maps, (boxes.scores[0, index], *boxes.boxes[0, index]), strict=True):
            (expected,) = torch.autograd.grad(value, images, retain_graph=True)
            norm = expected[0].square().sum(0).sqrt()
            assert each.maps[quantity].shape == explanation.input_size
            assert torch.allclose(each.maps[quantity], norm, rtol=1e-3, atol=1e-6 * float(norm.max())), quantity


def test_a_detection_at_the_limit_is_found_although_the_order_differs() -> None:
    """Rounding can move an answer below one of equal score, and so below the limit of detections."""
    detector = shared_tiny("detr-tiny")
    model, (images, padding) = detector.module, inputs(detector, SIZE)
    tracer = TRACERS[type(model)]
    with torch.no_grad(), recording(model, tracer.classes(model)) as calls:
        model.detect(images.float(), padding, 2)
    trace = tracer.trace(model, calls, 2)
    second = [(int(trace.queries[1]), int(trace.labels[1]))]
    (below,) = derivatives(model, tracer, images.float(), padding, 1, second)
    (within,) = derivatives(model, tracer, images.float(), padding, 2, second)
    assert all(map(torch.equal, below, within))


def test_no_more_gradients_than_detections() -> None:
    predictor = Predictor(shared_tiny("detr-tiny"), "cpu")
    third = float(predictor(photograph(), threshold=0.0)[0].scores[2])
    (explanation,) = explain(predictor, photograph(), threshold=third, num_gradients=10_000)
    assert len(explanation.gradients) == len(explanation.detections) == 3
