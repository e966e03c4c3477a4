"""Reported weights and locations are those of the forward pass.

Each attention module is linear in its values. With values that are one for a single token, its own forward returns the
weight of that token, whatever computes it: the kernel, or scaled dot-product attention.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from explained import photograph, shared_tiny, tiny
from torch import Tensor, nn

from detrs.checkpoints.detector import TrainedDetector
from detrs.explanation.explain import explain
from detrs.explanation.views import AttentionView, SamplingView
from detrs.predictor import Predictor

ATTENTION = {
    "detr": ("detr-tiny", {}),
    "conditional": ("conditional-detr-tiny", {}),
    "anchor": ("anchor-detr-tiny", {}),
    "anchor-mean-of-all": ("anchor-detr-tiny", {"attention": "decoupled"}),
    "anchor-global": ("anchor-detr-tiny", {"attention": "global"}),
}
SAMPLING = {
    "deformable": ("deformable-detr-tiny", {}),
    "deformable-points": ("deformable-detr-tiny", {"queries": "learned", "reference": "keep"}),
    "deformable-own-level": ("deformable-detr-tiny", {"encoder_attention": "own-level"}),
    "efficient": ("efficient-detr-tiny", {}),
}


def detector_of(variant: tuple[str, dict[str, Any]]) -> TrainedDetector:
    name, settings = variant
    return tiny(name, **settings) if settings else shared_tiny(name)


def calls_of(detector: TrainedDetector, names: list[str], image: Tensor) -> dict[str, tuple[Any, ...]]:
    """The arguments of some modules during ``detect``."""
    found: dict[str, tuple[Any, ...]] = {}
    handles = [
        detector.module.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, name=name: found.update({name: arguments})
        )
        for name in names
    ]
    Predictor(detector, "cpu")(image, threshold=0.0)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def forward_weights(module: nn.Module, arguments: tuple[Any, ...], heads: int, tokens: int) -> Tensor:
    """The weight of each token in each head, (Q, M, tokens), by running the module with values of one token each."""
    value_proj = next(m for name, m in module.named_modules() if name.endswith("value_proj"))
    output_proj = next(m for name, m in module.named_modules() if name.endswith("output_proj"))
    dim = value_proj.out_features // heads  # type: ignore[operator,union-attr]
    parts = []
    for start in range(0, tokens, dim):
        attended: list[Tensor] = []

        def values(_: Any, given: tuple[Tensor], output: Tensor, start: int = start) -> Tensor:
            count = output.flatten(1, -2).shape[1]
            chosen = torch.zeros(count, heads, dim)
            here = torch.arange(start, min(start + dim, count))
            chosen[here, :, here - start] = 1.0
            return chosen.flatten(1).view_as(output)

        handles = [
            value_proj.register_forward_hook(values),
            output_proj.register_forward_pre_hook(lambda _, given, into=attended: into.append(given[0])),
        ]
        module(*arguments)
        for handle in handles:
            handle.remove()
        (out,) = attended
        parts.append(out[0].unflatten(1, (heads, dim)))  # (Q, M, D)
    return torch.cat(parts, dim=2)[..., :tokens]


@pytest.mark.parametrize("variant", ATTENTION.values(), ids=ATTENTION)
def test_attention_weights(variant: tuple[str, dict[str, Any]]) -> None:
    detector = detector_of(variant)
    image = photograph()
    (explanation,) = explain(detector, image, threshold=0.2, device="cpu")
    model: Any = detector.experiment.model
    views = explanation.views
    stages = ["encoder"] * model.encoder_layers + ["decoder"] * model.decoder_layers
    layers = [*range(model.encoder_layers), *range(model.decoder_layers)]
    assert [(view.stage, view.layer) for view in views] == list(zip(stages, layers, strict=True))
    calls = calls_of(detector, [view.name for view in views], image)
    for view in views:
        assert isinstance(view, AttentionView)
        count, heads, height, width = view.weights.shape
        assert heads == model.num_heads and height < width
        assert count == (height * width if view.stage == "encoder" else model.num_queries)
        module = detector.module.get_submodule(view.name)
        expected = forward_weights(module, calls[view.name], heads, height * width)
        assert (view.weights.flatten(2) - expected).abs().max() < 1e-6
        assert torch.allclose(view.weights.sum((2, 3)), torch.ones(()), atol=1e-5)
        assert view.weights.std() > 1e-4, "weights that are all equal show nothing"


def own_tokens(view: SamplingView) -> list[tuple[slice, int, tuple[int, int], int]]:
    """Queries, index, size and first token of each level: those that a token's own level is."""
    starts = np.cumsum([0] + [height * width for height, width in view.shapes]).tolist()
    return [(slice(a, b), i, view.shapes[i], a) for i, (a, b) in enumerate(pairwise(starts))]


def interpolated(view: SamplingView) -> np.ndarray:
    """The weight of each token in each head, (Q, M, S): bilinear interpolation at the reported locations by hand."""
    locations, weights = view.locations.double().numpy(), view.weights.double().numpy()
    queries, heads = weights.shape[:2]
    parts = []
    for level, (height, width) in enumerate(view.shapes):
        maps = np.zeros((queries, heads, height, width))
        x = locations[:, :, level, :, 0] * width - 0.5
        y = locations[:, :, level, :, 1] * height - 0.5
        index = np.indices(x.shape)
        for dy in (0, 1):
            for dx in (0, 1):
                column, row = np.floor(x) + dx, np.floor(y) + dy
                share = (1 - np.abs(x - column)) * (1 - np.abs(y - row)) * weights[:, :, level]
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                at = (index[0][inside], index[1][inside], row[inside].astype(int), column[inside].astype(int))
                np.add.at(maps, at, share[inside])
        parts.append(maps.reshape(queries, heads, -1))
    return np.concatenate(parts, axis=2)


