"""Names of tensors in ``transformers``: DETR, Conditional DETR, Deformable DETR and DAB-DETR.

Files have the names of transformers 4, which transformers 5 also writes and translates as it reads; names of its
modules in memory are read as well.
"""

from collections.abc import Collection, Iterable
from typing import Any

from detrs.checkpoints.foreign.renaming import Rename, Renaming, Rule
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.deformable_detr import DeformableDETRConfig
from detrs.config.detr import DETRConfig
from detrs.config.models import ModelConfig
from detrs.errors import UserError

BODY, BODY_IN_MEMORY = "model.backbone.conv_encoder.model", "model.backbone.model"
STANDARD = {"q": "query", "k": "key", "v": "value"}


def renaming(model: ModelConfig, hf_resnet: bool = False, present: Collection[str] = ()) -> Renaming:
    """The table of a detector.

    Args:
        model: settings of our model.
        hf_resnet: the backbone is the ResNet of ``transformers``, not of timm.
        present: names in the file, which decide whether all heads of one kind are one tensor: files omit tensors that
            are tied in memory, so such a file has the head of one layer only. By default no heads are tied that our
            model does not share.
    """
    rules = [*(hf_resnet_rules() if hf_resnet else timm_rules(model)), *encoder_rules()]
    match model:
        case DABDETRConfig():
            return Renaming([*rules, *dab_rules(model)])
        case DETRConfig():
            rules += standard_attention("model.encoder.layers.{i}.self_attn", "encoder.layers.{i}.attention.attention")
            rules += single_scale_rules(model.decoder_layers)
            rules += standard_attention(f"{LAYER}.self_attn", f"{OUR_LAYER}.self_attention.attention")
            rules += standard_attention(f"{LAYER}.encoder_attn", f"{OUR_LAYER}.cross_attention.attention")
        case ConditionalDETRConfig():
            rules += standard_attention("model.encoder.layers.{i}.self_attn", "encoder.layers.{i}.attention.attention")
            rules += single_scale_rules(model.decoder_layers)
            rules += conditional_rules(model.decoder_layers)
        case DeformableDETRConfig():
            rules += standard_attention(f"{LAYER}.self_attn", f"{OUR_LAYER}.self_attention.attention")
            rules += deformable_rules(model, present)
        case _:
            raise UserError(
                f"transformers does not have the detector of {type(model).__name__}. Expected DETR, Conditional DETR, "
                "Deformable DETR or DAB-DETR."
            )
    return Renaming([*rules, *decoder_rules()])


LAYER, OUR_LAYER = "model.decoder.layers.{i}", "decoder.layers.{i}"


def timm_rules(model: ModelConfig) -> list[Rule]:
    if isinstance(model, DABDETRConfig):
        return [Rename(f"{BODY}._backbone.{{rest}}", "backbone.body.{rest}")]
    return [Rename(f"{BODY}.{{rest}}", "backbone.body.{rest}", (f"{BODY_IN_MEMORY}.{{rest}}",))]


def hf_resnet_rules() -> Iterable[Rule]:
    """Their own ResNet: stages from 0, and convolutions as a list."""

    def both(theirs: str, ours: str) -> Rename:
        return Rename(f"{BODY}.{theirs}", f"backbone.body.{ours}", (f"{BODY_IN_MEMORY}.{theirs}",))

    yield both("embedder.embedder.convolution.{rest}", "conv1.{rest}")
    yield both("embedder.embedder.normalization.{rest}", "bn1.{rest}")
    for stage in range(4):
        theirs, ours = f"encoder.stages.{stage}.layers.{{i}}", f"layer{stage + 1}.{{i}}"
        for k in range(3):
            yield both(f"{theirs}.layer.{k}.convolution.{{rest}}", f"{ours}.conv{k + 1}.{{rest}}")
            yield both(f"{theirs}.layer.{k}.normalization.{{rest}}", f"{ours}.bn{k + 1}.{{rest}}")
        yield both(f"{theirs}.shortcut.convolution.{{rest}}", f"{ours}.downsample.0.{{rest}}")
        yield both(f"{theirs}.shortcut.normalization.{{rest}}", f"{ours}.downsample.1.{{rest}}")


