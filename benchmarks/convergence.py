"""Convergence of all detectors under one budget, from DETR to DINO: python benchmarks/convergence.py --epochs 50

Trains the tiny presets one after the other with ``training.py`` and evaluates after every epoch. Every run appends a
JSON line to benchmarks/results/convergence.jsonl, finished or not. From the newest line of each preset and budget come
docs/convergence.md and its figures. A budget of --max-minutes compares over seconds instead of epochs.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import page
import training
from page import Line
from training import LEARNED, Run, TrainingArguments, reached

from detrs.cli import print_error
from detrs.cli.arguments import parse
from detrs.errors import UserError

RESULTS = page.HERE / "results" / "convergence.jsonl"
PAGE = page.HERE.parent / "docs" / "convergence.md"
FIGURES = PAGE.parent / "figures"
PRESETS = (
    "detr-tiny",
    "conditional-detr-tiny",
    "anchor-detr-tiny",
    "dab-detr-tiny",
    "dn-detr-tiny",
    "deformable-detr-tiny",
    "deformable-detr-dat-tiny",
    "efficient-detr-tiny",
    "dynamic-detr-tiny",
    "sparse-rcnn-tiny",
    "dab-deformable-detr-tiny",
    "dn-deformable-detr-tiny",
    "dino-tiny",
    "faster-rcnn-tiny",
)


@dataclass(frozen=True, kw_only=True)
class ConvergenceArguments(TrainingArguments):
    """Train presets under the same budget, and compare when they reach the final AP of the first that learns."""

    only: tuple[str, ...] = PRESETS
    """Presets to train now; the newest results of all others stay in tables and figures."""
    output: Path = Path("runs/convergence")
    """Folder of the runs."""


def every_epoch(run: Run, arguments: TrainingArguments) -> Run:
    """The run with an evaluation after every epoch, unless --evaluate-every has a number of steps."""
    every = arguments.evaluate_every or run.steps_per_epoch
    experiment = run.experiment
    return run._replace(experiment=replace(experiment, evaluation=replace(experiment.evaluation, every_steps=every)))


def reference_of(runs: list[Line]) -> Line | None:
    """The run whose final AP is the one to reach: DETR, or the first after it, in the order of ``PRESETS``, that has
    learned something when the budget ends."""
    found = {run["preset"]: run for run in runs if run["finished"] and (final_ap(run) or 0.0) >= LEARNED}
    return next((found[name] for name in PRESETS if name in found), None)


def compared(runs: list[Line]) -> list[Line]:
    """Each run with its final AP, the epochs and seconds to the final AP of the reference, and their ratios.

    A ratio is the value of the reference divided by that of the run. What was not reached, or cannot be compared
    because nothing has learned, is ``None``.
    """
    reference = reference_of(runs)
    aim = final_ap(reference) if reference else None
    theirs = reached(reference, aim) if reference and aim else None
    rows = []
    for run in runs:
        own = reached(run, aim) if aim else None
        row: Line = {"preset": run["preset"], "finished": run["finished"], "final_ap": final_ap(run)}
        for name in ("epoch", "seconds"):
            row[name] = own[name] if own else None
            row[f"{name}_ratio"] = theirs[name] / own[name] if own and theirs and own[name] else None
        rows.append(row)
    return rows


def final_ap(run: Line) -> float | None:
    """AP of the last evaluation."""
    ap: float | None = run["points"][-1]["ap"]
    return ap


def section(runs: list[Line], figure: str) -> str:
    """Markdown of the runs under one budget."""
    versions = ", ".join(f"{name} {version}" for name, version in runs[-1]["versions"].items())
    commits = ", ".join(dict.fromkeys(run["commit"] for run in runs))
    header = ["preset", "epochs", "final AP", "epochs to the reference", "ratio", "seconds to it", "ratio"]
    rows = []
    for run, row in zip(runs, compared(runs), strict=True):
        name = f"`{row['preset']}`{'' if row['finished'] else ' (interrupted)'}"
        numbers = ((row["final_ap"], ".3f"), (row["epoch"], ".1f"), (row["epoch_ratio"], ".1f"))
        numbers += ((row["seconds"], ".0f"), (row["seconds_ratio"], ".1f"))
        cells = ["-" if value is None else f"{value:{decimals}}" for value, decimals in numbers]
        rows.append([name, f"{run['points'][-1]['epoch']:.1f}", *cells])
    return "\n\n".join(
        [
            f"**{training.title(runs[0]['setting'])}** ({versions}; commit {commits})",
            f"![AP over epochs and over seconds of training]({figure})",
            page.table(header, rows),
            aim_in_words(runs),
        ]
    )


def aim_in_words(runs: list[Line]) -> str:
    """What the columns of the table compare with."""
    reference = reference_of(runs)
    if reference is None:
        return f"No finished run has reached AP {LEARNED:g} under this budget, so nothing is compared."
    name, ap = reference["preset"], final_ap(reference)
    slower = [f"`{each}`" for each in PRESETS[: PRESETS.index(name)] if each in {run["preset"] for run in runs}]
    without = f"{' and '.join(slower)} stayed below {LEARNED:g}, so the" if slower else "The"
    return (
        f"{without} reference is `{name}`, whose final AP is {ap:.3f}. Ratios are its own epochs or seconds to this "
        "AP, divided by those of the preset."
    )


def publish(results: Path, readme: Path, figures: Path) -> None:
    """Draw the figures and write the tables; without results the page stays as it is."""
    place = {name: number for number, name in enumerate(PRESETS)}

    def order(run: Line) -> int:
        return place.get(run["preset"], len(place))

    page.put("convergence", training.sections(results, readme, figures, "convergence", section, order), readme)


def main(argv: list[str]) -> int:
    """The exit code: 2 for invalid input, with an error message."""
    try:
        arguments = parse(ConvergenceArguments, argv, "benchmarks/convergence.py")
    except UserError as error:
        print_error(str(error))
        return 2
    return training.run(
        arguments,
        lambda name: every_epoch(training.prepare(name, arguments), arguments),
        RESULTS,
        lambda: publish(RESULTS, PAGE, FIGURES),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
