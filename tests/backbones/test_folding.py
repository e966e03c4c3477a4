import logging
import pickle
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config

from detrs.backbones.folding import FoldedBatchNorm, FoldedConv2d, ResidualBlock, fold_norms, merged
from detrs.backbones.frozen_norm import FrozenBatchNorm, freeze_batch_norm
from detrs.backbones.same_convolution import replace_same
from detrs.backbones.timm import TimmBackbone
from detrs.config.backbone import BackboneConfig

MODELS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "test_resnet": (15, 15, 4, {}),
    "test_resnet dilated": (15, 15, 4, {"output_stride": 16}),
    "test_resnet with drop path": (15, 15, 1, {"drop_path_rate": 0.5}),
    "test_resnet with squeeze and excitation": (15, 15, 0, {"block_args": {"attn_layer": "se"}}),
    "test_resnet with LeakyReLU": (15, 15, 0, {"act_layer": "leaky_relu"}),
    "test_resnet with features from hooks": (15, 15, 4, {"feature_cls": "hook"}),
    "mobilevit_xxs with blocks that cannot be traced": (23, 32, 0, {}),
    "mobilenetv2_035": (51, 51, 0, {"pad_type": "same"}),
    "mobilenetv2_035 with SiLU": (51, 51, 0, {"act_layer": "silu"}),
}
"""Norms that are folded, all norms, residual blocks, and options of timm."""


def timm_model(name: str) -> nn.Module:
    """In float64, with random statistics."""
    model = timm.create_model(name.split()[0], features_only=True, **MODELS[name][3]).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model


