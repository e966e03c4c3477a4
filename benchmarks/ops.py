"""Compares the operator with other implementations and stores the result.

    python benchmarks/ops.py [--full] [--device cuda]

Appends JSON lines to benchmarks/results/ops.jsonl and writes the newest line of each case and machine to the table in
benchmarks/README.md. ``detrs benchmark ops`` prints the same figures without storing them.
"""

import sys

import page
from page import Line

from detrs.cli import main

LINES = page.HERE / "results" / "ops.jsonl"


def text(reports: list[Line]) -> str:
    """Markdown: one section per machine, one row per case."""
    sections = []
    for device in dict.fromkeys(report["device"] for report in reports):
        here = [report for report in reports if report["device"] == device]
        names = list(dict.fromkeys(name for report in here for name in report["milliseconds"]))
        versions = ", ".join(f"{name} {version}" for name, version in here[0]["versions"].items())
        rows = [[report["name"], *(cell(report, name) for name in names), *peaks(report)] for report in here]
        shown = page.table(["case", *names, "MiB, detrs", "MiB, grid_sample"], rows)
        sections.append(f"**{device}** ({versions})\n\n{shown}\n")
    return "\n".join(sections)


def cell(report: Line, name: str) -> str:
    """Milliseconds, and the time relative to detrs."""
    time = report["milliseconds"].get(name)
    baseline = report["milliseconds"]["detrs fused +" if name.endswith("+") else "detrs"]
    ratio = "" if time is None or time == baseline else f" ({time / baseline:.1f}x)"
    return "-" if time is None else f"{time:.2f}{ratio}"


def peaks(report: Line) -> list[str]:
    return [f"{report['peak_mib'][name]:.0f}" for name in ("detrs", "grid_sample")]


def run(argv: list[str]) -> int:
    """Measure, append and write the table; the exit code. A run that fails leaves the table as it is."""
    LINES.parent.mkdir(exist_ok=True)
    code = main(["benchmark", "ops", "--output", str(LINES), *argv])
    if code == 0:
        page.put("ops", text(page.newest(LINES, lambda line: (line["device"], line["name"]))), page.README)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
