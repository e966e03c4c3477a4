"""Trains several presets under one budget and keeps their curves: python benchmarks/training.py [--only PRESET ...]

Every run appends a JSON line to benchmarks/results/training.jsonl, finished or not. From the newest line of each preset
come the tables in benchmarks/README.md and the figures in docs/figures.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import page
import torch
from page import Line
from training_figure import training_figure

from detrs import config, models
from detrs.choices import Precision
from detrs.cli import print_error
from detrs.cli.arguments import Flag, Size, as_pair, check_data, parse
from detrs.config import Experiment
from detrs.data import open_dataset
from detrs.data.loader import steps_per_epoch
from detrs.devices import pick_device
from detrs.engine.compatibility import for_data
from detrs.engine.run import RunFolder
from detrs.engine.train import train, training
from detrs.errors import UserError
from detrs.precision import resolve
from detrs.presets import preset
from detrs.schema import to_dict
from detrs.visualization.curves import read_lines

RESULTS = page.HERE / "results" / "training.jsonl"
FIGURES = page.HERE.parent / "docs" / "figures"
PRESETS = (
    "faster-rcnn-tiny",
    "detr-tiny",
    "conditional-detr-tiny",
    "anchor-detr-tiny",
    "deformable-detr-tiny",
    "deformable-detr-dat-tiny",
    "efficient-detr-tiny",
    "sparse-rcnn-tiny",
    "dynamic-detr-tiny",
)
REFERENCE = "deformable-detr-tiny"
"""What the others are compared with."""
THRESHOLDS = (0.1, 0.3, 0.5)
"""AP to reach."""
LEARNED = 0.01
"""Final AP below which a detector has learned nothing yet that others could be compared in."""
MINUTES = 15.0
POINTS = 24
"""Evaluations of a run whose length in epochs is known."""
ENOUGH_POINTS = 12
STEPS_BETWEEN = 100
"""Steps between evaluations where only the minutes are known."""
ENDLESS = 1_000_000
"""Epochs of a run that its minutes end."""


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """Train presets on the same images under the same budget, one after the other, and compare their curves."""

    only: tuple[str, ...] = PRESETS
    """Presets to train now; the newest results of all others stay in tables and figures."""
    data: str = "digits"
    """Folder with COCO annotations, or digits: the built-in demo set."""
    image_size: Size = (128, 192)
    """Short and long side in pixels, or one number for both."""
    max_minutes: float = 0.0
    """Budget of each preset, its evaluations included; 0: 15 minutes, unless --epochs is given."""
    epochs: int = 0
    """Budget of each preset in passes over the training images; 0: none."""
    evaluate_every: int = 0
    """Optimizer steps between two evaluations; 0: 24 evaluations of --epochs, every 100 steps of --max-minutes."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16."""
    seed: int = 42
    """Start of every random stream."""
    output: Path = Path("runs/benchmark")
    """Folder of the runs."""
    resume: Flag = False
    """Go on with runs in --output that were interrupted."""
    draw: Flag = False
    """Train nothing; write tables and figures from stored results."""

    @property
    def minutes(self) -> float:
        return self.max_minutes or (0.0 if self.epochs else MINUTES)


class Run(NamedTuple):
    """What is to be trained, where, and how long an epoch of it is."""

    experiment: Experiment
    folder: Path
    steps_per_epoch: int


