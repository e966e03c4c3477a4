"""Whether a replacement equals the attention of ``transformers`` that it replaces, on random inputs.

The forward passes of ``transformers`` change between versions. A version that computes anything else is an error, not a
model with other outputs.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detrs.errors import UserError
from detrs.integrations.transformers_attention import Accelerated, Sampling

TOLERANCE = 1e-4
"""Largest difference of outputs around 1. A wrong scale, mask or order of axes causes more than 1e-2."""
BATCH, QUERIES = 2, 11
LEVELS, HEADS, POINTS, CHANNELS = 3, 2, 4, 32
"""Sizes for the samples' sum, which has no settings of its own. Most models have 32 channels per head, for which the
kernel is compiled anyway."""

Case = dict[str, Any]


@torch.no_grad()
def check(name: str, module: nn.Module, replacement: type[Accelerated]) -> None:
    """Compares a replacement with the original in float32, on the device of the module, with random projections.

    Args:
        name: Name of the module in its model, for messages.
        module: The original. It does not change, and neither do global random generators.
        replacement: Subclass of the class of the module.

    Raises:
        UserError: The outputs differ, or the original has other parameters.
    """
    device = next((x.device for x in module.parameters() if x.device.type != "meta"), torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    cases = _sampling_cases(random) if issubclass(replacement, Sampling) else _attention_cases(module, random)
    try:
        twin = _with_random_projections(module, random, device)
        differences = [_difference(twin, replacement, case, device) for case in cases]
        found = "" if max(differences) < TOLERANCE else f"on random inputs, outputs differ by {max(differences):.1e}"
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
    if found:
        raise UserError(
            f"Expected deformable attention that accelerate() supports in module '{name}' ({type(module).__name__}), "
            f"got another one ({found}). This version of transformers is not supported, please report it."
        )


def _difference(module: nn.Module, replacement: type[Accelerated], case: Case, device: torch.device) -> float:
    """Largest difference of the outputs of a module with both classes; infinite or NaN if they cannot be compared."""
    given = {key: _on(device, case[key]) for key in replacement.parameter_names if key in case}
    with torch.autocast(device.type, enabled=False):
        expected = _tuple(module.forward(**given))
        module.__class__ = replacement
        actual = _tuple(module.forward(**given))
        module.__class__ = replacement.original
    if [(x.shape, x.dtype) for x in expected] != [(x.shape, x.dtype) for x in actual]:
        return float("inf")
    return max(float((x - y).abs().max()) for x, y in zip(expected, actual, strict=True))


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _with_random_projections(module: nn.Module, random: torch.Generator, device: torch.device) -> Any:
    """The module with its settings, but other linear layers: its own may be quantized, sharded or without memory."""
    twin = _without_hooks(module)
    children: dict[str, Any] = module._modules
    for key, child in children.items():
        if hasattr(child, "in_features"):
            twin._modules[key] = _linear(child.in_features, child.out_features, random).to(device)
        elif child is not None:
            twin._modules[key] = _without_hooks(child)
    twin._buffers = {key: None if x is None else x.to(device, torch.float32) for key, x in module._buffers.items()}
    return twin


def _without_hooks(module: nn.Module) -> Any:
    """A copy that shares parameters and settings, with the forward pass of its class."""
    twin = module.__new__(type(module))
    hooks: dict[str, Any] = {key: OrderedDict() for key in vars(module) if key.endswith("_hooks")}
    twin.__dict__ = {**vars(module), **hooks, "_modules": dict(module._modules)}
    twin.__dict__.pop("forward", None)
    return twin


def _linear(inputs: int, outputs: int, random: torch.Generator) -> nn.Linear:
    """A layer with outputs around 1. The layers of PyTorch draw their first values from the global generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device="cpu", dtype=torch.float32)
    layer.weight.normal_(generator=random).div_(inputs**0.5)
    layer.bias.normal_(generator=random)
    return layer


def _attention_cases(module: Any, random: torch.Generator) -> Iterator[Case]:
    """Points with padding and boxes without. The second version of the attention takes no points."""
    shapes, tokens = _shapes(module.n_levels)
    kinds = ((2, module.n_levels, True), (4, 1, False))
    for coordinates, levels, padded in kinds[1:] if hasattr(module, "offset_scale") else kinds:
        case = {
            "hidden_states": torch.randn(BATCH, QUERIES, module.d_model, generator=random),
            "encoder_hidden_states": torch.randn(BATCH, tokens, module.d_model, generator=random),
            "reference_points": torch.rand(BATCH, QUERIES, levels, coordinates, generator=random),
            "attention_mask": torch.rand(BATCH, tokens, generator=random) < 0.7,
            "position_embeddings": torch.randn(BATCH, QUERIES, module.d_model, generator=random),
            "spatial_shapes": torch.tensor(shapes),
            "spatial_shapes_list": shapes,
        }
        yield case if padded else {key: value for key, value in case.items() if key != "attention_mask"}


def _sampling_cases(random: torch.Generator) -> Iterator[Case]:
    shapes, tokens = _shapes(LEVELS)
    samples = (BATCH, QUERIES, HEADS, LEVELS, POINTS)
    sizes = torch.tensor([h * w for h, w in shapes])
    yield {
        "value": torch.randn(BATCH, tokens, HEADS, CHANNELS, generator=random),
        "value_spatial_shapes": torch.tensor(shapes),
        "value_spatial_shapes_list": shapes,
        "level_start_index": sizes.cumsum(0) - sizes,
        "sampling_locations": torch.rand(*samples, 2, generator=random) * 1.4 - 0.2,
        "attention_weights": torch.rand(samples, generator=random),
        "im2col_step": 64,
    }


def _shapes(levels: int) -> tuple[list[tuple[int, int]], int]:
    """Levels that are not square, with different sizes, and their number of tokens."""
    shapes = [(3 + level, 5 + 2 * level) for level in range(levels)]
    return shapes, sum(h * w for h, w in shapes)


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
