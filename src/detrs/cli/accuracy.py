"""``detrs benchmark accuracy``: trains presets for the same time on a dataset and compares their AP."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from detrs.choices import Precision
from detrs.cli.arguments import Flag, Size, as_pair, check_data, parse
from detrs.cli.inputs import check_dataset
from detrs.cli.report import console, print_json
from detrs.config import Experiment, RuntimeConfig
from detrs.errors import UserError, counted
from detrs.presets import preset

NAME = "accuracy"
"""First argument of ``detrs benchmark``."""


@dataclass(frozen=True, kw_only=True)
class AccuracyArguments:
    """Train presets on your data for the same minutes, and compare their AP.

    Every run has the images, the image size, the minutes and the threads of all others, and the recipe of its preset.
    The table shows the mean over seeds, and below it the range, of the best and of the last evaluation, the number of
    processed images, the peak memory and the time. Finished runs in --output are not repeated, so that an interrupted
    comparison continues with the same command. The trained weights are not kept.
    """

    presets: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PRESET [PRESET ...]")] = ()
    """Names listed by detrs presets."""
    data: str | None = None
    """Folder or file of a dataset, hf:OWNER/NAME, or digits for the demo dataset."""
    val_fraction: float | None = None
    """Fraction of the training images to hold out for validation, if the dataset has no validation split."""
    minutes: float = 10.0
    """Time of each run in minutes, with its evaluations."""
    seeds: int = 3
    """Number of runs of each preset, with the seeds 42, 43, ..."""
    image_size: Size | None = None
    """Short and long side in pixels, or one number for both. Default: those of the first preset."""
    batch_size: int | None = None
    """Images per optimizer step. Default: those of each preset."""
    backbone: str | None = None
    """timm model name, or a .safetensors file with weights of one, for the presets with a pretrained backbone."""
    evaluate_every: int = 1
    """Epochs between evaluations; the end of a run is always evaluated."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16, as in detrs train."""
    threads: int | None = None
    """CPU threads. Default: one per core that other programs leave free."""
    output: Path = Path("runs/accuracy.jsonl")
    """JSON lines file: one line for each run. New runs are appended."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr."""


def run(argv: list[str]) -> None:
    """Train, and print the table."""
    arguments = parse(AccuracyArguments, argv, f"detrs benchmark {NAME}")
    check_names(arguments)
    from detrs.cli.cores import threads_beside_others
    from detrs.engine import accuracy, accuracy_results, accuracy_table

    assert arguments.data is not None
    comparison = accuracy.Comparison(
        presets=arguments.presets,
        data=arguments.data,
        minutes=arguments.minutes,
        seeds=arguments.seeds,
        image_size=None if arguments.image_size is None else as_pair(arguments.image_size),
        batch_size=arguments.batch_size,
        backbone=arguments.backbone,
        evaluate_every=arguments.evaluate_every,
        val_fraction=arguments.val_fraction,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
    )
    accuracy.check(comparison)
    runtime = RuntimeConfig(device=arguments.device, threads=arguments.threads)
    if arguments.threads is None:
        earlier = accuracy_results.threads_of(arguments.output, accuracy.data_name(comparison), arguments.minutes)
        threads = earlier or threads_beside_others(runtime)
        comparison = replace(comparison, threads=threads)
    screen, progress = console(as_json=arguments.json), console(as_json=True)

    def show(number: int, runs: int, experiment: Experiment, is_done: bool) -> None:
        text = f"in {arguments.output}" if is_done else counted_minutes(arguments.minutes)
        progress.print(f"{number}/{runs}  {experiment.name}, seed {experiment.seed}: {text}", soft_wrap=True)

    lines = list(accuracy.compare(comparison, arguments.output, on_run=show))
    rows = accuracy_table.rows(lines)
    setting = lines[0]["setting"]
    screen.print(accuracy_table.table(rows))
    short, long = setting["image_size"]
    screen.print(
        f"{setting['data']} at {short} x {long}, {counted_minutes(arguments.minutes)} each, {setting['device']}, "
        f"{counted(setting['threads'], 'thread')}; mean over {counted(arguments.seeds, 'seed')}, lowest-highest",
        soft_wrap=True,
    )
    if arguments.json:
        print_json({"setting": setting, "rows": [row.to_json() for row in rows], "runs": lines})


def check_names(arguments: AccuracyArguments) -> None:
    """Check what needs no PyTorch.

    Raises:
        UserError: there is no such preset or dataset, or one is missing.
    """
    if not arguments.presets or arguments.data is None:
        raise UserError(
            "Expected presets and a dataset. Usage: detrs benchmark accuracy PRESET [PRESET ...] --data FOLDER"
        )
    for name in arguments.presets:
        preset(name)
    check_data(arguments.data)
    check_dataset(arguments.data)


def counted_minutes(minutes: float) -> str:
    """``1 minute``, ``2.5 minutes``."""
    return f"{minutes:g} minute{'s' * (minutes != 1)}"
