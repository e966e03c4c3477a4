"""Any timm feature extractor as a backbone, with the normalization and freezing of detectors."""

import logging
from dataclasses import replace
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

import detrs.backbones.dat  # noqa: F401 (registers its models with timm)
from detrs.backbones import swin, weight_file
from detrs.backbones.folding import fold_norms
from detrs.backbones.frozen_norm import freeze_batch_norm
from detrs.backbones.same_convolution import replace_same
from detrs.backbones.weight_file import pretrained_config
from detrs.backbones.windows import ChannelNorm
from detrs.config.backbone import BackboneConfig
from detrs.errors import UserError, did_you_mean
from detrs.isolation import only_errors_logged

logger = logging.getLogger("detrs")


class TimmBackbone(nn.Module):
    """A timm model that returns the feature maps of ``config.stages``, fine to coarse.

    Args:
        config: which model.
        pretrained: load ``config.weights`` instead of random weights.

    Raises:
        UserError: the model is unknown, has other strides, or its weights are not available.
    """

    def __init__(self, config: BackboneConfig, pretrained: bool = False) -> None:
        super().__init__()
        # channels last: a quarter faster on CPUs, the layout of tensor cores, and tokens need no copy
        self.body = create(config, pretrained).to(memory_format=torch.channels_last)
        replace_same(self.body)
        self.channels = tuple(self.body.feature_info.channels())
        self.norms = nn.ModuleList(ChannelNorm(width) for width in self.channels if config.map_norm == "layer")
        if config.norm_eps is not None:
            for norm in [module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d)]:
                norm.eps = config.norm_eps
        if config.norm == "frozen":
            if pretrained and config.weights == "none":
                logger.warning(
                    "The backbone has random weights and frozen BatchNorm, which trains badly: "
                    "add --model.backbone.norm batch --model.backbone.freeze-stem False."
                )
            freeze_batch_norm(self.body)
            fold_norms(self.body, config.name)
        self.frozen_norms = freeze_below_c3(self.body) if config.freeze_stem else ()
        """Names, not modules: conversion to SyncBatchNorm replaces the modules."""
        self.axes = (0, 3, 1, 2) if getattr(self.body, "output_fmt", "NCHW") == "NHWC" else (0, 1, 2, 3)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        maps = [level.permute(self.axes) for level in self.body(images.contiguous(memory_format=torch.channels_last))]
        return [norm(level) for norm, level in zip(self.norms, maps, strict=True)] if self.norms else maps

    def train(self, mode: bool = True) -> "TimmBackbone":
        """As ``nn.Module.train``, but BatchNorm in a frozen stem keeps its statistics, like its weights."""
        super().train(mode)
        for name in self.frozen_norms:
            self.body.get_submodule(name).eval()
        return self


def create(config: BackboneConfig, pretrained: bool) -> Any:
    """The timm model, with weights if ``pretrained``."""
    if not timm.is_model(config.name):
        raise UserError(
            f"model.backbone.name is '{config.name}', which is not a timm model."
            f"{did_you_mean(config.name, timm.list_models() + timm.list_pretrained())}"
        )
    if not config.stages or any(not 2 <= stage <= 5 for stage in config.stages):
        raise UserError(f"model.backbone.stages is {config.stages}, but must be stages between 2 and 5.")
    if list(config.stages) != sorted(set(config.stages)):
        raise UserError(f"model.backbone.stages is {config.stages}, but must be in ascending order, each stage once.")
    pretrained_config(config.name)  # rejects an unknown tag, which timm would report as an internal error
    options: dict[str, Any] = {"pad_type": config.pad_type} if config.pad_type else {}
    if config.dilated:
        options["output_stride"] = 16
    is_swin = swin.is_swin(config.name)
    if is_swin:
        options |= swin.OPTIONS
    path, weights = "", {}
    if pretrained and config.weights != "none":
        path = str(weight_file.download(config.name)) if config.weights == "timm" else config.weights
        weights = dict(weight_file.read(path).tensors)
        # tensors, not a path: timm would also unpickle files of PyTorch's formats
        options["pretrained_cfg_overlay"] = {"state_dict": weights}
    try:
        with only_errors_logged("timm.models._builder"):  # it warns of unused heads
            body: Any = timm.create_model(
                config.name,
                pretrained=bool(weights),
                features_only=True,
                out_indices=[stage - 6 for stage in config.stages],  # C5 is the last feature map of every timm model
                **options,
            )
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, KeyError, IndexError) as error:
        if options.keys() & {"pad_type", "output_stride"} and not isinstance(error, RuntimeError | KeyError):
            raise UserError(
                f"The timm model '{config.name}' cannot be built with model.backbone.pad_type '{config.pad_type}' and "
                f"model.backbone.dilated {config.dilated} ({type(error).__name__}: {error}): use the defaults "
                f"(None and False) or another model."
            ) from error
        if weights:
            raise UserError(
                f"'{path}' does not fit the timm model '{config.name}' ({type(error).__name__}: {error!s:.300}). "
                "Pass weights of this model, or set --model.backbone.name."
            ) from error
        raise UserError(
            f"The timm model '{config.name}' cannot be built as a backbone ({type(error).__name__}: {error!s:.300}). "
            "Choose another model."
        ) from error
    for module in body.modules():  # timm keeps the loaded tensors in its description of the weights
        for description in (getattr(module, "pretrained_cfg", None), getattr(module, "default_cfg", None)):
            if isinstance(description, dict):
                description.pop("state_dict", None)
    if weights and config.weights != "timm":
        check_complete(body, set(weights), config)
    expected = [16 if config.dilated and stage == 5 else 2**stage for stage in config.stages]
    if list(body.feature_info.reduction()) != expected:
        raise UserError(
            f"The timm model '{config.name}' has feature maps of strides {body.feature_info.reduction()}, but stages "
            f"{config.stages} need {expected}: choose a model with four stages of strides 4 to 32."
        )
    trained_on = body.pretrained_cfg
    if is_swin:
        swin.adapt(body)
    elif trained_on.get("fixed_input_size"):
        raise UserError(
            f"The timm model '{config.name}' requires a fixed input size of {trained_on['input_size'][1:]} pixels, but "
            f"detectors need variable input sizes. Choose another model."
        )
    if pretrained and config.weights == "timm" and (expects := preprocessing(trained_on)) != (config.mean, config.std):
        logger.warning(
            "The weights of '%s' expect mean %s and std %s, but model.backbone.mean and model.backbone.std are %s and "
            "%s: set them, or pass --backbone %s, which does.",
            *(config.name, *expects, config.mean, config.std, config.name),
        )
    return body


