"""``config.json`` and ``preprocessor_config.json`` of ``transformers``: to our settings and back.

Settings that only change training keep the values of the closest preset, except ``dropout`` and those of the
classification loss.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detrs.checkpoints.classes import coco_classes, is_unused
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.foreign.transformers_backbone import ReadBackbone, read_backbone, unsupported, written_backbone
from detrs.config.classification import Focal, Softmax
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.data import OFFICIAL_SIZE
from detrs.config.deformable_detr import DeformableDETRConfig
from detrs.config.detr import DETRConfig
from detrs.config.models import ModelConfig
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError
from detrs.structures import Classes

SINGLE_MAP_STAGES = (2, 3, 4, 5)
"""Stages of their backbones by default for detectors that use the last."""
BILINEAR = 2
"""``resample`` of Pillow."""
MAX_CLASSES = 100_000
CATEGORY_IDS = "category_ids"
"""Our entry in ``config.json``: the dataset's id of each class, where it is not the row of the class head."""


@dataclass(frozen=True)
class Family:
    """A detector in ``transformers``."""

    architecture: str
    image_processor: str
    num_queries: int
    ffn_dim: int
    dim: str = "d_model"
    """Name of the embedding dimension."""
    activation: str = "relu"


FAMILIES = {
    "detr": Family("DetrForObjectDetection", "DetrImageProcessor", 100, 2048),
    "conditional_detr": Family("ConditionalDetrForObjectDetection", "ConditionalDetrImageProcessor", 300, 2048),
    "deformable_detr": Family("DeformableDetrForObjectDetection", "DeformableDetrImageProcessor", 300, 1024),
    "dab-detr": Family(
        "DabDetrForObjectDetection", "ConditionalDetrImageProcessor", 300, 2048, dim="hidden_size", activation="prelu"
    ),
}
"""``model_type`` -> names and defaults."""
MODEL_TYPES: dict[type, str] = {
    DETRConfig: "detr",
    ConditionalDETRConfig: "conditional_detr",
    DeformableDETRConfig: "deformable_detr",
    DABDETRConfig: "dab-detr",
}
EXPECTED = "Expected DETR, Conditional DETR, Deformable DETR or DAB-DETR."


class Settings:
    """The entries of a JSON object, with their defaults and types checked."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def get(self, key: str, default: Any) -> Any:
        """The value, of the type of ``default``; ``null`` is the default.

        Raises:
            UserError: it has another type.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(default, float) and type(value) is int:
            return float(value)
        if type(value) is not type(default):
            raise unsupported(key, value, f"a value of type {type(default).__name__}")
        return value

    def equal(self, keys: tuple[str, str], default: Any) -> Any:
        """One value for encoder and decoder, which is one setting here.

        Raises:
            UserError: they differ.
        """
        first, second = (self.get(key, default) for key in keys)
        if first != second:
            raise unsupported(f"{keys[1]}", second, f"the value of {keys[0]}, {first!r}")
        return first

    def only(self, key: str, value: Any) -> None:
        """Check that a setting has its default.

        Raises:
            UserError: it has another value.
        """
        if self.get(key, value) != value:
            raise unsupported(key, self.values[key], repr(value))


