"""Made-up explanations in the JSON of ``detrs.explanation``."""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Json = dict[str, Any]
Array = NDArray[Any]


def stored(values: Array, dtype: str = "float32", low: float = 0.0, high: float = 1.0) -> Json:
    """An array as in the payload; integers cover the range from ``low`` to ``high``."""
    scale, offset = 1.0, 0.0
    if dtype != "float32":
        scale, offset = (high - low) / np.iinfo(dtype).max, low
        values = np.rint((values - low) / scale).clip(0, np.iinfo(dtype).max)
    data = base64.b64encode(values.astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode()
    return {"dtype": dtype, "shape": list(values.shape), "scale": scale, "offset": offset, "data": data}


def restored(array: Json) -> Array:
    """The values of an array of the payload."""
    values = np.frombuffer(base64.b64decode(array["data"]), np.dtype(array["dtype"]).newbyteorder("<"))
    return array["offset"] + array["scale"] * values.reshape(array["shape"]).astype(np.float64)


class Size(NamedTuple):
    """Numbers of a made-up detector and size of its image."""

    height: int = 149
    width: int = 211
    queries: int = 23
    layers: int = 3
    heads: int = 4
    levels: int = 3
    points: int = 2
    classes: tuple[str, ...] = ("cat", "dog", "bird")
    detections: int = 4
    grid: tuple[int, int] = (5, 7)


FULL = Size(
    height=800,
    width=1333,
    queries=300,
    layers=6,
    heads=8,
    levels=4,
    points=4,
    classes=tuple(f"class {i}" for i in range(91)),
    detections=20,
    grid=(25, 42),
)
"""A published Deformable DETR."""


def explanation(size: Size = Size(), views: str = "sampling", source: str | None = "folder/image.png") -> Json:  # noqa: B008
    """Boxes that approach their final position over the layers; views of one kind in the encoder and the decoder.

    Args:
        views: ``sampling``, ``attention``, ``region`` or ``points``.
    """
    random = np.random.default_rng(3)
    side = np.linspace(0, 1, size.width)[None, :, None], np.linspace(0, 1, size.height)[:, None, None]
    pixels = np.concatenate([*np.broadcast_arrays(*side), np.broadcast_to(0.4, (size.height, size.width, 1))], 2)
    file = io.BytesIO()
    Image.fromarray((60 + 120 * pixels).astype(np.uint8)).save(file, "JPEG")
    image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

    final = np.concatenate(
        [random.uniform(0.2, 0.8, (size.queries, 2)), random.uniform(0.1, 0.3, (size.queries, 2))], 1
    )
    first = (final + random.normal(0, 0.08, final.shape)).clip(0.02, 0.95)
    along = np.linspace(0, 1, size.layers + 1)[:, None, None]
    boxes = first + (final - first) * along  # (layers + 1, Q, 4), the first one is the reference
    ends = random.uniform(0.02, 0.4, size.queries)
    ends[: size.detections] = np.linspace(0.95, 0.55, size.detections)
    scores = ends * np.linspace(0.4, 1, size.layers)[:, None]
    labels = random.integers(0, len(size.classes), (size.layers, size.queries))
    labels[-1, : len(size.classes)] = np.arange(size.queries)[: len(size.classes)]

    shown = []
    for query in range(size.detections):
        label = int(labels[-1, query])
        cx, cy, w, h = final[query] * np.tile([size.width, size.height], 2)
        others = [name for name in size.classes if name != size.classes[label]][:2]
        shown.append(
            {
                "query": query,
                "label": label,
                "name": size.classes[label],
                "score": float(scores[-1, query]),
                "box_xyxy": [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2],
                "runners_up": [{"name": name, "score": 0.1 / (i + 1)} for i, name in enumerate(others)],
                "duplicates": [{"query": size.queries - 1, "label": label, "score": 0.31, "iou": 0.74}],
            }
        )
    layers = [
        {
            "reference": stored(boxes[i]),
            "boxes": stored(boxes[i + 1]),
            "scores": stored(scores[i]),
            "labels": stored(labels[i], "uint16", 0, 2**16 - 1),
            "detection_scores": stored(0.9 * scores[i, : size.detections]),
        }
        for i in range(size.layers)
    ]
    made = [view for layer in range(size.layers) for view in _views(size, layer, views, boxes[layer], random)]
    gradients = [
        {"detection": i, "maximum": dict.fromkeys("xywh", 0.5) | {"score": 2.5}}
        | {name: stored(random.random((13, 17)) ** 4, "uint8") for name in ("score", "x", "y", "w", "h")}
        for i in range(min(2, size.detections))
    ]
    return {
        "version": 1,
        "detector": "MadeUpDETR",
        "source": source,
        "threshold": 0.5,
        "classes": list(size.classes),
        "image": {"width": size.width, "height": size.height, "data": image},
        "detections": shown,
        "layers": layers,
        "views": sorted(made, key=lambda view: view["stage"] != "encoder"),
        "gradients": gradients,
    }


def _views(size: Size, layer: int, kind: str, boxes: Array, random: np.random.Generator) -> list[Json]:
    """The views of one layer: around the boxes in the decoder, around the tokens of a grid in the encoder."""
    height, width = size.grid
    rows, columns = np.mgrid[:height, :width]
    tokens = np.stack([(columns.ravel() + 0.5) / width, (rows.ravel() + 0.5) / height], 1)
    found = []
    for stage, centers in (("encoder", tokens), ("decoder", boxes[:, :2])):
        view: Json = {"kind": kind, "stage": stage, "layer": layer, "name": f"{stage}.layers.{layer}.attention"}
        if kind != "points":
            view["queries"] = list(range(len(centers)))
        if stage == "encoder" and kind in ("sampling", "attention"):
            view["grid"] = {"height": height, "width": width}
        if kind == "sampling":
            shape = (len(centers), size.heads, size.levels, size.points)
            logits = random.normal(0, 1.5, shape)
            weights = np.exp(logits) / np.exp(logits).sum((2, 3), keepdims=True)
            locations = centers[:, None, None, None] + random.normal(0, 0.05, (*shape, 2))
            view["shapes"] = [[height << i, width << i] for i in reversed(range(size.levels))]
            view["locations"] = stored(locations, "uint16", float(locations.min()), float(locations.max()))
            view["weights"] = stored(weights, "uint8", 0, float(weights.max()))
        elif kind == "attention":
            distance = ((centers[:, None] - tokens) ** 2).sum(-1)[:, None] * random.uniform(20, 90, (1, size.heads, 1))
            maps = np.exp(-distance).reshape(-1, size.heads, height, width)
            maps /= maps.sum((2, 3), keepdims=True)
            maximum = maps.max((2, 3))
            view |= {"weights": stored(maps / maximum[..., None, None], "uint8"), "maximum": stored(maximum)}
        elif kind == "region" and stage == "decoder":
            view |= {"boxes": stored(boxes), "responses": stored(random.random((len(boxes), 7, 7)), "uint8")}
            view["maximum"] = stored(random.random(len(boxes)))
        elif kind == "points" and stage == "decoder":
            offsets = random.normal(0, 0.02, (size.heads, height, width, 2))
            view |= {
                "stage": "backbone",
                "points": stored((tokens.reshape(height, width, 2) + offsets + 1) / 3, "uint16"),
            }
            view["points"] |= {"scale": 3 * view["points"]["scale"], "offset": -1.0}
        else:
            continue
        found.append(view)
    return found
