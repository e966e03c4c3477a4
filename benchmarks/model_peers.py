"""What ``benchmarks/models.py`` times: detectors of detrs and of other libraries, with random weights and images.

Every peer has the sizes of the preset, and dropout in the same places. Nothing is downloaded.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detrs import models, ops
from detrs.config import Experiment
from detrs.presets import preset
from detrs.structures import Batch, Classes, Target, Totals

OBJECTS = 8
"""Objects of each image of a training step."""
Work = Callable[[], object]
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Type of autocast."""
DEFORMABLE = ("deformable-detr-r50", "deformable-detr-r50-refine", "deformable-detr-r50-two-stage")
TRANSFORMERS = (*DEFORMABLE, "detr-r50", "conditional-detr-r50")
"""Presets that ``transformers`` has, too."""
TRAINED_STAGES = (1, 2, 3)
"""Of ResNet-50 in ``transformers``; the stem and the first stage are frozen, as here."""
TORCHVISION = ("faster-rcnn-r50-fpn",)
"""Presets that torchvision has, too."""


class Case(NamedTuple):
    """A preset, its input and what is computed."""

    name: str
    image_size: tuple[int, int]
    batch_size: int
    is_training: bool
    device: torch.device


def random_batch(batch_size: int, size: tuple[int, int], num_classes: int, device: torch.device) -> Batch:
    """Images without padding and ``OBJECTS`` boxes each, from a fixed random seed."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, *size, generator=random).to(device)
    targets = tuple(
        Target(
            torch.cat([torch.rand(OBJECTS, 2, generator=random) * 0.6 + 0.2, torch.full((OBJECTS, 2), 0.2)], -1).to(
                device
            ),
            torch.randint(num_classes, (OBJECTS,), generator=random).to(device),
            i,
            size,
        )
        for i in range(batch_size)
    )
    return Batch(images, torch.zeros(batch_size, *size, dtype=torch.bool, device=device), targets)


def batch_of(case: Case) -> Batch:
    return random_batch(case.batch_size, case.image_size, preset(case.name).model.num_classes, case.device)


def in_precision(run: Work, device: torch.device, precision: str) -> Work:
    dtype = DTYPES[precision]
    if dtype is None:
        return run

    def autocast() -> object:
        with torch.autocast(device.type, dtype):
            return run()

    return autocast


def with_reference(run: Work) -> Work:
    """The same with the operator's reference implementation."""

    def forced() -> object:
        with ops.use("reference"):
            return run()

    return forced


def works(case: Case, names: list[str]) -> dict[str, Work]:
    """The implementations among ``names`` that have the preset and are installed."""
    builders: dict[str, Callable[[Case, Batch], Work]] = {"detrs": ours}
    if case.name.startswith("deformable"):
        builders["grid_sample"] = lambda case, batch: with_reference(ours(case, batch))
    if case.name in TRANSFORMERS and importlib.util.find_spec("transformers"):
        builders["transformers"] = transformers_detector
    if case.name in TORCHVISION:
        builders["torchvision"] = torchvision_detector
    if not case.is_training and case.device.type == "cpu" and importlib.util.find_spec("onnxruntime"):
        builders["onnxruntime"] = exported
    batch = batch_of(case)
    return {name: build(case, batch) for name, build in builders.items() if name in names}


def our_model(experiment: Experiment) -> models.Model:
    torch.manual_seed(0)
    return models.build(experiment.model, pretrained=False)


def ours(case: Case, batch: Batch) -> Work:
    """``detect``, or the forward and backward pass of the training objective."""
    experiment = preset(case.name)
    model = our_model(experiment).to(case.device)
    if not case.is_training:
        model.eval()

        def forward() -> object:
            with torch.no_grad():
                return model.detect(batch.images, batch.padding)

        return forward
    objective = model.objective(experiment.criterion).to(case.device).train()
    totals = Totals.of(batch.targets)
    return gradients(objective, lambda: objective(batch, totals).total)


def gradients(module: nn.Module, loss: Callable[[], Tensor]) -> Work:
    """Forward and backward pass of ``loss``."""
    parameters = [p for p in module.parameters() if p.requires_grad]

    def step() -> object:
        return torch.autograd.grad(loss(), parameters, allow_unused=True)

    return step


