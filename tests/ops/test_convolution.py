from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from detrs import ops
from detrs.ops.convolution import ACTIVATIONS, Geometry, Inputs, convolution, onednn, operator, reference

GEOMETRIES = {
    "3x3": Geometry((1, 1), (1, 1), (1, 1), 1),
    "strided": Geometry((2, 1), (1, 0), (1, 1), 1),
    "dilated": Geometry((1, 1), (2, 3), (2, 3), 1),
    "depth-wise": Geometry((1, 1), (1, 1), (1, 1), 4),
    "depth-wise, strided": Geometry((2, 2), (1, 1), (1, 1), 4),
    "1x1": Geometry((1, 1), (0, 0), (1, 1), 1),
    "1x1, strided": Geometry((2, 3), (0, 0), (1, 1), 1),
    "1x1, padded": Geometry((2, 1), (1, 2), (1, 1), 1),
}
KERNELS = {geometry: (1, 1) for name, geometry in GEOMETRIES.items() if name.startswith("1x1")}


def random_inputs(
    geometry: Geometry,
    activation: str,
    residual: bool,
    dtype: torch.dtype = torch.float64,
    layout: torch.memory_format = torch.channels_last,
) -> Inputs:
    x = torch.randn(2, 4, 7, 11, dtype=dtype).contiguous(memory_format=layout)
    weight = torch.randn(8, 4 // geometry.groups, *KERNELS.get(geometry, (3, 3)), dtype=dtype)
    scale, shift = torch.rand(8, dtype=dtype) + 0.5, torch.randn(8, dtype=dtype)
    y = F.conv2d(x, weight, None, *geometry)
    return Inputs(x, weight, scale, shift, torch.randn_like(y) if residual else None, geometry, activation)


def norm_after_convolution(inputs: Inputs) -> Tensor:
    """With the norm as an operation of its own."""
    x, weight, scale, shift, residual, geometry, activation = inputs
    y = F.conv2d(x, weight, None, *geometry) * scale[:, None, None] + shift[:, None, None]
    y = y if residual is None else y + residual
    return {"none": y, "relu": y.clamp(min=0), "relu6": y.clamp(0, 6)}[activation]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_values_are_those_of_a_norm_after_the_convolution(
    name: str,
    activation: str,
    residual: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = random_inputs(GEOMETRIES[name], activation, residual, dtype, layout)
    tensors = [tensor for tensor in inputs[:5] if tensor is not None]
    copies = [tensor.clone() for tensor in tensors]
    expected = norm_after_convolution(inputs)
    with torch.no_grad():
        torch.testing.assert_close(convolution(inputs), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reference.compute(inputs), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(onednn, "supports", lambda x: False)
    torch.testing.assert_close(convolution(inputs), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(copies, tensors, strict=True))


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_derivatives(name: str, activation: str, residual: bool) -> None:
    inputs = random_inputs(GEOMETRIES[name], activation, residual)
    tensors = [tensor.requires_grad_() for tensor in inputs[:5] if tensor is not None]

    def compute(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None) -> Tensor:
        return convolution(inputs._replace(x=x, weight=weight, scale=scale, shift=shift, residual=residual))

    assert torch.autograd.gradcheck(compute, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(compute, tensors, fast_mode=True)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", ["3x3", "1x1", "1x1, strided"])
def test_gradients_in_float32_are_those_of_a_norm_after_the_convolution(name: str, layout: torch.memory_format) -> None:
    inputs = random_inputs(GEOMETRIES[name], "relu", True, torch.float32, layout)
    tensors = [tensor.requires_grad_() for tensor in inputs[:5] if tensor is not None]
    expected = torch.autograd.grad(norm_after_convolution(inputs).square().sum(), tensors)
    found = torch.autograd.grad(convolution(inputs).square().sum(), tensors)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_gradient_of_the_scale_does_not_need_that_of_the_weight(name: str) -> None:
    inputs = random_inputs(GEOMETRIES[name], "relu", False)
    scale = inputs.scale.requires_grad_()
    (expected,) = torch.autograd.grad(norm_after_convolution(inputs).square().sum(), scale)
    (found,) = torch.autograd.grad(convolution(inputs).square().sum(), scale)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["1x1", "3x3"])
def test_the_gradient_of_the_scale_under_autocast(name: str) -> None:
    inputs = random_inputs(GEOMETRIES[name], "relu", False, torch.float32)
    scale = inputs.scale.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        half = convolution(inputs)
    (found,) = torch.autograd.grad(half.float().sum(), scale)
    (expected,) = torch.autograd.grad(norm_after_convolution(inputs).sum(), scale)
    assert found.dtype == torch.float32 and (found - expected).norm() < 0.1 * expected.norm()


def test_nothing_is_kept_for_gradients_but_input_weight_and_result() -> None:
    inputs = random_inputs(GEOMETRIES["3x3"], "relu", True, torch.float32)
    inputs.weight.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = convolution(inputs)
    known = {tensor.data_ptr() for tensor in (inputs.x, inputs.weight, inputs.scale, y)}
    assert {tensor.data_ptr() for tensor in kept} == known
    kept.clear()
    inputs.weight.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        assert not convolution(inputs).requires_grad
    assert not kept


@pytest.mark.parametrize("name", ["1x1", "1x1, strided"])
def test_derivatives_of_a_matrix_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 with the form that half precision has."""
    monkeypatch.setattr(operator, "is_matrix_product", lambda *arguments: True)
    test_derivatives(name, "relu", True)


@pytest.mark.parametrize("name", ["3x3", "depth-wise", "depth-wise, strided", "1x1", "1x1, strided", "1x1, padded"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_autocast_computes_in_half_precision_and_gradients_have_the_dtype_of_the_weight(
    name: str, layout: torch.memory_format
) -> None:
    inputs = random_inputs(GEOMETRIES[name], "relu", True, torch.float32, layout)
    inputs.weight.requires_grad_()
    inputs.x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        half = convolution(inputs)
        double = convolution(Inputs(*(t.double() if isinstance(t, Tensor) else t for t in inputs)))
    assert (half.dtype, double.dtype) == (torch.bfloat16, torch.float64)
    expected = norm_after_convolution(inputs)
    torch.testing.assert_close(half.float(), expected, atol=0.2, rtol=0.02)
    found = torch.autograd.grad(half.float().sum(), (inputs.weight, inputs.x))
    for ours, theirs in zip(found, torch.autograd.grad(expected.sum(), (inputs.weight, inputs.x)), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.parametrize(
    ("name", "stride", "computed"), [("depth-wise", 2, torch.float32), ("depth-wise", 1, None), ("1x1", 2, None)]
)
def test_gradients_that_are_slow_in_half_precision_are_computed_in_float32(
    name: str, stride: int, computed: torch.dtype | None
) -> None:
    geometry = GEOMETRIES[name]._replace(stride=(stride, stride))
    x = torch.randn(2, 4, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    inputs = random_inputs(GEOMETRIES[name], "none", False, torch.float32)._replace(x=x, geometry=geometry)
    y = convolution(inputs)
    with DtypesOfGradients() as seen:
        (found,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
    assert seen.of_inputs == [computed or torch.bfloat16]


class DtypesOfGradients(TorchDispatchMode):
    """Records the dtype in which gradients of the input of a convolution are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.of_inputs: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default and args[-1][0]:
            self.of_inputs.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_operator_is_registered_correctly(activation: str, residual: bool, layout: torch.memory_format) -> None:
    """With a residual, only "relu" and channels-last inputs are computed in one pass."""
    inputs = random_inputs(GEOMETRIES["strided"], activation, residual, torch.float32, layout)
    inputs.x.requires_grad_()
    arguments = (*inputs[:5], *inputs.geometry, inputs.activation)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.detrs.convolution.default, arguments, test_utils=checks)


def test_plain_operators_where_the_operator_has_no_derivative() -> None:
    inputs = random_inputs(GEOMETRIES["3x3"], "relu", False)
    x = inputs.x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(convolution(inputs._replace(x=x)).sum(), x)
    found = torch.func.grad(lambda x: convolution(inputs._replace(x=x)).sum())(inputs.x)
    torch.testing.assert_close(found, expected)


def test_programs_consist_of_plain_operators() -> None:
    inputs = random_inputs(GEOMETRIES["3x3"], "relu", True, torch.float32)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return convolution(inputs._replace(x=x))

    def is_ours(program: torch.fx.GraphModule) -> bool:
        return any("detrs" in str(node.target) for node in program.graph.nodes)

    assert not is_ours(torch.export.export(Module(), (inputs.x,)).graph_module)
    compiled = torch.compile(Module(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs.x), convolution(inputs))
    with ops.use("reference"), FlopCounterMode(display=False) as counter:
        convolution(inputs)
    assert {str(name) for name in counter.get_flop_counts()["Global"]} == {"aten.convolution"}


def test_flops_are_those_of_the_convolution() -> None:
    inputs = random_inputs(GEOMETRIES["strided"], "relu", False, torch.float32)
    counts = []
    for compute in (convolution, reference.compute):
        with FlopCounterMode(display=False) as counter:
            compute(inputs)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_images(dtype: torch.dtype, name: str, residual: bool) -> None:
    inputs = random_inputs(GEOMETRIES[name], "relu", residual, torch.float32)
    x, rest = inputs.x[:0], [] if inputs.residual is None else [inputs.residual[:0]]
    tensors = [tensor.to(dtype).requires_grad_() for tensor in (x, inputs.weight, inputs.shift, *rest)]
    x, weight, shift, *rest = tensors
    y = convolution(inputs._replace(x=x, weight=weight, shift=shift, residual=rest[0] if rest else None))
    assert y.shape[:2] == (0, 8)
    for grad, tensor in zip(torch.autograd.grad(y.sum(), tensors), tensors, strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


def test_onednn_computes_float32_on_cpus() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN is not part of this build of PyTorch")
    assert onednn.supports(torch.zeros(1)) and not onednn.supports(torch.zeros(1, dtype=torch.float64))
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # as torch.backends.mkldnn.flags, which warns of TF32
    try:
        assert not onednn.supports(torch.zeros(1))
    finally:
        torch._C._set_mkldnn_enabled(enabled)
