"""Accuracy after the same minutes of training, beside other libraries: python benchmarks/accuracy.py [--data NAME ...]

Every run is a process of its own, and a JSON line in benchmarks/results/accuracy.jsonl; runs that are there are not
repeated. From these lines come the tables in docs/accuracy.md and the figures in docs/figures.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import page
from accuracy_figure import accuracy_figure
from accuracy_peers import LIKE, OUR_RECIPE
from accuracy_run import PEERS

from detrs.choices import Precision
from detrs.cli import print_error
from detrs.cli.accuracy import counted_minutes
from detrs.cli.arguments import Flag, Size, as_pair, check_data, parse
from detrs.cli.inputs import check_dataset
from detrs.engine import accuracy, accuracy_results, accuracy_run
from detrs.engine.accuracy import Comparison
from detrs.engine.accuracy_results import Line
from detrs.engine.accuracy_table import COLUMNS, rows
from detrs.errors import UserError, counted, did_you_mean
from detrs.presets import PRESETS, preset
from detrs.visualization.curves import read_lines

RESULTS = page.HERE / "results" / "accuracy.jsonl"
PAGE = page.HERE.parent / "docs" / "accuracy.md"
FIGURES = PAGE.parent / "figures"
OURS = ("deformable-detr-small", "dino-small", "deformable-detr-tiny", "faster-rcnn-small")
SHARED = page.HERE.parent.parent / "shared"


@dataclass(frozen=True, kw_only=True)
class BenchmarkArguments:
    """Train presets and detectors of other libraries for the same minutes on the same images, with several seeds."""

    data: tuple[str, ...] = (str(SHARED / "data" / "bccd"), str(SHARED / "data" / "aerial_cars"), "digits")
    """Folders of datasets, or digits."""
    presets: tuple[str, ...] = tuple(name for name in OURS if name in PRESETS)
    """Presets of detrs."""
    peers: tuple[str, ...] = PEERS
    """Detectors of other libraries."""
    no_peers: Flag = False
    """Only the presets."""
    peer_path: Path | None = None
    """Folder in which packages of peers are installed (pip install --target FOLDER ultralytics)."""
    backbone: str | None = None
    """.safetensors file with weights of the backbone of all. Default: those that timm downloads."""
    image_size: Size = (288, 384)
    """Short and long side in pixels, or one number for both."""
    batch_size: int = 4
    """Images per optimizer step."""
    minutes: float = 10.0
    """Time of each run, with its evaluations."""
    seeds: int = 3
    """Number of runs of each detector."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    threads: int = 1
    """CPU threads of each run."""
    precision: Precision = "fp32"
    """Of the presets; peers run in fp32."""
    draw: Flag = False
    """Train nothing; write the page from stored results."""


def comparison_of(arguments: BenchmarkArguments, data: str) -> Comparison:
    return Comparison(
        presets=arguments.presets,
        data=data,
        minutes=arguments.minutes,
        seeds=arguments.seeds,
        image_size=as_pair(arguments.image_size),
        batch_size=arguments.batch_size,
        backbone=arguments.backbone,
        evaluate_every=arguments.evaluate_every,
        device="cpu",
        precision=arguments.precision,
        threads=arguments.threads,
    )


def fitting(arguments: BenchmarkArguments, data: str) -> tuple[list[str], dict[str, str]]:
    """The presets that can be trained on the data, and for each of the others the reason.

    Raises:
        UserError: none can, or an argument is invalid.
    """
    kept: list[str] = []
    reasons: dict[str, str] = {}
    for name in arguments.presets:
        try:
            accuracy.experiments(replace(comparison_of(arguments, data), presets=(name,)))
            kept.append(name)
        except UserError as error:
            reasons[name] = str(error)
    if not kept:
        raise UserError(next(iter(reasons.values()), "Nothing to compare: expected at least one preset."))
    return kept, reasons


def measure(arguments: BenchmarkArguments, data: str, commit: str) -> None:
    """Every detector with every seed on one dataset; seeds are outermost, so that each detector has a run early."""
    kept, reasons = fitting(arguments, data)
    runs = accuracy.experiments(replace(comparison_of(arguments, data), presets=tuple(kept)))
    setting = runs[0][1]
    for name, reason in reasons.items():
        record(RESULTS, {"subject": name, "library": "detrs", "seed": 0, "setting": setting, "failed": reason})
    peers = [] if arguments.no_peers else list(arguments.peers)
    for index in range(arguments.seeds):
        seed = accuracy.FIRST_SEED + index
        for experiment, _ in [run for run in runs if run[0].seed == seed]:
            wanted = accuracy_results.key(experiment, setting)
            if is_new(wanted):
                found = accuracy_run.measure_alone(experiment)
                record(RESULTS, {**wanted, "library": "detrs", "commit": commit, **accuracy.facts(experiment), **found})
        for peer in list(peers):
            if "failed" in measure_peer(arguments, data, peer, seed, setting, commit):
                peers.remove(peer)


