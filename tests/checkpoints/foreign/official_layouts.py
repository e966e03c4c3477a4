"""Names and shapes of the authors' published files, written from their description and not from our tables."""

from collections.abc import Iterator

Shapes = dict[str, tuple[int, ...]]
DIM = 256


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, dim: int = DIM) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def resnet(blocks: tuple[int, int, int, int]) -> Shapes:
    """A torchvision ResNet of bottleneck blocks with frozen BatchNorm."""

    def batch_norm(name: str, width: int) -> Shapes:
        return {f"{body}.{name}.{each}": (width,) for each in ("weight", "bias", "running_mean", "running_var")}

    body = "backbone.0.body"
    shapes = {f"{body}.conv1.weight": (64, 3, 7, 7)} | batch_norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        for block in range(count):
            name = f"layer{stage}.{block}"
            convolutions = [(width, inputs, 1), (width, width, 3), (4 * width, width, 1)]
            for k, (outputs, ins, kernel) in enumerate(convolutions, start=1):
                shapes[f"{body}.{name}.conv{k}.weight"] = (outputs, ins, kernel, kernel)
                shapes |= batch_norm(f"{name}.bn{k}", outputs)
            if block == 0:
                shapes[f"{body}.{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                shapes |= batch_norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return shapes


R50, R101 = resnet((3, 4, 6, 3)), resnet((3, 4, 23, 3))


def attention(name: str) -> Shapes:
    packed = {f"{name}.in_proj_weight": (3 * DIM, DIM), f"{name}.in_proj_bias": (3 * DIM,)}
    return packed | linear(f"{name}.out_proj", DIM, DIM)


def feedforward(name: str, hidden: int) -> Shapes:
    return linear(f"{name}.linear1", hidden, DIM) | linear(f"{name}.linear2", DIM, hidden)


def box_head(name: str) -> Shapes:
    sizes = [(DIM, DIM), (DIM, DIM), (4, DIM)]
    return {key: value for k, size in enumerate(sizes) for key, value in linear(f"{name}.layers.{k}", *size).items()}


def encoder() -> Shapes:
    """Of DETR and Conditional DETR."""
    shapes: Shapes = {}
    for i in range(6):
        layer = f"transformer.encoder.layers.{i}"
        shapes |= attention(f"{layer}.self_attn") | feedforward(layer, 2048)
        shapes |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2")
    return shapes


def single_scale(backbone: Shapes, rows: int, queries: int) -> Shapes:
    """What DETR and Conditional DETR share."""
    return (
        backbone | encoder() | norm("transformer.decoder.norm") | {"query_embed.weight": (queries, DIM)}
        | {"input_proj.weight": (DIM, 2048, 1, 1), "input_proj.bias": (DIM,)}
        | linear("class_embed", rows, DIM) | box_head("bbox_embed")
    )  # fmt: skip


def detr(backbone: Shapes) -> Shapes:
    shapes = single_scale(backbone, 92, 100)
    for i in range(6):
        layer = f"transformer.decoder.layers.{i}"
        shapes |= attention(f"{layer}.self_attn") | attention(f"{layer}.multihead_attn") | feedforward(layer, 2048)
        shapes |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2") | norm(f"{layer}.norm3")
    return shapes


def conditional(backbone: Shapes) -> Shapes:
    shapes = single_scale(backbone, 91, 300)
    own = ["sa_qcontent_proj", "sa_qpos_proj", "sa_kcontent_proj", "sa_kpos_proj", "sa_v_proj", "self_attn.out_proj"]
    cross = ["ca_qcontent_proj", "ca_kcontent_proj", "ca_kpos_proj", "ca_v_proj", "ca_qpos_sine_proj"]
    for i in range(6):
        layer = f"transformer.decoder.layers.{i}"
        for name in [*own, *cross, "cross_attn.out_proj", *["ca_qpos_proj"] * (i == 0)]:
            shapes |= linear(f"{layer}.{name}", DIM, DIM)
        shapes |= feedforward(layer, 2048)
        shapes |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2") | norm(f"{layer}.norm3")
    for name, last in (("query_scale", DIM), ("ref_point_head", 2)):
        shapes |= linear(f"transformer.decoder.{name}.layers.0", DIM, DIM)
        shapes |= linear(f"transformer.decoder.{name}.layers.1", last, DIM)
    return shapes


def deformable_attention(name: str, levels: int) -> Shapes:
    return (
        linear(f"{name}.sampling_offsets", 64 * levels, DIM) | linear(f"{name}.attention_weights", 32 * levels, DIM)
        | linear(f"{name}.value_proj", DIM, DIM) | linear(f"{name}.output_proj", DIM, DIM)
    )  # fmt: skip


def deformable(levels: int, refine: bool = False, two_stage: bool = False) -> Shapes:
    shapes = dict(R50) | {"transformer.level_embed": (levels, DIM)}
    projections = [(2048, 1)] if levels == 1 else [(512, 1), (1024, 1), (2048, 1), (2048, 3)]
    for level, (inputs, kernel) in enumerate(projections):
        shapes |= {f"input_proj.{level}.0.weight": (DIM, inputs, kernel, kernel), f"input_proj.{level}.0.bias": (DIM,)}
        shapes |= norm(f"input_proj.{level}.1")
    for i in range(6):
        layer = f"transformer.encoder.layers.{i}"
        shapes |= deformable_attention(f"{layer}.self_attn", levels) | feedforward(layer, 1024)
        shapes |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2")
        layer = f"transformer.decoder.layers.{i}"
        shapes |= deformable_attention(f"{layer}.cross_attn", levels) | attention(f"{layer}.self_attn")
        shapes |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2") | norm(f"{layer}.norm3") | feedforward(layer, 1024)
    if two_stage:
        shapes |= linear("transformer.enc_output", DIM, DIM) | norm("transformer.enc_output_norm")
        shapes |= linear("transformer.pos_trans", 2 * DIM, 2 * DIM) | norm("transformer.pos_trans_norm", 2 * DIM)
    else:
        shapes |= linear("transformer.reference_points", 2, DIM) | {"query_embed.weight": (300, 2 * DIM)}
    for i in range(7 if two_stage else 6):
        shapes |= linear(f"class_embed.{i}", 91, DIM) | box_head(f"bbox_embed.{i}")
        if refine or two_stage:
            shapes |= box_head(f"transformer.decoder.bbox_embed.{i}")
        if two_stage:
            shapes |= linear(f"transformer.decoder.class_embed.{i}", 91, DIM)
    return shapes


def published() -> Iterator[tuple[str, str, Shapes, int]]:
    """File name, preset, layout, and the number of tensors in the file."""
    for name, preset, backbone, more in (("r50", "r50", R50, 0), ("r101", "r101", R101, 255)):
        for dc5 in ("", "-dc5"):
            yield f"detr-{name}{dc5}.pth", f"detr-{preset}{dc5}", detr(backbone), 458 + more
            yield (
                f"ConditionalDETR_{name}{dc5}.pth",
                f"conditional-detr-{preset}{dc5}",
                conditional(backbone),
                564 + more,
            )
    start, preset = "r50_deformable_detr", "deformable-detr-r50"
    yield f"{start}_single_scale.pth", f"{preset}-single-scale", deformable(1), 549
    yield f"{start}_single_scale_dc5.pth", f"{preset}-single-scale-dc5", deformable(1), 549
    yield f"{start}.pth", preset, deformable(4), 561
    yield f"{start}_plus_iterative_bbox_refinement.pth", f"{preset}-refine", deformable(4, refine=True), 597
    yield (
        f"{start}_plus_iterative_bbox_refinement_plus_plus_two_stage.pth",
        f"{preset}-two-stage",
        deformable(4, True, True),
        630,
    )
