"""Kernels of dropout against their definition, in values, gradients, random numbers and memory."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from detrs.ops import use
from detrs.ops.dropout import add_norm, attention, dropout_attention, reference, relu_dropout
from detrs.ops.threads import num_threads

numba = pytest.importorskip("numba")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPE = (3, 37, 29)


def seed_of(number: int) -> int:
    """The seed that an operator draws after ``torch.manual_seed(number)``."""
    torch.manual_seed(number)
    return int(torch.randint(2**63 - 1, ()))


def factors(number: int, rate: float, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """0 for the elements that are dropped and the scale of all others, in float64."""
    rows = torch.Size(shape[:-1]).numel()
    return reference.kept(seed_of(number), rows, shape[-1], rate).view(shape).double() * reference.scale(rate)


def normalization(dtype: torch.dtype) -> nn.LayerNorm:
    norm = nn.LayerNorm(SHAPE[-1], dtype=torch.promote_types(dtype, torch.float32))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def random(dtype: torch.dtype, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(count)
    ]


@pytest.mark.parametrize("rate", [0.1, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_dropout_is_its_definition(dtype: torch.dtype, rate: float) -> None:
    x, grad_out = random(dtype, 2)
    expected = (x.double().relu() * factors(5, rate)).to(dtype)
    (expected_grad,) = torch.autograd.grad(expected, x, grad_out)
    torch.manual_seed(5)
    linear_output = x * 1
    actual = relu_dropout(linear_output, rate)
    assert actual.data_ptr() == linear_output.data_ptr()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, x, grad_out)[0], expected_grad)


@pytest.mark.parametrize("rate", [0.1, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_norm_is_its_definition(dtype: torch.dtype, rate: float) -> None:
    x, update, grad_out = random(dtype, 3)
    norm = normalization(dtype)
    total = (x.double() + update.double() * factors(5, rate)).to(dtype)
    expected = F.layer_norm(total.double(), SHAPE[-1:], norm.weight.double(), norm.bias.double(), norm.eps).to(dtype)
    inputs = x, update, norm.weight, norm.bias
    expected_grads = torch.autograd.grad(expected, inputs, grad_out)
    torch.manual_seed(5)
    actual = add_norm(x, update, norm, rate)
    grads = torch.autograd.grad(actual, inputs, grad_out)
    for ours, theirs in zip((actual, *grads), (expected, *expected_grads), strict=True):
        tolerance = 0.1 if dtype.itemsize == 2 else 50 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def attention_inputs(dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value of 2 images and 3 heads: 7 queries, 11 keys, 5 and 4 channels."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 3, 7, 5), (2, 3, 11, 5), (2, 3, 11, 4))
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


def masks() -> dict[str, Tensor | None]:
    padded, triangle = torch.ones(2, 1, 1, 11, dtype=torch.bool), torch.ones(7, 11, dtype=torch.bool).tril()
    padded[1, ..., 8:] = False
    nothing, no_image = triangle.clone(), padded.clone()
    nothing[[2, 5]] = False
    no_image[0] = False
    some = {"none": None, "padding": padded, "of queries": triangle}
    return some | {"queries without keys": nothing, "an image without keys": no_image}


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_is_its_definition(dtype: torch.dtype, mask: str) -> None:
    query, key, value = inputs = attention_inputs(dtype)
    grad_out, allowed = torch.randn(2, 3, 7, 4).to(dtype), masks()[mask]
    logits = query.double() @ key.double().mT / 5**0.5
    weights = logits.masked_fill(torch.tensor(False) if allowed is None else ~allowed, -torch.inf).softmax(-1)
    weights = weights.nan_to_num()  # 0 for a query without keys
    expected = (weights * factors(9, 0.3, (2, 3, 7, 11)) @ value.double()).to(dtype)
    expected_grads = torch.autograd.grad(expected, inputs, grad_out)
    torch.manual_seed(9)
    actual = attention(*inputs, allowed, 0.3)
    grads = torch.autograd.grad(actual, inputs, grad_out)
    tolerance = 0.02 if dtype.itemsize == 2 else 50 * torch.finfo(dtype).eps
    for ours, theirs in zip((actual, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_attention_of_a_few_heads_at_a_time_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, grad_out = attention_inputs(torch.float32), torch.randn(2, 3, 7, 4)

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        out = attention(*inputs, masks()["padding"], 0.3)
        return [out, *torch.autograd.grad(out, inputs, grad_out)]

    expected = run()
    for weights in (1, 5 * 7 * 11):
        monkeypatch.setattr(dropout_attention, "WEIGHTS", weights)
        for some, all_at_once in zip(run(), expected, strict=True):
            torch.testing.assert_close(some, all_at_once)


def test_attention_without_dropout_is_that_of_pytorch() -> None:
    inputs = attention_inputs(torch.float32)
    for mask in masks().values():
        expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
        assert torch.equal(attention(*inputs, mask, 0.0), expected)
        dropped = attention(*inputs, mask, 1e-12)  # computed by the kernels
        torch.testing.assert_close(dropped, expected)
        grad_out = torch.randn_like(expected)
        grads = (torch.autograd.grad(out, inputs, grad_out) for out in (dropped, expected))
        torch.testing.assert_close(*grads)


def test_attention_keeps_what_is_not_finite() -> None:
    query, key, value = (tensor.detach() for tensor in attention_inputs(torch.float32))
    query[0, 0, 2] = torch.nan
    for mask in masks().values():
        out = attention(query, key, value, mask, 1e-12)
        is_nan = torch.zeros(2, 3, 7, dtype=torch.bool)
        is_nan[0, 0, 2] = mask is None or bool(mask.expand(2, 3, 7, 11)[0, 0, 2].any())
        assert torch.equal(out.isnan().all(-1), is_nan) and torch.equal(out.isnan().any(-1), is_nan)


def test_attention_keeps_no_weights_and_computes_them_in_full_precision() -> None:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = attention_inputs(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.manual_seed(0)
        expected = attention(*inputs, None, 0.3)
    assert sum(kept.values()) == sum(tensor.nbytes for tensor in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        assert torch.equal(attention(*inputs, None, 0.3), expected)


def test_gradients() -> None:
    x, update, _ = random(torch.float64, 3)
    norm = normalization(torch.float64)

    def seeded(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def function(*inputs: Tensor) -> Tensor:
            torch.manual_seed(1)
            return operator(*inputs)

        return function

    assert torch.autograd.gradcheck(seeded(lambda x: relu_dropout(x * 1, 0.3)), x[:1, :5])
    query, key, value = attention_inputs(torch.float64)
    assert torch.autograd.gradcheck(
        seeded(lambda *inputs: attention(*inputs, masks()["padding"], 0.3)), (query[:, :2], key[:, :2], value[:, :2])
    )
    assert torch.autograd.gradcheck(
        seeded(lambda x, update, *_: add_norm(x, update, norm, 0.3)), (x[:1, :3], update[:1, :3], *norm.parameters())
    )


def test_strided_inputs_and_mixed_dtypes() -> None:
    x, update = (tensor.transpose(0, 1) for tensor in random(torch.float32, 2))
    norm = normalization(torch.float32)
    for residual, change in ((x, update), (x, update.bfloat16()), (x.bfloat16(), update)):
        expected = norm(residual + change * factors(3, 0.2, tuple(x.shape)).float())
        torch.manual_seed(3)
        torch.testing.assert_close(add_norm(residual, change, norm, 0.2), expected)
    expected = x.relu() * factors(3, 0.2, tuple(x.shape)).float()
    torch.manual_seed(3)
    torch.testing.assert_close(relu_dropout(x, 0.2), expected)


@pytest.mark.parametrize("shapes", [((4, 3, 29), (1, 3, 29)), ((3, 29), (4, 3, 29)), ((4, 3, 1), (4, 3, 29))])
def test_add_norm_broadcasts_as_without_dropout(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, update = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    norm = normalization(torch.float64)
    with use("reference"):
        expected = add_norm(x, update, norm, 1e-12)
    actual = add_norm(x, update, norm, 1e-12)
    torch.testing.assert_close(actual, expected)
    grad_out = torch.randn_like(expected)
    grads = torch.autograd.grad(actual, (x, update), grad_out)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (x, update), grad_out))


def test_no_images() -> None:
    x, update = (torch.zeros(0, *SHAPE[1:], requires_grad=True) for _ in range(2))
    norm = normalization(torch.float32)
    inputs = [tensor[:0].detach().requires_grad_() for tensor in attention_inputs(torch.float32)]
    for mask in masks().values():
        allowed = mask if mask is None or mask.ndim == 2 else mask[:0]
        out = attention(*inputs, allowed, 0.3)
        assert out.shape == (0, 3, 7, 4)
        for grad, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
            assert grad.shape == tensor.shape
    for out in (relu_dropout(x * 1, 0.3), add_norm(x, update, norm, 0.3)):
        assert out.shape == x.shape
        (grad,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        assert grad.shape == x.shape
    of_update, *of_norm = torch.autograd.grad(add_norm(x, update, norm, 0.3).sum(), (update, *norm.parameters()))
    assert of_update.shape == x.shape and all(torch.equal(grad, torch.zeros(29)) for grad in of_norm)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm((3, 29)), nn.LayerNorm(29, bias=False), nn.LayerNorm(29, elementwise_affine=False)]
)
def test_other_norms_are_computed_by_pytorch(norm: nn.LayerNorm) -> None:
    x, update = torch.randn(2, 4, 3, 29)
    torch.testing.assert_close(add_norm(x, update, norm, 1e-12), norm(x + update))


def test_tensors_that_kernels_cannot_compute_with_raise() -> None:
    x = torch.randn(2, 29)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        add_norm(x, x, nn.LayerNorm(31), 0.1)
    with pytest.raises(RuntimeError, match="must match|broadcast"):
        add_norm(x, torch.randn(3, 29), nn.LayerNorm(29), 0.1)
    for update, norm in ((x.to("meta"), nn.LayerNorm(29)), (x, nn.LayerNorm(29, device="meta"))):
        with pytest.raises(RuntimeError, match="device"):
            add_norm(x, update, norm, 0.1)
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="device"):
        attention(query, query, query.to("meta"), None, 0.1)


def test_elements_are_dropped_at_the_rate_and_independently() -> None:
    for rate in (1e-3, 0.1, 0.5, 0.9):
        a, b = (reference.kept(seed, 1000, 1001, rate).double() - (1 - rate) for seed in (1, 2))
        assert reference.scale(rate) == pytest.approx(1 / (1 - rate), rel=1e-6)
        deviation = (rate * (1 - rate)) ** 0.5
        pairs = {
            "rate": a, "seeds": a * b, "rows": a[1:] * a[:-1], "columns": a[:, 1:] * a[:, :-1],
            "distant columns": a[:, 16:] * a[:, :-16], "diagonals": a[1:, 1:] * a[:-1, :-1],
        }  # fmt: skip
        for name, values in pairs.items():
            spread = deviation if name == "rate" else deviation**2
            assert abs(values.mean()) < 5 * spread / values.numel() ** 0.5, (rate, name)
        assert abs(a.mean(0)).max() < 6 * deviation / 1000**0.5 and abs(a.mean(1)).max() < 6 * deviation / 1001**0.5
    assert reference.threshold(1 - 2**-40) < 2**32  # a finite scale


def test_random_numbers_are_those_of_pytorch() -> None:
    x, update = (tensor.detach() for tensor in random(torch.float32, 2))
    norm = normalization(torch.float32)
    for operator in (lambda: relu_dropout(x.clone(), 0.5), lambda: add_norm(x, update, norm, 0.5)):
        torch.manual_seed(0)
        first, second = operator(), operator()
        assert not torch.equal(first, second)
        torch.manual_seed(0)
        assert torch.equal(operator(), first) and torch.equal(operator(), second)


def test_results_do_not_depend_on_threads() -> None:
    x, update, grad_out = (torch.randn(2, 500, 131, generator=torch.Generator().manual_seed(i)) for i in range(3))
    norm = nn.LayerNorm(131)

    def run(threads: int) -> list[Tensor]:
        inputs = x.clone().requires_grad_(), update.clone().requires_grad_()
        torch.manual_seed(0)
        with num_threads(threads):
            out = relu_dropout(add_norm(*inputs, norm, 0.1), 0.1)
            return [out, *torch.autograd.grad(out, [*inputs, *norm.parameters()], grad_out)]

    for one, three in zip(run(1), run(3), strict=True):
        assert torch.equal(one, three)


def test_no_mask_is_kept_for_the_backward_pass() -> None:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x, update = random(torch.float32, 2)
    norm = normalization(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = add_norm(x, update, norm, 0.1)
    statistics = 2 * 4 * x[..., 0].numel()
    assert sum(kept.values()) == x.nbytes + statistics + norm.weight.nbytes
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = relu_dropout(total, 0.1)
    assert list(kept) == [result.data_ptr()]


def test_what_is_not_finite_remains_where_it_is_kept_and_is_zero_where_it_is_dropped() -> None:
    rows = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0]] * 50)
    is_kept = factors(3, 0.5, (50, 4)) > 0
    assert is_kept[:, :3].any(0).all() and not is_kept[:, :3].all(0).any()
    torch.manual_seed(3)
    result = relu_dropout(rows.clone(), 0.5)
    assert torch.equal(result[:, 0].isnan(), is_kept[:, 0]) and torch.equal(result[:, 1].isinf(), is_kept[:, 1])
    assert (result[~is_kept] == 0).all() and (result[:, 2] == 0).all()
    x, norm = torch.randn(50, 4), nn.LayerNorm(4)
    for number in (torch.nan, torch.inf):
        update = torch.tensor([[1.0, number, 2.0, 3.0]] * 50)
        torch.manual_seed(3)
        expected = norm(x + torch.where(is_kept, 2 * update, 0.0))
        torch.testing.assert_close(add_norm(x, update, norm, 0.5), expected, equal_nan=True)
        assert torch.equal(expected.isnan().all(1), is_kept[:, 1])
        assert add_norm(update, x, norm, 0.5).isnan().all()


def test_without_kernels_dropout_is_that_of_pytorch() -> None:
    x, update = random(torch.float32, 2)
    norm = normalization(torch.float32)

    def both() -> Tensor:
        return relu_dropout(add_norm(x, update, norm, 0.5), 0.5)

    def seeded(function: Callable[[], Tensor]) -> Tensor:
        torch.manual_seed(0)
        return function()

    expected = seeded(lambda: F.dropout(norm(x + F.dropout(update, 0.5)).relu(), 0.5))
    assert not torch.equal(seeded(both), expected)
    for name in ("reference", "gather", "triton"):  # there are no kernels of Triton
        with use(name):
            assert torch.equal(seeded(both), expected)
    torch.compiler.reset()
    assert torch.equal(seeded(torch.compile(both, fullgraph=True, backend="eager")), expected)
    mapped = torch.func.vmap(lambda _: both(), randomness="same")
    assert torch.equal(seeded(lambda: mapped(torch.zeros(1))[0]), expected)
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors without memory
        fake = torch.zeros(SHAPE)
        assert relu_dropout(add_norm(fake, fake, norm, 0.5), 0.5).shape == SHAPE
    undropped = relu_dropout(add_norm(x, update, norm, 0.0), 0.0)
    assert torch.equal(undropped, norm(x + update).relu())
