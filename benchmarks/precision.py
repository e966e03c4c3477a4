"""What bf16 changes: AP of trained checkpoints, their latency, and the AP that training ends with.

    python benchmarks/precision.py CHECKPOINT ... [--data FOLDER]        trained checkpoints in fp32 and in bf16
    python benchmarks/precision.py --train PRESET --data FOLDER --epochs N --seeds 1 2 3      trains in both

Every result is appended to benchmarks/results/precision.jsonl; the newest of each are in benchmarks/README.md.
"""

import dataclasses
import importlib.metadata
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import page
import torch
import tyro
from page import Line
from training import points, warm_up

from detrs import config, precision
from detrs.backbones.timm import with_weights
from detrs.choices import Resolved
from detrs.cli import print_error
from detrs.cli.arguments import Flag, Size, as_pair, check_data, parse
from detrs.config import Experiment
from detrs.data import open_dataset
from detrs.data.loader import steps_per_epoch
from detrs.devices import pick_device
from detrs.engine.evaluate import evaluate_checkpoint
from detrs.engine.run import RunFolder
from detrs.engine.train import train
from detrs.errors import UserError, counted
from detrs.exporting.comparison import dataset_of, images_of, open_file, time_files
from detrs.presets import preset
from detrs.visualization.curves import read_lines

RESULTS = page.HERE / "results" / "precision.jsonl"
BOTH: tuple[Resolved, Resolved] = ("fp32", "bf16")
MAX_DIFFERENCE = 0.002
"""Of the AP of a trained checkpoint in bf16 and in fp32."""


