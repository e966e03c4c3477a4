"""Runs tasks in processes of their own that start in milliseconds: a server imports torch once and forks.

    with Sandbox() as sandbox:
        result = sandbox.run("faults", "run", {"name": "F1", "moment": "early"}, seconds=60)

A task is a function of a module in this folder; arguments and result are JSON. The server itself never runs a model,
since forked processes inherit no threads.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, Self

HERE = Path(__file__).resolve().parent
SOURCES = (HERE, HERE.parent / "engine", HERE.parents[1] / "src")


class Result(NamedTuple):
    """The end of a task."""

    code: int
    """Exit code; negative: the number of a signal."""
    kind: str
    """``ok``, ``error`` (``UserError``), ``exit``, ``traceback``, ``killed`` or ``hang``."""
    value: Any
    """What the task returned; the message of an error; a traceback."""
    seconds: float
    mib: float
    """Growth of the peak resident memory."""


class Sandbox:
    """The server, as a context."""

    def __enter__(self) -> Self:
        path = os.pathsep.join(map(str, SOURCES))
        environment = {**os.environ, "PYTHONPATH": path, "DETRS_OPS": "reference", "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def run(self, module: str, function: str, arguments: dict[str, Any], seconds: float = 120) -> Result:
        """Run one task; it is killed after ``seconds``."""
        assert self._server.stdin is not None and self._server.stdout is not None
        job = {"module": module, "function": function, "arguments": arguments, "seconds": seconds}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return Result(*json.loads(self._server.stdout.readline()))


def peak() -> int:
    """Peak resident memory in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def child(job: dict[str, Any], output: str) -> None:
    """Run the task and write ``[kind, value, mib]``; the exit code is that of the command line."""
    from detrs.data.loader import worker_failure
    from detrs.errors import UserError

    before = peak()
    code = 0
    try:
        value = getattr(importlib.import_module(job["module"]), job["function"])(**job["arguments"])
        result: list[Any] = ["ok", value]
    except UserError as error:
        result, code = ["error", str(error)], 2
    except RuntimeError as error:  # as in detrs.cli.main: PyTorch raises it at an arbitrary place
        reason = worker_failure(error)
        result, code = (["error", reason], 2) if reason else (["traceback", traceback.format_exc()], 1)
    except SystemExit as stop:
        result, code = ["exit", stop.code], int(stop.code or 0)
    except BaseException:
        result, code = ["traceback", traceback.format_exc()], 1
    Path(output).write_text(json.dumps([*result, (peak() - before) / 1024]))
    os._exit(code)


def serve() -> None:
    """Read jobs, fork, and write results, one line each."""
    import torch

    importlib.import_module("faults")
    importlib.import_module("attacks")
    importlib.import_module("malicious_weights")  # so that the CPU time of a task is not that of imports
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of tasks are not results
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            output = os.path.join(folder, "result.json")
            began = time.monotonic()
            pid = os.fork()
            if pid == 0:
                os.setsid()
                child(job, output)
            kind = ""
            while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
                if time.monotonic() - began > job["seconds"]:
                    kind = "hang"
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.005)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # loader processes of a task that was killed
            code = os.waitstatus_to_exitcode(ended[1])
            value, mib = None, 0.0
            if not kind and os.path.exists(output):
                kind, value, mib = json.loads(Path(output).read_text())
            answers.write(json.dumps([code, kind or "killed", value, time.monotonic() - began, mib]) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve()
