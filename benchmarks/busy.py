"""Training speed beside busy processes: python benchmarks/busy.py [--modes before after] [--busy 0 1 2]

Every measurement trains deformable-detr-tiny on the built-in digits in a new process, whose environment decides how the
threads of OpenMP wait. The modes are measured round-robin. Prints a JSON line per measurement to stdout, and a table to
stderr.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from detrs.cli import print_error, waiting_policy
from detrs.cli.arguments import Flag, parse
from detrs.errors import UserError

PRESET = "deformable-detr-tiny"
BUSY = (sys.executable, "-c", "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass")
"""Uses a core until it is stopped, or the benchmark is."""
WARMUP_STEPS = 10
OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, kw_only=True)
class BusyArguments:
    """Measure optimizer steps per second with and without other busy processes."""

    modes: tuple[str, ...] = (BEFORE, AFTER, "threads=1")
    """before: the defaults of OpenMP; after: what the command line sets; passive; spin=N; threads=N."""
    busy: tuple[int, ...] = (0, 1, 2)
    """Numbers of busy processes."""
    steps: int = 60
    """Timed optimizer steps of a measurement."""
    repeats: int = 3
    """Measurements of each mode."""
    child: Flag = False
    """Used internally: measure in this process."""


def environment(mode: str) -> dict[str, str]:
    """The environment variables of a mode.

    Raises:
        UserError: there is no such mode.
    """
    name, _, number = mode.partition("=")
    if mode == BEFORE:
        return {}
    if mode == AFTER:
        return waiting_policy({})
    if mode == "passive":
        return {"OMP_WAIT_POLICY": "passive"}
    variable = {"spin": "GOMP_SPINCOUNT", "threads": "OMP_NUM_THREADS"}.get(name)
    if variable is None or not number.isdigit():
        raise UserError(f"Expected the mode before, after, passive, spin=N or threads=N, got '{mode}'.")
    return {**(waiting_policy({}) if name == "threads" else {}), variable: number}


def measure(steps: int) -> float:
    """Optimizer steps per second in this process."""
    from detrs.engine.train import training
    from detrs.presets import preset

    experiment = preset(PRESET)
    data = dataclasses.replace(experiment.data, path="digits", augment="none")
    with tempfile.TemporaryDirectory() as folder:
        run = training(dataclasses.replace(experiment, data=data), folder)
        for _ in itertools.islice(run, WARMUP_STEPS):
            pass
        began = time.perf_counter()
        for _ in itertools.islice(run, steps):
            pass
        seconds = time.perf_counter() - began
        run.close()
    return steps / seconds


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """``count`` processes that use a core each."""
    processes = [subprocess.Popen(BUSY) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_in_new_process(mode: str, busy: int, steps: int) -> float:
    """Optimizer steps per second of a mode beside ``busy`` busy processes."""
    inherited = {name: value for name, value in os.environ.items() if name not in OPENMP}
    command = [sys.executable, __file__, "--child", "--steps", str(steps)]
    with busy_processes(busy):
        child = subprocess.run(
            command, env=inherited | environment(mode), stdout=subprocess.PIPE, text=True, check=True
        )
    return float(child.stdout)


def table(rates: dict[tuple[str, int], list[float]], modes: tuple[str, ...], busy: tuple[int, ...]) -> str:
    """Medians in steps/s, and relative to the first mode."""
    lines = ["| busy processes | " + " | ".join(modes) + " |", "|---" * (len(modes) + 1) + "|"]
    for count in busy:
        medians = [statistics.median(rates[mode, count]) for mode in modes]
        cells = (f"{median:.2f} ({median / medians[0]:.2f}x)" for median in medians)
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measure all modes."""
    arguments = parse(BusyArguments, argv, "benchmarks/busy.py")
    if arguments.child:
        print(measure(arguments.steps))
        return
    for mode in arguments.modes:
        environment(mode)  # a misspelled mode is reported before the first measurement
    rates: dict[tuple[str, int], list[float]] = {}
    versions = {name: importlib.metadata.version(name) for name in ("detrs", "torch")}
    for repeat, busy, mode in itertools.product(range(arguments.repeats), arguments.busy, arguments.modes):
        rate = measure_in_new_process(mode, busy, arguments.steps)
        rates.setdefault((mode, busy), []).append(rate)
        line = {"mode": mode, "busy": busy, "repeat": repeat, "steps_per_s": round(rate, 3), "cores": os.cpu_count()}
        print(json.dumps({**line, "environment": environment(mode), **versions}), flush=True)
    print(table(rates, arguments.modes, arguments.busy), file=sys.stderr)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print_error(str(error))
        sys.exit(2)
