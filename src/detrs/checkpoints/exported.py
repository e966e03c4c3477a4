"""Detectors in exported files: the interface of a checkpoint, run by ONNX Runtime or by PyTorch.

``detrs.exporting`` writes these files. Their metadata is that of a checkpoint, and ``export``, an ``ExportInfo``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge
from jaxtyping import Bool, Float
from torch import Tensor

from detrs import schema
from detrs.boxes import xyxy_to_cxcywh
from detrs.checkpoints.detector import TrainedDetector, metadata_errors, metadata_of, read_metadata
from detrs.config.criterion import CriterionConfig
from detrs.criterion.objective import Objective
from detrs.data.preprocessing import FixedSize, Preprocessing
from detrs.errors import UserError
from detrs.layers.neck import check_padding
from detrs.models.detector import Model
from detrs.schema import from_dict, to_dict
from detrs.structures import Boxes

KEY = "detrs"
"""Name of the metadata in the file."""

Format = Literal["onnx", "torch"]
ExportPrecision = Literal["float32", "float16", "int8"]
PRECISIONS: dict[ExportPrecision, str] = {"float32": "fp32", "float16": "fp16", "int8": "int8"}
"""Their names in ``--precision``."""
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """What an exported file takes and returns: ``export`` in its metadata."""

    format: Format
    opset: Annotated[int, Ge(1)] | None
    """Of ONNX; ``None`` for torch."""
    precision: ExportPrecision
    static: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] | None
    """(height, width) in pixels of the only size of images; ``None``: any size."""
    min_size: Annotated[int, Ge(1)]
    """Smallest height and width of images in pixels."""
    gather: bool
    """Whether bilinear sampling consists of gathers, without GridSample."""
    preprocess: bool
    """Whether images are uint8, normalized in the graph."""
    postprocess: bool
    """Whether the graph takes ``image_sizes`` and returns ``boxes_xyxy`` in pixels."""
    padding: bool
    """Whether the graph takes ``padding``."""
    max_detections: Annotated[int, Ge(1)]
    """Largest number of detections per image."""
    parity: dict[str, Any] | None = None
    """The differences from the checkpoint that were measured after the export."""


class Signature(NamedTuple):
    """The names of the inputs and outputs of an exported program, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def signature(info: ExportInfo) -> Signature:
    """What a file takes and returns."""
    inputs = ("images", *(("padding",) if info.padding else ()), *(("image_sizes",) if info.postprocess else ()))
    return Signature(inputs, ("boxes_xyxy" if info.postprocess else "boxes", "scores", "labels"))


class Runner(Protocol):
    """Runs an exported program."""

    def check_device(self, device: torch.device) -> None:
        """Raise ``UserError`` if the program cannot run on ``device``."""

    def __call__(self, inputs: Tensors) -> Tensors:
        """The outputs of the program by name, on the device of the inputs."""


class ExportedModel(Model):
    """An exported program with the interface of a model.

    Args:
        export: what the program takes and returns.
        preprocessing: its normalization, which ``preprocess`` repeats in the graph.
        runner: runs the program.
        source: path of the file, for messages.
    """

    def __init__(self, export: ExportInfo, preprocessing: Preprocessing, runner: Runner, source: str) -> None:
        super().__init__()
        self.export, self.runner, self.source = export, runner, source
        self.signature = signature(export)
        self.before: list[Callable[[Tensors], Tensors]] = []
        if export.static:
            self.before.append(Padded(export.static))
        if export.preprocess:
            self.before.append(_Pixels(preprocessing))
        if export.postprocess:
            self.before.append(_with_image_sizes)
        self.after = _normalized if export.postprocess else _unchanged

    def objective(self, config: CriterionConfig) -> Objective:
        raise UserError(f"'{self.source}' is an exported file, which cannot be trained. Use its checkpoint.")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As ``Module.to``: the device on which the program will run.

        Raises:
            UserError: it cannot run there.
        """
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None:
            self.runner.check_device(device)
        return super().to(*args, **kwargs)

    def detect(
        self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"], max_detections: int = 100
    ) -> Boxes:
        self._check(images, padding, max_detections)
        tensors = {"images": images, "padding": padding}
        for change in self.before:
            tensors = change(tensors)
        found = self.after(self._run({name: tensors[name] for name in self.signature.inputs}), tensors)
        return Boxes(*(found[name][:, :max_detections] for name in Boxes._fields))

    def _run(self, inputs: Tensors) -> Tensors:
        """The outputs of the program. In int8, images run one by one: activations have one scale for the whole batch,
        so that detections would depend on the other images."""
        if self.export.precision != "int8":
            return self.runner(inputs)
        images = zip(*(tensor.split(1) for tensor in inputs.values()), strict=True)
        outputs = [self.runner(dict(zip(inputs, image, strict=True))) for image in images]
        return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}

    def _check(self, images: Tensor, padding: Tensor, max_detections: int) -> None:
        """Raise ``UserError`` if the file does not take these inputs."""
        info, (height, width) = self.export, images.shape[2:]
        check_padding(padding)
        if max_detections > info.max_detections:
            raise UserError(
                f"'{self.source}' returns at most {info.max_detections} detections per image, but {max_detections} are "
                "requested. Lower max_detections, or export the checkpoint again with more."
            )
        if not info.padding and bool(padding.any()):
            raise UserError(
                f"'{self.source}' was exported without --padding: images of a batch must have the same size. Evaluate "
                "without --pad, or export the checkpoint again with --padding."
            )
        fits = info.static is None or (height <= info.static[0] and width <= info.static[1])
        if info.static and not info.padding:
            fits = (height, width) == info.static
        if not fits or min(height, width) < info.min_size:
            expected = f"at least {info.min_size} x {info.min_size}"
            if info.static:
                expected = f"{'at most ' if info.padding else ''}{info.static[0]} x {info.static[1]}"
            raise UserError(f"'{self.source}' takes images of {expected} pixels, got {height} x {width}.")


class Padded:
    """Pads images to a static size."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, tensors: Tensors) -> Tensors:
        height, width = tensors["images"].shape[2:]
        missing = (0, self.size[1] - width, 0, self.size[0] - height)
        return {
            "images": F.pad(tensors["images"], missing),
            "padding": F.pad(tensors["padding"], missing, value=True),
        }


