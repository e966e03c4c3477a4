"""Measures how long commands take to start, and how long ``import detrs`` takes.

    python benchmarks/startup.py [--checkpoint FILE] [--image FILE] [--rounds 7] [--other FOLDER] [--json]

Every command runs in a new process, round-robin, with the cache of bytecode that an installed package has. The table
shows the median of wall time and of CPU time, and the limit. ``--other`` is the folder of another checkout, whose
commands are run in the same rounds; the table then has the ratio of the CPU times, which other programs change less
than wall time. Without ``--checkpoint``, a detector with random weights is made, without ``--image`` an image of 640
x 480 pixels. The exit code is 1 if a limit is exceeded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]

SMALL = "deformable-detr-small"
CHECKPOINT, IMAGE, OUTPUT = "CHECKPOINT", "IMAGE", "OUTPUT"
"""Placeholders in commands."""


class Case(NamedTuple):
    """A command of Python, and what it may take."""

    name: str
    words: tuple[str, ...]
    """After ``python``."""
    limit_s: float
    """Wall time in seconds, on an idle machine."""
    code: int = 0
    """Exit code."""


def command(text: str, limit_s: float = 0.7, code: int = 0) -> Case:
    return Case(f"detrs {text}", ("-m", "detrs", *text.split()), limit_s, code)


CASES = (
    Case("import detrs", ("-c", "import detrs"), 0.1),
    command("--help"),
    command("presets"),
    command("train detr-r50 --help"),
    command("trian", code=2),
    command("train detr", code=2),
    command(f"train {SMALL} --epoch 3", code=2),
    command(f"train {SMALL} --schedule.kind stepp", code=2),
    command(f"train {SMALL} --data nowhere", code=2),
    command("evaluate nothing.safetensors", code=2),
    command(f"predict {CHECKPOINT} nothing.jpg", code=2),
    command(f"predict {CHECKPOINT} {IMAGE} --output {OUTPUT}", 4.0),
)


class Time(NamedTuple):
    """Seconds of one process."""

    wall: float
    cpu: float
    """Of all threads."""


def run(case: Case, source: Path, folder: Path, places: dict[str, str]) -> Time:
    """Run one command with the package in ``source``.

    Args:
        case: the command.
        source: the folder ``src`` of a checkout.
        folder: working directory, which also has a cache of bytecode for each checkout.
        places: placeholders.
    """
    words = [places.get(word, word) for word in case.words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(source)
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode" / source.as_posix().strip("/").replace("/", "-"))
    before, began = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder, env=environment)
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode != case.code:
        raise RuntimeError(f"{case.name}: expected exit code {case.code}, got {done.returncode}: {done.stderr}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Time(wall, cpu)


def make_inputs(folder: Path, checkpoint: Path | None, image: Path | None) -> dict[str, str]:
    """The checkpoint and the image of the commands, made in ``folder`` unless they are given."""
    if checkpoint is None:
        make = """
import sys
import detrs
from detrs.checkpoints import TrainedDetector, save_detector
from detrs.checkpoints.detector import preprocessing_of
from detrs.structures import Classes
from pathlib import Path
experiment = detrs.preset(sys.argv[1])
classes = Classes(tuple(f"class {i}" for i in range(91)), tuple(range(91)))
save_detector(Path(sys.argv[2]), TrainedDetector(
    module=detrs.build(experiment.model), classes=classes, preprocessing=preprocessing_of(experiment),
    experiment=experiment, scores={}, step=1, epoch=1,
))
"""
        checkpoint = folder / "best.safetensors"
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
        subprocess.run([sys.executable, "-c", make, SMALL, checkpoint], check=True, env=environment)
    if image is None:
        from PIL import Image

        image = folder / "image.jpg"
        Image.effect_noise((640, 480), 60.0).convert("RGB").save(image)
    return {CHECKPOINT: str(checkpoint.absolute()), IMAGE: str(image.absolute())}


def measure(cases: tuple[Case, ...], sources: list[Path], rounds: int, places: dict[str, str], folder: Path) -> Any:
    """Times of each case for each checkout, round-robin, after one round that fills the caches."""
    times: dict[str, list[list[Time]]] = {case.name: [[] for _ in sources] for case in cases}
    for number in range(-1, rounds):
        for case in cases:
            for which, source in enumerate(sources):
                output = folder / f"out-{number + 1}-{which}"
                taken = run(case, source, folder, {**places, OUTPUT: str(output)})
                if number >= 0:
                    times[case.name][which].append(taken)
    return times


def report(cases: tuple[Case, ...], times: dict[str, list[list[Time]]]) -> list[dict[str, Any]]:
    """One row per command: medians, limit, and the CPU time of the other checkout relative to this one."""
    rows = []
    for case in cases:
        own, *others = times[case.name]
        wall, cpu = (statistics.median(getattr(each, kind) for each in own) for kind in ("wall", "cpu"))
        row = {"command": case.name, "wall_s": wall, "cpu_s": cpu, "limit_s": case.limit_s}
        for other in others:
            row["other_wall_s"] = statistics.median(each.wall for each in other)
            row["other_cpu_s"] = statistics.median(each.cpu for each in other)
            row["ratio"] = row["other_cpu_s"] / cpu
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The report as a table in Markdown."""
    has_other = any("ratio" in row for row in rows)
    lines = ["| command | wall | CPU | limit |" + (" other, CPU | ratio |" if has_other else "")]
    lines.append("|---|" + "---:|" * (5 if has_other else 3))
    for row in rows:
        line = f"| `{row['command']}` | {row['wall_s']:.2f} s | {row['cpu_s']:.2f} s | {row['limit_s']} s |"
        lines.append(line + (f" {row['other_cpu_s']:.2f} s | {row['ratio']:.1f} |" if has_other else ""))
    return "\n".join(lines)


def main() -> int:
    """Measure, print the table, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sources = [REPOSITORY / "src", *([arguments.other.absolute() / "src"] if arguments.other else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = make_inputs(folder, arguments.checkpoint, arguments.image)
        rows = report(CASES, measure(CASES, sources, arguments.rounds, places, folder))
    print(json.dumps({"rounds": arguments.rounds, "rows": rows}) if arguments.json else table(rows))
    return int(any(row["wall_s"] > row["limit_s"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
