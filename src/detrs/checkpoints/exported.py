"""Detectors in exported files: the interface of a checkpoint, run by ONNX Runtime or by PyTorch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from annotated_types import Ge
from jaxtyping import Bool, Float
from torch import Tensor

from detrs.criterion.objective import Objective
from detrs.criterion.set_criterion import CriterionConfig
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError
from detrs.models.detector import Model
from detrs.structures import Boxes

Format = Literal["onnx", "torch"]
ExportPrecision = Literal["float32", "float16", "int8"]


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
    parity: dict[str, Any] | None
    """The differences from the checkpoint that were measured after the export."""


class Runner(Protocol):
    """Runs an exported program."""

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs of the program, on the device of the inputs."""


class ExportedModel(Model):
    """An exported program with the interface of a model.

    Args:
        export: what the program takes and returns.
        preprocessing: its normalization, which ``preprocess`` repeats in the graph.
        run: runs the program.
        source: path of the file, for messages.
    """

    def __init__(self, export: ExportInfo, preprocessing: Preprocessing, run: Runner, source: str) -> None:
        super().__init__()
        self.export, self.preprocessing, self.run, self.source = export, preprocessing, run, source

    def objective(self, config: CriterionConfig) -> Objective:
        raise UserError(f"'{self.source}' is an exported file, which cannot be trained. Use the checkpoint.")

    def detect(
        self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"], max_detections: int = 100
    ) -> Boxes:
        raise NotImplementedError
