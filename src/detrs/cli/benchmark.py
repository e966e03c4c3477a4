"""``detrs benchmark``: compares the speed of the operators with other implementations on this machine."""

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
    """Time multi-scale deformable attention against grid_sample, torch.compile and, if installed, deformops.

    All implementations run round-robin in one process. The table shows the median of each and its ratio to detrs.
    """

    subject: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ops")]
    """What to time: ops."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    repeats: int = 7
    """Number of timed rounds; each runs every implementation."""
    full: Flag = False
    """Run all 36 cases instead of 4: batch sizes 1, 2 and 4, 300 and 900 queries, star and uniform locations."""
    output: Path | None = None
    """Append one JSON line per case to this file."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr."""


def run(argv: list[str]) -> None:
    """Times all cases and prints the table."""
    arguments = parse(BenchmarkArguments, argv, "detrs benchmark")
    if arguments.subject not in SUBJECTS:
        raise UserError(
            f"Unknown benchmark '{arguments.subject}', expected: ops.{did_you_mean(arguments.subject, SUBJECTS)}"
        )
    from detrs.devices import pick_device
    from detrs.ops.ms_deform_attn import benchmark

    device = pick_device(arguments.device)
    screen = console(as_json=arguments.json)
    reports = []
    with console(as_json=True).status("") as status:
        for case in benchmark.FULL if arguments.full else benchmark.QUICK:
            status.update(case.name)
            reports.append(benchmark.compare(case, device, arguments.repeats))
            if arguments.output:
                with arguments.output.open("a") as file:
                    file.write(json.dumps(reports[-1].to_json()) + "\n")
    screen.print(benchmark.table(reports))
    screen.print(f"{reports[0].device}, median of {arguments.repeats} rounds; in parentheses: time relative to detrs")
    if arguments.json:
        print_json({"cases": [report.to_json() for report in reports]})
