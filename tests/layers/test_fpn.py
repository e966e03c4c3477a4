"""FPN equals that of torchvision; BiFPN equals its equations; both exclude padding if set."""

import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from detrs.layers.fpn import FPN, BiFPN, BiFPNLayer, Fusion, normalized_smoothing, smoothing
from detrs.layers.neck import ChannelMapper, normalized_projection, valid_cells, valid_inputs, whole_map

CHANNELS = (3, 5, 7)
DIM = 32


def features(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(2, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]


def no_padding(height: int, width: int) -> Tensor:
    return torch.zeros(2, height, width, dtype=torch.bool)


@pytest.mark.parametrize("sizes", [((24, 20), (12, 10), (6, 5)), ((25, 33), (13, 17), (7, 9))])
@torch.no_grad()
def test_fpn_equals_that_of_torchvision(sizes: tuple[tuple[int, int], ...]) -> None:
    """Also where sides are not multiples of the stride."""
    ours, theirs = FPN(CHANNELS, DIM, 3, smoothing), FeaturePyramidNetwork(list(CHANNELS), DIM)
    for level in range(3):
        theirs.inner_blocks[level][0].load_state_dict(ours.laterals[level].state_dict())
        theirs.layer_blocks[level][0].load_state_dict(ours.outputs[level].state_dict())
    maps = features(*sizes)
    expected = theirs(OrderedDict(zip("345", maps, strict=True)))
    for mine, other in zip(ours(maps, no_padding(200, 160)), expected.values(), strict=True):
        torch.testing.assert_close(mine, other)


def test_initialization_and_size_are_those_of_fpn() -> None:
    with torch.device("meta"):
        four, three = (
            FPN(channels, 256, len(channels), smoothing) for channels in ((256, 512, 1024, 2048), (512, 1024, 2048))
        )
    assert sum(p.numel() for p in four.parameters()) == 3_344_384
    assert sum(p.numel() for p in three.parameters()) == 2_688_512
    lateral = FPN((512,), 256, 1, smoothing).laterals[0]
    assert lateral.weight.abs().max().item() == pytest.approx(math.sqrt(3 / 512), rel=1e-3)
    assert (lateral.bias == 0).all()


@torch.no_grad()
def test_further_levels_are_those_of_the_channel_mapper() -> None:
    """From the backbone's last map, not from the merged one."""
    torch.manual_seed(0)
    neck, mapper = FPN(CHANNELS, DIM, 5, normalized_smoothing), ChannelMapper(CHANNELS, DIM, 5, normalized_projection)
    neck.downsamples.load_state_dict(mapper.downsamples.state_dict())
    maps = features((24, 20), (12, 10), (6, 5))
    found, expected = neck(maps, no_padding(192, 160)), mapper(maps, no_padding(192, 160))
    assert [level.shape for level in found] == [level.shape for level in expected]
    assert torch.equal(found[3], expected[3]) and torch.equal(found[4], expected[4])


def fuse(node: Fusion, *inputs: Tensor) -> Tensor:
    """Equations of EfficientDet for one node, with an explicit sum."""
    weights = node.fusion_weights.clamp(min=0)
    fused = sum(w * x for w, x in zip(weights, inputs, strict=True)) / (weights.sum() + 1e-4)
    depthwise, pointwise = node.projection[0]
    x = F.conv2d(fused * fused.sigmoid(), depthwise.weight, padding=1, groups=DIM)
    x = torch.einsum("oc,bchw->bohw", pointwise.weight[:, :, 0, 0], x) + pointwise.bias[:, None, None]
    return F.group_norm(x, 32, node.projection[1].weight, node.projection[1].bias)


def larger(x: Tensor, like: Tensor) -> Tensor:
    """Every cell repeated, cut to size."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : like.shape[2], : like.shape[3]]


def smaller(x: Tensor) -> Tensor:
    """The largest of three by three cells around every second one, with zeros outside."""
    shifted = F.pad(x, (1, 2, 1, 2))
    height, width = x.shape[2:]
    windows = [shifted[..., i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return torch.stack(windows).amax(0)


@torch.no_grad()
def test_layer_of_bifpn_equals_its_equations() -> None:
    torch.manual_seed(0)
    layer = BiFPNLayer(4, DIM)
    for parameter in layer.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    p3, p4, p5, p6 = (torch.randn(2, DIM, *size) for size in ((24, 40), (12, 20), (6, 10), (3, 5)))
    found = layer([p3, p4, p5, p6], no_padding(192, 320))
    t5 = fuse(layer.top_down[0], p5, larger(p6, p5))
    t4 = fuse(layer.top_down[1], p4, larger(t5, p4))
    o3 = fuse(layer.top_down[2], p3, larger(t4, p3))
    o4 = fuse(layer.bottom_up[0], p4, t4, smaller(o3))
    o5 = fuse(layer.bottom_up[1], p5, t5, smaller(o4))
    o6 = fuse(layer.coarsest, p6, smaller(o5))
    for mine, expected in zip(found, (o3, o4, o5, o6), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


class Unchanged(nn.Module):
    def forward(self, features: list[Tensor], padding: Tensor) -> list[Tensor]:
        return features


@pytest.mark.parametrize("num_levels", [2, 3, 5])
def test_bifpn_with_any_number_of_levels_and_odd_sizes(num_levels: int) -> None:
    maps = [torch.randn(2, DIM, *size) for size in ((37, 51), (19, 26), (10, 13), (5, 7), (3, 4))][:num_levels]
    neck = BiFPN(Unchanged(), [BiFPNLayer(num_levels, DIM) for _ in range(2)])
    found = neck(maps, no_padding(296, 408))
    assert [level.shape for level in found] == [level.shape for level in maps]
    sum(level.square().sum() * (n + 1) for n, level in enumerate(found)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())


@pytest.mark.parametrize(("num_levels", "count"), [(4, 411_662), (5, 548_883)])
def test_size_of_a_layer_is_that_of_efficientdet(num_levels: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in BiFPNLayer(num_levels, 256).parameters()) == count


def fpn(apply: object) -> nn.Module:
    return FPN(CHANNELS, DIM, 4, normalized_smoothing, apply)


def plain_fpn(apply: object) -> nn.Module:
    return FPN(CHANNELS, DIM, 3, smoothing, valid_inputs if apply is valid_cells else whole_map)


def bifpn(apply: object) -> nn.Module:
    mapper = ChannelMapper(CHANNELS, DIM, 4, normalized_projection, apply)
    return BiFPN(mapper, [BiFPNLayer(4, DIM, apply) for _ in range(2)])


@pytest.mark.parametrize("make", [fpn, plain_fpn, bifpn])
def test_masked_maps_and_gradients_do_not_depend_on_padding(make: object) -> None:
    """Given the backbone's maps. Without masking they do."""
    for apply in (valid_cells, whole_map):
        torch.manual_seed(0)
        neck = make(apply)
        maps = features((24, 20), (12, 10), (6, 5))
        padding = torch.ones(2, 192, 160, dtype=torch.bool)
        padding[:, :128, :96] = False
        cropped = [level[..., : 16 // 2**n, : 12 // 2**n].clone() for n, level in enumerate(maps)]
        alone, padded = neck(cropped, padding[:, :128, :96]), neck(maps, padding)
        differences = []
        for mine, other in zip(padded, alone, strict=True):
            differences.append((mine[..., : other.shape[2], : other.shape[3]] - other).abs().max().item())
        assert (max(differences) < 1e-5) == (apply is valid_cells)
        if apply is whole_map:
            assert max(differences) > 1e-2
        sum(level.sum() for level in padded).backward()
        assert all(p.grad.isfinite().all() for p in neck.parameters())
