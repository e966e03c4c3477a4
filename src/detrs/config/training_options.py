"""Which options of the criterion a detector can be trained with."""

from detrs.config.anchor_detr import AnchorDETRConfig
from detrs.config.classification import Focal
from detrs.config.criterion import CriterionConfig, NoDenoising, OneToMany
from detrs.config.dab_deformable_detr import DABDeformableDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.deformable_detr import DeformableDETRConfig
from detrs.config.dino import DINOConfig
from detrs.config.dynamic_detr import DynamicDETRConfig
from detrs.config.efficient_detr import EfficientDETRConfig
from detrs.config.models import ModelSettings
from detrs.config.sparse_rcnn import SparseRCNNConfig
from detrs.errors import UserError

BOXES = (DABDETRConfig, DABDeformableDETRConfig, DINOConfig, DynamicDETRConfig, EfficientDETRConfig, SparseRCNNConfig)
"""Detectors whose queries are boxes from the start, and refined by every layer."""


def check_options(config: CriterionConfig, model: ModelSettings) -> None:
    """Check that the detector can be trained with these options.

    Raises:
        UserError: naming the option, and the detectors that have it.
    """
    name = type(model).__name__.removesuffix("Config")
    from_boxes = refines = isinstance(model, BOXES)
    if isinstance(model, DeformableDETRConfig):
        from_boxes, refines = model.queries == "proposals", model.reference == "refine"
    has_queries = hasattr(model, "num_queries")
    has_focal_loss = has_queries and isinstance(getattr(model, "classification", None), Focal)
    if not isinstance(config.denoising, NoDenoising) and not (from_boxes and has_focal_loss):
        raise UserError(
            "criterion.denoising needs a detector with the focal loss whose queries are boxes from the start (DAB-DETR "
            "and DINO with their variants, Dynamic DETR, Efficient DETR, Sparse R-CNN, or Deformable DETR with "
            f"model.queries 'proposals'), got {name}: set its kind to NoDenoising."
        )
    if config.look_forward == "twice" and not refines:
        raise UserError(
            "criterion.look_forward 'twice' needs a detector that refines boxes (Deformable DETR: model.reference "
            f"'refine'), got {name}: set it to 'once'."
        )
    if config.quality != "none" and not has_focal_loss:
        raise UserError(
            f"criterion.quality '{config.quality}' needs a detector with the focal loss (model.classification), got "
            f"{name}: set it to 'none'."
        )
    if not has_queries and (config.box_coordinates != "cxcywh" or not config.auxiliary):
        raise UserError(
            "criterion.box_coordinates and criterion.auxiliary need a detector with object queries and decoder layers, "
            f"got {name}: leave them at 'cxcywh' and True."
        )
    can_be_added = has_queries and not isinstance(model, AnchorDETRConfig)
    if isinstance(config.assignment, OneToMany) and not can_be_added:
        raise UserError(
            f"criterion.assignment OneToMany needs a detector with object queries that can be added, got {name}: set "
            "its kind to OneToOne."
        )
