"""Every detector under autocast: what is computed in bfloat16, and what is not. Also where bfloat16 is emulated."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from shrunk import EVERY_MODEL, ONE_OF_EACH, TARGETS, batch, changed, randomized, shallow
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrs import ops
from detrs.criterion.set_criterion import CriterionConfig
from detrs.layers.deformable_attention import DeformableAttention
from detrs.models import ModelConfig
from detrs.models.dynamic_detr import DynamicDETRConfig
from detrs.precision import autocast
from detrs.structures import Batch, Totals

PRODUCTS = ("convolution", "addmm", "mm", "bmm")
COORDINATES = ("softmax", "sigmoid", "logit", "log", "exp", "sin", "cos", "reciprocal", "clamp", "topk", "sort")
"""Operators of attention weights, boxes, scores, references and positions, which are nowhere used for features."""


class Types(TorchDispatchMode):
    """Records each operator that is called, with the types of its inputs of floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self.calls.append((str(func), [each.dtype for each in tensors if each.is_floating_point()]))
        return func(*args, **(kwargs or {}))

    def of(self, *names: str) -> Iterator[tuple[str, list[torch.dtype]]]:
        """The calls of operators, by name without namespace and overload."""
        for name, dtypes in self.calls:
            if name in names or name.split(".")[1].strip("_") in names:
                yield name, dtypes


@EVERY_MODEL
@torch.no_grad()
def test_products_are_bf16_and_coordinates_float32(config: ModelConfig) -> None:
    model, references = shallow(config), []
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            module.register_forward_pre_hook(lambda module, inputs: references.append(inputs[1].dtype))
    with autocast("bf16", "cpu"), Types() as found:
        layers = model.detect_layers(*batch(), 7)
    for layer in layers:
        assert layer.boxes.boxes.dtype == layer.boxes.scores.dtype == torch.float32
        assert layer.boxes.boxes.isfinite().all() and layer.boxes.scores.isfinite().all()
    products = [dtypes for _, dtypes in found.of(*PRODUCTS)]
    in_bf16 = sum(torch.bfloat16 in dtypes for dtypes in products)
    assert in_bf16 > len(products) / 3, "the others are heads, and small"
    wrong = [call for call in found.of(*COORDINATES) if torch.bfloat16 in call[1]]
    assert wrong == []
    for _, (value, *others) in found.of("ms_deform_attn"):
        assert value == torch.bfloat16 or isinstance(config, DynamicDETRConfig)  # which samples for a convolution
        assert {*others} == {torch.float32}, "sampling locations and attention weights"
    assert {*references} <= {torch.float32}
    for _, (_, regions) in found.of("roi_align"):
        assert regions == torch.float32


@ONE_OF_EACH
def test_losses_and_gradients_are_float32(config: ModelConfig) -> None:
    """And close to those of float32, relative to the whole gradient."""
    torch.manual_seed(0)
    model: Any = randomized(changed(config, dropout=0.0)).train()
    objective, found = model.objective(CriterionConfig()), {}
    for name in ("fp32", "bf16"):
        torch.manual_seed(1)  # Faster R-CNN draws its samples
        with autocast(name, "cpu"), ops.use("reference"):  # type: ignore[arg-type]
            losses = objective(Batch(*batch(), TARGETS), Totals.of(TARGETS))
        assert losses.total.dtype == torch.float32 and {term.dtype for term in losses.terms.values()} == {torch.float32}
        model.zero_grad()
        losses.total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert {grad.dtype for grad in gradients} == {torch.float32}
        assert all(grad.isfinite().all() for grad in gradients)
        found[name] = losses.total.item()
    assert found["bf16"] != found["fp32"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.1)