def prepare(name: str, arguments: TrainingArguments) -> Run:
    """The preset's own recipe, scaled to the budget; data, image size, evaluations and seed are those of all.

    Raises:
        UserError: no such preset or dataset, they do not fit, or there is another run to resume.
    """
    own = preset(name)
    augment = own.data.augment if own.data.augment != "official" else "crop"  # the same recipe at any size
    if arguments.data == "digits":
        augment = "none"  # a mirrored digit is no digit
    data = dataclasses.replace(own.data, path=arguments.data, resize_to=as_pair(arguments.image_size), augment=augment)
    train_set = open_dataset(data.path, data.train_split, keep_empty=data.keep_empty)
    steps = steps_per_epoch(len(train_set), data.batch_size)
    usual = max(1, arguments.epochs * steps // POINTS) if arguments.epochs else STEPS_BETWEEN
    experiment = dataclasses.replace(
        own,
        data=data,
        schedule=dataclasses.replace(
            own.schedule, epochs=arguments.epochs or ENDLESS, max_minutes=arguments.minutes or None
        ),
        evaluation=dataclasses.replace(own.evaluation, every_steps=arguments.evaluate_every or usual, patience=None),
        runtime=dataclasses.replace(
            own.runtime,
            device=arguments.device,
            precision=resolve(arguments.precision, pick_device(arguments.device)),
        ),
        seed=arguments.seed,
    )
    config.validate(experiment)
    experiment = for_data(experiment, train_set, open_dataset(data.path, data.val_split))
    return Run(experiment, folder_of(experiment, arguments), steps)


def folder_of(experiment: Experiment, arguments: TrainingArguments) -> Path:
    """``NAME-N`` in the output: the last one to resume, or the first that is free.

    Raises:
        UserError: the one to resume was run with other settings.
    """
    number = 1
    while (folder := arguments.output / f"{experiment.name}-{number}").exists():
        number += 1
    last = folder.with_name(f"{experiment.name}-{number - 1}")
    if not arguments.resume or not can_be_resumed(last):
        return folder
    if config.load(RunFolder(last).experiment) != experiment:
        raise UserError(f"The run in '{last}' had other settings: give the same, or start anew without --resume.")
    return last


def can_be_resumed(folder: Path) -> bool:
    return any(state.exists() for state in RunFolder(folder).states)


def measure(run: Run, arguments: TrainingArguments, results: Path) -> None:
    """Train, and keep what the journal says, also of a run that is interrupted or fails."""
    experiment, resume = run.experiment, can_be_resumed(run.folder)
    finished, commit = False, page.commit()  # now: files may change while it trains
    warm_up(experiment)
    try:
        train(experiment, run.folder, resume=resume)
        finished = True
    finally:
        journal = RunFolder(run.folder).metrics
        found = points(read_lines(journal), experiment.data.batch_size, run.steps_per_epoch) if journal.exists() else []
        device, recipe = pick_device(experiment.runtime.device), to_dict(experiment)
        line = {
            "preset": experiment.name,
            "parameters": sum(parameter.numel() for parameter in models.build(experiment.model).parameters()),
            "setting": {
                "data": Path(arguments.data).resolve().name,
                "image_size": list(experiment.data.resize_to),
                "max_minutes": arguments.minutes,
                "epochs": arguments.epochs,
                "evaluate_every": arguments.evaluate_every,
                "seed": experiment.seed,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
                "threads": torch.get_num_threads(),
                "precision": experiment.runtime.precision,
            },
            "batch_size": experiment.data.batch_size,
            "steps_per_epoch": run.steps_per_epoch,
            "recipe": {part: recipe[part] for part in ("optimizer", "criterion", "schedule")}
            | {name: recipe["model"][name] for name in ("classification",) if name in recipe["model"]},
            "commit": commit,
            "versions": {name: importlib.metadata.version(name) for name in ("detrs", "torch", "numba")},
            "finished": finished,
            "points": found,
        }
        if found and all(found != other["points"] for other in page.newest(results, json.dumps)):
            page.append(results, line)
        if finished and len(found) < ENOUGH_POINTS:
            every = experiment.evaluation.every_steps
            print(
                f"{experiment.name}: only {len(found)} points; evaluate more often than every {every} steps with "
                "--evaluate-every",
                file=sys.stderr,
            )


def warm_up(experiment: Experiment) -> None:
    """Two steps of a run that is thrown away, so that no curve pays for the compilation of its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        steps = training(experiment, Path(folder) / "run")
        list(islice(steps, 2))
        steps.close()


def points(journal: list[Line], batch_size: int, steps_per_epoch: int) -> list[Line]:
    """The evaluations of a run over epochs, and over seconds spent on steps.

    Its loader is part of a step; evaluations, saves and drawings are not.
    """
    found, seconds, step = [], 0.0, 0
    for line in journal:
        if line["kind"] == "step":
            seconds += (line["step"] - step) * batch_size / line["images_per_s"]
            step = line["step"]
        else:
            found.append(
                {
                    "epoch": round(line["step"] / steps_per_epoch, 3),
                    "seconds": round(seconds, 1),
                    "ap": line["ap"],
                    "ap50": line["ap50"],
                }
            )
    return found


def reached(run: Line, ap: float) -> Line | None:
    """The first evaluation with that AP or more; nothing is interpolated."""
    return next((point for point in run["points"] if (point["ap"] or 0.0) >= ap), None)


def comparable(lines: list[Line]) -> list[list[Line]]:
    """The runs that had the same data, budget and machine, together; those that were measured last at the end."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(json.dumps(line["setting"]), []).append(line)
    order = {name: number for number, name in enumerate(PRESETS)}
    return [sorted(group, key=lambda run: order.get(run["preset"], len(order))) for group in groups.values()]


def title(setting: Line) -> str:
    """A setting in words."""
    short, long = setting["image_size"]
    threads = f"{setting['threads']} thread{'s' * (setting['threads'] != 1)}"
    device = f"{setting['device']}, {threads}" if setting["device"] == "CPU" else setting["device"]
    device += f", {setting['precision']}" if "precision" in setting else ""  # older results are those of fp32
    return f"{setting['data']} at {short} x {long}, {budget(setting)} each, {device}"


def budget(setting: Line) -> str:
    limits = ((setting["epochs"], "epochs"), (setting["max_minutes"], "minutes"))
    return " or ".join(f"{limit:g} {unit}" for limit, unit in limits if limit)


def section(runs: list[Line], figure: str) -> str:
    """Markdown of runs that can be compared: what came out, and how soon."""
    versions = ", ".join(f"{name} {version}" for name, version in runs[-1]["versions"].items())
    commits = ", ".join(dict.fromkeys(run["commit"] for run in runs))
    rows = []
    for run in runs:
        last = run["points"][-1]
        scores = ["-" if last[key] is None else f"{last[key]:.3f}" for key in ("ap", "ap50")]
        name = f"`{run['preset']}`{'' if run['finished'] else ' (interrupted)'}"
        rate = last["epoch"] * run["steps_per_epoch"] * run["batch_size"] / last["seconds"]
        cells = (f"{run['parameters']:,}", f"{rate:.1f}", f"{last['epoch']:.1f}", f"{last['seconds']:.0f}")
        rows.append([name, *cells, *scores])
    header = ["preset", "parameters", "images/s", "epochs", "seconds of training", "final AP", "final AP50"]
    text = [
        f"**{title(runs[0]['setting'])}** ({versions}; commit {commits})",
        f"![AP over epochs and over seconds of training]({figure})",
        page.table(header, rows),
    ]
    aims = [(f"AP {ap}", ap) for ap in THRESHOLDS]
    finals = {run["preset"]: run["points"][-1]["ap"] or 0.0 for run in runs if run["finished"]}
    if learned := {name: ap for name, ap in finals.items() if ap >= LEARNED}:
        slowest = min(learned, key=learned.__getitem__)
        aims = [(f"AP {learned[slowest]:.3f}, the final one of `{slowest}`", learned[slowest]), *aims]
    reference = next((run for run in runs if run["preset"] == REFERENCE), None)
    for key, decimals in (("epoch", 1), ("seconds", 0)):
        header = [f"{'epochs' if key == 'epoch' else 'seconds of training'} to", *(name for name, _ in aims)]
        rows = [[f"`{run['preset']}`", *(time_to(ap, run, reference, key, decimals) for _, ap in aims)] for run in runs]
        text.append(page.table(header, rows))
    return "\n\n".join(text)


def time_to(ap: float, run: Line, reference: Line | None, key: str, decimals: int) -> str:
    """Epochs or seconds, and in brackets how many times as many as the reference's; ``-`` where it was not reached."""
    own, theirs = reached(run, ap), reference and reached(reference, ap)
    if own is None:
        return "-"
    ratio = f" ({own[key] / theirs[key]:.1f}x)" if theirs and run is not reference and theirs[key] else ""
    return f"{own[key]:.{decimals}f}{ratio}"


def sections(
    results: Path,
    readme: Path,
    figures: Path,
    name: str,
    describe: Callable[[list[Line], str], str],
    order: Callable[[Line], Any] | None = None,
) -> str:
    """Draw a figure of each setting; returns the text that ``describe`` makes of its runs and the figure's path.

    ``name``: start of the figures' names. ``order``: key by which the runs of a setting are sorted.
    """
    newest = page.newest(results, lambda line: (json.dumps(line["setting"]), line["preset"]))
    texts: list[str] = []
    drawn: Counter[str] = Counter()
    for runs in comparable(newest):
        runs = runs if order is None else sorted(runs, key=order)
        data = re.sub(r"\W+", "_", runs[0]["setting"]["data"])
        drawn[data] += 1
        figure = figures / f"{name}_{data}{'' if drawn[data] == 1 else f'_{drawn[data]}'}.svg"
        training_figure(runs, title(runs[0]["setting"]), figure)
        texts.append(describe(runs, Path(os.path.relpath(figure, readme.parent)).as_posix()))
    return "\n\n".join(texts)


def publish(results: Path, readme: Path, figures: Path) -> None:
    """Draw the figures and write the tables; without results the page stays as it is."""
    page.put("training", sections(results, readme, figures, "training", section), readme)


def run(
    arguments: TrainingArguments, prepared: Callable[[str], Run], results: Path, published: Callable[[], None]
) -> int:
    """The exit code: 2 for a fault of the input, told in one sentence.

    Args:
        arguments: of the command.
        prepared: a preset to its run; called for all of them, before the first takes its minutes.
        results: JSON lines.
        published: writes tables and figures, also after an interruption.
    """
    try:
        if not math.isfinite(arguments.max_minutes) or min(arguments.max_minutes, arguments.epochs) < 0:
            raise UserError("--max-minutes and --epochs must be 0 or above.")
        check_data(arguments.data)
        runs = [prepared(name) for name in (() if arguments.draw else dict.fromkeys(arguments.only))]
        try:
            for each in runs:
                measure(each, arguments, results)
        finally:
            published()
    except UserError as error:
        print_error(str(error))
        return 2
    return 0


def main(argv: list[str]) -> int:
    """The exit code."""
    try:
        arguments = parse(TrainingArguments, argv, "benchmarks/training.py")
    except UserError as error:
        print_error(str(error))
        return 2
    return run(
        arguments,
        lambda name: prepare(name, arguments),
        RESULTS,
        lambda: publish(RESULTS, page.README, FIGURES),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
