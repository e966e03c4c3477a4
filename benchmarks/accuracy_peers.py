"""Detectors and recipes of other libraries for ``benchmarks/accuracy.py``; nothing is downloaded with ``--backbone``.

All have the weights of the backbone that the presets of detrs have, with frozen BatchNorm, stem and first stage. Loss,
optimizer and learning rates are their own; see ``RECIPES``.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accuracy_trainers import NotInstalledError
from torch import Tensor, nn
from torchvision.ops import box_convert

from detrs.backbones.timm import create, freeze_below_c3, with_weights
from detrs.config import Experiment
from detrs.config.data import DataConfig
from detrs.engine.schedule import lr_factor
from detrs.presets import preset
from detrs.structures import Batch

MAX_DETECTIONS = 100
STAGES_OF_RCNN, STAGES_OF_DETR = (2, 3, 4, 5), (3, 4, 5)
LIKE = "deformable-detr-small"
"""The preset whose sizes and weights of the backbone the peers have."""
OUR_RECIPE = "transformers Deformable DETR, our recipe"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run of one peer."""

    peer: str
    data: str
    minutes: float
    image_size: tuple[int, int]
    batch_size: int
    seed: int
    threads: int
    backbone: str | None
    """``.safetensors`` file of a timm model; ``None``: the weights of the preset ``like``, downloaded once."""
    like: str = LIKE
    """Preset with the sizes of the detector of transformers."""
    evaluate_every: int = 1
    """Epochs between evaluations."""

    @property
    def data_config(self) -> DataConfig:
        """Digits are neither mirrored nor scaled, as in the runs of detrs."""
        return DataConfig(
            path=self.data,
            resize_to=self.image_size,
            augment="none" if self.data == "digits" else "flip",
            min_scale=1.0,
            batch_size=self.batch_size,
            padded_together=1,
        )


class Recipe(NamedTuple):
    """How a peer is trained."""

    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    lr_factor: Callable[[int, float], float]
    """Of the step and the fraction of the run that is done, both before the step."""
    clip_norm: float | None
    nms: float | None = None
    """IoU of non-maximum suppression in evaluation, beside that of the detector itself."""


class Found(NamedTuple):
    """Detections of one image."""

    boxes: Tensor
    """(N, 4) xyxy in [0, 1] of the image"""
    scores: Tensor
    labels: Tensor


class Peer(NamedTuple):
    """A detector of another library."""

    model: nn.Module
    loss: Callable[[Batch], Tensor]
    detect: Callable[[Batch], list[Found]]


def torchvision_recipe(batch_size: int) -> Recipe:
    """The reference scripts of torchvision: SGD, learning rate 0.02 at 16 images, drops at 16/26 and 22/26."""

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, lr=0.02 * batch_size / 16, momentum=0.9, weight_decay=1e-4)

    def lr_factor(step: int, progress: float) -> float:
        warmup = min(1.0, 1e-3 + (step + 1) / 1000)
        return float(warmup * 0.1 ** ((progress >= 16 / 26) + (progress >= 22 / 26)))

    return Recipe(optimizer, lr_factor, None)


def adamw(lr: float, backbone: float, sampling: float, weight_decay: float) -> Callable[..., torch.optim.Optimizer]:
    """AdamW with factors of the learning rate of the backbone, and of sampling offsets and reference points."""

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        groups: dict[float, list[Tensor]] = {}
        for name, parameter in model.named_parameters():
            is_sampling = "sampling_offsets" in name or "reference_points" in name
            factor = backbone if ".backbone." in name else sampling if is_sampling else 1.0
            if parameter.requires_grad:
                groups.setdefault(lr * factor, []).append(parameter)
        return torch.optim.AdamW([{"params": p, "lr": rate} for rate, p in groups.items()], weight_decay=weight_decay)

    return optimizer


def authors_recipe(batch_size: int) -> Recipe:
    """The authors of Deformable DETR: AdamW with a learning rate of 2e-4, a tenth of it after four fifths."""
    return Recipe(adamw(2e-4, 0.1, 0.1, 1e-4), lambda step, progress: 0.1 if progress >= 0.8 else 1.0, 0.1)


def preset_recipe(experiment: Experiment) -> Recipe:
    """Optimizer, schedule and suppression of a preset, without its average of the weights.

    The learning rate is half that of the preset, as for our detectors without denoising.
    """
    own, batch_size = experiment.optimizer, experiment.data.batch_size
    return Recipe(
        adamw(own.lr / 2, own.backbone_lr_factor, own.sampling_lr_factor, own.weight_decay),
        lambda step, progress: lr_factor(experiment.schedule, step, progress, batch_size),
        own.clip_norm,
        experiment.evaluation.suppression,
    )


class Features(nn.Module):
    """Feature maps of a timm model, with frozen BatchNorm, stem and first stage."""

    def __init__(self, settings: Settings, stages: tuple[int, ...]) -> None:
        super().__init__()
        from timm.layers import freeze_batch_norm_2d

        config = dataclasses.replace(preset(settings.like).model.backbone, stages=stages)
        if settings.backbone is not None:
            config = with_weights(config, settings.backbone)
        self.body = freeze_batch_norm_2d(create(config, pretrained=True))
        freeze_below_c3(self.body)
        self.channels = list(self.body.feature_info.channels())
        self.mean, self.std = config.mean, config.std

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images))


