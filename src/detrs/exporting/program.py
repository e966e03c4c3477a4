"""The program of an export: named input tensors to named output tensors, around a detector's ``detect``."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from detrs import ops
from detrs.backbones.folding import merged
from detrs.boxes import cxcywh_to_xyxy
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import ExportInfo, Tensors, signature
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError
from detrs.models.detector import Model
from detrs.postprocess import without_duplicates
from detrs.structures import Boxes

EXAMPLE = (2, 133, 197)
"""Images, height and width of the traced example of files with dynamic size: pairwise different, not special."""
MIN_TRACED = 65
"""Smallest side of the images of files with dynamic size in pixels: the coarsest levels have a stride of 64."""


class NoPadding(nn.Module):
    """Adds the padding of images without padding."""

    def forward(self, tensors: Tensors) -> Tensors:
        images = tensors["images"]
        padding = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool, device=images.device)
        return tensors | {"padding": padding}


class Normalization(nn.Module):
    """uint8 images to normalized ones, zero where padded."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, tensors: Tensors) -> Tensors:
        return tensors | {"images": self.preprocessing.normalize_planar(tensors["images"], tensors["padding"])}


class Detection(nn.Module):
    """Normalized images and padding to boxes, scores and labels."""

    def __init__(self, model: Model, max_detections: int) -> None:
        super().__init__()
        self.model, self.max_detections = model, max_detections

    def forward(self, tensors: Tensors) -> Tensors:
        found = self.model.detect(tensors["images"], tensors["padding"], self.max_detections)
        return tensors | found._asdict()


class Suppression(nn.Module):
    """``evaluation.nms``."""

    def __init__(self, iou: float, num_classes: int) -> None:
        super().__init__()
        self.iou, self.num_classes = iou, num_classes

    def forward(self, tensors: Tensors) -> Tensors:
        found = Boxes(*(tensors[name] for name in Boxes._fields))
        return tensors | without_duplicates(found, self.iou, self.num_classes)[0]._asdict()


class PixelBoxes(nn.Module):
    """Boxes as (x1, y1, x2, y2) in pixels of the original image."""

    def forward(self, tensors: Tensors) -> Tensors:
        scale = tensors["image_sizes"].flip(1).repeat(1, 2).to(torch.float32)[:, None]  # (B, 1, 4): w, h, w, h
        return tensors | {"boxes_xyxy": cxcywh_to_xyxy(tensors["boxes"]) * scale, "scale": scale}


class Clipping(nn.Module):
    """Boxes clipped to their image, as ``Detections.clipped``."""

    def forward(self, tensors: Tensors) -> Tensors:
        return tensors | {"boxes_xyxy": tensors["boxes_xyxy"].clamp(min=0).minimum(tensors["scale"])}


class Program(nn.Module):
    """Stages that add tensors to those of the input.

    Args:
        stages: in this order.
        inputs: names of the arguments.
        outputs: names of the tensors to return.
    """

    def __init__(self, stages: Iterable[nn.Module], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, *inputs: Tensor) -> Tensors:
        tensors = dict(zip(self.inputs, inputs, strict=True))
        for stage in self.stages:
            tensors = stage(tensors)
        return {name: tensors[name] for name in self.outputs}


def program(detector: TrainedDetector, info: ExportInfo) -> Program:
    """The program that a file contains, on the weights of ``detector``."""
    stages: list[nn.Module] = [] if info.padding else [NoPadding()]
    if info.preprocess:
        stages.append(Normalization(detector.preprocessing))
    stages.append(Detection(detector.module, info.max_detections))
    evaluation = detector.experiment.evaluation
    if evaluation.suppression is not None:
        stages.append(Suppression(evaluation.suppression, len(detector.classes.names)))
    if info.postprocess:
        stages += [PixelBoxes(), Clipping()] if evaluation.clip else [PixelBoxes()]
    return Program(stages, *signature(info))


def example(info: ExportInfo) -> Tensors:
    """Inputs to trace with."""
    batch, height, width = EXAMPLE if info.static is None else (EXAMPLE[0], *info.static)
    shape = (batch, 3, height, width)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    tensors = {
        "images": images if info.preprocess else images.float() / 128 - 1,
        "padding": torch.zeros(batch, height, width, dtype=torch.bool),
        "image_sizes": torch.tensor([[height, width]] * batch),
    }
    return {name: tensors[name] for name in signature(info).inputs}


def trace(detector: TrainedDetector, info: ExportInfo) -> ExportedProgram:
    """The program as a graph of PyTorch operators, for any number of images, and of any size unless it is static.

    Raises:
        UserError: the model has control flow or sizes that depend on the values of images, as some backbones of timm.
    """
    inputs = example(info)
    detector = replace(detector, module=merged(detector.module))  # constant weights, which can be quantized
    # Otherwise, the exporter compares sizes to decide about strides: it excludes sizes, and is five times slower.
    sizes_unknown = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), ops.use("gather" if info.gather else "reference"), sizes_unknown:
        try:
            return torch.export.export(
                program(detector, info),
                tuple(inputs.values()),
                dynamic_shapes={"inputs": tuple(dynamic_axes(info)[name] for name in inputs)},
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except RuntimeError as error:  # also of torch._dynamo
            reason, size = str(error).strip().partition("\n")[0], "" if info.static else " for images of any size"
            advice = (
                "Choose another backbone" if info.static else "Choose a static size (--static), or another backbone"
            )
            raise UserError(
                f"torch.export cannot trace this model{size} ({type(error).__name__}: {reason:.200}). {advice}."
            ) from error


def dynamic_axes(info: ExportInfo) -> dict[str, dict[int, Dim]]:
    """The axes of dynamic size of each input.

    The exporter distinguishes sizes at which the coarsest level has a single cell, hence the minimum; the operators of
    the graph do not.
    """
    batch = Dim("batch", min=1)
    axes = {"images": {0: batch}, "padding": {0: batch}, "image_sizes": {0: batch}}
    if info.static is None:
        height, width = Dim("height", min=MIN_TRACED), Dim("width", min=MIN_TRACED)
        axes["images"] |= {2: height, 3: width}
        axes["padding"] |= {1: height, 2: width}
    return axes
