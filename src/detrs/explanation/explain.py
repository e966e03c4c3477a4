"""``detrs.explain``: images to what a detector computed for them, by the same path as prediction."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import ExportedModel
from detrs.checkpoints.sources import open_detector
from detrs.config.detection import check_threshold
from detrs.errors import UserError
from detrs.explanation.builders import BUILDERS, TRACERS
from detrs.explanation.gradients import gradients
from detrs.explanation.recording import Call, Selection, recording
from detrs.explanation.trace import best_queries
from detrs.explanation.tracing import Trace
from detrs.explanation.views import Explanation
from detrs.precision import full_precision
from detrs.predictor import ImageDetections, Predictor
from detrs.sources import OnError, Source
from detrs.structures import Boxes

MAX_TOKENS = 400


def explain(
    detector: str | Path | Predictor | TrainedDetector,
    images: Source | Iterable[Source],
    *,
    threshold: float | None = None,
    device: str = "auto",
    num_gradients: int = 0,
    max_tokens: int = MAX_TOKENS,
    allow_urls: bool = False,
    on_error: OnError = "raise",
) -> list[Explanation]:
    """Explain the detections of each image: attention, sampling points, the path of the boxes, gradients.

    Detections are those that ``Predictor`` returns for each image by itself in ``fp32``: explanations are computed in
    float32, whatever the precision of a predictor, so that a gradient is that of the detection and not of rounding. The
    model is left as it was.

    Args:
        detector: a checkpoint, as for ``Predictor.load``; or a predictor or detector that is loaded already.
        images: as for ``Predictor``: files, folders, globs, arrays, ....
        threshold: smallest score of a detection, in [0, 1]; by default as in prediction: ``Predictor.threshold``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``; a predictor remains on its own.
        num_gradients: number of detections, best first, whose gradients are computed: five backward passes for each.
        max_tokens: views contain at most this many tokens of each level of the encoder, a regular grid, and at most
            this many queries of the decoder, the best.
        allow_urls: download ``http://`` and ``https://`` sources.
        on_error: what to do with a source that cannot be read, as for ``Predictor``.

    Returns:
        One explanation per image, in the order of the sources.

    Raises:
        UserError: the checkpoint or an image cannot be used, or an argument is out of range.
    """
    found = explain_iter(
        detector,
        images,
        threshold=threshold,
        device=device,
        num_gradients=num_gradients,
        max_tokens=max_tokens,
        allow_urls=allow_urls,
        on_error=on_error,
    )
    return list(found)


def explain_iter(
    detector: str | Path | Predictor | TrainedDetector,
    images: Source | Iterable[Source],
    *,
    threshold: float | None = None,
    device: str = "auto",
    num_gradients: int = 0,
    max_tokens: int = MAX_TOKENS,
    allow_urls: bool = False,
    on_error: OnError = "raise",
) -> Iterator[Explanation]:
    """The same, one by one. Arguments and errors are those of ``explain``."""
    if threshold is not None:
        check_threshold(threshold)
    if num_gradients < 0:
        raise UserError(f"num_gradients is {num_gradients}, but must be at least 0.")
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}, but must be at least 1.")
    return _explanations(detector, images, threshold, device, num_gradients, max_tokens, allow_urls, on_error)


def _explanations(
    detector: str | Path | Predictor | TrainedDetector,
    images: Source | Iterable[Source],
    threshold: float | None,
    device: str,
    num_gradients: int,
    max_tokens: int,
    allow_urls: bool,
    on_error: OnError,
) -> Iterator[Explanation]:
    with as_predictor(detector, device) as predictor:
        model = predictor.detector.module
        check_layers(model)
        if type(model) not in TRACERS:
            known = ", ".join(sorted(each.__name__ for each in TRACERS))
            raise UserError(f"Models of the class {type(model).__name__} cannot be explained; those of {known} can.")
        tracer = TRACERS[type(model)]
        threshold = predictor.threshold if threshold is None else threshold
        classes = {*BUILDERS, *tracer.classes(model), type(model)}
        items = predictor.predict_iter(
            images, threshold=threshold, batch_size=1, allow_urls=allow_urls, on_error=on_error
        )
        while True:
            with recording(model, classes) as calls:
                item = next(items, None)
            if item is None:
                return
            with full_precision(predictor.device.type):  # as the detections
                found = explanation(predictor, item, calls, threshold, num_gradients, max_tokens)
            yield found


def check_layers(model: nn.Module) -> None:
    """Raise ``UserError`` if a model is an exported file, whose layers cannot be recorded."""
    if isinstance(model, ExportedModel):
        raise UserError(
            f"'{model.source}' is an exported file, which does not have the layers of the model. Explain its "
            "checkpoint."
        )


@contextmanager
def as_predictor(detector: str | Path | Predictor | TrainedDetector, device: str) -> Iterator[Predictor]:
    """A predictor in ``fp32``. A ``TrainedDetector`` is on its own device and in its own mode again afterwards."""
    if isinstance(detector, Predictor):
        check_layers(detector.detector.module)
        yield Predictor(detector.detector, str(detector.device), precision="fp32")
    elif isinstance(detector, TrainedDetector):
        module = detector.module
        check_layers(module)
        modes = [(each, each.training) for each in module.modules()]
        before = next(module.parameters()).device
        try:
            yield Predictor(detector, device, precision="fp32")
        finally:
            module.to(before)
            for each, mode in modes:
                each.training = mode
    else:
        loaded = open_detector(detector)
        check_layers(loaded.module)
        yield Predictor(loaded, device, precision="fp32")


def suppressing(trace: Trace, detector: TrainedDetector) -> Trace:
    """The trace after ``evaluation.nms``."""
    found, places = detector.without_duplicates(Boxes(trace.boxes[None], trace.scores[None], trace.labels[None]))
    suppressed = trace.suppressed and tuple(trace.suppressed[place] for place in places[0].tolist())
    return Trace(trace.layers, trace.queries[places[0]], found.labels[0], found.scores[0], found.boxes[0], suppressed)


@torch.no_grad()
def explanation(
    predictor: Predictor,
    item: ImageDetections,
    calls: list[Call],
    threshold: float,
    num_gradients: int,
    max_tokens: int,
) -> Explanation:
    """The explanation of one image from the calls of its forward pass."""
    detector, (image, detections) = predictor.detector, item
    model, tracer = detector.module, TRACERS[type(detector.module)]
    max_detections = detector.experiment.evaluation.max_detections
    (images, padding) = next(call.arguments for call in calls if call.module is model)
    trace = suppressing(tracer.trace(model, calls, max_detections), detector)
    kept = (trace.scores != 0) & (trace.scores >= threshold)  # as in ``postprocess.detections`` and ``filter``
    queries = trace.queries[kept].tolist()
    assert torch.equal(trace.scores[kept], detections.scores) and torch.equal(trace.labels[kept], detections.labels)
    selection = Selection(best_queries(trace.layers[-1], queries, max_tokens), max_tokens)
    views = tuple(BUILDERS[type(call.module)](call, selection) for call in calls if type(call.module) in BUILDERS)
    answers = list(zip(queries, detections.labels.tolist(), strict=True))[:num_gradients]
    return Explanation(
        image=image,
        source=detections.source,
        detector=type(detector.experiment.model).__name__.removesuffix("Config"),
        input_size=(images.shape[2], images.shape[3]),
        classes=detector.classes,
        threshold=threshold,
        detections=detections,
        queries=queries,
        trace=trace.layers,
        views=views,
        suppressed=trace.suppressed and tuple(trace.suppressed[i] for i in kept.nonzero()[:, 0].tolist()),
        gradients=gradients(model, tracer, images, padding, max_detections, answers),
    )
