"""Operators: a folder each, with the definition (``reference.py``) and the kernels."""

from detrs.ops.backend import describe, use
from detrs.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused

__all__ = ["describe", "ms_deform_attn", "ms_deform_attn_fused", "use"]
