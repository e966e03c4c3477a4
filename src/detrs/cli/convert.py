"""``detrs convert``: datasets to COCO or YOLO, checkpoints to transformers or to the format of detrs."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detrs.cli.arguments import Flag, parse
from detrs.cli.inputs import check_checkpoint, check_dataset
from detrs.cli.report import console, print_json
from detrs.errors import UserError, printable
from detrs.files import user_path

DATA, WEIGHTS = ("coco", "yolo"), ("transformers", "detrs")
"""Formats of datasets and of checkpoints."""
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".pt2")


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Convert a dataset or a checkpoint to another format.

    A dataset in any readable format becomes one in the layout of COCO or YOLO, with hard links to its images. A
    checkpoint becomes a folder of transformers, or a file of detrs.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Dataset: a folder or a data.yaml. Checkpoint: a file, a folder or a Hub id."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT")]
    """New or empty folder. With --to detrs also a new .safetensors file."""
    to: Literal["coco", "yolo", "transformers", "detrs"]
    """coco or yolo for a dataset; transformers or detrs for a checkpoint."""
    split: tuple[str, ...] = ()
    """Splits of the dataset to convert. Default: all."""
    copy: Flag = False
    """Copy the images. By default, they are hard links where possible, which share their content with the source."""
    json: Flag = False
    """Print one JSON object instead of a table."""


def run(argv: list[str]) -> None:
    """Convert a dataset or a checkpoint."""
    arguments = parse(ConvertArguments, argv, "detrs convert")
    if arguments.to in WEIGHTS:
        convert_weights(arguments)
    else:
        convert_data(arguments)


def convert_data(arguments: ConvertArguments) -> None:
    """Convert a dataset and list its splits."""
    if is_checkpoint(arguments.source):
        raise UserError(
            f"'{arguments.source}' is a checkpoint. --to {arguments.to} converts datasets: "
            "use --to transformers or --to detrs."
        )
    if arguments.source == "digits" and not Path("digits").exists():
        raise UserError("The demo dataset 'digits' is generated in memory. Expected a dataset on disk.")
    check_dataset(arguments.source)
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from detrs.data import data_root
    from detrs.data.writing import convert_dataset

    source = data_root(arguments.source)
    written = convert_dataset(source, arguments.to, arguments.output, names=arguments.split, copy=arguments.copy)
    if arguments.json:
        splits = {
            each.name: {"images": each.num_images, "objects": each.num_objects, "notes": list(each.notes)}
            for each in written
        }
        print_json({"output": str(arguments.output), "format": arguments.to, "splits": splits})
        return
    screen = console(as_json=False)
    table = Table("split", "images", "objects", box=SIMPLE_HEAD)
    for each in written:
        table.add_row(each.name, str(each.num_images), str(each.num_objects))
        for note in each.notes:
            screen.print(printable(f"{each.name}: {note}"), soft_wrap=True)
    screen.print(table)
    screen.print(f"Written to {arguments.output}. To use it: --data {arguments.output}", soft_wrap=True)


def convert_weights(arguments: ConvertArguments) -> None:
    """Convert a checkpoint."""
    if arguments.split or arguments.copy:
        raise UserError(f"--split and --copy apply to datasets. They cannot be used with --to {arguments.to}.")
    if is_dataset(arguments.source):
        raise UserError(
            f"'{arguments.source}' is a dataset. --to {arguments.to} converts checkpoints: use --to coco or --to yolo."
        )
    check_checkpoint(arguments.source)
    from detrs.checkpoints.convert import convert_checkpoint

    written = convert_checkpoint(arguments.source, arguments.to, arguments.output)
    if arguments.json:
        print_json({"output": str(written), "format": arguments.to})
        return
    console(as_json=False).print(f"Written to {written}.", soft_wrap=True)


def is_checkpoint(source: str) -> bool:
    """Whether ``source`` is a file of weights, or a folder of them: of a run or of transformers."""
    path = user_path(source)
    if not os.path.isdir(path):
        return path.suffix in WEIGHT_SUFFIXES
    try:
        files = [Path(name) for name in os.listdir(path)]
    except OSError:  # the reader has the message
        return False
    has_config = Path("config.json") in files
    return any(file.suffix in WEIGHT_SUFFIXES and (has_config or file.stem in ("best", "last")) for file in files)


def is_dataset(source: str) -> bool:
    """Whether ``source`` exists and is a dataset in a format that can be read."""
    from detrs.data import data_root
    from detrs.data.detect import find_splits

    try:
        return not is_checkpoint(source) and bool(find_splits(data_root(source)))
    except UserError:
        return False