class _Pixels:
    """The inverse of ``Preprocessing.normalize``: exact, since pixels are whole numbers."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.mean, self.std = preprocessing.mean, preprocessing.std

    def __call__(self, tensors: Tensors) -> Tensors:
        images = tensors["images"]
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        pixels = ((images * std + mean) * 255).round().to(torch.uint8)
        return tensors | {"images": pixels.masked_fill(tensors["padding"][:, None], 0)}


def _with_image_sizes(tensors: Tensors) -> Tensors:
    """Adds the sizes of the images without padding, as those of the originals."""
    real = ~tensors["padding"]
    return tensors | {"image_sizes": torch.stack([real[:, :, 0].sum(1), real[:, 0].sum(1)], dim=1)}


def _unchanged(found: Tensors, tensors: Tensors) -> Tensors:
    return found


def _normalized(found: Tensors, tensors: Tensors) -> Tensors:
    """Boxes in pixels as cxcywh in [0, 1]."""
    scale = tensors["image_sizes"].flip(1).repeat(1, 2)[:, None]  # (B, 1, 4): w, h, w, h
    return found | {"boxes": xyxy_to_cxcywh(found["boxes_xyxy"] / scale)}


def metadata(detector: TrainedDetector, info: ExportInfo) -> str:
    """The metadata of an exported file, as JSON."""
    return json.dumps({**metadata_of(detector), "export": to_dict(info)}, allow_nan=False)


class Contents(NamedTuple):
    """The verified metadata of an exported file."""

    settings: dict[str, Any]
    """The fields of ``TrainedDetector`` but ``module``."""
    info: ExportInfo

    def detector(self, runner: Runner, source: str) -> TrainedDetector:
        """The detector in the file."""
        module = ExportedModel(self.info, self.settings["preprocessing"], runner, source)
        return TrainedDetector(
            module=module.eval(),
            own_precision=PRECISIONS[self.info.precision],
            own_nms=self.settings["experiment"].evaluation.suppression,
            **self.settings,
        )


def read_contents(text: str, source: str, expected: Format) -> Contents:
    """Parse the metadata of an exported file.

    Args:
        text: the metadata.
        source: path of the file, for messages.
        expected: the format of the file.

    Raises:
        UserError: it is malformed.
    """
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The metadata of '{source}' is damaged. Export the checkpoint again.") from error
    if not isinstance(meta, dict):
        raise UserError(f"The metadata of '{source}' is damaged. Export the checkpoint again.")
    with metadata_errors(f"the exported file '{source}'", meta):
        settings = read_metadata(meta)
        values = dict(meta["export"])
        parity = values.pop("parity")  # a table of any content: only shown
        if not (parity is None or isinstance(parity, dict)):
            raise ValueError(f"parity: expected an object, got {parity!r:.80}")
        info: ExportInfo = replace(from_dict(ExportInfo, values, "export"), parity=parity)
        schema.check(replace(info, parity=None), "export")
        if info.format != expected:
            raise ValueError(f"format {info.format!r} in a file of {expected}")
    return Contents(_adapted(settings, info), info)


def _adapted(settings: Mapping[str, Any], info: ExportInfo) -> dict[str, Any]:
    """The settings of a checkpoint, limited to what the exported file can do."""
    experiment, preprocessing = settings["experiment"], settings["preprocessing"]
    evaluation = replace(experiment.evaluation, max_detections=info.max_detections)
    if not info.padding:
        evaluation = replace(evaluation, pad=False)
    fixed = FixedSize(*info.static, keep_ratio=info.padding) if info.static else None
    return {
        **settings,
        "experiment": replace(experiment, evaluation=evaluation),
        "preprocessing": replace(preprocessing, fixed=fixed),
    }