def encoder_rules() -> Iterable[Rule]:
    theirs, ours = "model.encoder.layers.{i}", "encoder.layers.{i}"
    yield Rename(f"{theirs}.self_attn_layer_norm.{{rest}}", f"{ours}.attention_norm.norm.{{rest}}")
    yield from feedforward(theirs, ours)


def decoder_rules() -> Iterable[Rule]:
    yield Rename(f"{LAYER}.self_attn_layer_norm.{{rest}}", f"{OUR_LAYER}.self_attention_norm.norm.{{rest}}")
    yield Rename(f"{LAYER}.encoder_attn_layer_norm.{{rest}}", f"{OUR_LAYER}.cross_attention_norm.norm.{{rest}}")
    yield from feedforward(LAYER, OUR_LAYER)
    yield Rename("model.query_position_embeddings.{rest}", "queries.embedding.{rest}")


def feedforward(theirs: str, ours: str) -> Iterable[Rule]:
    for k, name in ((1, "expand"), (2, "contract")):
        yield Rename(
            f"{theirs}.fc{k}.{{rest}}", f"{ours}.feedforward.{name}.{{rest}}", (f"{theirs}.mlp.fc{k}.{{rest}}",)
        )
    yield Rename(f"{theirs}.final_layer_norm.{{rest}}", f"{ours}.feedforward_norm.norm.{{rest}}")


def standard_attention(theirs: str, ours: str) -> Iterable[Rule]:
    for letter, name in STANDARD.items():
        yield Rename(f"{theirs}.{letter}_proj.{{rest}}", f"{ours}.{name}_proj.{{rest}}")
    yield output(theirs, ours)


def output(theirs: str, ours: str) -> Rename:
    return Rename(f"{theirs}.out_proj.{{rest}}", f"{ours}.output_proj.{{rest}}", (f"{theirs}.o_proj.{{rest}}",))


def single_scale_rules(layers: int) -> Iterable[Rule]:
    """Projection, final normalization and heads of DETR and Conditional DETR."""
    yield Rename("model.input_projection.{rest}", "neck.mapper.projections.0.{rest}")
    yield Rename("model.decoder.layernorm.{rest}", heads("norm.{rest}", range(layers)))
    yield Rename("class_labels_classifier.{rest}", heads("classes.{rest}", range(layers)))
    for k in range(3):
        yield Rename(f"bbox_predictor.layers.{k}.{{rest}}", heads(f"box.{2 * k}.{{rest}}", range(layers)))


def heads(name: str, layers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"decoder.heads.{layer}.{name}" for layer in layers)


SELF = {
    "qcontent": "query_content", "qpos": "query_position", "kcontent": "key_content", "kpos": "key_position",
    "v": "value",
}  # fmt: skip
CROSS = {
    "qcontent": "query_content",
    "qpos_sine": "query_spatial",
    "kcontent": "key_content",
    "kpos": "key_position",
    "v": "value",
}
IN_MEMORY = {
    "qcontent": "q_content",
    "qpos": "q_pos",
    "qpos_sine": "q_pos_sine",
    "kcontent": "k_content",
    "kpos": "k_pos",
    "v": "v",
}


