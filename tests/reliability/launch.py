"""F15, a lost peer, and two nodes on one machine: runs of several processes by torchrun.

As a script it trains like ``run_tiny.py`` and kills the process of rank 1 at a moment: OUTPUT MOMENT [--resume].
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from sandbox import SOURCES

STANDALONE = ("--standalone", "--nproc-per-node", "2")
SECONDS = 600
"""Time limit of a launch."""


def start(output: Path, *arguments: str, launcher: tuple[str, ...] = STANDALONE) -> subprocess.Popen[str]:
    """Start this file by torchrun."""
    path = os.pathsep.join(map(str, SOURCES))
    environment = {**os.environ, "PYTHONPATH": path, "DETRS_OPS": "reference", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, __file__, str(output), *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, float]:
    """Exit code, stderr and seconds; -1 if it did not end in time."""
    began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, process.communicate()[1], SECONDS
    return process.returncode, errors, time.monotonic() - began


def nodes(port: int) -> list[tuple[str, ...]]:
    """Launchers of two nodes with one process each, on the loopback interface."""
    place = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port))
    return [(*place, "--node-rank", str(rank)) for rank in range(2)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def lost_peer(moment: str, folder: Path, expected: Path) -> str:
    """Empty if all processes ended and the resumed run is bit-equal, otherwise what went wrong."""
    import faults

    output = folder / "run"
    code, errors, _ = finish(start(output, moment))
    if code <= 0:
        return f"expected an exit code above 0, got {code}: {errors[-500:]}"
    code, errors, _ = finish(start(output, "none", "--resume"))
    if code:
        return f"the resumed run ended with {code}: {errors[-500:]}"
    return ", ".join(faults.differences(output, expected)[:5])


if __name__ == "__main__":
    import faults

    output, moment, *options = sys.argv[1:]
    if moment == "none":
        faults.train(output, resume="--resume" in options)
    elif os.environ["RANK"] == "1":
        # This process loads two images per step. Only the main process saves, so the third moment is a later step.
        faults.FIRST_LOAD = {"early": 3, "epoch end": 0, "save": 9}
        faults.at_save = lambda cause: None
        faults.disturbed(output, moment, faults.kill(signal.SIGKILL))
    else:
        faults.train(output)
