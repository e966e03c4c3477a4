"""Runs the reliability suite and prints its figures as one table.

    python benchmarks/reliability.py [--fast] [--json]

The suite is ``tests/reliability``: 112 rows of bad inputs, 16 faults at three moments, resumed runs, mutated
checkpoints and hostile files. ``--fast`` leaves out what takes more than seconds, and the runs of several processes.
The exit code is 1 if a figure is not as it should be.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / name) for name in ("engine", "reliability")]

import attacks  # noqa: E402
import catalogue  # noqa: E402
import faults  # noqa: E402
import launch  # noqa: E402
import matrix  # noqa: E402
import torch  # noqa: E402
from known import DEVIATIONS, KNOWN, KNOWN_ATTACKS, KNOWN_FAULTS  # noqa: E402
from sandbox import Result, Sandbox  # noqa: E402
from test_catalogue import CASES  # noqa: E402

from detrs.ops import use  # noqa: E402

Report = dict[str, Any]


def rows(*, fast: bool) -> Report:
    """Every case of the catalogue; a row is as demanded if all its cases are."""
    faults.quiet()
    torch.set_num_threads(1)
    report: Report = {"cases": 0, "named": 0, "accepted rightly": 0, "skipped or noted with count": 0}
    report |= {"silent acceptances": [], "tracebacks": [], "hangs": [], "other than demanded": []}
    wrong: set[int] = set()
    with use("reference"):
        for case in CASES:
            if case.slow and fast:
                continue
            outcome = catalogue.run_in_new_folder(case)
            report["cases"] += 1
            if outcome.agrees(case):
                kind = {"A": "accepted rightly", "S": "skipped or noted with count", "W": "skipped or noted with count"}
                report[kind.get(case.expected, "named")] += 1
                continue
            wrong.add(case.row)
            kind = {"traceback": "tracebacks", "hang": "hangs"}.get(outcome.kind, "other than demanded")
            silent = outcome.is_silent and case.expected != "A"
            report["silent acceptances" if silent or outcome.kind == "wrong" else kind].append(case.id)
    every = {case.row for case in CASES}
    return {"rows": len(every), "rows as demanded": len(every - wrong), **report}


def survived(sandbox: Sandbox, folder: Path, *, fast: bool) -> Report:
    """The fault matrix, and a run resumed at each of its steps."""
    expected = folder / "undisturbed"
    sandbox.run("faults", "train", {"output": str(expected)})
    failed, count = [], 0
    for fault in matrix.IN_ONE_PROCESS:
        for moment in faults.MOMENTS[:1] if fast else faults.MOMENTS:
            place = folder / f"{fault} {moment}"
            place.mkdir()
            count += 1
            if wrong := matrix.cell(sandbox, fault, moment, place, expected):
                failed.append(f"{fault}, {moment}: {wrong:.300}")
    if not fast:
        count += len(faults.MOMENTS)
        failed += lost_peers(folder)
    return {"faults": count, "faults survived bit-equal": count - len(failed), "faults not survived": failed}


def lost_peers(folder: Path) -> list[str]:
    """F15: two processes of which one is killed."""
    expected, failed = folder / "two", []
    code, errors, _ = launch.finish(launch.start(expected, "none"))
    for moment in faults.MOMENTS:
        place = folder / f"F15 {moment}"
        place.mkdir()
        wrong = launch.lost_peer(moment, place, expected) if code == 0 else errors[-300:]
        if wrong:
            failed.append(f"F15, {moment}: {wrong:.300}")
    return failed


def resumed(sandbox: Sandbox, folder: Path, steps: int) -> Report:
    """Runs of ``steps`` steps, each stopped after another step and resumed."""
    expected, equal = folder / "whole", 0
    epochs = {"epochs": steps // 3}
    sandbox.run("faults", "whole", {"output": str(expected), **epochs})
    for number in range(1, steps + 1):
        output = folder / f"resumed {number}"
        sandbox.run("faults", "resumed_until", {"output": str(output), "number": number, **epochs})
        again = sandbox.run("faults", "whole", {"output": str(output), "resume": True, **epochs})
        equal += again.kind == "ok" and not faults.differences(output, expected)
    return {"resumed at each step": steps, "resumed bit-equal": equal}


def attacked(sandbox: Sandbox, folder: Path, count: int) -> Report:
    """Malicious pickles, hostile settings and metadata, gigantic models, mutations."""
    report: Report = {"hostile files": 0, "rejected": 0, "executions": 0, "hostile files not rejected": []}
    longest = largest = 0.0

    def record(name: str, result: Result, place: Path) -> None:
        nonlocal longest, largest
        executed = (place / "canary").exists()
        report["hostile files"] += 1
        report["executions"] += executed
        if attacks.is_rejected(result.kind, result.value, result.mib) and not executed:
            report["rejected"] += 1
        else:
            report["hostile files not rejected"].append(f"{name}: {result.kind}, {result.mib:.0f} MiB")
        longest, largest = max(longest, result.seconds), max(largest, result.mib)

    def each(kind: str, function: str, names: list[str], **arguments: Any) -> None:
        for number, name in enumerate(names):
            place = Path(tempfile.mkdtemp(dir=folder))
            given = {"folder": str(place), "number": number, **arguments}
            record(f"{kind} {name}", sandbox.run("attacks", function, given, seconds=60), place)

    for entrance in attacks.ENTRANCES:
        each(f"{entrance}:", "open_pickle", attacks.PICKLES, entrance=entrance)
    each("setting", "open_settings", [name for name, _ in attacks.HOSTILE_SETTINGS])
    each("metadata", "open_metadata", [name for name, _ in attacks.METADATA])
    each("gigantic", "open_gigantic", [name for name, _ in attacks.GIGANTIC])
    arguments = {"folder": tempfile.mkdtemp(dir=folder), "count": count}
    result = sandbox.run("attacks", "open_mutations", arguments, seconds=600)
    report |= {"mutations": count, "mutations detected": result.value["detected"] if result.kind == "ok" else 0}
    return report | {"longest in s": round(longest, 1), "most memory in MiB": round(largest)}


def run(*, fast: bool) -> Report:
    """All figures."""
    report = rows(fast=fast)
    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        report |= survived(sandbox, Path(folder), fast=fast)
        report["rows"] += 1  # row 98, a stalled network drive, is fault F9
        report["rows as demanded"] += not any(failed.startswith("F9,") for failed in report["faults not survived"])
        report |= resumed(sandbox, Path(folder), 3 if fast else 12)
        report |= attacked(sandbox, Path(folder), 200 if fast else 2000)
    known = {**KNOWN, **{fault: reason for (fault, _), reason in KNOWN_FAULTS.items()}, **KNOWN_ATTACKS}
    return report | {"known faults": known, "deviations": {str(row): reason for row, reason in DEVIATIONS.items()}}


def is_good(report: Report) -> bool:
    """Whether nothing failed, known faults included."""
    lists = [value for value in report.values() if isinstance(value, list)]
    pairs = (("faults", "faults survived bit-equal"), ("mutations", "mutations detected"))
    equal = all(report[a] == report[b] for a, b in (*pairs, ("resumed at each step", "resumed bit-equal")))
    return not any(lists) and equal and not report["executions"]


def text(report: Report) -> str:
    """The figures as lines, and below them what failed."""
    lines, details = [], []
    for name, value in report.items():
        if isinstance(value, dict):
            details += [f"\n{name}", *(f"  {key}: {reason}" for key, reason in value.items())]
        elif isinstance(value, list):
            lines.append(f"{name:32}{len(value):>8}")
            details += [f"\n{name}", *(f"  {each}" for each in value)] if value else []
        else:
            lines.append(f"{name:32}{value:>8}")
    return "\n".join([*lines, *details])


if __name__ == "__main__":
    found = run(fast="--fast" in sys.argv)
    print(json.dumps(found) if "--json" in sys.argv else text(found))
    sys.exit(0 if is_good(found) else 1)
