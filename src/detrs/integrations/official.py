"""The operator under the names and signatures of the official CUDA operator of Deformable DETR.

Its repository, and those that copy it (Mask2Former, DINO, OneFormer, ...), compile a module
``MultiScaleDeformableAttention``. One line before their first import replaces it::

    import detrs.integrations.official as official; official.install()

``level_start_index`` has to be that of adjacent levels. ``im2col_step`` has no effect: there is no limit of the batch.
"""

import functools
import importlib.machinery
import sys
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

from detrs.errors import UserError
from detrs.ops import backend, ms_deform_attn
from detrs.ops.ms_deform_attn import operator
from detrs.structures import Shapes

MODULE = "MultiScaleDeformableAttention"
"""Name of the compiled module."""


class MSDeformAttnFunction:
    """Call ``MSDeformAttnFunction.apply``, as that of ``models/ops/functions/ms_deform_attn_func.py``."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """Multi-scale deformable attention with gradients of value, locations and weights.

        Args:
            value: (B, S, M, D)
            value_spatial_shapes: (height, width) of each level, (L, 2).
            value_level_start_index: First token of each level, (L,).
            sampling_locations: (x, y) in [0, 1], (B, Q, M, L, P, 2).
            attention_weights: (B, Q, M, L, P)
            im2col_step: Not used.

        Returns:
            (B, Q, M*D)

        Raises:
            UserError: Levels are not adjacent and in order.
        """
        return ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights, im2col_step
        )


def ms_deform_attn_core_pytorch(
    value: Tensor, value_spatial_shapes: Any, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """As ``MSDeformAttnFunction.apply``, for any sequence of shapes."""
    return ms_deform_attn(value, _as_shapes(value_spatial_shapes), sampling_locations, attention_weights)


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """``MultiScaleDeformableAttention.ms_deform_attn_forward``; unlike it, with gradients. As the function above."""
    shapes = _adjacent(spatial_shapes, level_start_index)
    return ms_deform_attn(value, shapes, sampling_loc, attn_weight)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    im2col_step: int = 64,
) -> list[Tensor]:
    """``MultiScaleDeformableAttention.ms_deform_attn_backward``.

    Args:
        value: (B, S, M, D)
        spatial_shapes: (L, 2)
        level_start_index: (L,)
        sampling_loc: (B, Q, M, L, P, 2)
        attn_weight: (B, Q, M, L, P)
        grad_output: Upstream gradient, (B, Q, M*D).
        im2col_step: Not used.

    Returns:
        Gradients of value, sampling locations and attention weights, in their shapes and dtypes.
    """
    shapes = _adjacent(spatial_shapes, level_start_index)
    tensors = (value, sampling_loc, attn_weight)
    if backend.current(value.device.type, value.dtype) not in backend.KERNELS:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in tensors]
            out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
        return list(torch.autograd.grad(out, leaves, grad_output))
    compute = functools.reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    gradients = operator.ms_deform_attn_backward(
        grad_output,
        value.double() if compute == torch.float64 else value,
        [side for shape in shapes for side in shape],
        [sampling_loc.shape[4]] * len(shapes),
        sampling_loc.to(compute).flatten(3, 4),
        attn_weight.to(compute).flatten(3),
        None,
        None,
        [True, True, True, False],
    )
    return [gradient.reshape(x.shape).to(x.dtype) for gradient, x in zip(gradients, tensors, strict=False)]


class Installation:
    """What :func:`install` has put into ``sys.modules``. As a context manager, it removes it at the end."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        sys.modules[module.__name__] = module

    def undo(self) -> None:
        """Removes the module; repositories that have imported it keep it."""
        if sys.modules.get(self.module.__name__) is self.module:
            del sys.modules[self.module.__name__]

    def __enter__(self) -> ModuleType:
        return self.module

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def install(name: str = MODULE) -> Installation:
    """Provides the compiled module of the official repositories, for ``import MultiScaleDeformableAttention``.

    Call it before anything imports that module, which then runs on CPUs, too.

    Args:
        name: Name of the module in the repository, such as ``groundingdino._C``.

    Returns:
        A context manager; ``undo()`` removes the module.

    Raises:
        UserError: A module with this name is imported already.
    """
    if name in sys.modules:
        where = getattr(sys.modules[name], "__file__", None) or "detrs"
        raise UserError(
            f"Expected that nothing has imported {name} yet, but it is imported from {where}. Call install() before "
            "importing the repository."
        )
    module = ModuleType(name, __doc__)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(ms_deform_attn_forward=ms_deform_attn_forward, ms_deform_attn_backward=ms_deform_attn_backward)
    return Installation(module)


def _adjacent(spatial_shapes: Tensor, level_start_index: Tensor) -> Shapes:
    """The shapes as Python integers. On a GPU this is one synchronization.

    Raises:
        UserError: The first tokens of the levels are not those of adjacent levels.
    """
    numbers = torch.cat([spatial_shapes.flatten(), level_start_index.flatten()]).tolist()
    sides, starts = numbers[: spatial_shapes.numel()], numbers[spatial_shapes.numel() :]
    shapes = tuple(zip(sides[::2], sides[1::2], strict=True))
    expected, start = [], 0
    for height, width in shapes:
        expected.append(start)
        start += height * width
    if starts != expected:
        raise UserError(
            f"level_start_index: expected {expected}, the first tokens of adjacent levels {list(shapes)}, got "
            f"{starts}. Concatenate the levels in order."
        )
    return shapes


def _as_shapes(shapes: Any) -> Shapes:
    return tuple((int(height), int(width)) for height, width in shapes)