def read_config(values: Mapping[str, Any]) -> tuple[ModelConfig, bool, Classes]:
    """Our model settings, whether the backbone is their own ResNet, and the classes.

    Raises:
        UserError: a setting is not supported.
    """
    settings = Settings(values)
    kind = settings.get("model_type", "")
    if kind not in FAMILIES:
        raise unsupported("model_type", kind, "'detr', 'conditional_detr', 'deformable_detr' or 'dab-detr'")
    family = FAMILIES[kind]
    for name in settings.get("architectures", [family.architecture]):
        if name != family.architecture:
            raise unsupported("architectures", name, f"'{family.architecture}'")
    settings.only("activation_function", family.activation)
    settings.only("position_embedding_type", "sine")
    settings.only("num_channels", 3)
    classes = read_classes(settings)
    shared: dict[str, Any] = {
        "num_classes": len(classes.names),
        "dim": settings.get(family.dim, 256),
        "num_heads": settings.equal(("encoder_attention_heads", "decoder_attention_heads"), 8),
        "encoder_layers": settings.get("encoder_layers", 6),
        "decoder_layers": settings.get("decoder_layers", 6),
        "ffn_dim": settings.equal(("encoder_ffn_dim", "decoder_ffn_dim"), family.ffn_dim),
        "dropout": settings.get("dropout", 0.1),
        "num_queries": settings.get("num_queries", family.num_queries),
    }
    if kind == "deformable_detr":
        model, backbone = read_deformable(settings, shared)
    elif kind == "dab-detr":
        model, backbone = read_dab(settings, shared)
    else:
        if settings.get("auxiliary_loss", False):  # their decoder then normalizes between layers
            raise unsupported("auxiliary_loss", True, f"False: it changes the predictions of {family.architecture}")
        backbone = read_backbone(values, single_map=True, default_stages=SINGLE_MAP_STAGES)
        shared["backbone"] = backbone.config
        if kind == "detr":
            softmax = Softmax(no_object_weight=settings.get("eos_coefficient", 0.1))
            model = DETRConfig(classification=softmax, **shared)
        else:
            model = ConditionalDETRConfig(classification=Focal(alpha=settings.get("focal_alpha", 0.25)), **shared)
    return model, backbone.hf_resnet, classes


def read_deformable(settings: Settings, shared: dict[str, Any]) -> tuple[ModelConfig, ReadBackbone]:
    levels = settings.get("num_feature_levels", 4)
    two_stage, refine = settings.get("two_stage", False), settings.get("with_box_refine", False)
    if two_stage:
        shared["num_queries"] = settings.get("two_stage_num_proposals", 300)
    backbone = read_backbone(settings.values, levels == 1, default_stages=default_stages(levels))
    model = DeformableDETRConfig(
        **shared,
        backbone=backbone.config,
        num_levels=levels,
        num_points=settings.equal(("encoder_n_points", "decoder_n_points"), 4),
        reference="refine" if refine else "keep",
        queries="proposals" if two_stage else "learned",
        classification=Focal(alpha=settings.get("focal_alpha", 0.25)),
    )
    return model, backbone


def read_dab(settings: Settings, shared: dict[str, Any]) -> tuple[ModelConfig, ReadBackbone]:
    """DAB-DETR; where its centers are fixed (``random_refpoints_xy``) does not change predictions."""
    for key, value in (("query_dim", 4), ("keep_query_pos", False), ("normalize_before", False)):
        settings.only(key, value)
    if abs(settings.get("sine_position_embedding_scale", 2 * math.pi) - 2 * math.pi) > 1e-6:
        raise unsupported(
            "sine_position_embedding_scale", settings.values["sine_position_embedding_scale"], "null, which means 2 pi"
        )
    patterns = settings.get("num_patterns", 0)
    shared["num_queries"] *= max(patterns, 1)
    backbone = read_backbone(settings.values, single_map=True, default_stages=SINGLE_MAP_STAGES)
    classification = Focal(
        weight=settings.get("cls_loss_coefficient", 2.0),
        cost_weight=settings.get("class_cost", 2.0),
        alpha=settings.get("focal_alpha", 0.25),
    )
    temperature = settings.equal(("temperature_height", "temperature_width"), 20.0)
    model = DABDETRConfig(
        **shared,
        backbone=backbone.config,
        num_patterns=patterns,
        temperature=temperature,
        classification=classification,
    )
    return model, backbone


def default_stages(num_levels: int) -> tuple[int, ...]:
    """Stages of the backbone of Deformable DETR."""
    return (3, 4, 5) if num_levels > 1 else (5,)