def transformers_detector(case: Case, batch: Batch) -> Work:
    """The detector of ``transformers`` with the sizes and the dropout of the preset."""
    model = transformers_model(preset(case.name)).to(case.device).train(case.is_training)
    mask = (~batch.padding).long()
    if not case.is_training:

        def forward() -> object:
            with torch.no_grad():
                return model(batch.images, mask).logits

        return forward
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]
    return gradients(model, lambda: model(batch.images, mask, labels=labels).loss)


def transformers_model(experiment: Experiment) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    settings: Any = experiment.model
    name = experiment.name or ""
    is_deformable = name.startswith("deformable")
    shared = {
        "backbone_config": transformers.ResNetConfig(
            out_features=["stage2", "stage3", "stage4"] if is_deformable else ["stage4"]
        ),
        "num_labels": settings.num_classes,
        "num_queries": settings.num_queries,
        "encoder_ffn_dim": settings.ffn_dim,
        "decoder_ffn_dim": settings.ffn_dim,
        "dropout": settings.dropout,
        "attention_dropout": settings.dropout,  # of probabilities, as here
        "activation_dropout": settings.dropout,  # inside the feed-forward networks, as here
        "auxiliary_loss": True,
    }
    if is_deformable:
        own = {
            "with_box_refine": settings.reference == "refine",
            "two_stage": settings.queries == "proposals",
            "two_stage_num_proposals": settings.num_queries,
        }
        model = transformers.DeformableDetrForObjectDetection(transformers.DeformableDetrConfig(**shared, **own))
    elif name.startswith("conditional"):
        model = transformers.ConditionalDetrForObjectDetection(transformers.ConditionalDetrConfig(**shared))
    else:
        model = transformers.DetrForObjectDetection(transformers.DetrConfig(**shared))
    # It freezes the whole backbone, since the names of its stages are not those that it expects.
    for path, parameter in model.named_parameters():
        parameter.requires_grad_("backbone" not in path or any(f".stages.{stage}." in path for stage in TRAINED_STAGES))
    return model


def torchvision_model(case: Case) -> nn.Module:
    """Faster R-CNN with frozen BatchNorm, stem and first stage: what torchvision builds with pretrained weights."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    classes = preset(case.name).model.num_classes + 1  # with background
    return FasterRCNN(backbone, classes, min_size=min(case.image_size), max_size=max(case.image_size))


def torchvision_detector(case: Case, batch: Batch) -> Work:
    """Faster R-CNN of torchvision; images are given in the size that both resize to."""
    model = torchvision_model(case).to(case.device)
    model.train(case.is_training)
    images = list(batch.images)
    if not case.is_training:

        def forward() -> object:
            with torch.no_grad():
                return model(images)

        return forward
    width_height = batch.images.new_tensor([case.image_size[1], case.image_size[0]])
    targets = [
        {
            "boxes": torch.cat(
                [target.boxes[:, :2] - target.boxes[:, 2:] / 2, target.boxes[:, :2] + target.boxes[:, 2:] / 2], 1
            )
            * width_height.repeat(2),
            "labels": target.labels + 1,
        }
        for target in batch.targets
    ]
    return gradients(model, lambda: torch.stack(list(model(images, targets).values())).sum())


def exported(case: Case, batch: Batch) -> Work:
    """The exported detector of a static size in ONNX Runtime, with as many threads as PyTorch."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(case, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = batch.images.numpy()
    return lambda: session.run(None, {"images": images})


def write_onnx(case: Case, path: Path) -> None:
    """Exports initial weights, without the comparison that ``detrs export`` makes."""
    from detrs.checkpoints.detector import TrainedDetector
    from detrs.checkpoints.exported import ExportInfo
    from detrs.data.preprocessing import Preprocessing
    from detrs.exporting import onnx_file, program
    from detrs.exporting.export import onnx_writer

    experiment = preset(case.name)
    classes = experiment.model.num_classes
    detector = TrainedDetector(
        module=our_model(experiment).eval(),
        classes=Classes(tuple(str(i) for i in range(classes)), tuple(range(classes))),
        preprocessing=Preprocessing(
            resize_to=(min(case.image_size), max(case.image_size)), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        ),
        experiment=experiment,
        scores={},
        step=0,
        epoch=0,
    )
    info = ExportInfo(
        format="onnx",
        opset=18,
        precision="float32",
        static=case.image_size,
        min_size=1,
        gather=False,
        preprocess=False,
        postprocess=False,
        padding=False,
        max_detections=experiment.evaluation.max_detections,
    )
    onnx_file.check_packages()
    save, _ = onnx_writer(program.trace(detector, info), detector, info)
    save(path, info)
