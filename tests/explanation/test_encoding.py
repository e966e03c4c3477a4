"""The JSON of an explanation: values within the precision of the stored integers, and never more than a page holds."""

import base64
import io
import json
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from explained import EVERY_TINY, photograph, shared_tiny
from PIL import Image

from detrs.explanation.encoding import DECODER_BYTES, ENCODER_BYTES, array, decoded
from detrs.explanation.explain import explain
from detrs.explanation.tokens import grid_tokens
from detrs.explanation.views import AttentionView, Explanation, LayerTrace, PointsView, RegionView, SamplingView
from detrs.structures import Classes, Detections


def stored_bytes(view: dict[str, Any]) -> int:
    return sum(
        len(base64.b64decode(each["data"])) for each in view.values() if isinstance(each, dict) and "data" in each
    )


@pytest.mark.parametrize("name", EVERY_TINY)
def test_every_value_of_a_small_explanation(name: str) -> None:
    (explanation,) = explain(shared_tiny(name), photograph(), threshold=0.3, num_gradients=2, device="cpu")
    page = json.loads(json.dumps(explanation.to_json(), allow_nan=False))
    assert page["detector"] == explanation.detector and page["classes"] == list(explanation.classes.names)
    assert [each["query"] for each in page["detections"]] == explanation.queries
    for index, each in enumerate(page["detections"]):
        assert np.allclose(each["box_xyxy"], explanation.detections.boxes_xyxy[index])
        assert each["score"] == pytest.approx(float(explanation.detections.scores[index]))
        assert each["name"] == explanation.detections.names[index] == explanation.classes.names[each["label"]]
        assert all(runner["name"] != each["name"] for runner in each["runners_up"])
    for layer, given in zip(page["layers"], explanation.trace, strict=True):
        assert np.array_equal(decoded(layer["boxes"]), given.boxes.numpy())
        assert np.array_equal(decoded(layer["reference"]), given.reference.numpy())
        assert np.array_equal(decoded(layer["scores"]), given.scores.amax(1).numpy())
        assert np.array_equal(decoded(layer["labels"]), given.scores.argmax(1).numpy())
    own = [each["score"] for each in page["detections"]]
    assert np.allclose(decoded(page["layers"][-1]["detection_scores"]), own)
    assert len(page["views"]) == len(explanation.views)
    for view, given in zip(page["views"], explanation.views, strict=True):
        assert (view["kind"], view["stage"], view["layer"]) == (given.kind, given.stage, given.layer)
        if isinstance(given, PointsView):
            assert np.allclose(decoded(view["points"]), given.points.numpy(), atol=1e-4)
            continue
        at = [given.queries.tolist().index(query) for query in view["queries"]]
        if given.stage == "encoder":
            assert len(at) == view["grid"]["height"] * view["grid"]["width"]
        if isinstance(given, RegionView):
            assert np.array_equal(decoded(view["boxes"]), given.boxes[at].numpy())
        elif isinstance(given, SamplingView):
            assert np.allclose(decoded(view["locations"]), given.locations[at].numpy(), atol=1e-4)
            assert np.allclose(decoded(view["weights"]), given.weights[at].numpy(), atol=1 / 255)
        else:
            weights = decoded(view["weights"]) * decoded(view["maximum"])[..., None, None]
            assert np.allclose(weights, given.weights[at].numpy(), atol=float(given.weights.max()) / 255)
    for maps, gradients in zip(page["gradients"], explanation.gradients, strict=True):
        for key, given_map in gradients.maps.items():
            found = decoded(maps[key]) * maps["maximum"][key]
            assert found.max() == pytest.approx(float(given_map.max()), rel=1e-5)
            assert np.allclose(found, given_map.numpy(), atol=float(given_map.max()) / 255)


SHAPES = ((100, 167), (50, 84), (25, 42), (13, 21))
"""Levels of an image of 800 x 1333 pixels."""


