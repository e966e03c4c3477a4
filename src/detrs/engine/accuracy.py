"""Accuracy of several presets after the same time of training on the same images, with several seeds.

Every run is a process of its own, so that its peak memory is that of this run. A finished run is one line of a JSON
lines file, and is not repeated. ``python -m detrs.engine.accuracy`` is such a process: it reads an experiment as JSON
from stdin, and prints its result as the last line of stdout.
"""

import hashlib
import importlib.metadata
import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch

from detrs import config
from detrs.backbones.timm import with_weights
from detrs.choices import Precision
from detrs.config import Experiment
from detrs.config.data import NO_SPLIT
from detrs.data.opening import open_splits
from detrs.devices import pick_device
from detrs.engine.compatibility import for_data
from detrs.engine.fitting import fitted, training_images
from detrs.engine.run import RunFolder
from detrs.engine.train import train, training
from detrs.errors import UserError
from detrs.files import is_present, os_errors
from detrs.models import build
from detrs.precision import resolve
from detrs.presets import preset
from detrs.presets.fitted import FITTED, FITTED_SETTINGS
from detrs.schema import from_dict, to_dict
from detrs.visualization.curves import read_lines

Line = dict[str, Any]
"""A finished run: ``subject``, ``seed``, ``setting``, ``recipe``, ``best``, ``last``, ``points``, ``images``, ..."""

