"""Features of boxes: RoIAlign (He et al. 2017, arXiv 1703.06870) on the level of a pyramid that suits each box."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import roi_align

RoIs = Float[Tensor, "R 5"]
"""Index of the image, then x1, y1, x2, y2 in pixels."""


class RoIPooling(nn.Module):
    """Boxes to maps of ``size`` x ``size`` cells, from one level per box (FPN, Eq. 1).

    Args:
        strides: of the levels, in pixels; each twice the one before.
        size: cells per side.
        canonical_size: side in pixels of a square box that is pooled from the level of stride 16.
        aligned: centers of pixels at half coordinates, as in Detectron2; False: torchvision's Faster R-CNN.
    """

    def __init__(
        self, strides: tuple[int, ...], size: int = 7, canonical_size: float = 224.0, aligned: bool = True
    ) -> None:
        super().__init__()
        self.strides = strides
        self.size = size
        self.canonical_size = canonical_size
        self.aligned = aligned

    def levels_of(self, rois: RoIs) -> Int[Tensor, "R"]:
        """Index of the level of each box; a box without area has the finest."""
        area = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0).prod(1)
        exponent = torch.log2(area.sqrt() * (16 / self.strides[0] / self.canonical_size)) + 1e-6
        return exponent.floor().clamp(min=0, max=len(self.strides) - 1).long()

    def forward(self, maps: list[Float[Tensor, "B C _ _"]], rois: RoIs) -> Float[Tensor, "R C size size"]:
        """Features of each box, with 2 x 2 samples per cell."""
        levels = self.levels_of(rois)
        indices, pooled = [], []
        for level, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = torch.where(levels == level)[0]
            indices.append(chosen)
            pooled.append(roi_align(x, rois[chosen], self.size, 1 / stride, sampling_ratio=2, aligned=self.aligned))
        return torch.cat(pooled)[torch.cat(indices).argsort()]


def rois_of(boxes_xyxy: Float[Tensor, "B N 4"]) -> RoIs:
    """The boxes of all images, in order, with the index of their image."""
    index = torch.arange(boxes_xyxy.shape[0], device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
    return torch.cat([index[:, None, None].expand(-1, boxes_xyxy.shape[1], 1), boxes_xyxy], dim=-1).flatten(0, 1)