def measure_peer(arguments: BenchmarkArguments, data: str, peer: str, seed: int, setting: Line, commit: str) -> Line:
    """A run of another library, from the results or in a process of its own; a failure is a result, too."""
    values = {
        "peer": peer,
        "data": data,
        "minutes": arguments.minutes,
        "image_size": list(as_pair(arguments.image_size)),
        "batch_size": arguments.batch_size,
        "seed": seed,
        "threads": arguments.threads,
        "backbone": arguments.backbone,
        "evaluate_every": arguments.evaluate_every,
    }
    backbone = "timm" if arguments.backbone is None else Path(arguments.backbone).name
    recipe: Line = {"batch_size": arguments.batch_size, "backbone": backbone}
    if peer == OUR_RECIPE:
        recipe["preset"] = accuracy_results.recipe_digest(preset(LIKE))
    wanted = {"subject": peer, "seed": seed, "setting": setting, "recipe": recipe}
    if not is_new(wanted):
        return wanted
    try:
        found = accuracy_run.result_of(
            [sys.executable, str(page.HERE / "accuracy_run.py")], json.dumps(values), f"{peer}, seed {seed}"
        )
    except UserError as error:  # it diverged, for example
        found = {"failed": str(error)}
    line = {**wanted, "library": peer.split()[0], "commit": commit, "precision": "fp32", **found}
    record(RESULTS, line)
    return line


def is_new(wanted: Line) -> bool:
    """Whether the results have no such run that was finished; prints what follows."""
    found = accuracy_results.finished(RESULTS, wanted)
    is_missing = found is None or "failed" in found
    setting = wanted["setting"]
    what = counted_minutes(setting["minutes"]) if is_missing else "stored"
    print(f"{setting['data']}: {wanted['subject']}, seed {wanted['seed']}: {what}", file=sys.stderr, flush=True)
    return is_missing


def record(results: Path, line: Line) -> None:
    """Appends a line, unless the same failure is there already."""
    if "failed" in line and accuracy_results.finished(results, line):
        return
    accuracy_results.append(results, line)


def groups(lines: Sequence[Line]) -> list[list[Line]]:
    """The newest line of each run, together with those that had the same setting."""
    found: dict[str, dict[tuple[str, int], Line]] = {}
    for line in lines:
        found.setdefault(json.dumps(line["setting"]), {})[line["subject"], line["seed"]] = line
    return [list(group.values()) for group in found.values()]


def title(setting: Line) -> str:
    short, long = setting["image_size"]
    train, val = setting["num_images"]
    threads = counted(setting["threads"], "thread")
    return (
        f"{setting['data']} ({counted(train, 'training image')}, {val:,} of validation) at {short} x {long}, "
        f"{counted_minutes(setting['minutes'])} each, {setting['device']}, {threads}"
    )


def section(lines: Sequence[Line], figure: str) -> str:
    """Markdown of the runs with one setting."""
    finished = [line for line in lines if "failed" not in line]
    parts = [f"**{title(lines[0]['setting'])}**"]
    if finished:
        table = page.table(COLUMNS, [row.cells(separator="<br>") for row in rows(finished)])
        parts += [f"![AP of every run]({figure})", table]
    reasons = {line["subject"]: line["failed"] for line in lines if "failed" in line}
    done = {line["subject"] for line in finished}
    parts += ["\n".join(f"- {name}: {reason}" for name, reason in reasons.items() if name not in done)]
    versions: dict[str, str] = {}
    for line in finished:
        versions |= line["versions"]
    commits = dict.fromkeys(line["commit"] for line in finished if "commit" in line)
    precisions = dict.fromkeys(f"{line['library']} {line['precision']}" for line in finished)
    facts = [*(f"{name} {version}" for name, version in versions.items()), *precisions]
    if finished:
        parts.append(f"Versions: {', '.join(facts)}; commit {', '.join(commits)}.")
    return "\n\n".join(part for part in parts if part)


def publish(results: Path, readme: Path, figures: Path) -> None:
    """Draw the figures and write the tables; without results the page stays as it is."""
    lines = read_lines(results) if results.exists() else []
    texts: list[str] = []
    for number, group in enumerate(groups(lines)):
        setting = group[0]["setting"]
        name = re.sub(r"\W+", "_", setting["data"])
        others = sum(other[0]["setting"]["data"] == setting["data"] for other in groups(lines)[:number])
        figure = figures / f"accuracy_{name}{f'_{others + 1}' if others else ''}.svg"
        accuracy_figure([line for line in group if "failed" not in line], title(setting), figure)
        texts.append(section(group, Path(os.path.relpath(figure, readme.parent)).as_posix()))
    page.put("accuracy", "\n\n".join(texts), readme)


def check(arguments: BenchmarkArguments) -> None:
    """Check everything before the first run takes its minutes.

    Raises:
        UserError: an argument is invalid.
    """
    if unknown := [name for name in arguments.peers if name not in PEERS]:
        raise UserError(f"There is no peer '{unknown[0]}'.{did_you_mean(unknown[0], PEERS)}")
    for data in arguments.data:
        check_data(data)
        check_dataset(data)
        accuracy.check(comparison_of(arguments, data))
        fitting(arguments, data)


def main(argv: list[str]) -> int:
    """The exit code: 2 for invalid input, with an error message."""
    try:
        arguments = parse(BenchmarkArguments, argv, "benchmarks/accuracy.py")
        if not arguments.draw:
            check(arguments)
            if arguments.peer_path is not None:
                paths = [os.environ.get("PYTHONPATH"), str(arguments.peer_path.resolve())]
                os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        try:
            commit = page.commit()  # now: files may change while it trains
            for data in () if arguments.draw else arguments.data:
                measure(arguments, data, commit)
        finally:
            publish(RESULTS, PAGE, FIGURES)
    except UserError as error:
        print_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