FIRST_SEED = 42
ENDLESS = 1_000_000
"""Epochs of a run that its minutes end."""
STATUS = Path("/proc/self/status")
STOPPED = {130: signal.SIGINT, 143: signal.SIGTERM}
"""Exit code of a process that was stopped by a signal."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared. Settings that are ``None`` are those of each preset."""

    presets: tuple[str, ...]
    data: str
    minutes: float
    """Of each run, with its evaluations."""
    seeds: int = 3
    """Number of runs of each preset."""
    image_size: tuple[int, int] | None = None
    """(short, long) of all; ``None``: that of the first preset."""
    batch_size: int | None = None
    backbone: str | None = None
    """Weights of all presets whose backbone is pretrained: a timm model, or a ``.safetensors`` file of one."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    val_fraction: float | None = None
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None


def check(comparison: Comparison) -> None:
    """Check names and numbers; PyTorch and the data are not needed.

    Raises:
        UserError: there is no such preset, or a number is out of range.
    """
    if not comparison.presets:
        raise UserError("Nothing to compare: expected at least one preset. See: detrs presets")
    for name in comparison.presets:
        preset(name)
    if not math.isfinite(comparison.minutes) or comparison.minutes <= 0:
        raise UserError(f"--minutes must be above 0, got {comparison.minutes:g}.")
    for flag, value in {"seeds": comparison.seeds, "evaluate-every": comparison.evaluate_every}.items():
        if value < 1:
            raise UserError(f"--{flag} must be at least 1, got {value}.")


def experiments(comparison: Comparison) -> list[tuple[Experiment, Line]]:
    """Every run, seed after seed, with the ``setting`` that all have in common.

    Each has the recipe of its preset, scaled to the minutes.

    Raises:
        UserError: an argument is invalid, or a preset cannot be trained on the data.
    """
    check(comparison)
    device = pick_device(comparison.device)
    size = comparison.image_size or preset(comparison.presets[0]).data.resize_to
    prepared = [_prepared(preset(name), comparison, size) for name in dict.fromkeys(comparison.presets)]
    train_set, val_set = open_splits(prepared[0].data)
    assert val_set is not None
    given = set(FITTED_SETTINGS) - {"model.num_queries", "evaluation.max_detections"}
    for number, experiment in enumerate(prepared):  # all of them, before the first takes its minutes
        if experiment.name in FITTED:  # as in detrs train
            experiment = prepared[number] = fitted(experiment, training_images(train_set), given)[0]
        try:
            build(for_data(experiment, train_set, val_set).model)
        except UserError as error:
            raise UserError(f"{experiment.name} cannot be trained on '{comparison.data}': {error}") from None
    digest = hashlib.sha256((train_set.fingerprint() + val_set.fingerprint()).encode()).hexdigest()
    setting = {
        "data": data_name(comparison),
        "fingerprint": digest[:16],
        "num_images": [len(train_set), len(val_set)],
        "minutes": comparison.minutes,
        "image_size": list(size),
        "evaluate_every": comparison.evaluate_every,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        "threads": comparison.threads or torch.get_num_threads(),
    }
    seeds = range(FIRST_SEED, FIRST_SEED + comparison.seeds)
    return [(replace(experiment, seed=seed), setting) for seed in seeds for experiment in prepared]


def data_name(comparison: Comparison) -> str:
    """The dataset in results: ``digits``, or the name of its folder."""
    return comparison.data if comparison.data == "digits" else Path(comparison.data).resolve().name


def _prepared(own: Experiment, comparison: Comparison, size: tuple[int, int]) -> Experiment:
    augment = own.data.augment if own.data.augment != "official" else "crop"  # the same recipe at any size
    if comparison.data == "digits":
        augment = "none"  # as in the demo
    backbone = own.model.backbone
    if comparison.backbone is not None and backbone.weights != "none":
        backbone = with_weights(backbone, comparison.backbone)
    data = replace(
        own.data,
        path=comparison.data,
        resize_to=size,
        augment=augment,
        batch_size=own.data.batch_size if comparison.batch_size is None else comparison.batch_size,
        val_fraction=comparison.val_fraction,
    )
    assert data.val_split != NO_SPLIT
    experiment = replace(
        own,
        model=replace(own.model, backbone=backbone),
        data=data,
        schedule=replace(own.schedule, epochs=ENDLESS, max_minutes=comparison.minutes),
        evaluation=replace(own.evaluation, every_epochs=comparison.evaluate_every, every_steps=None, patience=None),
        runtime=replace(
            own.runtime,
            device=comparison.device,
            precision=resolve(comparison.precision, pick_device(comparison.device)),
            threads=comparison.threads,
        ),
    )
    config.validate(experiment)
    return experiment


def recipe_digest(experiment: Experiment) -> str:
    """Digest of all settings of a run but its seed and the place of its data."""
    runtime = replace(experiment.runtime, threads=None)  # a part of the setting
    neutral = replace(experiment, seed=FIRST_SEED, runtime=runtime, data=replace(experiment.data, path=None))
    return hashlib.sha256(json.dumps(to_dict(neutral), sort_keys=True).encode()).hexdigest()[:16]


def key(experiment: Experiment, setting: Line) -> Line:
    """What identifies a run in a file of results."""
    name, recipe = experiment.name, recipe_digest(experiment)
    return {"subject": name, "seed": experiment.seed, "setting": setting, "recipe": recipe}


def finished(results: Path, wanted: Line) -> Line | None:
    """The newest line of ``results`` with all values of ``wanted``, or ``None``.

    Raises:
        UserError: the file cannot be read, or a line is not JSON.
    """
    same = (line for line in reversed(runs_in(results)) if all(line.get(key) == value for key, value in wanted.items()))
    return next(same, None)


def runs_in(results: Path) -> list[Line]:
    """The lines of ``results``; none if there is no such file.

    Raises:
        UserError: the file cannot be read, or has other content than results of this comparison.
    """
    with os_errors(f"Cannot read '{results}'"):
        if not is_present(results):
            return []
        try:
            lines = read_lines(results)
        except UnicodeDecodeError:
            lines = [None]  # type: ignore[list-item]
    if not all(isinstance(line, dict) and {"subject", "seed", "setting"} <= line.keys() for line in lines):
        raise UserError(
            f"'{results}' has other content than results of this comparison: choose another file with --output."
        )
    return lines


def threads_of(results: Path, comparison: Comparison) -> int | None:
    """The threads of the newest run in ``results`` on the same data for the same minutes, so that the command can be
    repeated while the machine is loaded differently; ``None`` if there is none."""
    name = data_name(comparison)
    for line in reversed(runs_in(results)):
        setting = line["setting"]
        if (setting.get("data"), setting.get("minutes")) == (name, comparison.minutes):
            threads: int | None = setting.get("threads")
            return threads
    return None


def check_writable(results: Path) -> None:
    """Check that lines can be appended, before the first run takes its minutes.

    Raises:
        UserError: they cannot.
    """
    with os_errors(f"Cannot write to '{results}'"):
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("ab"):
            pass


def append(results: Path, line: Line) -> None:
    """Append a line, after an incomplete last one, as a full disk leaves it, is removed.

    Raises:
        UserError: the file cannot be written.
    """
    with os_errors(f"Cannot write to '{results}'"):
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a+b") as file:
            file.seek(0)
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end < len(content) and is_json(content[end:]):
                file.write(b"\n")
            else:
                file.truncate(end)
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def is_json(line: bytes) -> bool:
    """Whether a line without its end is complete."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def measure(experiment: Experiment) -> Line:
    """Train in this process, and return the scores, the number of images, seconds and peak memory.

    Two steps of another run come first, so that no run includes the compilation of kernels. The weights are not kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        steps = training(experiment, Path(folder) / "warm-up")
        list(islice(steps, 2))
        steps.close()
        result = train(experiment, Path(folder) / "run", quiet=True)
        lines = read_lines(RunFolder(result.output).metrics)
    batch_size = experiment.data.batch_size
    points = [
        {"images": line["step"] * batch_size, **{name: line[name] for name in ("seconds", "ap", "ap50")}}
        for line in lines
        if line["kind"] == "evaluation"
    ]
    return {
        **scores(points),
        "images": result.steps * batch_size,
        "seconds": round(result.seconds, 1),
        "peak_mib": peak_mib(pick_device(experiment.runtime.device)),
        "versions": {name: importlib.metadata.version(name) for name in ("detrs", "torch")},
    }


def scores(points: Sequence[Line]) -> Line:
    """The ``best`` and the ``last`` of the evaluations of a run, and all ``points``."""
    best = max(points, key=lambda point: point["ap"] or 0.0)
    return {"best": best, "last": points[-1], "points": list(points)}


def peak_mib(device: torch.device) -> int | None:
    """Peak memory of this process or, on a GPU, of its tensors there; ``None`` where the system does not count it.

    Not from ``getrusage``: on Linux its value for a new process includes that of its parent.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    if STATUS.exists():
        return round(int(STATUS.read_text().partition("VmHWM:")[2].split()[0]) / 1024)
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows
    return None if peak is None else round(peak / 2**20)


