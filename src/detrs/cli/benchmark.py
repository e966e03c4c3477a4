"""``detrs benchmark``: our operators against their peers, on this machine."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from detrs.cli.arguments import Flag, parse
from detrs.cli.report import console, print_json
from detrs.errors import UserError, did_you_mean

SUBJECTS = ("ops",)


@dataclass(frozen=True, kw_only=True)
class BenchmarkArguments:
    """Time multi-scale deformable attention against grid_sample, torch.compile and, where installed, deformops.

    All take turns in one process; the median of each counts, and the ratio to ours stands behind it.
    """

    subject: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ops")]
    """What to measure: ops."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    repeats: int = 7
    """Timed runs of each implementation, in turn."""
    full: Flag = False
    """All 36 cases instead of 4: batches of 1, 2 and 4, 300 and 900 queries, locations near and anywhere."""
    output: Path | None = None
    """Append one JSON line per case to this file."""
    json: Flag = False
    """Print one JSON object; the table goes to the standard error stream."""


def run(argv: list[str]) -> None:
    """Measure and tell."""
    arguments = parse(BenchmarkArguments, argv, "detrs benchmark")
    if arguments.subject not in SUBJECTS:
        raise UserError(
            f"There is no benchmark '{arguments.subject}', only: ops.{did_you_mean(arguments.subject, SUBJECTS)}"
        )
    from detrs.devices import pick_device
    from detrs.evaluation import operators

    device = pick_device(arguments.device)
    screen = console(as_json=arguments.json)
    reports = []
    with console(as_json=True).status("") as status:
        for case in operators.FULL if arguments.full else operators.QUICK:
            status.update(case.name)
            reports.append(operators.compare(case, device, arguments.repeats))
            if arguments.output:
                with arguments.output.open("a") as file:
                    file.write(json.dumps(reports[-1].to_json()) + "\n")
    screen.print(operators.table(reports))
    screen.print(f"{reports[0].device}, median of {arguments.repeats}; in brackets how many times as long as ours")
    if arguments.json:
        print_json({"cases": [report.to_json() for report in reports]})