def preprocessing(trained_on: dict[str, Any]) -> tuple[Any, Any]:
    """Mean and standard deviation of three channels in timm's description of pretrained weights."""
    return tuple(trained_on["mean"]), tuple(trained_on["std"])


def with_weights(config: BackboneConfig, weights: str) -> BackboneConfig:
    """``config`` with other initial weights: the name of a timm model, or a ``.safetensors`` file of one.

    The name of a model also sets mean and std of its weights, and its own padding. The metadata of a file may do the
    same: ``timm_model``, ``pad_type``, ``mean`` and ``std``; otherwise it must be of the model that ``config`` names.
    """
    if not weight_file.is_file_name(weights):
        trained_on = pretrained_config(weights)
        if trained_on is None:
            return replace(config, name=weights, weights="timm", pad_type=None)  # rejected when it is built
        mean, std = preprocessing(trained_on.to_dict())
        return replace(config, name=weights, weights="timm", pad_type=None, mean=mean, std=std)
    metadata = weight_file.read_metadata(weights)
    known: dict[str, Any] = {"name": metadata.get("timm_model"), "pad_type": metadata.get("pad_type")}
    known |= {key: channels(weights, key, metadata[key]) for key in ("mean", "std") if key in metadata}
    return replace(config, weights=weights, **{key: value for key, value in known.items() if value})


def channels(path: str, key: str, text: str) -> tuple[float, ...]:
    """The three numbers in ``"0.5,0.5,0.5"``, brackets or not.

    Raises:
        UserError: it has other content.
    """
    try:
        red, green, blue = (float(number) for number in text.strip("[]()").split(","))
    except ValueError:
        raise UserError(f"'{path}': expected three numbers as '{key}' in the metadata, got '{text:.80}'.") from None
    return red, green, blue


def check_complete(body: nn.Module, names: set[str], config: BackboneConfig) -> None:
    """Raise ``UserError`` if a weight of the timm model is not among the ``names``; timm would leave it random."""
    held = {name.replace("_", ".") for name in names}
    wanted = [key for key in body.state_dict() if not key.endswith("num_batches_tracked")]
    missing = [key for key in wanted if key.replace("_", ".") not in held]  # timm replaces some dots by underscores
    if missing:
        raise UserError(
            f"'{config.weights}' is missing {len(missing)} of {len(wanted)} backbone weights ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}). Pass a weight file for timm model '{config.name}' "
            "(model.backbone.name)."
        )


def freeze_below_c3(body: Any) -> tuple[str, ...]:
    """Disable gradients of everything up to C2, in the order in which timm registers its modules.

    Returns:
        Names of the frozen BatchNorms, whose statistics must not change either.
    """
    c2 = [info["module"] for info in body.feature_info.info if info["reduction"] == 4][-1]
    inside = tuple(f"{name}." for name in (c2, c2.replace(".", "_")))  # timm flattens the names of some models
    names = [name for name, _ in body.named_parameters()]
    last = max((i for i, name in enumerate(names) if name.startswith(inside)), default=None)
    if last is None:
        raise UserError(
            "The stem of this timm model cannot be frozen, since its stages share one module: "
            "add --model.backbone.freeze-stem False."
        )
    for parameter in list(body.parameters())[: last + 1]:
        parameter.requires_grad_(False)
    norms = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return tuple(name for name, norm in norms if norm.affine and not norm.weight.requires_grad)