def measure_alone(experiment: Experiment) -> Line:
    """``measure`` in a process of its own.

    Raises:
        UserError: the run failed, for example because it diverged.
        KeyboardInterrupt: it was interrupted.
    """
    command = [sys.executable, "-P", "-m", "detrs.engine.accuracy"]
    return result_of(command, json.dumps(to_dict(experiment)), f"{experiment.name}, seed {experiment.seed}")


def result_of(command: Sequence[str], text: str, name: str) -> Line:
    """The JSON object in the last line that a process prints to stdout; its stderr is that of this process.

    Args:
        command: the process.
        text: its stdin.
        name: of the run, for messages.

    Raises:
        UserError: the process failed; with its ``error``, if it printed one.
        KeyboardInterrupt: it was interrupted.
    """
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True)
    if STOPPED.get(done.returncode) == signal.SIGINT:
        raise KeyboardInterrupt
    if done.returncode in STOPPED:
        raise SystemExit(done.returncode)
    try:
        result: Line = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    except ValueError:
        end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        hint = " It may be out of memory: use smaller images or batches." if done.returncode == -signal.SIGKILL else ""
        raise UserError(f"{name}: the training process ended with {end}.{hint}") from None
    if "error" in result:
        raise UserError(f"{name}: {result['error']}")
    return result


def compare(
    comparison: Comparison,
    results: Path,
    *,
    on_run: Callable[[int, int, Experiment, bool], None] | None = None,
) -> Iterator[Line]:
    """Train every preset with every seed, and yield the lines of all runs.

    Args:
        comparison: what is compared.
        results: JSON lines; runs in it are not repeated, and each new one is appended.
        on_run: called before each run with its number, the number of runs, the experiment, and whether it is done.

    Raises:
        UserError: an argument is invalid, or a run failed. Lines of earlier runs are kept.
    """
    runs = experiments(comparison)
    check_writable(results)
    for number, (experiment, setting) in enumerate(runs, start=1):
        wanted = key(experiment, setting)
        line = finished(results, wanted)
        if on_run is not None:
            on_run(number, len(runs), experiment, line is not None)
        if line is None:
            line = {**wanted, "library": "detrs", **facts(experiment), **measure_alone(experiment)}
            append(results, line)
        yield line


def facts(experiment: Experiment) -> Line:
    """What readers of a result need of the recipe."""
    backbone = experiment.model.backbone
    weights = backbone.weights if backbone.weights in ("timm", "none") else Path(backbone.weights).name
    return {
        "batch_size": experiment.data.batch_size,
        "precision": experiment.runtime.precision,
        "backbone": f"{backbone.name}, weights {weights}",
    }


def main() -> int:
    """One run: an experiment as JSON on stdin, its result as JSON on stdout."""
    try:
        result = measure(from_dict(Experiment, json.load(sys.stdin)))
    except UserError as error:
        result = {"error": str(error)}
    print(json.dumps(result, allow_nan=False), flush=True)
    return 2 * ("error" in result)


if __name__ == "__main__":
    sys.exit(main())
