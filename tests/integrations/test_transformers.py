"""``accelerate`` in small models of every kind: equal outputs and gradients, and nothing else changes."""

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attention_models import KINDS, build
from torch import Tensor, nn

from detrs.errors import UserError
from detrs.integrations import transformers as integration
from detrs.integrations.transformers import accelerate, restore
from detrs.integrations.transformers_attention import Accelerated, FusedAttention, Sampling

ENCODERS = ("deformable_detr", "deformable_detr_two_stage", "grounding_dino", "mm_grounding_dino")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """``transformers`` warns of its own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|transformers)\.")
        yield


def tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors of an output, by path."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
    elif isinstance(output, dict):
        for key, value in output.items():
            yield from tensors(value, f"{path}.{key}")
    elif isinstance(output, tuple | list):
        for key, value in enumerate(output):
            yield from tensors(value, f"{path}.{key}")


def run(model: Any, inputs: dict[str, Any], **more: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    for cache in ("language_cache_class", "language_cache_prompt"):  # OmDet-Turbo: graphs of earlier runs
        getattr(model, cache, nn.Module()).__dict__.get("cache", {}).clear()
    return dict(tensors(model(**inputs, **more)))


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Up to the tolerance, relative to values above 1; infinities (masked logits) are equal."""
    assert list(actual) == list(expected) and len(expected) > 1
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        torch.testing.assert_close(
            actual[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def num_accelerated(model: nn.Module) -> int:
    return sum(isinstance(module, Accelerated) for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_equal(kind: str) -> None:
    """In training mode: outputs, and the gradient of every parameter for random upstream gradients."""
    model, inputs = build(kind)
    model.train()

    def gradients() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model.zero_grad()
        outputs = run(model, inputs)
        random = torch.Generator().manual_seed(0)
        total = torch.zeros(())
        for value in outputs.values():
            if value.requires_grad:
                total = total + (value.nan_to_num(0, 0, 0) * torch.randn(value.shape, generator=random)).sum()
        total.backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {name: value.detach() for name, value in outputs.items()}, found

    expected, expected_gradients = gradients()
    accelerated = accelerate(model)
    assert len(accelerated.replaced) == num_accelerated(model) == (4 if kind in ENCODERS else 2)
    actual, actual_gradients = gradients()
    assert_equal(actual, expected)
    assert actual_gradients.keys() == expected_gradients.keys()
    attention = [name for name in expected_gradients if "sampling_offsets" in name]
    assert len(attention) == 2 * len(accelerated.replaced)
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        # Gradients that cancel, as that of a bias before a normalization, have the rounding of their terms.
        floor = 0.0 if name in attention else 1e-5 * largest
        tolerance = 1e-5 * float(gradient.abs().max()) + floor
        torch.testing.assert_close(actual_gradients[name], gradient, atol=tolerance, rtol=1e-5, msg=name)
    assert all(float(expected_gradients[name].abs().max()) > 1e-3 for name in attention)
    accelerated.undo()
    assert num_accelerated(model) == 0
    again, _ = gradients()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_weights_are_returned(kind: str) -> None:
    """From the model that is asked for them, and to hooks on the modules."""
    model, inputs = build(kind)
    model.set_attn_implementation("eager")  # others return no weights of self-attention
    modules = {name: model.get_submodule(name) for name in accelerate(copy.deepcopy(model)).replaced}
    seen: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update(tensors(output, name)))

    def outputs() -> dict[str, Tensor]:
        seen.clear()
        with torch.no_grad():
            return {**run(model, inputs), **run(model, inputs, output_attentions=True), **seen}

    with accelerate(model):
        actual = outputs()
    expected = outputs()
    assert_equal(actual, expected)
    assert len(seen) == 2 * len(modules)
    assert any("attentions" in name for name in expected)
    for name in modules:
        weights = seen[f"{name}.1"].flatten(3)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))


