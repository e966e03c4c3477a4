"""Validation of settings that several detectors have."""

from typing import Any

from detrs.errors import UserError


def check_heads(config: Any) -> None:
    """Check that the number of heads divides the embedding dimension.

    Raises:
        UserError: naming both settings.
    """
    if config.dim % config.num_heads:
        raise UserError(f"model.num_heads is {config.num_heads}, but must divide model.dim ({config.dim}).")


def check_levels(config: Any) -> None:
    """Check that a pyramid with GroupNorm of 32 groups has a level for each feature map of the backbone.

    Raises:
        UserError: naming the settings.
    """
    if config.dim % 32:
        raise UserError(f"model.dim is {config.dim}, but must be a multiple of 32 (GroupNorm).")
    if config.num_levels < len(config.backbone.stages):
        raise UserError(
            f"model.num_levels is {config.num_levels}, but the backbone has "
            f"{len(config.backbone.stages)} feature maps (model.backbone.stages): use more levels or fewer stages."
        )


def check_consecutive_stages(config: Any, can_be_dilated: bool = False) -> None:
    """Check that the stages of the backbone suit a feature pyramid whose levels differ by a factor of 2.

    Args:
        config: of the detector.
        can_be_dilated: the detector also works with two levels of the same stride.

    Raises:
        UserError: naming the settings.
    """
    stages = config.backbone.stages
    if not stages or stages != tuple(range(stages[0], stages[0] + len(stages))):
        raise UserError(
            f"model.backbone.stages is {stages}, but the feature pyramid needs consecutive stages, for example 2 3 4 5."
        )
    if config.backbone.dilated and not can_be_dilated:
        raise UserError("model.backbone.dilated is True, but the feature pyramid needs a backbone without dilation.")


def check_queries(max_objects: int, num_queries: int, enough: int) -> None:
    """Check that no image has more objects than queries: each query detects one object at most.

    Args:
        max_objects: largest number of objects in one image of the data.
        num_queries: queries of the model.
        enough: smallest ``model.num_queries`` for ``max_objects``.

    Raises:
        UserError: with the setting to raise.
    """
    if max_objects > num_queries:
        raise UserError(
            f"An image of the dataset has {max_objects} objects, but the model has {num_queries} queries, one per "
            f"object: add --model.num-queries {enough} (or more)."
        )


def check_single_scale(config: Any) -> None:
    """Check that dimension and backbone fit a transformer on one feature map.

    Raises:
        UserError: with the setting's name.
    """
    check_heads(config)
    if config.dim % 4:
        raise UserError(f"model.dim is {config.dim}, but must be a multiple of 4 (sine and cosine of two coordinates).")
    if len(config.backbone.stages) != 1:
        raise UserError(
            f"model.backbone.stages is {config.backbone.stages}, but this detector has one feature map: give one stage."
        )
