"""Times the operator against its peers and keeps the result: python benchmarks/ops.py [--full] [--device cuda]

Appends JSON lines to benchmarks/results/ops.jsonl and writes the newest of each case and machine as the table in
benchmarks/README.md. ``detrs benchmark ops`` prints the same figures without keeping them.
"""

import json
import sys
from pathlib import Path
from typing import Any

from detrs.cli import main

HERE = Path(__file__).parent
LINES = HERE / "results" / "ops.jsonl"
BEGIN, END = "<!-- ops: begin -->", "<!-- ops: end -->"


def newest(lines: str) -> list[dict[str, Any]]:
    """The last report of each case on each machine."""
    reports = {}
    for line in lines.splitlines():
        report = json.loads(line)
        reports[report["device"], report["name"]] = report
    return list(reports.values())


def table(reports: list[dict[str, Any]]) -> str:
    """Markdown: one section per machine, one row per case."""
    text = []
    for device in dict.fromkeys(report["device"] for report in reports):
        rows = [report for report in reports if report["device"] == device]
        names = list(dict.fromkeys(name for report in rows for name in report["milliseconds"]))
        versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
        text += [f"**{device}** ({versions})", ""]
        text += ["| case | " + " | ".join(names) + " | MiB, detrs | MiB, grid_sample |"]
        text += ["|---|" + "---:|" * (len(names) + 2)]
        for report in rows:
            cells = []
            for name in names:
                time = report["milliseconds"].get(name)
                ours = report["milliseconds"]["detrs fused +" if name.endswith("+") else "detrs"]
                ratio = "" if time is None or time == ours else f" ({time / ours:.1f}x)"
                cells.append("-" if time is None else f"{time:.2f}{ratio}")
            peaks = [f"{report['peak_mib'][name]:.0f}" for name in ("detrs", "grid_sample")]
            text += ["| " + " | ".join([report["name"], *cells, *peaks]) + " |"]
        text += [""]
    return "\n".join(text)


def write_table(page: Path, lines: str) -> None:
    """Put the table between its marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{table(newest(lines))}\n{END}{after}")


if __name__ == "__main__":
    LINES.parent.mkdir(exist_ok=True)
    code = main(["benchmark", "ops", "--output", str(LINES), *sys.argv[1:]])
    write_table(HERE / "README.md", LINES.read_text())
    sys.exit(code)
