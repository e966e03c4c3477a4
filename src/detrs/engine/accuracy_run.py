"""One run of ``engine.accuracy``: trains, and measures scores, images, seconds and peak memory.

Every run is a process of its own, so that its peak memory is that of this run. ``python -m detrs.engine.accuracy_run``
is such a process: it reads an experiment as JSON from stdin, and prints its result as the last line of stdout.
"""

import importlib.metadata
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch

from detrs.config import Experiment
from detrs.devices import pick_device
from detrs.engine.accuracy_results import Line
from detrs.engine.run import RunFolder
from detrs.engine.train import train, training
from detrs.errors import UserError
from detrs.schema import from_dict, to_dict
from detrs.visualization.curves import read_lines

STATUS = Path("/proc/self/status")
STOPPED = {130: signal.SIGINT, 143: signal.SIGTERM}
"""Exit code of a process that was stopped by a signal."""


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
    command = [sys.executable, "-P", "-m", "detrs.engine.accuracy_run"]
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
