"""Fine-tuning against training from the backbone alone, same minutes: python benchmarks/finetuning.py --data FOLDER

Trains a detector on other data (or takes one: --weights), then trains twice on the data: from its weights, and from the
backbone alone. Everything else is equal. Prints both curves, and appends them to benchmarks/results/finetuning.jsonl.
"""

import dataclasses
import importlib.metadata
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import page
import torch
from page import Line
from training import ENDLESS, points, warm_up

from detrs import config
from detrs.backbones.timm import with_weights
from detrs.cli import print_error
from detrs.cli.arguments import Size, as_pair, check_data, parse
from detrs.config import Experiment
from detrs.data import open_dataset
from detrs.data.loader import steps_per_epoch
from detrs.engine.finetuning import open_initial
from detrs.engine.run import RunFolder
from detrs.engine.train import train
from detrs.errors import UserError
from detrs.presets import preset
from detrs.visualization.curves import read_lines

RESULTS = page.HERE / "results" / "finetuning.jsonl"
STARTS = ("backbone alone", "fine-tuned")


@dataclass(frozen=True, kw_only=True)
class FinetuningArguments:
    """Compare fine-tuning with training from the backbone alone, under the same budget."""

    data: str
    """Folder with COCO annotations, or digits: the built-in demo set."""
    preset: str = "deformable-detr-tiny"
    """Detector and recipe of all runs."""
    backbone: str | None = None
    """timm model name, or a .safetensors file with weights of one, of all runs. Default: the backbone of the preset."""
    source_data: str = "digits"
    """Data to train the initial weights on; ignored with --weights."""
    source_minutes: float = 15.0
    """Budget of the initial weights; ignored with --weights."""
    weights: str | None = None
    """Trained detector to start from, instead of training one."""
    max_minutes: float = 8.0
    """Budget of each of the two runs, evaluations included."""
    image_size: Size = (192, 256)
    """Short and long side in pixels, or one number for both; of all runs."""
    evaluate_every: int = 50
    """Optimizer steps between two evaluations."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    seed: int = 42
    """Random seed of all runs."""
    output: Path = Path("runs/finetuning")
    """New folder for the runs."""


def experiment_of(arguments: FinetuningArguments, data: str, minutes: float, initial: str | None) -> Experiment:
    """The recipe of the preset on these data, scaled to the budget.

    Raises:
        UserError: there is no such preset, or a value is out of range.
    """
    own = preset(arguments.preset)
    augment = own.data.augment if own.data.augment != "official" else "crop"  # the same recipe at any size
    size = as_pair(arguments.image_size)
    if data == "digits":
        augment = "none"  # digits are not mirrored
    backbone = own.model.backbone
    if arguments.backbone is not None:
        backbone = with_weights(backbone, arguments.backbone)
    experiment = dataclasses.replace(
        own,
        initial=initial,
        model=dataclasses.replace(own.model, backbone=backbone),
        data=dataclasses.replace(own.data, path=data, resize_to=size, augment=augment),
        schedule=dataclasses.replace(own.schedule, epochs=ENDLESS, max_minutes=minutes),
        evaluation=dataclasses.replace(own.evaluation, every_steps=arguments.evaluate_every, patience=None),
        runtime=dataclasses.replace(own.runtime, device=arguments.device),
        seed=arguments.seed,
    )
    config.validate(experiment)
    return experiment


def measure(experiment: Experiment, folder: Path) -> list[Line]:
    """Train, and return the evaluations over epochs and seconds of training."""
    data = experiment.data
    images = len(open_dataset(data.path, data.train_split, keep_empty=data.keep_empty))
    train(experiment, folder)
    lines = read_lines(RunFolder(folder).metrics)
    return points(lines, data.batch_size, steps_per_epoch(images, data.batch_size))


def source_of(arguments: FinetuningArguments) -> str:
    """The weights to fine-tune: those given, or those of a new run on ``source_data``."""
    if arguments.weights is not None:
        return arguments.weights
    experiment = experiment_of(arguments, arguments.source_data, arguments.source_minutes, None)
    return str(train(experiment, arguments.output / "source").checkpoint)


def compare(arguments: FinetuningArguments) -> Line:
    """Train both, and return a result with their curves."""
    bare = experiment_of(arguments, arguments.data, arguments.max_minutes, None)
    if arguments.weights is not None:
        open_initial(arguments.weights, bare.model)  # before the first run takes its minutes
    open_dataset(bare.data.path, bare.data.val_split)
    commit = page.commit()  # now: files may change while it trains
    source = source_of(arguments)
    warm_up(bare)
    curves = {}
    for start, initial in zip(STARTS, (None, source), strict=True):
        folder = arguments.output / start.replace(" ", "-")
        curves[start] = measure(dataclasses.replace(bare, initial=initial), folder)
    return {
        "preset": arguments.preset,
        "setting": {
            "data": Path(arguments.data).resolve().name,
            "source": Path(arguments.weights or arguments.source_data).name,
            "source_minutes": None if arguments.weights else arguments.source_minutes,
            "max_minutes": arguments.max_minutes,
            "image_size": list(bare.data.resize_to),
            "backbone": Path(arguments.backbone).name if arguments.backbone else None,
            "seed": arguments.seed,
            "threads": torch.get_num_threads(),
        },
        "commit": commit,
        "versions": {name: importlib.metadata.version(name) for name in ("detrs", "torch", "numba")},
        "curves": curves,
    }


def report(result: Line) -> str:
    """Both curves as a Markdown table: one row per evaluation, and who is first in the end."""
    setting, curves = result["setting"], result["curves"]
    minutes, source = setting["source_minutes"], setting["source"]
    title = f"**{result['preset']} on {setting['data']}, {setting['max_minutes']:g} minutes each; fine-tuned from "
    title += f"{source}**" if minutes is None else f"{minutes:g} minutes on {source}**"
    header = ["evaluation", *(f"{start}: {name}" for start in STARTS for name in ("epochs", "seconds", "AP", "AP50"))]
    rows = []
    for number in range(max(map(len, curves.values()))):
        cells = []
        for start in STARTS:
            point = curves[start][number] if number < len(curves[start]) else None
            cells += (
                [""] * 4
                if point is None
                else [
                    *(f"{point['epoch']:.1f}", f"{point['seconds']:.0f}"),
                    *("-" if point[key] is None else f"{point[key]:.3f}" for key in ("ap", "ap50")),
                ]
            )
        rows.append([str(number + 1), *cells])
    best = {start: max((point["ap"] or 0.0 for point in curves[start]), default=0.0) for start in STARTS}
    end = ", ".join(f"{start} {ap:.3f}" for start, ap in best.items())
    return "\n\n".join([title, page.table(header, rows), f"Best AP: {end}."])


def main(argv: list[str]) -> int:
    """The exit code: 2 for invalid input, with an error message."""
    try:
        arguments = parse(FinetuningArguments, argv, "benchmarks/finetuning.py")
        for minutes in (arguments.max_minutes, arguments.source_minutes):
            if not math.isfinite(minutes) or minutes <= 0:
                raise UserError(f"--max-minutes and --source-minutes must be above 0, got {minutes:g}.")
        if arguments.output.exists() and any(arguments.output.iterdir()):
            raise UserError(f"--output '{arguments.output}' is not empty: choose another folder.")
        check_data(arguments.data)
        result = compare(arguments)
        page.append(RESULTS, result)
        print(report(result))
    except UserError as error:
        print_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
