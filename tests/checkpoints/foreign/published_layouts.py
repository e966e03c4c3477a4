"""Names and shapes of published state dicts, after the authors' code, independent of the tables that are tested."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from detrs.checkpoints.detector import shapes as shapes_of
from detrs.checkpoints.foreign.renaming import Renaming
from detrs.models.detector import Model

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def weighted(name: str, *shape: int) -> Shapes:
    """``weight`` of a shape, and ``bias``."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def frozen_norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")}


def norm(name: str, channels: int) -> Shapes:
    return frozen_norm(name, channels) | {f"{name}.num_batches_tracked": ()}


def resnet(depth: int, names: Callable[[int, int, str], str], layers: Callable[[str, int, int, int], Shapes]) -> Shapes:
    """A ResNet.

    Args:
        depth: 18, 50 or 101.
        names: stage (0: stem), block and layer (``conv1``, ``downsample``) to its name.
        layers: name, output and input channels, and kernel size, to the shapes of a convolution and its norm.
    """
    shapes = layers(names(0, 0, "conv1"), 64, 3, 7)
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        outputs = width if depth == 18 else 4 * width
        sides = ((width, 3), (width, 3)) if depth == 18 else ((width, 1), (width, 3), (outputs, 1))
        for block in range(blocks):
            channels = inputs
            for k, (out, kernel) in enumerate(sides, 1):
                shapes |= layers(names(stage + 1, block, f"conv{k}"), out, channels, kernel)
                channels = out
            if block == 0 and inputs != outputs:
                shapes |= layers(names(stage + 1, block, "downsample"), outputs, inputs, 1)
            inputs = outputs
    return shapes