def folded(model: nn.Module) -> nn.Module:
    """A copy with frozen norms, folded."""
    copied = deepcopy(model)
    replace_same(copied)
    freeze_batch_norm(copied)
    fold_norms(copied)
    return copied


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_model_has_the_features_gradients_and_names_of_timm(name: str) -> None:
    model = timm_model(name).eval()
    other = folded(model).eval()
    assert (count(other, FoldedConv2d), count(other, FrozenBatchNorm), count(other, ResidualBlock)) == MODELS[name][:3]
    assert count(other, FoldedBatchNorm) == count(other, FoldedConv2d)
    names = [key for key in model.state_dict() if "num_batches_tracked" not in key]
    assert list(other.state_dict()) == names
    images = torch.randn(2, 3, 33, 65, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = model(images)
    found = deepcopy(other)(images)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(other(images), expected, atol=1e-9, rtol=1e-9)
    cotangents = [torch.randn_like(level) for level in expected]
    parameters = dict(model.named_parameters())
    wanted = {key: value for key, value in parameters.items() if key in dict(other.named_parameters())}
    of_timm = torch.autograd.grad(expected, list(wanted.values()), cotangents)
    ours = torch.autograd.grad(other(images), [other.get_parameter(key) for key in wanted], cotangents)
    assert wanted and len(wanted) == len(list(other.parameters()))
    for one, two in zip(ours, of_timm, strict=True):
        torch.testing.assert_close(one, two, atol=1e-8 * two.abs().max().item(), rtol=1e-6)


class Layers(nn.Module):
    """Convolutions and norms in an order that ``run`` defines."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm1, self.norm2 = (FrozenBatchNorm(nn.BatchNorm2d(3)) for _ in range(2))
        self.act, self.run = nn.ReLU(), run
        for norm in (self.norm1, self.norm2):
            norm.running_var.uniform_(0.5, 1.5)
            norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def two_users(layers: Layers, x: Tensor) -> Tensor:
    y = layers.conv1(x)
    return layers.norm1(y) + y


def returned(layers: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    y = layers.conv1(x)
    return y, layers.norm1(y)


def shared_norm(layers: Layers, x: Tensor) -> Tensor:
    return layers.norm1(layers.conv2(layers.norm1(layers.conv1(x))))


def shared_convolution(layers: Layers, x: Tensor) -> Tensor:
    return layers.norm2(layers.conv1(layers.norm1(layers.conv1(x))))


def norm_of_a_sum(layers: Layers, x: Tensor) -> Tensor:
    return layers.norm1(layers.conv1(x) + layers.conv2(x))


def weight_used_elsewhere(layers: Layers, x: Tensor) -> Tensor:
    return layers.norm1(layers.conv1(x)) + layers.conv1.weight.sum()


def depends_on_values(layers: Layers, x: Tensor) -> Tensor:
    y = layers.conv1(x)
    return layers.norm1(y) if x.sum() > 0 else y


def norm_used_before_the_activation(layers: Layers, x: Tensor) -> Tensor:
    y = layers.norm1(layers.conv1(x))
    return layers.act(y) + y


def shared_activation(layers: Layers, x: Tensor) -> Tensor:
    return layers.act(layers.norm2(layers.conv2(layers.act(layers.norm1(layers.conv1(x))))))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (two_users, 0),
        (returned, 0),
        (shared_norm, 0),
        (shared_convolution, 0),
        (norm_of_a_sum, 0),
        (weight_used_elsewhere, 1),
        (depends_on_values, 0),
        (norm_used_before_the_activation, 1),
        (shared_activation, 2),
    ],
)
def test_norms_are_folded_only_where_the_result_remains(
    run: Any, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    layers = Layers(run)
    other = deepcopy(layers)
    with caplog.at_level(logging.INFO, "detrs"):
        fold_norms(other, "a model")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (run is depends_on_values)
    assert all("'a model'" in message and "TraceError: symbolically traced" in message for message in messages)
    assert count(other, FoldedConv2d) == expected and isinstance(other.act, nn.ReLU)
    for _ in range(4):
        x = torch.randn(2, 3, 5, 7)
        torch.testing.assert_close(other(x), layers(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("observed", "expected"), [("conv", 0), ("norm", 0), ("act", 1)])
def test_what_a_hook_of_a_container_receives_remains(observed: str, expected: int) -> None:
    """Its inputs and its output; here, containers have one layer each."""
    names = ("conv", "norm", "act")
    inner = Layers(lambda layers, x: layers.act(layers.norm1(layers.conv1(x))))
    model = nn.Sequential(*(nn.Sequential(layer) for layer in (inner.conv1, inner.norm1, inner.act)))
    other, seen = deepcopy(model), []
    for each in (model, other):
        each[names.index(observed)].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    fold_norms(other)
    assert count(other, FoldedConv2d) == expected
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(other(x), model(x))
    torch.testing.assert_close(seen[0], seen[1])


@pytest.mark.parametrize("name", ["conv1", "norm1"])
def test_a_layer_with_a_hook_is_not_folded(name: str) -> None:
    layers = Layers(lambda layers, x: layers.norm1(layers.conv1(x)))
    seen: list[Tensor] = []
    layers.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(args[0]))
    fold_norms(layers)
    layers(torch.randn(1, 3, 5, 7))
    assert count(layers, FoldedConv2d) == 0 and len(seen) == 1


def test_a_residual_block_whose_activation_has_a_hook_remains() -> None:
    model = timm_model("test_resnet").eval()
    seen: list[Tensor] = []
    model.get_submodule("layer1.0.act2").register_forward_hook(lambda module, args, output: seen.append(output))
    other = folded(model)
    assert count(other, ResidualBlock) == 3
    other(torch.randn(1, 3, 33, 65, dtype=torch.float64))
    assert len(seen) == 1


def test_a_copy_is_independent() -> None:
    backbone = TimmBackbone(BackboneConfig(name="test_resnet"))
    copied, images = deepcopy(backbone), torch.randn(1, 3, 64, 96)
    before = copied(images)[0]
    for buffer in backbone.buffers():
        buffer.add_(1.0)
    assert torch.equal(copied(images)[0], before) and not torch.equal(backbone(images)[0], before)
    copied.load_state_dict(backbone.state_dict())
    assert torch.equal(copied(images)[0], backbone(images)[0])


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_035"])
def test_folded_models_can_be_pickled(name: str) -> None:
    model = folded(timm_model(name)).eval()
    images = torch.randn(1, 3, 33, 65, dtype=torch.float64)
    for each in (model, merged(model)):
        loaded = pickle.loads(pickle.dumps(each))
        torch.testing.assert_close(loaded(images), each(images), atol=0, rtol=0)
    loaded = pickle.loads(pickle.dumps(model))
    assert {id(module.norm) for module in loaded.modules() if isinstance(module, FoldedConv2d)} == {
        id(module) for module in loaded.modules() if isinstance(module, FoldedBatchNorm)
    }


def test_only_inputs_and_results_of_trained_convolutions_are_kept_for_gradients() -> None:
    backbone = TimmBackbone(BackboneConfig(name="test_resnet")).train()
    maps: dict[bool, set[int]] = {True: set(), False: set()}

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, FoldedConv2d) and output.requires_grad == module.weight.requires_grad
        maps[module.weight.requires_grad] |= {args[0].data_ptr(), output.data_ptr()}

    for module in backbone.modules():
        if isinstance(module, FoldedConv2d):
            module.register_forward_hook(note)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        levels = backbone(torch.randn(1, 3, 64, 96))
    weights = {parameter.data_ptr() for parameter in backbone.parameters()}
    kept_maps = {tensor.data_ptr() for tensor in kept if tensor.ndim == 4} - weights
    assert kept_maps <= maps[True] and len(levels) == 3
    assert sum(tensor.numel() for tensor in kept if tensor.ndim != 4) < 20_000  # scales


def test_exported_programs_have_plain_convolutions_and_no_norms() -> None:
    folded = TimmBackbone(BackboneConfig(name="test_resnet")).eval()
    for norm in folded.modules():
        if isinstance(norm, FrozenBatchNorm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    backbone = merged(folded)
    assert count(folded, FoldedConv2d) == 15 and count(backbone, FoldedConv2d) == 0
    assert {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad} > {
        name for name, parameter in folded.named_parameters() if not parameter.requires_grad
    }
    dims = {2: torch.export.Dim("height", min=65), 3: torch.export.Dim("width", min=65)}
    with _config.patch(backed_size_oblivious=True):  # both options as in detrs.exporting
        program = torch.export.export(
            backbone,
            (torch.randn(2, 3, 97, 133),),
            dynamic_shapes=(dims,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("conv2d" in name for name in names) == 15 and not any("detrs" in name for name in names)
    assert not any("aten.mul" in name or "batch_norm" in name for name in names)
    images = torch.randn(2, 3, 131, 70)
    torch.testing.assert_close(program.module()(images), folded(images), atol=1e-4, rtol=1e-4)


def test_a_model_without_folded_norms_is_not_copied() -> None:
    backbone = TimmBackbone(BackboneConfig(name="test_resnet", norm="batch"))
    assert count(backbone, FoldedConv2d) == 0 and merged(backbone) is backbone
