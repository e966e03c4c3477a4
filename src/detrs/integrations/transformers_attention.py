"""Forward passes that replace those of the deformable attention of ``transformers``.

Each class is the first base of a subclass of the attention of a model, whose projections and settings it uses. Theirs
computes softmax, sampling locations and ``grid_sample`` one after the other; these do it in one kernel.
"""

import copy
import copyreg
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detrs.errors import UserError
from detrs.ops import ms_deform_attn, ms_deform_attn_fused


class Accelerated(nn.Module):
    """What all replacements have in common."""

    original: ClassVar[type[nn.Module]]
    """The class of ``transformers``."""
    parameter_names: ClassVar[tuple[str, ...]]
    """Parameters of its forward pass, in order."""
    compute: Callable[..., Any]
    """The forward pass with all arguments by name."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(**dict(zip(self.parameter_names, args, strict=False)), **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Accelerated":
        """A deep copy is accelerated as well."""
        replica = self.__new__(type(self))
        memo[id(self)] = replica
        replica.__dict__ = copy.deepcopy(self.__dict__, memo)
        return replica

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as the original class: files can be read without detrs. (Pickle accepts no other class in the usual
        form, ``copyreg.__newobj__``.)"""
        state: Any = super().__reduce_ex__(2)[2]
        return copyreg._reconstructor, (self.original, object, None), state  # type: ignore[attr-defined]


class FusedAttention(Accelerated):
    """Deformable DETR, RT-DETR, Grounding DINO, OmDet-Turbo, LW-DETR, RF-DETR, PP-DocLayout."""

    n_heads: int
    n_levels: int
    n_points: int
    sampling_offsets: nn.Module
    attention_weights: nn.Module
    value_proj: nn.Module
    output_proj: nn.Module

    def compute(
        self,
        *,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        reference_points: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        spatial_shapes_list: Any = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden_states: (B, Q, C)
            encoder_hidden_states: (B, S, C)
            reference_points: (B, Q, L or 1, 2 or 4), relative to each level.
            attention_mask: (B, S) bool; ``padding`` gives its meaning.
            position_embeddings: (B, Q, C), added to the queries.
            spatial_shapes: (height, width) of each level, (L, 2).
            spatial_shapes_list: The same as Python integers, which need no synchronization with a GPU.
            unused: The original forward pass does not use them, either.

        Returns:
            (B, Q, C), and attention weights (B, Q, M, L, P).
        """
        query = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        value = self.value_proj(encoder_hidden_states).unflatten(2, (self.n_heads, -1))
        shapes = spatial_shapes if spatial_shapes_list is None else spatial_shapes_list
        padding = None if attention_mask is None else self.padding(attention_mask)
        points = (self.n_points,) * self.n_levels
        out, weights = attend(self, query, self.offsets(query), value, shapes, reference_points, padding, points)
        return self.output_proj(out), weights.unflatten(3, (self.n_levels, self.n_points))

    def offsets(self, query: Tensor) -> Tensor:
        """(B, Q, M*K*2), around boxes in units of box size / (2P)."""
        return self.sampling_offsets(query)

    @staticmethod
    def padding(attention_mask: Tensor) -> Tensor:
        """True where padded."""
        return ~attention_mask


class FusedPixelDecoderAttention(FusedAttention):
    """Mask2Former and OneFormer: their mask is True where padded."""

    @staticmethod
    def padding(attention_mask: Tensor) -> Tensor:
        return attention_mask


class FusedAttentionV2(FusedAttention):
    """RT-DETRv2: around boxes only, with a scale of their size of its own."""

    offset_scale: float

    def compute(self, *, reference_points: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
        """As for ``FusedAttention``, with attention weights (B, Q, M, K)."""
        out, weights = super().compute(reference_points=_boxes(reference_points), **others)
        return out, weights.flatten(3)

    def offsets(self, query: Tensor) -> Tensor:
        return self.sampling_offsets(query) * (2 * self.offset_scale)


class FusedAttentionWithoutProjections(Accelerated):
    """D-FINE and DEIMv2: no projections of value and output; the number of points differs between levels."""

    n_heads: int
    num_points_list: Sequence[int]
    offset_scale: float
    sampling_offsets: nn.Module
    attention_weights: nn.Module

    def compute(
        self,
        *,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        reference_points: Tensor,
        spatial_shapes_list: Any,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden_states: (B, Q, C)
            encoder_hidden_states: (B, S, C), the projected value.
            reference_points: (B, Q, L or 1, 4), relative to each level.
            spatial_shapes_list: (height, width) of each level.
            attention_mask: False where padded, broadcast to (B, S, M).
            unused: The original forward pass does not use them, either.

        Returns:
            (B, Q, C), and attention weights (B, Q, M, K).
        """
        value = encoder_hidden_states.unflatten(2, (self.n_heads, -1))
        value = value if attention_mask is None else value.masked_fill(~attention_mask[..., None], 0.0)
        offsets = self.sampling_offsets(hidden_states) * (2 * self.offset_scale)
        points = tuple(self.num_points_list)
        reference_points = _boxes(reference_points)
        out, weights = attend(self, hidden_states, offsets, value, spatial_shapes_list, reference_points, None, points)
        # With autocast, theirs is in float32, as grid_sample is.
        return (out.float() if torch.is_autocast_enabled(out.device.type) else out), weights


class Sampling(Accelerated):
    """The samples' sum alone, for an attention around it that is not known."""

    def compute(
        self,
        *,
        value: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        value_spatial_shapes: Any = None,
        value_spatial_shapes_list: Any = None,
        **unused: Any,
    ) -> Tensor:
        """As for ``ms_deform_attn``: (B, S, M, D), (B, Q, M, L, P, 2) and (B, Q, M, L, P) to (B, Q, M*D)."""
        shapes = value_spatial_shapes if value_spatial_shapes_list is None else value_spatial_shapes_list
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)


def attend(
    attention: Any,
    query: Tensor,
    offsets: Tensor,
    value: Tensor,
    shapes: Any,
    reference_points: Tensor,
    padding: Tensor | None,
    points: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """From queries and values to the samples' sum, in one kernel.

    Args:
        attention: Has the projection ``attention_weights``.
        query: (B, Q, C)
        offsets: (B, Q, M*K*2)
        value: (B, S, M, D)
        shapes: (height, width) of each level.
        reference_points: (B, Q, L or 1, 2 or 4), relative to each level.
        padding: (B, S), True where padded.
        points: Number of points on each level; the sum is K.

    Returns:
        (B, Q, M*D), and attention weights (B, Q, M, K). The kernel does not return its weights, and hooks on the module
        may need them, so they are computed twice: about one percent of the time of an encoder layer.
    """
    samples = (value.shape[2], sum(points))
    logits = attention.attention_weights(query).unflatten(2, samples)
    offsets = offsets.unflatten(2, (*samples, 2))
    reference_points = reference_points.expand(*query.shape[:2], len(points), -1)
    padding = None if padding is None else padding.expand(value.shape[:2])
    out = ms_deform_attn_fused(value, shapes, offsets, logits, reference_points, padding, points)
    return out, logits.softmax(-1)


def _boxes(reference_points: Tensor) -> Tensor:
    """
    Raises:
        UserError: These are points: theirs raises an error, too.
    """
    if reference_points.shape[-1] != 4:
        raise UserError(f"reference_points: expected boxes (B, Q, L, 4), got {tuple(reference_points.shape)}.")
    return reference_points