class FeaturePyramid(nn.Module):
    """A backbone of torchvision's Faster R-CNN."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        self.features, self.out_channels = features, 256
        self.fpn = FeaturePyramidNetwork(features.channels, self.out_channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.features(images)
        pyramid: dict[str, Tensor] = self.fpn(OrderedDict((str(i), level) for i, level in enumerate(maps)))
        return pyramid


def torchvision_peer(settings: Settings, num_classes: int) -> Peer:
    """Faster R-CNN with a feature pyramid and the defaults of torchvision."""
    from torchvision.models.detection import FasterRCNN

    features = Features(settings, STAGES_OF_RCNN)
    model = FasterRCNN(
        FeaturePyramid(features),
        num_classes + 1,  # with background
        image_mean=list(features.mean),
        image_std=list(features.std),
        box_detections_per_img=MAX_DETECTIONS,
        min_size=min(settings.image_size),  # images have this size already
        max_size=max(settings.image_size),
    )

    def unpadded(batch: Batch) -> list[Tensor]:
        sizes = (~batch.padding).flatten(1).sum(1), (~batch.padding[:, :, 0]).sum(1)  # areas, heights
        pairs = zip(batch.images, *(values.tolist() for values in sizes), strict=True)
        return [image[:, :height, : area // height] / 255 for image, area, height in pairs]

    def loss(batch: Batch) -> Tensor:
        images = unpadded(batch)
        targets = [
            {
                "boxes": box_convert(target.boxes, "cxcywh", "xyxy") * scale_of(image),
                "labels": target.labels + 1,
            }
            for image, target in zip(images, batch.targets, strict=True)
        ]
        return torch.stack(list(model(images, targets).values())).sum()

    def detect(batch: Batch) -> list[Found]:
        images = unpadded(batch)
        return [
            Found(found["boxes"] / scale_of(image), found["scores"], found["labels"] - 1)
            for image, found in zip(images, model(images), strict=True)
        ]

    return Peer(model, loss, detect)


def scale_of(image: Tensor) -> Tensor:
    """(4,): width, height, width, height."""
    return torch.tensor([image.shape[2], image.shape[1]] * 2, dtype=torch.float32)


def transformers_peer(settings: Settings, num_classes: int) -> Peer:
    """Deformable DETR of ``transformers`` with the sizes of the preset ``like``, and its own loss."""
    try:
        import transformers
    except ImportError as error:
        raise NotInstalledError("transformers") from error
    sizes: Any = preset(settings.like).model
    features = Features(settings, STAGES_OF_DETR)
    model = transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            backbone="mobilenetv2_100",  # of the same widths; replaced below
            num_labels=num_classes,
            d_model=sizes.dim,
            num_feature_levels=sizes.num_levels,
            encoder_layers=sizes.encoder_layers,
            decoder_layers=sizes.decoder_layers,
            encoder_attention_heads=sizes.num_heads,
            decoder_attention_heads=sizes.num_heads,
            encoder_n_points=sizes.num_points,
            decoder_n_points=sizes.num_points,
            encoder_ffn_dim=sizes.ffn_dim,
            decoder_ffn_dim=sizes.ffn_dim,
            dropout=sizes.dropout,
            num_queries=sizes.num_queries,
            two_stage_num_proposals=sizes.num_queries,
            two_stage=sizes.queries == "proposals",
            with_box_refine=sizes.reference == "refine",
            auxiliary_loss=True,
        )
    )
    # Its own replacement of BatchNorm drops the activations that timm computes inside of it.
    model.model.backbone.model = features
    mean, std = (torch.tensor(values)[:, None, None] for values in (features.mean, features.std))

    def forward(batch: Batch, labels: list[dict[str, Tensor]] | None = None) -> Any:
        images = torch.where(batch.padding[:, None], 0.0, (batch.images / 255 - mean) / std)
        return model(images, (~batch.padding).long(), labels=labels)

    def loss(batch: Batch) -> Tensor:
        total: Tensor = forward(batch, [{"class_labels": t.labels, "boxes": t.boxes} for t in batch.targets]).loss
        return total

    def detect(batch: Batch) -> list[Found]:
        output, found = forward(batch), []
        for logits, boxes in zip(output.logits.sigmoid(), output.pred_boxes, strict=True):
            best = logits.flatten().topk(min(MAX_DETECTIONS, logits.numel()))
            corners = box_convert(boxes[best.indices // logits.shape[1]], "cxcywh", "xyxy")
            found.append(Found(corners, best.values, best.indices % logits.shape[1]))
        return found

    return Peer(model, loss, detect)


BUILDERS: dict[str, Callable[[Settings, int], Peer]] = {
    "torchvision Faster R-CNN": torchvision_peer,
    "transformers Deformable DETR": transformers_peer,
    OUR_RECIPE: transformers_peer,
}
RECIPES: dict[str, Callable[[Settings], Recipe]] = {
    "torchvision Faster R-CNN": lambda settings: torchvision_recipe(settings.batch_size),
    "transformers Deformable DETR": lambda settings: authors_recipe(settings.batch_size),
    OUR_RECIPE: lambda settings: preset_recipe(
        dataclasses.replace(
            preset(settings.like),
            data=dataclasses.replace(preset(settings.like).data, batch_size=settings.batch_size),
        )
    ),
}