def torchvision_resnet(prefix: str, depth: int, norm_shapes: Callable[[str, int], Shapes] = frozen_norm) -> Shapes:
    def names(stage: int, block: int, layer: str) -> str:
        return f"{prefix}{layer}" if stage == 0 else f"{prefix}layer{stage}.{block}.{layer}"

    def layers(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
        of_norm = f"{name}.1" if "downsample" in name else name.replace("conv", "bn")
        of_conv = f"{name}.0" if "downsample" in name else name
        return {f"{of_conv}.weight": (outputs, inputs, kernel, kernel)} | norm_shapes(of_norm, outputs)

    return resnet(depth, names, layers)


def detectron2_resnet(prefix: str, depth: int) -> Shapes:
    def names(stage: int, block: int, layer: str) -> str:
        theirs = layer.replace("downsample", "shortcut")
        return f"{prefix}stem.{theirs}" if stage == 0 else f"{prefix}res{stage + 1}.{block}.{theirs}"

    def layers(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
        return {f"{name}.weight": (outputs, inputs, kernel, kernel)} | frozen_norm(f"{name}.norm", outputs)

    return resnet(depth, names, layers)


def packed_attention(name: str, dim: int, matrices: int) -> Shapes:
    return {
        f"{name}.in_proj_weight": (matrices * dim, dim),
        f"{name}.in_proj_bias": (matrices * dim,),
        **weighted(f"{name}.out_proj", dim, dim),
    }


def anchor_detr(depth: int = 50, dim: int = 256, layers: int = 6, points: int = 300, classes: int = 91) -> Shapes:
    """The authors' Anchor DETR, 1024 hidden channels for 256 channels."""
    shapes = torchvision_resnet("backbone.body.", depth)
    shapes |= weighted("input_proj.0.0", dim, 512 if depth == 18 else 2048, 1, 1) | weighted("input_proj.0.1", dim)
    shapes |= {"transformer.pattern.weight": (3, dim), "transformer.position.weight": (points, 2)}
    for kind in ("encoder", "decoder"):
        for i in range(layers):
            name = f"transformer.{kind}_layers.{i}"
            shapes |= packed_attention(f"{name}.{'self' if kind == 'encoder' else 'cross'}_attn", dim, 5)
            shapes |= weighted(f"{name}.norm1", dim) | weighted(f"{name}.ffn.norm2", dim)
            shapes |= weighted(f"{name}.ffn.linear1", 4 * dim, dim) | weighted(f"{name}.ffn.linear2", dim, 4 * dim)
            if kind == "decoder":
                shapes |= packed_attention(f"{name}.self_attn", dim, 3) | weighted(f"{name}.norm2", dim)
    for name in ("adapt_pos2d", "adapt_pos1d"):
        for i in (0, 2):
            shapes |= weighted(f"transformer.{name}.{i}", dim, dim)
    for i in range(layers):
        shapes |= weighted(f"transformer.class_embed.{i}", classes, dim)
        for k, outputs in enumerate((dim, dim, 4)):
            shapes |= weighted(f"transformer.bbox_embed.{i}.layers.{k}", outputs, dim)
    return shapes


def sparse_rcnn(
    layout: str, depth: int = 50, proposals: int = 100, dim: int = 256, stages: int = 6, classes: int = 80
) -> Shapes:
    """Sparse R-CNN in the layout ``official`` or ``mmdetection``."""
    official = layout == "official"
    inner, hidden = (64, 2048) if dim == 256 else (8, 48)
    channels = [256, 512, 1024, 2048] if depth > 18 else [64, 128, 256, 512]
    shapes = (
        detectron2_resnet("backbone.bottom_up.", depth) if official else torchvision_resnet("backbone.", depth, norm)
    )
    for k, inputs in enumerate(channels):
        shapes |= weighted(
            f"backbone.fpn_lateral{k + 2}" if official else f"neck.lateral_convs.{k}.conv", dim, inputs, 1, 1
        )
        shapes |= weighted(f"backbone.fpn_output{k + 2}" if official else f"neck.fpn_convs.{k}.conv", dim, dim, 3, 3)
    boxes, features = (
        ("init_proposal_boxes", "init_proposal_features")
        if official
        else ("rpn_head.init_proposal_bboxes", "rpn_head.init_proposal_features")
    )
    shapes |= {f"{features}.weight": (proposals, dim), f"{boxes}.weight": (proposals, 4)}
    for i in range(stages):
        if official:
            name, attention, interaction = f"head.head_series.{i}", "self_attn", "inst_interact"
            parts = ["dynamic_layer", "norm1", "norm2", "out_layer", "norm3"]
            rest = ["linear1", "linear2", "norm1", "norm2", "norm3", "cls_module", "reg_module"]
            heads = ["class_logits", "bboxes_delta"]
        else:
            name, attention, interaction = f"roi_head.bbox_head.{i}", "attention.attn", "instance_interactive_conv"
            parts = ["dynamic_layer", "norm_in", "norm_out", "fc_layer", "fc_norm"]
            rest = ["ffn.layers.0.0", "ffn.layers.1", "attention_norm", "instance_interactive_conv_norm", "ffn_norm"]
            rest += ["cls_fcs", "reg_fcs"]
            heads = ["fc_cls", "fc_reg"]
        shapes |= packed_attention(f"{name}.{attention}", dim, 3)
        for part, shape in zip(parts, ((2 * dim * inner, dim), (inner,), (dim,), (dim, 49 * dim), (dim,)), strict=True):
            shapes |= weighted(f"{name}.{interaction}.{part}", *shape)
        for part, shape in zip(rest, ((hidden, dim), (dim, hidden), (dim,), (dim,), (dim,)), strict=False):
            shapes |= weighted(f"{name}.{part}", *shape)
        for part, count in zip(rest[5:], (1, 3), strict=True):
            for k in range(count):
                shapes |= {f"{name}.{part}.{3 * k}.weight": (dim, dim)}
                shapes |= weighted(f"{name}.{part}.{3 * k + 1}", dim)
        for part, rows in zip(heads, (classes, 4), strict=True):
            shapes |= weighted(f"{name}.{part}", rows, dim)
    return shapes


def empty(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random values; norms and variances are positive, counters 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = torch.rand(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(0)
        elif len(shape) > 1:
            value = (value - 0.5) * math.sqrt(12 / math.prod(shape[1:]))
        elif name.endswith(("bias", "mean")):
            value = value - 0.5
        else:
            value = value + 0.5
        tensors[name] = value
    return tensors


def compared(
    model: object, skeleton: Model, renaming: Renaming, tensors: Mapping[str, Tensor], source: object
) -> Model:
    """In the place of ``loading.load_model``: compares names and shapes, and allocates nothing."""
    expected = shapes_of(skeleton)
    found = renaming.read(tensors, expected, source)
    assert found.keys() == {name for name in expected if not name.endswith("num_batches_tracked")}
    return skeleton
