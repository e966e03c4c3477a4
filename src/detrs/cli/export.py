"""``detrs export``: a checkpoint as a file for other programs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detrs.cli.arguments import Flag, Size, as_pair, check_data, parse
from detrs.cli.inputs import check_checkpoint, check_dataset
from detrs.cli.report import console, print_json
from detrs.config.detection import check_nms


@contextmanager
def stating() -> Iterator[Callable[[str], object]]:
    """Shows the current step on stderr, until the end; nothing if stderr is not a terminal.

    Yields:
        The function to call with a description.
    """
    from rich.console import Console

    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield lambda step: None
        return
    with stderr.status("reading the checkpoint ...") as status:
        yield lambda step: status.update(f"{step} ...")


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a detector as a file that runs without detrs.

    The file is compared with the checkpoint on at least 20 inputs; a file that differs is not written.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, folder of a run, or published weights: Hub id, folder, .pth file."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx for ONNX Runtime, TensorRT, OpenVINO; torch for a program of torch.export."""
    output: Path | None = None
    """File to write or to replace. Default: the name of the checkpoint, with the suffix .onnx or .pt2."""
    half: Flag = False
    """Weights and most of the arithmetic in float16; boxes and scores in float32. ONNX only."""
    int8: Flag = False
    """Weights in int8. ONNX only; needs --data."""
    static: Size | None = None
    """Height and width of all images in pixels, or one number for both. Default: any size."""
    gather: Flag = False
    """Sample with gathers and products instead of GridSample."""
    preprocess: Flag = False
    """Take images as uint8, and normalize them in the graph."""
    postprocess: Flag = False
    """Also take the sizes of the original images, and return boxes in their pixels."""
    padding: Flag = False
    """Also take a mask of padding, for images of different size in one batch. With --static, images keep their
    aspect ratio and are padded; otherwise they are resized to that size."""
    data: str | None = None
    """Dataset on which the file and the checkpoint are compared and scored. Default: images of training, if they
    exist, without scores."""
    split: str | None = None
    """Split of the dataset. Default: the validation split used in training."""
    nms: float | None = None
    """IoU above which a detection is suppressed by a better one of its class; 1: none. Default: as in training."""
    opset: int = 18
    """Version of ONNX's operators."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr."""


def run(argv: list[str]) -> None:
    """Export a checkpoint."""
    arguments = parse(ExportArguments, argv, "detrs export")
    check_data(arguments.data)
    check_nms(arguments.nms)
    check_checkpoint(arguments.checkpoint)
    check_dataset(arguments.data)
    from detrs.exporting.export import export

    screen = console(as_json=arguments.json)
    with stating() as on_step:
        report = export(
            arguments.checkpoint,
            arguments.output,
            format=arguments.format,
            half=arguments.half,
            int8=arguments.int8,
            static=as_pair(arguments.static) if arguments.static else None,
            gather=arguments.gather,
            preprocess=arguments.preprocess,
            postprocess=arguments.postprocess,
            padding=arguments.padding,
            data=arguments.data,
            split=arguments.split,
            nms=arguments.nms,
            opset=arguments.opset,
            on_step=on_step,
        )
    screen.print(report.parity.table())
    screen.print(f"Written to {report.path} ({report.num_bytes / 1e6:.1f} MB).", soft_wrap=True)
    if arguments.json:
        print_json(report.to_json())