@dataclass(frozen=True, kw_only=True)
class PrecisionArguments:
    """Compare bf16 with fp32: checkpoints that exist, or training with several seeds."""

    checkpoints: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CHECKPOINT...")] = ()
    """Trained checkpoints to evaluate and to time."""
    train: str | None = None
    """Preset to train in both precisions, once per seed."""
    data: str | None = None
    """Folder or file of a dataset, or digits. Default: that of the training of each checkpoint."""
    epochs: int = 10
    """Epochs of each run: the same number of steps in both precisions."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of the runs."""
    image_size: Size = (192, 256)
    """Short and long side of training images in pixels, or one number for both."""
    backbone: str | None = None
    """timm model name, or a .safetensors file with weights of one. Default: the backbone of the preset."""
    images: int = 10
    """Images of each checkpoint to time, one at a time, in both precisions in turn."""
    repeats: int = 7
    """Rounds of timing."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    output: Path = Path("runs/precision")
    """New folder for the runs."""
    draw: Flag = False
    """Measure nothing; write the tables from stored results."""


class Difference(NamedTuple):
    """Mean AP of bf16 less that of fp32, over seeds."""

    mean: float
    standard_error: float
    """Of ``mean``, from the variance within each precision."""

    @property
    def is_noise(self) -> bool:
        """Whether it is at most two standard errors."""
        return abs(self.mean) <= 2 * self.standard_error


def difference(fp32: Sequence[float], bf16: Sequence[float]) -> Difference:
    """The difference of two groups of runs, of at least two seeds each (Welch).

    >>> difference([0.50, 0.52, 0.54], [0.51, 0.52, 0.56]).is_noise
    True
    """
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (fp32, bf16)))
    return Difference(statistics.mean(bf16) - statistics.mean(fp32), error)


def machine(name: str) -> Line:
    """What the results depend on besides the code."""
    device = pick_device(name)
    found = precision.cpu_capabilities()
    has = [each for each in precision.CPU_CAPABILITIES if found.get(each)]
    cpu = f"{found.get('cpu_name', 'CPU')} ({', '.join(has) or 'no bf16 in hardware'})"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "auto": precision.resolve("auto", device),
        "commit": page.commit(),
        "versions": {name: importlib.metadata.version(name) for name in ("detrs", "torch")},
    }


def measure_checkpoint(path: str, arguments: PrecisionArguments) -> Line:
    """AP and latency of a checkpoint in both precisions.

    Raises:
        UserError: the checkpoint or its data cannot be used.
    """
    device = pick_device(arguments.device)
    line: Line = {"kind": "checkpoint"}
    for name in BOTH:
        scores = evaluate_checkpoint(path, data=arguments.data, device=arguments.device, precision=name)
        line[name] = {"ap": scores.report.ap, "ap50": scores.report.ap50}
    assert scores.experiment is not None
    files = [open_file(path, device, name) for name in BOTH]
    images = images_of(
        dataset_of(files[0].detector, arguments.data, None, is_required=True), arguments.images, files[0].detector
    )
    timed = time_files(files, images, device=device, repeats=arguments.repeats)
    for name, file in zip(BOTH, timed.files, strict=True):
        line[name]["latency_ms"] = file.total.median_ms
    data = scores.experiment.data.path or "data in Python"
    return line | {
        "checkpoint": "/".join(Path(path).parts[-2:]),
        "preset": scores.experiment.name,
        "data": Path(data).name,
        "num_images": scores.report.num_images,
        **machine(arguments.device),
    }


def experiment_of(arguments: PrecisionArguments, seed: int, name: Resolved) -> Experiment:
    """The recipe of the preset; all but the precision are the same for a seed.

    Raises:
        UserError: there is no such preset, or a value is out of range.
    """
    assert arguments.train is not None
    own = preset(arguments.train)
    augment = own.data.augment if own.data.augment != "official" else "crop"  # the same recipe at any size
    if arguments.data == "digits":
        augment = "none"  # digits are not mirrored
    backbone = own.model.backbone
    if arguments.backbone is not None:
        backbone = with_weights(backbone, arguments.backbone)
    size = as_pair(arguments.image_size)
    experiment = dataclasses.replace(
        own,
        model=dataclasses.replace(own.model, backbone=backbone),
        data=dataclasses.replace(own.data, path=arguments.data, resize_to=size, augment=augment),
        schedule=dataclasses.replace(own.schedule, epochs=arguments.epochs, max_minutes=None),
        evaluation=dataclasses.replace(own.evaluation, every_epochs=arguments.epochs, every_steps=None, patience=None),
        runtime=dataclasses.replace(own.runtime, device=arguments.device, precision=name),
        seed=seed,
    )
    config.validate(experiment)
    return experiment


def measure_training(arguments: PrecisionArguments, seed: int, name: Resolved) -> Line:
    """Train to the end and score the last weights, in the precision of the run and in fp32."""
    experiment = experiment_of(arguments, seed, name)
    warm_up(experiment)
    folder = arguments.output / f"{arguments.train}-{Path(arguments.data or '').name}-{name}-{seed}"
    result = train(experiment, folder)
    in_fp32 = evaluate_checkpoint(result.checkpoint, device=arguments.device, precision="fp32").report.ap
    steps = steps_per_epoch(
        len(open_dataset(experiment.data.path, experiment.data.train_split)), experiment.data.batch_size
    )
    spent = points(read_lines(RunFolder(folder).metrics), experiment.data.batch_size, steps)[-1]["seconds"]
    return {
        "kind": "training",
        "preset": arguments.train,
        "data": Path(arguments.data or "").name,
        "image_size": list(as_pair(arguments.image_size)),
        "epochs": arguments.epochs,
        "steps": result.steps,
        "seed": seed,
        "precision": name,
        "ap": result.scores["ap"],
        "ap_in_fp32": in_fp32,
        "seconds": spent,
        **machine(arguments.device),
    }


def checkpoint_table(lines: Sequence[Line]) -> str:
    """AP and latency of each checkpoint."""
    rows = []
    for line in lines:
        fp32, bf16 = (line[name] for name in BOTH)
        change = bf16["ap"] - fp32["ap"]
        rows.append(
            [
                ", ".join(line[key] for key in ("checkpoint", "preset", "data") if line.get(key)),
                f"{line['num_images']:,}",
                *(f"{each['ap']:.4f}" for each in (fp32, bf16)),
                f"{change:+.4f}{'' if abs(change) < MAX_DIFFERENCE else ' (!)'}",
                *(f"{each['latency_ms']:.1f} ms" for each in (fp32, bf16)),
                f"{fp32['latency_ms'] / bf16['latency_ms']:.2f}x",
            ]
        )
    head = ("checkpoint", "images", "AP fp32", "AP bf16", "difference", "per image fp32", "bf16", "ratio")
    return page.table(head, rows) if rows else ""


def training_table(lines: Sequence[Line]) -> str:
    """Mean and standard deviation over seeds, of runs on one machine that differ in precision and seed only."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        key = (str(line["preset"]), str(line["data"]), str(line["image_size"]), str(line["steps"]))
        groups.setdefault(key, []).append(line)
    rows = []
    for (name, data, _, steps), group in groups.items():
        runs = [{line["seed"]: line for line in group if line["precision"] == each} for each in BOTH]
        seeds = sorted(runs[0].keys() & runs[1].keys())
        if len(seeds) < 2:
            continue
        fp32, bf16 = ([each[seed]["ap_in_fp32"] for seed in seeds] for each in runs)
        found = difference(fp32, bf16)
        seconds = [statistics.median(each[seed]["seconds"] for seed in seeds) for each in runs]
        rows.append(
            [
                f"{name}, {data}",
                steps,
                f"{len(seeds)}",
                *(f"{statistics.mean(each):.4f} ± {statistics.stdev(each):.4f}" for each in (fp32, bf16)),
                f"{found.mean:+.4f} ± {found.standard_error:.4f}{'' if found.is_noise else ' (!)'}",
                f"{seconds[0] / seconds[1]:.2f}x",
            ]
        )
    head = ("training", "steps", "seeds", "AP fp32", "AP bf16", "difference", "steps per second")
    return page.table(head, rows) if rows else ""


