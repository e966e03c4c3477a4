"""Sampling positions of the dynamic encoder and of DAT are those of the forward pass, taken from the operators."""

from typing import Any

import numpy as np
import pytest
import torch
from explained import photograph, shared_tiny
from torch import Tensor

from detrs.explanation.explain import explain
from detrs.explanation.views import PointsView, SamplingView
from detrs.layers import deformable_convolution


def test_samples_of_the_dynamic_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The locations and weights that the operator receives, times the mean of the scale that multiplies its result."""
    detector = shared_tiny("dynamic-detr-tiny")
    module: Any = detector.module
    sampled: list[tuple[tuple[int, int], Tensor, Tensor]] = []
    operator = deformable_convolution.ms_deform_attn

    def recorded(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
        sampled.append((shapes[0], locations[0, :, 0, 0, 0], weights[0, :, 0, 0, 0]))
        return operator(value, shapes, locations, weights)

    monkeypatch.setattr(deformable_convolution, "ms_deform_attn", recorded)
    scales: list[float] = []
    (layer,) = module.encoder.layers
    handle = layer.scale.register_forward_hook(lambda _m, _a, y: scales.append(float(y.double().mean())))
    (explanation,) = explain(detector, photograph(), threshold=0.1, device="cpu", max_tokens=10_000)
    handle.remove()
    (view,) = [each for each in explanation.views if isinstance(each, SamplingView)]
    assert view.stage == "encoder" and view.layer == 0 and view.grids == view.shapes
    levels, start, call = len(view.shapes), 0, 0
    assert levels >= 3 and view.locations.shape[1:] == (1, levels, 9, 2)
    for i, (height, width) in enumerate(view.shapes):
        tokens = slice(start, start + height * width)
        start += height * width
        neighbors = [i] + [i - 1] * (i > 0) + [i + 1] * (i + 1 < levels)
        for level in neighbors:  # the order of the forward pass
            shape, locations, weights = sampled[call]
            assert shape == (view.shapes[level] if level < i else (height, width))
            np.testing.assert_allclose(view.locations[tokens, 0, level].flatten(0, 1), locations, atol=1e-6)
            expected = weights.double() * scales[call]
            np.testing.assert_allclose(view.weights[tokens, 0, level].flatten(), expected, atol=1e-6)
            call += 1
        others = [level for level in range(levels) if level not in neighbors]
        assert (view.weights[tokens, 0, others] == 0).all() and (view.weights[tokens, 0, i] > 0).all()
    assert start == len(view.queries) and call == 3 * levels - 2
    # of the first token: three rows of three samples, from left to right and top to bottom, moved by their offsets
    height, width = view.shapes[0]
    grid = np.stack(np.meshgrid(np.arange(3) - 0.5, np.arange(3) - 0.5), -1).reshape(9, 2) / (width, height)
    assert np.corrcoef(grid.flatten(), view.locations[0, 0, 0].flatten())[0, 1] > 0.5


def test_fewer_tokens_are_a_subset() -> None:
    detector = shared_tiny("dynamic-detr-tiny")
    views = []
    for limit in (10_000, 20):
        (explanation,) = explain(detector, photograph(), threshold=0.1, device="cpu", max_tokens=limit)
        views += [each for each in explanation.views if isinstance(each, SamplingView)]
    complete, part = views
    assert all(height * width <= 20 for height, width in part.grids) and len(part.queries) < len(complete.queries)
    assert torch.equal(part.locations, complete.locations[part.queries])
    assert torch.equal(part.weights, complete.weights[part.queries])


def test_points_of_dat(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``grid_sample`` reads at the points of a map that has, at each cell, the position of its center."""
    detector = shared_tiny("deformable-detr-dat-tiny")
    grids: list[tuple[Tensor, Tensor]] = []
    grid_sample = torch.nn.functional.grid_sample

    def recorded(x: Tensor, grid: Tensor, *args: Any, **options: Any) -> Tensor:
        assert options == {"align_corners": True}
        grids.append((x, grid))
        return grid_sample(x, grid, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "grid_sample", recorded)
        (explanation,) = explain(detector, photograph(), threshold=0.1, device="cpu")
    views = [each for each in explanation.views if isinstance(each, PointsView)]
    assert [view.name for view in views] == ["backbone.body.stages.2.attns.1", "backbone.body.stages.3.attns.1"]
    for view, groups in zip(views, (2, 4), strict=True):
        (x, grid), *_ = [pair for pair in grids if pair[1].shape == (groups, *view.points.shape[1:])]
        height, width = x.shape[2:]
        centers = torch.stack(
            [
                ((torch.arange(width) + 0.5) / width).expand(height, -1),
                ((torch.arange(height) + 0.5) / height)[:, None].expand(-1, width),
            ]
        )
        read = grid_sample(centers.expand(groups, -1, -1, -1), grid, align_corners=True, padding_mode="border")
        inside = (grid.abs() <= 1).all(-1)
        assert inside.float().mean() > 0.5
        np.testing.assert_allclose(view.points[inside], read.permute(0, 2, 3, 1)[inside], atol=1e-6)
        assert view.layer == 1 and view.stage == "backbone"