def read_classes(settings: Settings) -> Classes:
    """The classes in ``id2label``: row i is category id i, unless all names are those of COCO's 80 categories.

    Unused rows of COCO, all called ``N/A``, are named ``N/A i``; of other equal names, all but the first get their row
    as a suffix. ``category_ids`` of our own files are restored.
    """
    count = settings.get("num_labels", 2)
    if not 0 <= count <= MAX_CLASSES:
        raise unsupported("num_labels", count, f"a number up to {MAX_CLASSES:,}")
    labels = settings.get("id2label", {}) or {str(i): f"LABEL_{i}" for i in range(count)}
    try:
        rows = {int(row): name for row, name in labels.items()}
    except ValueError:
        rows = {}
    if sorted(rows) != list(range(len(labels))) or not all(isinstance(name, str) for name in rows.values()):
        raise unsupported("id2label", labels, f"a name for each row from 0 to {len(labels) - 1}")
    names: list[str] = []
    taken: set[str] = set()
    for row in range(len(rows)):
        name = rows[row]
        if is_unused(name):
            name = f"N/A {row}"
        while name in taken:
            name = f"{name} {row}"
        taken.add(name)
        names.append(name)
    coco = coco_classes(len(names))
    ids = settings.get(CATEGORY_IDS, [])
    if len(set(ids)) == len(names) and all(type(each) is int for each in ids):
        return Classes(tuple(names), tuple(ids))
    return coco if coco.names == tuple(names) else Classes(tuple(names), tuple(range(len(names))))


