"""Faster deformable attention in the models of ``transformers``.

::

    accelerate(model)          # from now on
    with accelerate(model):    # within the block
        ...
"""

import functools
import inspect
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from torch import nn

from detrs.errors import UserError, counted
from detrs.integrations.transformers_attention import (
    Accelerated,
    FusedAttention,
    FusedAttentionV2,
    FusedAttentionWithoutProjections,
    FusedPixelDecoderAttention,
    Sampling,
)
from detrs.integrations.transformers_check import check

ATTENTION = "MultiscaleDeformableAttention"
"""End of the names of their attention classes: ``DeformableDetrMultiscaleDeformableAttention``, ..."""
SAMPLING = "MultiScaleDeformableAttention"
"""Name of their classes for the samples' sum alone, which some attention classes contain."""


class Acceleration:
    """What :func:`accelerate` has replaced in a model. As a context manager, it restores the model at the end.

    Attributes:
        model: The model.
        replaced: Names of the modules whose forward pass is replaced.
    """

    def __init__(self, model: nn.Module, classes: dict[str, type[Accelerated]]) -> None:
        self.model = model
        self.replaced = tuple(classes)
        self._modules = [model.get_submodule(name) for name in classes]
        for module, replacement in zip(self._modules, classes.values(), strict=True):
            module.__class__ = replacement

    def undo(self) -> None:
        """Restores the original forward passes of this model. Its deep copies remain accelerated (see ``restore``)."""
        for module in self._modules:
            _restore(module)

    def __enter__(self) -> nn.Module:
        if not any(isinstance(module, Accelerated) for module in self._modules):
            raise UserError("This acceleration is undone. Call accelerate(model) again.")
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"Acceleration of {counted(len(self.replaced), 'module')} of {type(self.model).__name__}"


def accelerate(model: nn.Module) -> Acceleration:
    """Replaces the deformable attention of a model of ``transformers`` by the operator of detrs, in place.

    Supported are all models of ``transformers`` with deformable attention: Deformable DETR, RT-DETR, RT-DETRv2, D-FINE,
    DEIMv2, Grounding DINO, MM Grounding DINO, Mask2Former, OneFormer, OmDet-Turbo, LW-DETR, RF-DETR and PP-DocLayout.
    Only the modules of this model change, neither classes nor other models. Parameters, state dict, hooks and the names
    of classes stay the same; outputs and gradients are equal up to rounding. Before anything is replaced, each kind of
    attention in the model is compared with its original on random inputs.

    Args:
        model: Any module that contains such attention, on any device and in any dtype, for inference or training.

    Returns:
        A context manager that restores the model at the end of the block. Without a block, the model stays accelerated
        until ``undo()``.

    Raises:
        UserError: The model has no such attention, is already accelerated, or has a variant that is not supported, such
            as sampling of the nearest pixel (``decoder_method="discrete"``). The model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"Expected a model of transformers, got {type(model).__name__}.")
    chosen = _replacements(model)
    if not chosen:
        raise UserError(
            f"Expected a model of transformers with deformable attention, got {type(model).__name__}, which has none. "
            "Models with it are Deformable DETR, RT-DETR, D-FINE, Grounding DINO, Mask2Former and others: see "
            "docs/integrations.md."
        )
    originals: dict[str, Any] = {name: type(model.get_submodule(name)) for name in chosen}
    classes = {name: _subclass(kind, originals[name]) for name, kind in chosen.items()}
    for name in _different(model, chosen):
        check(name, model.get_submodule(name), classes[name])
    return Acceleration(model, classes)


def restore(model: nn.Module) -> None:
    """Undoes :func:`accelerate` in a model, also in a deep copy of an accelerated one.

    Args:
        model: Any model. One that is not accelerated does not change.
    """
    for module in model.modules():
        _restore(module)


def _restore(module: nn.Module) -> None:
    if isinstance(module, Accelerated):
        module.__class__ = module.original  # type: ignore[assignment]


def _replacements(model: nn.Module) -> dict[str, Any]:
    """Name of each module to replace, and its replacement.

    Raises:
        UserError: A module is deformable attention, but cannot be replaced.
    """
    chosen: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, Accelerated):
            raise UserError(f"This model is already accelerated (module '{name}'). Call restore(model) first.")
        kind = _kind(name, module)
        if kind is None or any(name.startswith(f"{outer}." if outer else "") for outer in chosen):
            continue  # the samples' sum inside of an attention that is replaced as a whole
        if "forward" in vars(module):
            raise UserError(
                f"Expected the forward pass of {type(module).__name__} in module '{name}', got one of another "
                "library (hooks of accelerate, kernels of the Hub). Remove it first."
            )
        chosen[name] = kind
    return chosen


def _kind(name: str, module: nn.Module) -> type[Accelerated] | None:
    """The replacement of a module; ``None`` if it stays as it is.

    Raises:
        UserError: It samples other than bilinearly.
    """
    defining: Any = next(each for each in type(module).__mro__ if "forward" in vars(each))  # nn.Module has one, too
    if defining.__name__ == SAMPLING and "sampling_locations" in inspect.signature(defining.forward).parameters:
        return Sampling
    if not defining.__name__.endswith(ATTENTION):
        return None
    method = getattr(module, "method", None) or getattr(module, "decoder_method", "default")
    if method != "default":
        raise UserError(
            f"Expected bilinear sampling (decoder_method='default') in module '{name}', got '{method}', which samples "
            "the nearest pixel. This variant cannot be accelerated."
        )
    if hasattr(module, "ms_deformable_attn_core"):
        return FusedAttentionWithoutProjections
    if hasattr(module, "n_points_list"):
        return FusedAttentionV2
    return FusedAttention if hasattr(module, "attn") else FusedPixelDecoderAttention


def _different(model: nn.Module, chosen: Iterable[str]) -> Iterable[str]:
    """The first of all modules with the same class and settings."""
    first: dict[tuple[Any, ...], str] = {}
    for name in chosen:
        module = model.get_submodule(name)
        settings = tuple((key, str(value)) for key, value in vars(module).items() if not key.startswith("_"))
        first.setdefault((type(module), *settings), name)
    return first.values()


@functools.cache
def _subclass(kind: Any, original: Any) -> Any:
    """The original class with another forward pass, under the same name: PyTorch prints it, FSDP wraps by it."""
    members = {
        "original": original,
        "parameter_names": tuple(inspect.signature(original.forward).parameters)[1:],
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (kind, original), members)