def test_block_undoes_everything() -> None:
    """After an exception, too; and no other model is accelerated."""
    model, inputs = build("deformable_detr")
    other, _ = build("deformable_detr")
    before = {name: (type(module), dict(vars(module))) for name, module in model.named_modules()}
    state, text = copy.deepcopy(model.state_dict()), repr(model)
    expected = run(model, inputs)
    with pytest.raises(KeyError), accelerate(model) as given:
        assert given is model
        assert num_accelerated(model) == 4 and num_accelerated(other) == 0
        assert repr(model) == text
        assert model.state_dict().keys() == state.keys()
        raise KeyError
    for name, module in model.named_modules():
        kind, attributes = before[name]
        assert type(module) is kind
        assert vars(module) == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    actual = run(model, inputs)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_blocks_nest() -> None:
    """Different models and parts of models; the same model only once."""
    first, _ = build("deformable_detr")
    second, _ = build("rt_detr")
    with accelerate(first.model.encoder), accelerate(second):
        assert (num_accelerated(first), num_accelerated(second)) == (2, 2)
        with accelerate(first.model.decoder) as decoder:
            assert (num_accelerated(decoder), num_accelerated(first)) == (2, 4)
        with pytest.raises(UserError, match="already accelerated"):
            accelerate(first)
        assert (num_accelerated(first), num_accelerated(second)) == (2, 2)
    assert (num_accelerated(first), num_accelerated(second)) == (0, 0)


def test_undo_happens_once() -> None:
    model, _ = build("rt_detr")
    accelerated = accelerate(model)
    assert repr(accelerated) == "Acceleration of 2 modules of RTDetrForObjectDetection"
    assert accelerated.replaced == ("model.decoder.layers.0.encoder_attn", "model.decoder.layers.1.encoder_attn")
    accelerated.undo()
    accelerated.undo()
    with pytest.raises(UserError, match="is undone"), accelerated:
        pass
    with accelerate(model):
        assert num_accelerated(model) == 2


def test_copies_remain_accelerated_until_restored() -> None:
    model, inputs = build("d_fine")
    with accelerate(model):
        replica = copy.deepcopy(model)
        expected = run(model, inputs)
    assert (num_accelerated(model), num_accelerated(replica)) == (0, 2)
    for parameter in model.parameters():
        parameter.data.zero_()  # the copy has its own
    actual = run(replica, inputs)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    restore(replica)
    assert num_accelerated(replica) == 0
    assert_equal(run(replica, inputs), expected)
    restore(replica)  # nothing to undo


def test_files_are_those_of_the_original_model() -> None:
    """State dicts and pickles: they can be read without detrs, and are not accelerated."""
    model, inputs = build("mask2former")
    plain = {name: dict(vars(module)) for name, module in model.named_modules()}
    with accelerate(model):
        file = io.BytesIO()
        torch.save(model, file)
        files = [file.getvalue(), *(pickle.dumps(model, protocol) for protocol in (2, 5))]
        expected = run(model, inputs)
    for content in files:
        assert b"detrs" not in content
    file.seek(0)
    for loaded in (torch.load(file, weights_only=False), *map(pickle.loads, files[1:])):
        assert num_accelerated(loaded) == 0
        assert {name: vars(module).keys() for name, module in loaded.named_modules()} == {
            name: attributes.keys() for name, attributes in plain.items()
        }
        assert_equal(run(loaded, inputs), expected)


def test_models_without_such_attention_are_errors() -> None:
    expected = "Expected a model of transformers with deformable attention, got Linear, which has none"
    with pytest.raises(UserError, match=expected):
        accelerate(nn.Linear(2, 2))
    with pytest.raises(UserError, match="Expected a model of transformers, got str"):
        accelerate("facebook/deformable-detr")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["rt_detr_v2", "d_fine"])
def test_sampling_the_nearest_pixel_is_an_error(kind: str) -> None:
    model, _ = build(kind, decoder_method="discrete")
    with pytest.raises(UserError, match="got 'discrete', which samples the nearest pixel"):
        accelerate(model)
    assert num_accelerated(model) == 0


def test_second_acceleration_is_an_error() -> None:
    model, inputs = build("rt_detr")
    with accelerate(model):
        expected = run(model, inputs)
        with pytest.raises(UserError, match=r"already accelerated \(module 'model.decoder.layers.0.encoder_attn'\)"):
            accelerate(model)
        assert num_accelerated(model) == 2
        assert_equal(run(model, inputs), expected, 0.0)