def conditional_rules(layers: int) -> Iterable[Rule]:
    """Attention with separate projections of contents and positions; the first layer has one more."""

    def projection(kind: str, module: str, name: str, ours: str, layer: str = LAYER) -> Rename:
        memory = f"{layer}.{module}.{IN_MEMORY[name]}_proj.{{rest}}"
        return Rename(f"{layer}.{kind}_{name}_proj.{{rest}}", f"{ours}_proj.{{rest}}", (memory,))

    for name, ours in SELF.items():
        yield projection("sa", "self_attn", name, f"{OUR_LAYER}.self_attention.{ours}")
    yield output(f"{LAYER}.self_attn", f"{OUR_LAYER}.self_attention")
    first, our_first = "model.decoder.layers.0", "decoder.layers.0.cross_attention"
    yield projection("ca", "encoder_attn", "qpos", f"{our_first}.query_position", first)
    yield output(f"{first}.encoder_attn", f"{our_first}.conditional")
    for name, ours in CROSS.items():
        yield projection("ca", "encoder_attn", name, f"{our_first}.conditional.{ours}", first)
        yield projection("ca", "encoder_attn", name, f"{OUR_LAYER}.cross_attention.{ours}")
    yield output(f"{LAYER}.encoder_attn", f"{OUR_LAYER}.cross_attention")
    for k in range(2):
        scales = tuple(f"decoder.layers.{layer}.transform.{2 * k}.{{rest}}" for layer in range(1, layers))
        yield Rename(f"model.decoder.query_scale.layers.{k}.{{rest}}", scales)
        yield Rename(f"model.decoder.ref_point_head.layers.{k}.{{rest}}", f"queries.reference.{2 * k}.{{rest}}")


LONG = {
    "qcontent": "query_content", "qpos": "query_pos", "qpos_sine": "query_pos_sine", "kcontent": "key_content",
    "kpos": "key_pos", "v": "value",
}  # fmt: skip
"""Projections of DAB-DETR, which has no abbreviations."""


def dab_rules(model: DABDETRConfig) -> Iterable[Rule]:
    """Everything after the backbone, except what the encoder shares with the other detectors."""
    every, later = range(model.decoder_layers), range(1, model.decoder_layers)
    encoder, ours, our_first = "model.encoder.layers.{i}", f"{OUR_LAYER}.layer", "decoder.layers.0.layer"
    yield from standard_attention(f"{encoder}.self_attn", "encoder.layers.{i}.attention.attention.attention")
    yield Rename(f"{encoder}.activation_fn.{{rest}}", "encoder.layers.{i}.feedforward.activation.{rest}")
    yield Rename(f"{LAYER}.mlp.activation_fn.{{rest}}", f"{ours}.feedforward.activation.{{rest}}")
    yield from feedforward(f"{LAYER}.mlp", ours)
    for kind, names in (("self", SELF), ("cross", CROSS)):
        theirs = f"{LAYER}.{kind}_attn.{kind}_attn"
        yield Rename(f"{theirs}_layer_norm.{{rest}}", f"{ours}.{kind}_attention_norm.norm.{{rest}}")
        for inner in ("", ".conditional"):  # the first layer's has one more projection around the others
            our = f"{ours}.{kind}_attention{inner}"
            yield Rename(f"{theirs}.output_proj.{{rest}}", f"{our}.output_proj.{{rest}}")
            for name, our_name in names.items():
                yield Rename(f"{theirs}_{LONG[name]}_proj.{{rest}}", f"{our}.{our_name}_proj.{{rest}}")
    first = "model.decoder.layers.0.cross_attn.cross_attn_query_pos_proj.{rest}"
    yield Rename(first, f"{our_first}.cross_attention.query_position_proj.{{rest}}")
    yield Rename("model.input_projection.{rest}", "neck.mapper.projections.0.{rest}")
    yield Rename("model.query_refpoint_embeddings.{rest}", "queries.anchors.{rest}")
    yield Rename("model.patterns.{rest}", "queries.content.embedding.{rest}")
    yield Rename("model.decoder.layernorm.{rest}", heads("norm.{rest}", every))
    yield Rename("class_embed.{rest}", heads("classes.{rest}", every))
    for k in range(3):
        names_of_box = (f"bbox_predictor.layers.{k}.{{rest}}", f"model.decoder.bbox_embed.layers.{k}.{{rest}}")
        yield Rename(names_of_box, heads(f"box.{2 * k}.{{rest}}", every))
    mlps = {
        "encoder.query_scale": [f"encoder.layers.{i}.attention.scale" for i in range(model.encoder_layers)],
        "decoder.query_scale": [f"decoder.layers.{i}.layer.transform" for i in later],
        "decoder.ref_point_head": [f"decoder.layers.{i}.position.mlp" for i in every],
        "decoder.ref_anchor_head": [f"decoder.layers.{i}.layer.size" for i in every],
    }
    for their_name, our_names in mlps.items():
        for k in range(2):
            copies = tuple(f"{each}.{2 * k}.{{rest}}" for each in our_names)
            yield Rename(f"model.{their_name}.layers.{k}.{{rest}}", copies)


