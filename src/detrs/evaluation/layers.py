"""Detections of every decoder layer, and the query of each: their AP, and how queries are used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from detrs.evaluation.coco import ALL, Id, accumulated, mean, numbering, validated_truth


class ImageLayers(NamedTuple):
    """The detections of one image."""

    image_id: int
    layers: tuple[np.ndarray, ...]
    """(N, 6) x, y, w, h in pixels, score and category id of each decoder layer; the last are the detections that are
    scored."""
    queries: np.ndarray | None
    """(N,) the query of each detection of the last layer; ``None`` for detectors without queries."""
    num_queries: int | None


@dataclass(frozen=True)
class LayerScore:
    """The AP of one decoder layer."""

    layer: int
    """From 1."""
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class QueryUse:
    """Objects and detections, compared with the queries and the limit of detections."""

    num_queries: int
    max_detections: int
    """Detections per image."""
    most_objects: int
    """Largest number of objects of an image, without crowd regions."""
    image_with_most_objects: Id | None
    images_above_queries: int
    """Images with more objects than queries: each object beyond is missed."""
    images_above_detections: int
    """Images with more objects than detections that are returned."""
    num_used: int
    """Different queries with a detection above the threshold, over all images."""
    per_image: tuple[float, float]
    """Median and largest number of different queries with a detection above the threshold in an image."""
    counts: tuple[int, ...]
    """Detections above the threshold of each query, over all images."""
    several_classes: int
    """Detections above the threshold whose query gave a better one in the same image, with another class."""


def layer_scores(
    ground_truth: dict[str, Any], images: Sequence[ImageLayers], max_detections: int
) -> tuple[LayerScore, ...]:
    """The AP of each decoder layer; the last is that of the evaluation. Empty for detectors without queries."""
    if not images or images[0].num_queries is None:
        return ()
    numbers = numbering(image["id"] for image in ground_truth["images"])
    categories = numbering(category["id"] for category in ground_truth["categories"])
    truth = validated_truth(ground_truth, numbers, categories)
    found = []
    for layer in range(len(images[0].layers)):
        parts = [np.zeros((0, 7))]
        for each in images:
            rows = each.layers[layer]
            column = np.array([categories[id] for id in rows[:, 5].astype(int).tolist()], dtype=float)
            parts.append(np.column_stack([np.full(len(rows), float(numbers[each.image_id])), rows[:, :5], column]))
        precision = accumulated(truth, np.concatenate(parts), max_detections).precision
        found.append(LayerScore(layer + 1, mean(precision[:, :, :, ALL, -1]), mean(precision[0, :, :, ALL, -1])))
    return tuple(found)


def query_use(
    ground_truth: dict[str, Any], images: Sequence[ImageLayers], threshold: float, max_detections: int
) -> QueryUse | None:
    """How the queries are used; ``None`` for a detector without queries."""
    if not images or images[0].num_queries is None:
        return None
    num_queries = images[0].num_queries
    objects = {image["id"]: 0 for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        objects[annotation["image_id"]] += not annotation.get("iscrowd", 0)
    counts, used, several = np.zeros(num_queries, dtype=np.int64), [], 0
    for each in images:
        assert each.queries is not None
        queries = each.queries[each.layers[-1][:, 4] >= threshold]
        np.add.at(counts, queries, 1)
        used.append(len(np.unique(queries)))
        several += len(queries) - used[-1]
    fullest = max(objects, key=lambda id: objects[id], default=None)
    return QueryUse(
        num_queries=num_queries,
        max_detections=max_detections,
        most_objects=objects[fullest] if fullest is not None else 0,
        image_with_most_objects=fullest,
        images_above_queries=sum(count > num_queries for count in objects.values()),
        images_above_detections=sum(count > max_detections for count in objects.values()),
        num_used=int((counts > 0).sum()),
        per_image=(float(np.median(used)), float(max(used))),
        counts=tuple(counts.tolist()),
        several_classes=several,
    )