def read_preprocessing(values: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing in ``preprocessor_config.json``; ``{}``: the defaults of all detectors.

    These are (800, 1333) pixels, and mean and standard deviation of ImageNet.

    Raises:
        UserError: a setting is not supported.
    """
    settings = Settings(values)
    settings.only("do_resize", True)
    settings.only("do_rescale", True)
    settings.only("resample", BILINEAR)
    if abs(settings.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise unsupported("rescale_factor", values["rescale_factor"], "1/255")
    normalize = settings.get("do_normalize", True)
    mean = channels(settings, "image_mean", [0.485, 0.456, 0.406]) if normalize else (0.0, 0.0, 0.0)
    std = channels(settings, "image_std", [0.229, 0.224, 0.225]) if normalize else (1.0, 1.0, 1.0)
    return Preprocessing(resize_to=size_of(settings), mean=mean, std=std)


def channels(settings: Settings, key: str, default: list[float]) -> Any:
    value = settings.get(key, default)
    if len(value) != 3 or not all(type(each) in (int, float) for each in value):
        raise unsupported(key, value, "three numbers")
    return tuple(float(each) for each in value)


def size_of(settings: Settings) -> tuple[int, int]:
    """(short, long) in ``size``, an object or, in older files, a number with ``max_size``."""
    size = settings.values.get("size")
    if size is None:
        size = {"shortest_edge": OFFICIAL_SIZE[0], "longest_edge": OFFICIAL_SIZE[1]}
    if type(size) is int:
        size = {"shortest_edge": size, "longest_edge": settings.get("max_size", OFFICIAL_SIZE[1])}
    expected = {"shortest_edge", "longest_edge"}
    if not isinstance(size, Mapping) or set(size) != expected or any(type(side) is not int for side in size.values()):
        raise unsupported("size", size, "shortest_edge and longest_edge in pixels")
    return size["shortest_edge"], size["longest_edge"]


def written_config(detector: TrainedDetector) -> dict[str, Any]:
    """``config.json`` of a detector.

    Raises:
        UserError: ``transformers`` does not have the detector or one of its settings.
    """
    model: Any = detector.experiment.model
    check_representable(model)
    kind = MODEL_TYPES[type(model)]
    family, classification = FAMILIES[kind], model.classification
    names = [re.sub(r"^N/A \d+$", "N/A", name) for name in detector.classes.names]
    cost = getattr(classification, "cost_weight", None)
    values: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": kind,
        "num_channels": 3,
        family.dim: model.dim,
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers,
        "encoder_attention_heads": model.num_heads,
        "decoder_attention_heads": model.num_heads,
        "encoder_ffn_dim": model.ffn_dim,
        "decoder_ffn_dim": model.ffn_dim,
        "dropout": model.dropout,
        "attention_dropout": model.dropout,
        "activation_dropout": model.dropout,
        "activation_function": family.activation,
        "position_embedding_type": "sine",
        "auxiliary_loss": False,
        "num_queries": model.num_queries,
        "id2label": {str(row): name for row, name in enumerate(names)},
        "label2id": {name: row for row, name in enumerate(names)},
        CATEGORY_IDS: list(detector.classes.category_ids),
        "class_cost": round(classification.weight if cost is None else cost),  # an integer there
        "dtype": "float32",
    }
    if kind == "detr":
        values["eos_coefficient"] = classification.no_object_weight
    else:
        values["focal_alpha"] = classification.alpha
    stages: tuple[int, ...] = SINGLE_MAP_STAGES
    if isinstance(model, DeformableDETRConfig):
        stages = default_stages(model.num_levels)
        values |= {
            "num_feature_levels": model.num_levels,
            "encoder_n_points": model.num_points,
            "decoder_n_points": model.num_points,
            "two_stage": model.queries == "proposals",
            "two_stage_num_proposals": model.num_queries,
            "with_box_refine": model.reference == "refine",
            "tie_word_embeddings": model.reference == "keep",  # of heads
        }
    if isinstance(model, DABDETRConfig):
        values |= {
            "num_queries": model.num_queries // max(model.num_patterns, 1),
            "num_patterns": model.num_patterns,
            "temperature_height": round(model.temperature),
            "temperature_width": round(model.temperature),
            "cls_loss_coefficient": round(classification.weight),
        }
    return values | written_backbone(model.backbone, stages, kind != "deformable_detr")


REQUIRED: dict[str, Any] = {
    "encoder_attention": "multi-scale", "neck": "projection", "neck_norm": "group", "proposals": "all",
    "content": "zero",
}  # fmt: skip
"""Settings of Deformable DETR and DAB-DETR for which ``transformers`` has one value only."""


def check_representable(model: Any) -> None:
    """Check that ``transformers`` has a detector and its settings.

    Raises:
        UserError: it does not.
    """
    if type(model) not in MODEL_TYPES:
        name = type(model).__name__.removesuffix("Config")
        raise UserError(f"transformers does not have {name}. {EXPECTED}")
    if wrong := {key: value for key, value in REQUIRED.items() if getattr(model, key, value) != value}:
        found = ", ".join(f"model.{key} is '{getattr(model, key)}'" for key in wrong)
        needed = " ".join(f"--model.{key.replace('_', '-')} {value}" for key, value in wrong.items())
        raise UserError(f"transformers does not have these settings: {found}. To convert, train with {needed}.")
    if isinstance(model, DETRConfig) and not isinstance(model.classification, Softmax):
        raise UserError("model.classification is Focal, but DETR of transformers only has Softmax.")
    if isinstance(model, DABDETRConfig) and model.temperature % 1:
        raise UserError(f"model.temperature is {model.temperature}, but transformers only has whole numbers.")


def written_preprocessing(detector: TrainedDetector) -> dict[str, Any]:
    """``preprocessor_config.json`` of a detector."""
    preprocessing = detector.preprocessing
    short, long = preprocessing.resize_to
    return {
        "image_processor_type": FAMILIES[MODEL_TYPES[type(detector.experiment.model)]].image_processor,
        "format": "coco_detection",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "do_convert_annotations": True,
        "size": {"shortest_edge": short, "longest_edge": long},
        "resample": BILINEAR,
        "rescale_factor": 1 / 255,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
