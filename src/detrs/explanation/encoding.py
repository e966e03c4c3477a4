"""An explanation as JSON, small enough for a page that opens at once.

An array is ``{"dtype", "shape", "scale", "offset", "data"}``: ``value = offset + scale * stored`` with ``data`` in
base64, little-endian, row-major. Whatever is left out is named: a view's ``queries`` are the indices of the queries or
tokens that are stored, and ``grid`` is the regular grid that the tokens of an encoder form (token i covers the i-th of
height x width equal rectangles of the image, row-major).
"""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from detrs.explanation.tokens import fitting_grid, spread
from detrs.explanation.trace import best_queries, duplicates_of, runners_up
from detrs.explanation.views import (
    AttentionView,
    Explanation,
    Gradients,
    LayerTrace,
    PointsView,
    RegionView,
    SamplingView,
    View,
)

VERSION = 1
LONGEST_IMAGE_SIDE = 1600
LONGEST_GRADIENT_SIDE = 256
JPEG_QUALITY = 88
DECODER_BYTES = 4_000_000
"""Limit of the decoder's views before base64; the best queries that fit are stored."""
ENCODER_BYTES = 6_000_000
"""Limit of the encoder's views before base64; the finest grid of tokens that fits is stored."""
ENCODER_STRIDE = 32
"""Of the encoder's levels, the tokens of that with the nearest stride are stored, in pixels of the resized image."""

Json = dict[str, Any]


def encode(explanation: Explanation) -> Json:
    """The explanation as a dictionary for ``json.dumps``."""
    reduced = reduce_views(explanation)
    return {
        "version": VERSION,
        "detector": explanation.detector,
        "source": explanation.source,
        "threshold": explanation.threshold,
        "classes": list(explanation.classes.names),
        "image": encode_image(explanation.image),
        "input_size": list(explanation.input_size),
        "detections": [encode_detection(explanation, index) for index in range(len(explanation.queries))],
        "layers": [encode_layer(explanation, layer) for layer in explanation.trace],
        "views": [encode_view(view) for view in reduced],
        "gradients": [encode_gradients(gradients) for gradients in explanation.gradients],
    }