@pytest.mark.parametrize("variant", SAMPLING.values(), ids=SAMPLING)
def test_sampling_points_and_weights(variant: tuple[str, dict[str, Any]]) -> None:
    detector = detector_of(variant)
    image = photograph()
    (explanation,) = explain(detector, image, threshold=0.2, device="cpu", max_tokens=10_000)
    model: Any = detector.experiment.model
    assert len(explanation.views) == model.encoder_layers + model.decoder_layers
    calls = calls_of(detector, [view.name for view in explanation.views], image)
    for view in explanation.views:
        assert isinstance(view, SamplingView)
        tokens = sum(height * width for height, width in view.shapes)
        assert view.queries.tolist() == list(range(tokens if view.stage == "encoder" else model.num_queries))
        assert view.grids == (view.shapes if view.stage == "encoder" else ())
        assert view.weights.shape[1:] == (model.num_heads, model.num_levels, model.num_points)
        assert torch.allclose(view.weights.sum((2, 3)), torch.ones(()), atol=1e-5)
        module, heads = detector.module.get_submodule(view.name), model.num_heads
        found = interpolated(view)
        if model.__dict__.get("encoder_attention") == "own-level" and view.stage == "encoder":
            levels = module.inputs(*calls[view.name])  # type: ignore[operator]
            for arguments, (own, level, shape, start) in zip(levels, own_tokens(view), strict=True):
                count = shape[0] * shape[1]
                expected = forward_weights(module.attention, arguments, heads, count)  # type: ignore[arg-type]
                assert np.abs(found[own, :, start : start + count] - expected.numpy()).max() < 1e-5
                assert view.weights[own, :, [i for i in range(model.num_levels) if i != level]].abs().max() == 0
        else:
            expected = forward_weights(module, calls[view.name], heads, tokens)
            assert np.abs(found - expected.numpy()).max() < 1e-5  # positions are float32 in the operator


@pytest.mark.parametrize("variant", [SAMPLING["deformable"], SAMPLING["deformable-points"]], ids=["boxes", "points"])
def test_locations_and_weights_from_the_projections(variant: tuple[str, dict[str, Any]]) -> None:
    """The arithmetic of the paper in NumPy, from the outputs of the two projections."""
    detector = detector_of(variant)
    outputs: dict[str, Tensor] = {}
    module: Any = detector.module.get_submodule("decoder.layers.1.cross_attention.attention")
    handles = [
        getattr(module, name).register_forward_hook(lambda _, given, out, name=name: outputs.update({name: out[0]}))
        for name in ("sampling_offsets", "attention_weights")
    ]
    Predictor(detector, "cpu")(photograph(), threshold=0.2)
    for handle in handles:
        handle.remove()
    (explanation,) = explain(detector, photograph(), threshold=0.2, device="cpu")
    (view,) = [each for each in explanation.views if (each.stage, each.layer) == ("decoder", 1)]
    assert isinstance(view, SamplingView)
    queries, heads, levels, points = view.weights.shape
    logits = outputs["attention_weights"].double().numpy().reshape(queries, heads, -1)
    weights = np.exp(logits - logits.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    assert np.abs(view.weights.numpy() - weights.reshape(view.weights.shape)).max() < 1e-6
    offsets = outputs["sampling_offsets"].double().numpy().reshape(queries, heads, levels, points, 2)
    reference = explanation.trace[1].reference.double().numpy()
    if reference.shape[1] == 4:
        offsets = offsets / points * reference[:, None, None, None, 2:] * 0.5
    else:
        offsets = offsets / np.array([(width, height) for height, width in view.shapes])[:, None]
    locations = reference[:, None, None, None, :2] + offsets
    assert np.abs(view.locations.numpy() - locations).max() < 1e-6


@pytest.mark.parametrize("name", ["deformable-detr-tiny", "detr-tiny"])
def test_views_of_some_tokens_and_the_best_queries(name: str) -> None:
    detector = shared_tiny(name)
    (whole,) = explain(detector, photograph(), threshold=0.2, device="cpu", max_tokens=10_000)
    (some,) = explain(detector, photograph(), threshold=0.2, device="cpu", max_tokens=17)
    best = some.trace[-1].scores.amax(1)
    for full, view in zip(whole.views, some.views, strict=True):
        assert isinstance(full, SamplingView | AttentionView) and isinstance(view, SamplingView | AttentionView)
        assert torch.equal(view.weights, full.weights[view.queries])
        if view.stage == "decoder":
            assert len(view.queries) == 17 and view.grids == ()
            others = [query for query in range(len(best)) if query not in view.queries.tolist()]
            rest = [query for query in others if query not in some.queries]
            assert set(view.queries.tolist()) <= set(some.queries) or best[rest].max() <= best[view.queries].min()
        else:
            assert len(view.queries) == sum(height * width for height, width in view.grids)
            assert all(1 < height * width <= 17 and height < width for height, width in view.grids)