def deformable_rules(model: DeformableDETRConfig, present: Collection[str]) -> Iterable[Rule]:
    yield Rename("model.encoder.layers.{i}.self_attn.{rest}", "encoder.layers.{i}.attention.attention.{rest}")
    yield Rename(f"{LAYER}.encoder_attn.{{rest}}", f"{OUR_LAYER}.cross_attention.attention.{{rest}}")
    yield Rename("model.level_embed", "neck.level_embedding.weight")
    yield Rename("model.reference_points.{rest}", "queries.reference_points.{rest}")
    for theirs, ours in PROPOSALS.items():
        yield Rename(f"model.{theirs}.{{rest}}", f"queries.{ours}.{{rest}}")
    yield from level_rules(model, "model.input_proj")
    yield from head_rules(model, "model.decoder", present)


PROPOSALS = {
    "enc_output": "token_proj",
    "enc_output_norm": "token_norm",
    "pos_trans": "box_proj",
    "pos_trans_norm": "box_norm",
}


def level_rules(model: Any, theirs: str) -> Iterable[Rule]:
    """One list of projections there; here one for the backbone's maps, and one for further levels."""
    maps = len(model.backbone.stages)
    for level in range(model.num_levels):
        ours = f"projections.{level}" if level < maps else f"downsamples.{level - maps}"
        yield Rename(f"{theirs}.{level}.{{rest}}", f"neck.mapper.{ours}.{{rest}}")


def head_rules(model: DeformableDETRConfig, decoder: str, present: Collection[str] = ()) -> Iterable[Rule]:
    """Heads of Deformable DETR, also with the names of the authors' code.

    Without refinement all layers share one head, which is stored once per layer. With refinement each layer has a
    head, and with proposals they have one more. Heads that the decoder uses are also stored as its own.

    Args:
        model: settings of our model.
        decoder: their name of the decoder.
        present: as in ``renaming``.
    """
    ours = [f"decoder.heads.{layer}" for layer in range(model.decoder_layers)]
    if model.queries == "proposals":
        ours.append("queries.head")
    kinds = {"class_embed": {"": "classes"}, "bbox_embed": {f".layers.{k}": f"box.{2 * k}" for k in range(3)}}
    for kind, modules in kinds.items():
        used_by_decoder = model.queries == "proposals" or (model.reference == "refine" and kind == "bbox_embed")
        layers = {name.split(f"{kind}.")[1].split(".")[0] for name in present if f"{kind}." in name}
        shared = model.reference == "keep" or len(layers) == 1
        for theirs, our in modules.items():
            names = [
                (f"{kind}.{k}{theirs}.{{rest}}", *[f"{decoder}.{kind}.{k}{theirs}.{{rest}}"] * used_by_decoder)
                for k in range(len(ours))
            ]
            mine = [f"{head}.{our}.{{rest}}" for head in ours]
            if shared:
                yield Rename(tuple(name for each in names for name in each), tuple(mine))
            else:
                yield from (Rename(name, our_name) for name, our_name in zip(names, mine, strict=True))
