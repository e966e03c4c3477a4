"""The operator under the names and signatures of ``mmcv.ops.multi_scale_deform_attn``.

One line after the import of mmcv replaces its CUDA operator and its implementation for CPUs, in mmdetection, BEVFormer
and everything else that uses it::

    import detrs.integrations.mmcv; detrs.integrations.mmcv.install()
"""

import importlib
from types import ModuleType, TracebackType
from typing import Any

from detrs.errors import UserError
from detrs.integrations.official import MSDeformAttnFunction, ms_deform_attn_core_pytorch

MODULE = "mmcv.ops.multi_scale_deform_attn"

MultiScaleDeformableAttnFunction = MSDeformAttnFunction
"""``apply(value, value_spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step)``. With
values in half precision, the locations remain in float32; those of mmcv are rounded, which moves them by pixels."""

multi_scale_deformable_attn_pytorch = ms_deform_attn_core_pytorch
"""``multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights)``"""

NAMES = ("MultiScaleDeformableAttnFunction", "multi_scale_deformable_attn_pytorch")


class Installation:
    """What :func:`install` has replaced. As a context manager, it restores mmcv at the end."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._before = {name: vars(module)[name] for name in NAMES}
        vars(module).update({name: globals()[name] for name in NAMES})

    def undo(self) -> None:
        """Restores the functions of mmcv."""
        vars(self._module).update(self._before)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def install() -> Installation:
    """Replaces the functions in mmcv's module, which its ``MultiScaleDeformableAttention`` looks up at each call.

    Code that has imported the functions by name keeps those of mmcv: install first.

    Returns:
        A context manager; ``undo()`` restores them.

    Raises:
        UserError: mmcv is not installed, or does not contain its operators (mmcv-lite).
    """
    try:
        module: Any = importlib.import_module(MODULE)
    except ImportError as error:
        raise UserError(f"Expected mmcv with its operators, but {MODULE} cannot be imported ({error}).") from error
    missing = [name for name in NAMES if not hasattr(module, name)]
    if missing:
        raise UserError(f"Expected {', '.join(missing)} in {MODULE}, but this version of mmcv has other names.")
    if module.MultiScaleDeformableAttnFunction is MultiScaleDeformableAttnFunction:
        raise UserError(f"{MODULE} has the functions of detrs already.")
    return Installation(module)