def encode_image(image: Tensor) -> Json:
    """A JPEG with its long side at most ``LONGEST_IMAGE_SIDE``; ``width`` and ``height`` are the original ones."""
    height, width = image.shape[1:]
    reduced = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    reduced.thumbnail((LONGEST_IMAGE_SIDE, LONGEST_IMAGE_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    reduced.save(file, "JPEG", quality=JPEG_QUALITY)
    data = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"width": width, "height": height, "data": data}


def encode_detection(explanation: Explanation, index: int) -> Json:
    """A detection, the other classes of its query, and its duplicates."""
    found, names = explanation.detections, explanation.classes.names
    query, label = explanation.queries[index], int(found.labels[index])
    last = explanation.trace[-1]
    return {
        "query": query,
        "label": label,
        "name": names[label],
        "score": float(found.scores[index]),
        "box_xyxy": found.boxes_xyxy[index].tolist(),
        "runners_up": [{"name": names[other], "score": score} for other, score in runners_up(last, query, label)],
        "duplicates": [
            {"query": each.query, "label": each.label, "score": each.score, "iou": each.iou}
            for each in duplicates_of(explanation, index)
        ],
    }


def encode_layer(explanation: Explanation, layer: LayerTrace) -> Json:
    """All queries in one layer; ``detection_scores`` are those of each detection's query and class."""
    scores, labels = layer.scores.max(1)
    queries = torch.tensor(explanation.queries, dtype=torch.long)
    return {
        "reference": array(layer.reference),
        "boxes": array(layer.boxes),
        "scores": array(scores),
        "labels": array(labels, "uint16" if layer.scores.shape[1] <= 2**16 else "float32"),
        "detection_scores": array(layer.scores[queries, explanation.detections.labels]),
    }


def encode_view(view: View) -> Json:
    """The arrays of a view. ``weights`` of attention are relative to the ``maximum`` of each query and head."""
    found: Json = {"kind": view.kind, "stage": view.stage, "layer": view.layer, "name": view.name}
    if isinstance(view, PointsView):
        return found | {"points": array(view.points, "uint16")}
    found["queries"] = view.queries.tolist()
    if isinstance(view, RegionView):
        found["boxes"] = array(view.boxes)
        objectness = {} if view.objectness is None else {"objectness": array(view.objectness)}
        return found | objectness | ({} if view.responses is None else relative("responses", view.responses))
    if view.grids:
        (height, width), *others = view.grids
        assert not others, "reduce_views leaves one grid"
        found["grid"] = {"height": height, "width": width}
    if isinstance(view, AttentionView):
        return found | relative("weights", view.weights)
    return found | {
        "shapes": [list(shape) for shape in view.shapes],
        "locations": array(view.locations, "uint16"),
        "weights": array(view.weights, "uint8", 0.0, float(view.weights.amax()) if view.weights.numel() else 1.0),
    }


def relative(name: str, maps: Tensor) -> Json:
    """Maps (..., h, w) in 8 bits, each divided by its ``maximum`` (...)."""
    maximum = maps.amax((-2, -1))
    shares = maps / maximum.clamp(min=torch.finfo(torch.float32).tiny)[..., None, None]
    return {name: array(shares, "uint8", 0.0, 1.0), "maximum": array(maximum)}


def encode_gradients(gradients: Gradients) -> Json:
    """Maps relative to their ``maximum``, reduced to ``LONGEST_GRADIENT_SIDE`` by the mean of the pixels of a cell."""
    maps = {}
    for name, values in gradients.maps.items():
        height, width = values.shape
        factor = min(1.0, LONGEST_GRADIENT_SIDE / max(height, width))
        size = (max(round(height * factor), 1), max(round(width * factor), 1))
        maps[name] = relative("map", interpolate(values[None, None], size=size, mode="area")[0, 0])
    return {
        "detection": gradients.detection,
        **{name: each["map"] for name, each in maps.items()},
        "maximum": {name: float(decoded(each["maximum"])) for name, each in maps.items()},
    }


def reduce_views(explanation: Explanation) -> list[View]:
    """The views with the queries and tokens that fit into the limits."""
    views = [one_level(view, explanation.input_size) for view in explanation.views]
    kept: list[View] = []
    for view in views:
        same = [other for other in views if other.stage == view.stage and not isinstance(other, PointsView)]
        if isinstance(view, PointsView):
            kept.append(view)
        elif view.stage == "encoder":
            kept.append(coarser(view, ENCODER_BYTES // len(same)))
        else:
            number = DECODER_BYTES // max(sum(bytes_per_query(other) for other in same), 1)
            best = best_queries(explanation.trace[-1], explanation.queries, max(number, len(explanation.queries), 1))
            kept.append(rows(view, torch.isin(view.queries, best).nonzero()[:, 0]))
    return kept


def one_level(view: View, input_size: tuple[int, int]) -> View:
    """The tokens of the level whose stride is nearest to ``ENCODER_STRIDE``; other views are unchanged."""
    if not isinstance(view, SamplingView) or len(view.grids) < 2:
        return view
    strides = [input_size[0] / height for height, _ in view.shapes]
    level = min(range(len(strides)), key=lambda i: abs(np.log2(strides[i] / ENCODER_STRIDE)))
    starts = np.cumsum([0] + [height * width for height, width in view.grids])
    kept = rows(view, torch.arange(starts[level], starts[level + 1]))
    return with_grid(kept, view.grids[level])


def coarser(view: View, limit: int) -> View:
    """A view whose tokens form one grid, with the finest grid of at most ``limit`` bytes."""
    assert isinstance(view, SamplingView | AttentionView)
    ((height, width),) = view.grids
    new_height, new_width = fitting_grid((height, width), max(limit // max(bytes_per_query(view), 1), 1))
    chosen = spread(height, new_height)[:, None] * width + spread(width, new_width)
    return with_grid(rows(view, chosen.flatten()), (new_height, new_width))


def with_grid(view: Any, grid: tuple[int, int]) -> View:
    """The view with tokens that form one grid."""
    kept: View = replace(view, grids=(grid,))
    return kept


def rows(view: Any, chosen: Tensor) -> View:
    """The view with only the queries at the positions ``chosen``."""
    names = {
        "sampling": ("locations", "weights"),
        "attention": ("weights",),
        "region": ("boxes", "responses", "objectness"),
    }
    arrays = {name: getattr(view, name) for name in ("queries", *names[view.kind])}
    kept: View = replace(view, **{name: None if each is None else each[chosen] for name, each in arrays.items()})
    return kept


def bytes_per_query(view: View) -> int:
    """Size of what is stored of one query."""
    if isinstance(view, SamplingView):
        return view.weights[:1].numel() * 5  # two coordinates in 16 bits, a weight in 8
    if isinstance(view, AttentionView):
        return view.weights[:1].numel() + view.weights.shape[1] * 4
    if isinstance(view, RegionView):
        return 20 + (0 if view.responses is None else view.responses[:1].numel() + 4)
    return 0


def array(values: Tensor, dtype: str = "float32", low: float | None = None, high: float | None = None) -> Json:
    """An array; integers cover the range from ``low`` to ``high``, by default that of the values."""
    given = values.detach().cpu().numpy()
    if dtype == "float32":
        scale, offset, stored = 1.0, 0.0, given.astype("<f4")
    elif np.issubdtype(given.dtype, np.integer):
        scale, offset, stored = 1.0, 0.0, given.astype(f"<u{np.dtype(dtype).itemsize}")
    else:
        finite = given[np.isfinite(given)].astype(np.float64)
        low = low if low is not None else float(finite.min(initial=0.0 if not finite.size else np.inf))
        high = high if high is not None else float(finite.max(initial=0.0 if not finite.size else -np.inf))
        largest = np.iinfo(dtype).max
        offset, scale = low, (high - low) / largest or 1.0
        clean = np.nan_to_num(given.astype(np.float64), nan=low, posinf=high, neginf=low)
        stored = np.rint((clean - low) / scale).clip(0, largest).astype(f"<u{np.dtype(dtype).itemsize}")
    data = base64.b64encode(np.ascontiguousarray(stored).tobytes()).decode()
    return {"dtype": dtype, "shape": list(given.shape), "scale": scale, "offset": offset, "data": data}


def decoded(encoded: Json) -> np.ndarray:
    """The values of an encoded array in float64."""
    dtype = np.dtype(encoded["dtype"]).newbyteorder("<")
    stored = np.frombuffer(base64.b64decode(encoded["data"]), dtype).reshape(encoded["shape"])
    return np.asarray(encoded["offset"] + encoded["scale"] * stored.astype(np.float64))  # not a scalar for shape ()
