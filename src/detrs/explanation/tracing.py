"""Which query gave each detection, and all queries over the layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from detrs.explanation.recording import Call
from detrs.explanation.views import Duplicate, LayerTrace
from detrs.models.detector import Detector
from detrs.structures import Prediction, Queries


class Trace(NamedTuple):
    """All queries of one image in all layers, and the origin of each of the boxes that ``detect`` returns."""

    layers: tuple[LayerTrace, ...]
    queries: Tensor
    """(N,) index of the query of each box, best first, on the CPU."""
    labels: Tensor
    """(N,) its class."""
    scores: Tensor
    """(N,) its score."""
    boxes: Tensor
    """(N, 4) cxcywh in [0, 1]."""
    suppressed: tuple[tuple[Duplicate, ...], ...] | None = None
    """For each box, those that non-maximum suppression removed for it; None without suppression."""


class Tracer(NamedTuple):
    """How to trace one kind of model."""

    classes: Callable[[Any], set[type[nn.Module]]]
    """Of a model: classes of the modules whose calls ``trace`` needs."""
    trace: Callable[[Any, Sequence[Call], int], Trace]
    """Model, the calls of one ``detect`` of a batch of one image, and its ``max_detections``, to the trace."""


def decoder_classes(model: Detector) -> set[type[nn.Module]]:
    """The decoder, whose output is every layer's prediction, and its layers, whose inputs have the references."""
    return {type(model.decoder), *(type(layer) for layer in model.decoder.layers)}


def decoder_trace(model: Detector, calls: Sequence[Call], max_detections: int) -> Trace:
    """Every layer of a decoder makes a prediction; ``detect`` takes the best boxes of the last one."""
    layers = set(model.decoder.layers)
    references = [call.arguments[0] for call in calls if call.module in layers]
    (predictions,) = [call.output[0] for call in calls if call.module is model.decoder]
    found = tuple(layer_trace(model, *pair) for pair in zip(references, predictions, strict=True))
    best = model.class_logits.best(predictions[-1].logits, max_detections)
    queries = best.queries[0].cpu()
    return Trace(found, queries, best.labels[0].cpu(), best.scores[0].detach().cpu(), found[-1].boxes[queries])


def layer_trace(model: Detector, queries: Queries, prediction: Prediction) -> LayerTrace:
    """One layer, for the first image of the batch."""
    scores = model.class_logits.probabilities(prediction.logits)
    tensors = (queries.reference, prediction.boxes, scores)
    return LayerTrace(*(each[0].detach().float().cpu() for each in tensors))
