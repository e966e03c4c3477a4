"""A linear layer with ReLU as one operator: the values of two, wherever it is used."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detrs import ops
from detrs.ops import linear
from detrs.ops.convolution import onednn
from detrs.ops.linear import linear_relu

needs_bf16 = pytest.mark.skipif(
    torch.bfloat16 not in onednn.dtypes(), reason="oneDNN has no bfloat16 on this processor"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Inputs of the operator."""
    found: list[Tensor] = []

    def record(x: Tensor, *rest: Tensor) -> Any:
        found.append(x)
        return operator(x, *rest)

    operator = linear._linear_relu
    monkeypatch.setattr(linear, "_linear_relu", record)
    return found


def expected(x: Tensor, layer: nn.Linear) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return F.relu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))


@needs_bf16
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (7,), (2, 1, 3, 7)])
def test_values(shape: tuple[int, ...], calls: list[Tensor]) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(shape), nn.Linear(7, 11)
    before = x.clone()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = linear_relu(x, layer)
    assert len(calls) == 1 and y.dtype == torch.bfloat16 and y.shape == (*shape[:-1], 11)
    torch.testing.assert_close(y.double(), expected(x, layer), rtol=0.02, atol=0.02)
    assert (y == 0).any() and (y > 0).any()
    assert torch.equal(x, before)


@needs_bf16
def test_layers_in_half_precision_need_no_autocast(calls: list[Tensor]) -> None:
    x, layer = torch.randn(5, 7).bfloat16(), nn.Linear(7, 11).bfloat16()
    with torch.no_grad():
        y = linear_relu(x, layer)
    assert len(calls) == 1
    torch.testing.assert_close(y.double(), expected(x, layer), rtol=0.02, atol=0.02)


def hooked() -> nn.Linear:
    layer = nn.Linear(7, 11)
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return layer


class Other(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("make", [hooked, lambda: Other(7, 11), lambda: nn.Linear(7, 11, bias=False)])
def test_layers_that_compute_something_else_are_called(make: Any, calls: list[Tensor]) -> None:
    layer, x = make(), torch.randn(5, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_relu(x, layer), F.relu(layer(x)))
    assert not calls


def test_float32_gradients_and_the_reference_are_pytorchs(calls: list[Tensor]) -> None:
    layer, x = nn.Linear(7, 11), torch.randn(5, 7, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(linear_relu(x, layer), F.relu(layer(x)))
        with torch.autocast("cpu", torch.bfloat16), ops.use("reference"):
            assert torch.equal(linear_relu(x, layer), F.relu(layer(x)))
    with torch.autocast("cpu", torch.bfloat16):
        y = linear_relu(x, layer)
    y.float().sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    assert not calls


@needs_bf16
def test_no_rows() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear_relu(torch.randn(0, 7), nn.Linear(7, 11)).shape == (0, 11)


@needs_bf16
def test_operations_are_counted() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        linear_relu(torch.randn(2, 3, 7), nn.Linear(7, 11))
    assert counter.get_total_flops() == 2 * 2 * 3 * 7 * 11


@needs_bf16
def test_the_operator_follows_the_rules_of_pytorch() -> None:
    inputs = torch.randn(2, 3, 7).bfloat16(), torch.randn(11, 7).bfloat16(), torch.randn(11).bfloat16()
    torch.library.opcheck(torch.ops.detrs.linear_relu, inputs)