def section(lines: Sequence[Line]) -> str:
    """Both tables of each machine, of the newest results."""
    machines: dict[str, list[Line]] = {}
    for line in lines:
        machines.setdefault(f"{line['device']}, {counted(line['threads'], 'thread')}", []).append(line)
    texts = []
    for name, here in machines.items():
        checkpoints = checkpoint_table([line for line in here if line["kind"] == "checkpoint"])
        runs = training_table([line for line in here if line["kind"] == "training"])
        if tables := [each for each in (checkpoints, runs) if each]:
            texts += [f"**{name}**", *tables]
    return "\n\n".join(texts)


def newest(results: Path) -> list[Line]:
    """The last result of each checkpoint and each run."""
    what = ("kind", "checkpoint", "preset", "data", "num_images", "image_size", "steps", "seed", "precision")
    return page.newest(results, lambda line: tuple(str(line.get(key)) for key in (*what, "device", "threads")))


def main(argv: list[str]) -> int:
    """The exit code: 2 for invalid input, with an error message; 1 if an AP changes by ``MAX_DIFFERENCE`` or more."""
    try:
        return run(parse(PrecisionArguments, argv, "benchmarks/precision.py"))
    except UserError as error:
        print_error(str(error))
        return 2


def run(arguments: PrecisionArguments) -> int:
    """Measure, append and draw; the exit code.

    Raises:
        UserError: arguments contradict each other, or a checkpoint or data cannot be used.
    """
    check_data(arguments.data)
    if arguments.train is not None and arguments.data is None:
        raise UserError("--train expects --data FOLDER, or --data digits.")
    if not (arguments.checkpoints or arguments.train or arguments.draw):
        raise UserError("Nothing to measure: expected checkpoints, --train PRESET or --draw.")
    lines = []
    for path in arguments.checkpoints:
        lines.append(measure_checkpoint(path, arguments))
        page.append(RESULTS, lines[-1])
    if lines:
        print(checkpoint_table(lines))
    runs = []
    for seed in arguments.seeds if arguments.train else ():
        for name in BOTH:
            runs.append(measure_training(arguments, seed, name))
            page.append(RESULTS, runs[-1])
            print(f"seed {seed}, {name}: AP {runs[-1]['ap_in_fp32']:.4f} after {runs[-1]['steps']} steps", flush=True)
    if runs:
        print(training_table(runs))
    page.put("precision", section(newest(RESULTS)), page.README)
    wrong = [line for line in lines if abs(line["bf16"]["ap"] - line["fp32"]["ap"]) >= MAX_DIFFERENCE]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