def large(kind: str, layers: int = 6, queries: int = 300, heads: int = 8) -> Explanation:
    """The explanation of a published model for an image of 800 x 1333 pixels, with random numbers."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    views: list[Any] = []
    for stage in ("encoder", "decoder"):
        shapes = SHAPES if kind == "sampling" else ((50, 84),)  # DC5
        chosen, grids = (torch.arange(queries), ()) if stage == "decoder" else grid_tokens(shapes, 400)
        for layer in range(layers):
            common: Any = {"stage": stage, "layer": layer, "name": "x", "queries": chosen, "grids": grids}
            if kind == "sampling":
                size = (len(chosen), heads, 4, 4)
                views.append(SamplingView(**common, locations=random(*size, 2), weights=random(*size), shapes=shapes))
            else:
                views.append(AttentionView(**common, weights=random(len(chosen), heads, 50, 84)))
    classes = Classes(tuple(f"class {i}" for i in range(91)), tuple(range(91)))
    last = LayerTrace(random(queries, 4), random(queries, 4), random(queries, 91) / 2)
    answers = [17, 3, 250]
    found = Detections(
        random(3, 4) * 800, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([5, 6, 7]), classes, (1733, 2887)
    )
    image = torch.zeros(3, 1733, 2887, dtype=torch.uint8)
    return Explanation(
        image=image, source=None, detector="X", input_size=(800, 1333), classes=classes,
        threshold=0.5, detections=found, queries=answers, trace=(last,) * layers, views=tuple(views),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sampling", "attention"])
def test_a_large_explanation_is_reduced_and_says_to_what(kind: str) -> None:
    explanation = large(kind)
    page = explanation.to_json()
    assert len(json.dumps(page)) < 15_000_000
    encoder, decoder = ([view for view in page["views"] if view["stage"] == stage] for stage in ("encoder", "decoder"))
    assert len(encoder) == len(decoder) == 6
    assert sum(map(stored_bytes, encoder)) <= ENCODER_BYTES and sum(map(stored_bytes, decoder)) <= DECODER_BYTES
    for view in decoder:
        assert set(explanation.queries) <= set(view["queries"]) and view["queries"] == sorted(view["queries"])
        assert len(view["queries"]) == view["weights"]["shape"][0]
        assert (len(view["queries"]) == 300) == (kind == "sampling")
    for view in encoder:
        height, width = view["grid"]["height"], view["grid"]["width"]
        assert len(view["queries"]) == height * width == view["weights"]["shape"][0] and height < width
        start = 100 * 167 + 50 * 84 if kind == "sampling" else 0  # the level of stride 32
        rows, columns = (25, 42) if kind == "sampling" else (50, 84)
        for i, token in enumerate(view["queries"]):
            row, column = divmod(token - start, columns)
            assert i // width * rows // height <= row < -(-(i // width + 1) * rows // height)
            assert i % width * columns // width <= column < -(-(i % width + 1) * columns // width)
    image = page["image"]
    assert (image["width"], image["height"]) == (2887, 1733)
    small = Image.open(io.BytesIO(base64.b64decode(image["data"].removeprefix("data:image/jpeg;base64,"))))
    assert small.size == (1600, 960)


def test_all_detections_are_stored_even_above_the_limit() -> None:
    explanation = large("attention")
    many = list(range(100, 180))
    found = explanation.detections
    detections = replace(
        found,
        boxes_xyxy=found.boxes_xyxy[:1].expand(80, -1),
        scores=torch.full((80,), 0.9),
        labels=torch.zeros(80).long(),
    )
    page = replace(explanation, queries=many, detections=detections).to_json()
    assert all(view["queries"] == many for view in page["views"] if view["stage"] == "decoder")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arrays(dtype: str) -> None:
    random = np.random.default_rng(0)
    values = random.normal(3.0, 20.0, (5, 7)).astype(np.float32)
    tolerance = {"uint8": np.ptp(values) / 255, "uint16": np.ptp(values) / 65535, "float32": 0.0}[dtype]
    assert np.abs(decoded(array(torch.from_numpy(values), dtype)) - values).max() <= tolerance / 2 + 1e-6
    for constant in (torch.zeros(3, 2), torch.full((2,), 7.0), torch.zeros(0, 4)):
        assert np.array_equal(decoded(array(constant, dtype)), constant.numpy())
    if dtype != "float32":
        odd = torch.tensor([0.0, float("nan"), float("inf"), -float("inf"), 2.0])
        assert np.allclose(decoded(array(odd, dtype)), [0, 0, 2, 0, 2])


def test_little_endian_bytes() -> None:
    found = array(torch.tensor([[1, 258]]), "uint16")
    assert base64.b64decode(found["data"]) == bytes([1, 0, 2, 1]) and found["shape"] == [1, 2]
    assert list(chain(base64.b64decode(array(torch.ones(1))["data"]))) == [0, 0, 128, 63]