def test_forward_pass_of_another_library_is_an_error() -> None:
    """Hooks of accelerate are attributes of the module, which would precede the method of the class."""
    model, _ = build("rt_detr")
    attention = model.model.decoder.layers[1].encoder_attn
    attention.forward = attention.forward
    with pytest.raises(UserError, match="got one of another library"):
        accelerate(model)
    assert num_accelerated(model) == 0


def test_other_versions_of_the_attention_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison before the replacement fails, and names the module and the difference."""
    for kind, change in {
        "rt_detr": lambda out, weights, **_: (out * 1.01, weights),
        "mask2former": lambda out, weights, attention_mask=None, **_: (
            out if attention_mask is None else -out,
            weights,
        ),
        "d_fine": lambda out, weights, **_: (out, weights[..., :1]),
    }.items():
        model, _ = build(kind)
        name = next(name for name, module in model.named_modules() if hasattr(module, "sampling_offsets"))
        original = type(model.get_submodule(name))
        forward = original.forward

        def changed(self: Any, *args: Any, forward: Any = forward, change: Any = change, **kwargs: Any) -> Any:
            return change(*forward(self, *args, **kwargs), **kwargs)

        changed.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        monkeypatch.setattr(original, "forward", changed)
        integration._subclass.cache_clear()
        with pytest.raises(UserError, match=rf"that accelerate\(\) supports in module '{name}'.*outputs differ by"):
            accelerate(model)
        assert num_accelerated(model) == 0
        monkeypatch.undo()
        integration._subclass.cache_clear()
        accelerate(model).undo()


def test_other_parameters_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build("rt_detr")
    original = type(model.model.decoder.layers[0].encoder_attn)

    def forward(self: Any, query: Tensor, value: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(original, "forward", forward)
    integration._subclass.cache_clear()
    with pytest.raises(UserError, match=r"got another one \(TypeError: .*missing"):
        accelerate(model)
    integration._subclass.cache_clear()


def test_sampling_alone_in_an_unknown_attention() -> None:
    """A user's own attention around the module of ``transformers``: only the samples' sum is replaced."""
    model, inputs = build("deformable_detr")
    known = type(model.model.encoder.layers[0].self_attn)

    class Doubled(known):  # type: ignore[misc,valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out, weights = super().forward(*args, **kwargs)
            return 2 * out, weights

    layer = model.model.encoder.layers[0]
    layer.self_attn.__class__ = Doubled
    expected = run(model, inputs)
    with accelerate(model) as accelerated:
        assert type(layer.self_attn) is Doubled
        assert isinstance(layer.self_attn.attn, Sampling)
        assert isinstance(accelerated.model.encoder.layers[1].self_attn, FusedAttention)
        assert num_accelerated(model) == 4
        assert_equal(run(model, inputs), expected)
    assert type(layer.self_attn.attn).__name__ == "MultiScaleDeformableAttention"


def test_nothing_global_changes() -> None:
    """Random numbers, gradient mode, classes of ``transformers``; the module's own hooks are not called."""
    model, _ = build("deformable_detr")
    attention = model.model.encoder.layers[0].self_attn
    calls: list[int] = []
    attention.register_forward_hook(lambda *_: calls.append(0))
    attention.attn.register_forward_hook(lambda *_: calls.append(1))
    attention.value_proj.register_forward_hook(lambda *_: calls.append(2))
    forward, parameters = type(attention).forward, [p.clone() for p in model.parameters()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    accelerate(model).undo()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() and not calls
    assert type(attention).forward is forward
    assert all(torch.equal(x, y) for x, y in zip(parameters, model.parameters(), strict=True))
    assert not any(p.grad is not None for p in model.parameters())


def test_models_without_memory() -> None:
    """Accelerated before its weights are loaded, as checkpoints of large models are read."""
    with torch.device("meta"):
        model, _ = build("deformable_detr")
    assert len(accelerate(model).replaced) == 4


def test_arguments_by_position() -> None:
    """As the original takes them; and boxes where D-FINE needs them."""
    model, _ = build("mask2former")
    attention = next(module for module in model.modules() if hasattr(module, "sampling_offsets"))
    shapes = [(3, 5), (2, 4), (1, 2)]
    tokens = sum(h * w for h, w in shapes)
    query, value = torch.randn(2, 7, 32), torch.randn(2, tokens, 32)
    mask = torch.rand(2, tokens) < 0.3
    arguments = (query, mask, value, None, torch.randn(2, 7, 32), torch.rand(2, 7, 3, 2), shapes)
    expected = attention(*arguments)
    with accelerate(model):
        actual = attention(*arguments)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    model, _ = build("d_fine")
    with accelerate(model), pytest.raises(UserError, match=r"expected boxes \(B, Q, L, 4\), got \(2, 7, 3, 2\)"):
        model.model.decoder.layers[0].encoder_attn(
            hidden_states=query, encoder_hidden_states=value, reference_points=arguments[5], spatial_shapes_list=shapes
        )


@pytest.mark.parametrize("kind", ["deformable_detr", "d_fine", "mask2former"])
def test_half_precision(kind: str) -> None:
    """bfloat16 with autocast: dtypes as before, and not farther from float32 than the original."""
    model, inputs = build(kind)
    with torch.no_grad():
        exact = run(model, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            expected = run(model, inputs)
            with accelerate(model):
                actual = run(model, inputs)
    assert {name: value.dtype for name, value in actual.items()} == {
        name: value.dtype for name, value in expected.items()
    }
    for name in ("logits", "class_queries_logits"):
        if f".{name}" in exact:
            theirs, ours = ((x[f".{name}"] - exact[f".{name}"]).abs().mean() for x in (expected, actual))
            assert ours < 1.5 * theirs + 1e-3


def test_compiled() -> None:
    """As one graph, forward and backward."""
    model, _ = build("deformable_detr")
    attention = model.model.decoder.layers[0].encoder_attn
    shapes = [(3, 5), (2, 4), (1, 2), (1, 1)]
    inputs = {
        "hidden_states": torch.randn(2, 7, 32),
        "encoder_hidden_states": torch.randn(2, sum(h * w for h, w in shapes), 32, requires_grad=True),
        "reference_points": torch.rand(2, 7, 1, 4),
        "spatial_shapes": torch.tensor(shapes),
        "spatial_shapes_list": shapes,
    }

    def gradient(module: Any) -> tuple[Tensor, Tensor]:
        out, _ = module(**inputs)
        return out.detach(), torch.autograd.grad(out.square().sum(), inputs["encoder_hidden_states"])[0]

    expected = gradient(attention)
    accelerate(model)
    torch.compiler.reset()
    actual = gradient(torch.compile(attention, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    restore(model)
    torch.testing.assert_close(gradient(torch.compile(attention, backend="aot_eager")), expected)


def test_exported_program_contains_no_operator_of_detrs() -> None:
    """An accelerated model is exported with plain PyTorch, and runs elsewhere."""
    model, _ = build("rt_detr")
    attention = model.model.decoder.layers[0].encoder_attn
    shapes = [(3, 5), (2, 4), (1, 2)]
    arguments = {
        "hidden_states": torch.randn(2, 7, 32),
        "encoder_hidden_states": torch.randn(2, 25, 32),
        "reference_points": torch.rand(2, 7, 1, 4),
        "spatial_shapes_list": shapes,
    }
    with accelerate(model):
        program = torch.export.export(attention, (), arguments)
        expected = attention(**arguments)
    assert "detrs" not in str(program.graph)
    torch.testing.assert_close(program.module()(**arguments), expected, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing() -> None:
    model, inputs = build("deformable_detr", dropout=0.0)
    model.train()

    def gradient() -> Tensor:
        model.zero_grad()
        run(model, inputs)[".logits"].sum().backward()
        return model.model.encoder.layers[0].self_attn.value_proj.weight.grad

    expected = gradient()
    with accelerate(model):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        actual = gradient()
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


def test_the_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """``grid_sample`` is not called any more."""
    model, inputs = build("grounding_dino")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    expected = run(model, inputs)
    monkeypatch.setattr(nn.functional, "grid_sample", fail)
    with pytest.raises(AssertionError):
        run(model, inputs)
    monkeypatch.undo()
    with accelerate(model):
        monkeypatch.setattr(nn.functional, "grid_sample", fail)
        assert_equal(run(model, inputs), expected)
