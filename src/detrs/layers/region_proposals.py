"""Region proposal network (Ren et al. 2015, arXiv 1506.01497) on a feature pyramid, with tensors of fixed size."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead

from detrs.layers.fpn import padding_of_cells
from detrs.ops.suppression import not_suppressed
from detrs.precision import full_precision

NMS_IOU = 0.7
"""Proposals of one level that overlap more are duplicates."""
MIN_SIDE = 1e-3
"""Smallest side of a proposal, in pixels."""


class AnchorScores(NamedTuple):
    """The output of the network for all A anchors, fine to coarse."""

    logits: Float[Tensor, "B A"]
    """Of "any object"."""
    deltas: Float[Tensor, "B A 4"]
    """Box relative to the anchor, in the code of Faster R-CNN."""
    anchors: Float[Tensor, "A 4"]
    """xyxy in pixels."""
    outside: Bool[Tensor, "B A"]
    """True for anchors centered on padding: neither proposals nor samples."""
    sizes: tuple[int, ...]
    """Number of anchors of each level."""


class RegionProposalNetwork(nn.Module):
    """torchvision's head and anchors; a proposal is a box that may contain an object of any class.

    Args:
        dim: channels of the pyramid.
        strides: of its levels, in pixels.
        anchor_sizes: square root of the area of the anchors of each level, in pixels.
        aspect_ratios: height / width of the anchors of every cell.
    """

    def __init__(
        self,
        dim: int,
        strides: tuple[int, ...],
        anchor_sizes: tuple[float, ...],
        aspect_ratios: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.strides = strides
        self.anchors = AnchorGenerator(tuple((size,) for size in anchor_sizes), (aspect_ratios,) * len(anchor_sizes))
        self.head = RPNHead(dim, len(aspect_ratios))
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(self, maps: list[Float[Tensor, "B C _ _"]], padding: Bool[Tensor, "B H W"]) -> AnchorScores:
        logits, deltas, anchors, outside = [], [], [], []
        dtype = self.head.cls_logits.weight.dtype
        for x, stride, cell in zip(maps, self.strides, self.anchors.cell_anchors, strict=True):
            hidden = self.head.conv(x)
            with full_precision(x.device.type):
                hidden = hidden.to(dtype)
                logits.append(self.head.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1))
                deltas.append(self.head.bbox_pred(hidden).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
            shape = (x.shape[-2], x.shape[-1])
            anchors.append(grid(cell.to(x.device, dtype), stride, shape))
            outside.append(padding_of_cells(padding, shape, stride).flatten(1).repeat_interleave(len(cell), dim=1))
        sizes = tuple(level.shape[1] for level in logits)
        return AnchorScores(
            torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors), torch.cat(outside, 1), sizes
        )

    @torch.no_grad()
    def propose(
        self, scores: AnchorScores, limits: Float[Tensor, "B 4"], count: int
    ) -> tuple[Float[Tensor, "B N 4"], Float[Tensor, "B N"]]:
        """The best ``count`` boxes of each image, after non-maximum suppression within each level.

        Args:
            scores: of all anchors.
            limits: (width, height, width, height) of each image, to which boxes are clipped.
            count: N, also of the boxes of each level before suppression.

        Returns:
            xyxy in pixels, and the logit of "any object" of each: zero and -inf for the rest of images with fewer
            proposals.
        """
        all_scores, all_boxes, start = [], [], 0
        for size in scores.sizes:
            part = slice(start, start + size)
            start += size
            logits = scores.logits[:, part].masked_fill(scores.outside[:, part], -torch.inf)
            logits, best = logits.topk(torch.sym_min(count, size), dim=1)  # (B, n)
            deltas = scores.deltas[:, part].gather(1, best[..., None].expand(-1, -1, 4))
            boxes = self.coder.decode_single(deltas.flatten(0, 1), scores.anchors[part][best].flatten(0, 1))
            boxes = clipped(boxes.view_as(deltas), limits)
            small = (boxes[..., 2:] - boxes[..., :2]).amin(-1) < MIN_SIDE
            logits = logits.masked_fill(small, -torch.inf)
            all_scores.append(logits.masked_fill(~not_suppressed(boxes, logits, NMS_IOU), -torch.inf))
            all_boxes.append(boxes)
        values, best = torch.cat(all_scores, 1).topk(torch.sym_min(count, sum(s.shape[1] for s in all_scores)), dim=1)
        boxes = torch.cat(all_boxes, 1).gather(1, best[..., None].expand(-1, -1, 4))
        return boxes.masked_fill((values == -torch.inf)[..., None], 0.0), values


def grid(cell: Float[Tensor, "n 4"], stride: int, shape: tuple[int, int]) -> Float[Tensor, "A 4"]:
    """The anchors ``cell`` around the first pixel of every cell, row-major."""
    y, x = torch.meshgrid(
        torch.arange(shape[0], device=cell.device, dtype=cell.dtype) * stride,
        torch.arange(shape[1], device=cell.device, dtype=cell.dtype) * stride,
        indexing="ij",
    )
    centers = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (centers + cell).flatten(0, 1)


def clipped(boxes_xyxy: Float[Tensor, "B N 4"], limits: Float[Tensor, "B 4"]) -> Float[Tensor, "B N 4"]:
    """Boxes clipped to their image."""
    return boxes_xyxy.clamp(min=0).minimum(limits[:, None])
