"""The fault matrix: 16 faults at three moments of a tiny run, which is resumed and compared with an undisturbed one.

Every function runs in a process of its own (``sandbox.py``), since faults kill it.
"""

import errno
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import run_tiny
import torch
from run_tiny import Tiny
from torch.utils.data import get_worker_info

from detrs.checkpoints import format
from detrs.data import loader
from detrs.engine import step, trainer
from detrs.errors import UserError
from detrs.models.detector import Detector

MOMENTS = ("early", "epoch end", "save")
SETTINGS: dict[str, Any] = {"runtime": {"device": "cpu", "log_every": 2, "save_every_minutes": 0.0}}
"""Saved after every step."""
FIRST_LOAD = {"early": 5, "epoch end": 0, "save": 10**9}
"""Images of the moment's split that are loaded before the fault: step 2, the first evaluation, none."""
SAVES_BEFORE = 3
"""Saves of the training state before the one that is disturbed."""


def quiet() -> None:
    """Nothing is drawn; time limits of loaders are short."""
    for name in ("save_training_batch", "save_predictions", "save_curves"):
        setattr(trainer, name, lambda *arguments: None)
    loader.WORKER_TIMEOUT_S = 3


def train(output: str, *, resume: bool = False, workers: int = 0, **sets: Any) -> int:
    """The whole run, or the rest of it. Returns its last step."""
    quiet()
    settings = {"runtime": {**SETTINGS["runtime"], "workers": workers}}
    last = 0
    for report in run_tiny.training(run_tiny.experiment(**settings), output, resume=resume, **sets):
        last = report.step
    return last


def disturbed(output: str, moment: str, cause: Callable[[], None], *, workers: int = 0) -> int:
    """A run in which ``cause`` is called once, at ``moment``."""
    split = "val" if moment == "epoch end" else "train"
    loads: list[int] = []

    def on_load(index: int) -> None:
        loads.append(index)
        if len(loads) == FIRST_LOAD[moment] + 1 and bool(workers) == (get_worker_info() is not None):
            cause()

    if moment == "save":
        at_save(cause)
    return train(output, workers=workers, **{f"{split}_set": Tiny(split, on_load)})


def at_save(cause: Callable[[], None], call: str = "fsync") -> None:
    """Call ``cause`` in the middle of save number ``SAVES_BEFORE + 1`` of the training state."""
    original, count = format.save, [0]

    def save(path: Path, *arguments: Any) -> None:
        if path.name == "next.safetensors":
            count[0] += 1
        if count[0] == SAVES_BEFORE + 1 and path.name == "next.safetensors":
            once(call, cause)
        original(path, *arguments)

    format.save = save


def once(call: str, cause: Callable[[], None]) -> None:
    """Call ``cause`` before the next ``os.call``."""
    original = getattr(os, call)

    def replaced(*arguments: Any, **options: Any) -> Any:
        setattr(os, call, original)
        cause()
        return original(*arguments, **options)

    setattr(os, call, replaced)


def kill(signum: int) -> Callable[[], None]:
    def send() -> None:
        os.kill(os.getpid(), signum)
        time.sleep(0.01)

    return send


def twice() -> None:
    kill(signal.SIGINT)()
    time.sleep(0.6)  # later than one key press
    kill(signal.SIGINT)()


def disk(number: int) -> Callable[[], None]:
    """The next checkpoint that is written fails."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def disk_at(output: str, moment: str, number: int) -> int:
    """A disk that fails at a save: the first, that of the first ``best``, a later one."""
    if moment == "save":
        at_save(disk(number))
    else:
        target, original = ("next" if moment == "early" else "best"), format.save
        failed: list[int] = []

        def save(path: Path, *arguments: Any) -> None:
            if path.name == f"{target}.safetensors" and not failed:
                failed.append(1)
                once("fsync", disk(number))
            original(path, *arguments)

        format.save = save
        from detrs.checkpoints import detector

        detector.format.save = save
    return train(output)


def poisoned(output: str, moment: str, *, kills: bool) -> int:
    """A step without a finite loss, after which the process is killed or not."""
    number = {"early": 1, "epoch end": 2, "save": 4}[moment]
    backward = step.Step.backward

    def replaced(self: step.Step, batches: Any) -> dict[str, float]:
        values = backward(self, batches)
        if self.state.step == number:
            values["total"] = float("nan")
            for parameter in self.state.detector.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
        if self.state.step == number + 1 and kills:
            kill(signal.SIGKILL)()
        return values

    step.Step.backward = replaced  # type: ignore[method-assign]
    return train(output, resume=Path(output, "last.safetensors").exists())


def diverging(output: str) -> int:
    """No step has a finite loss."""
    backward = step.Step.backward
    step.Step.backward = lambda self, batches: {**backward(self, batches), "total": float("nan")}  # type: ignore
    return train(output)


def stopped(output: str, moment: str) -> int:
    """A run that is closed after a step: 2, 3 or 5."""
    return resumed_until(output, {"early": 2, "epoch end": 3, "save": 5}[moment])


def resumed_until(output: str, number: int, *, resume: bool = False, epochs: int = 2) -> int:
    """Start or resume a run and close it after step ``number``."""
    quiet()
    steps = run_tiny.training(run_tiny.experiment(**SETTINGS, schedule={"epochs": epochs}), output, resume=resume)
    for report in steps:
        if report.step == number:
            break
    steps.close()
    return number


def whole(output: str, *, resume: bool = False, epochs: int = 2) -> int:
    """All steps of a run of ``epochs`` epochs, or the rest of them."""
    quiet()
    number = 0
    for report in run_tiny.training(
        run_tiny.experiment(**SETTINGS, schedule={"epochs": epochs}), output, resume=resume
    ):
        number = report.step
    return number


def other_data(output: str) -> int:
    """Resumed with changed data."""
    Tiny.fingerprint = lambda self: "0" * 64  # type: ignore[method-assign]
    return train(output, resume=True)


def odd_environment(output: str, moment: str) -> int:
    """The clock jumps, umask 077, no HOME, another time zone, and the working directory is deleted."""

    def change() -> None:
        now = time.time
        time.time = lambda: now() - 1e8
        os.umask(0o077)
        os.environ.pop("HOME", None)
        os.environ["TZ"] = "Pacific/Kiritimati"
        time.tzset()
        folder = Path(output).parent / "gone"
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()

    return disturbed(output, moment, change)


def second_run(output: str, moment: str) -> int:
    """Another process tries to start and to resume a run in the same folder."""

    def start() -> None:
        pid = os.fork()
        if pid == 0:
            code = 0
            for resume in (True, False):
                try:
                    train(output, resume=resume)
                    code = 9
                except UserError as error:
                    code = code or (0 if "Another run" in str(error) else 8)
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, f"the second run ended with {code}"

    return disturbed(output, moment, start)


def worker_memory() -> None:
    raise RuntimeError("unable to write to file </torch_7_8_9>: No space left on device (28)")


def worker(output: str, moment: str, cause: Callable[[], None]) -> int:
    """A fault of a loader process, which does not save: the third moment is a later step."""
    if moment == "save":
        FIRST_LOAD["later"], moment = 9, "later"
    return disturbed(output, moment, cause, workers=1)


def device(output: str, moment: str) -> int:
    """The memory of the device is exhausted: in the second step, in an evaluation, in a later step."""

    def fail(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if moment == "epoch end":
        Detector.detect = fail  # type: ignore[method-assign]
    else:
        backward, number = step.Step.backward, {"early": 1, "save": 4}[moment]
        step.Step.backward = lambda self, batches: (  # type: ignore[method-assign]
            fail() if self.state.step == number else backward(self, batches)
        )
    return train(output)


def cause_of(fault: str, output: str, moment: str) -> int:
    """Run one fault until the process ends."""
    direct: dict[str, Callable[[], int]] = {
        "F1": lambda: disturbed(output, moment, kill(signal.SIGTERM)),
        "F2": lambda: disturbed(output, moment, kill(signal.SIGINT)),
        "F2 twice": lambda: disturbed(output, moment, twice),
        "F3": lambda: disturbed(output, moment, kill(signal.SIGKILL)),
        "F5": lambda: disk_at(output, moment, errno.ENOSPC),
        "F6": lambda: disk_at(output, moment, errno.EIO if moment == "early" else errno.EROFS),
        "F7": lambda: stopped(output, moment),
        "F8": lambda: worker(output, moment, kill(signal.SIGKILL)),
        "F9": lambda: worker(output, moment, lambda: time.sleep(60)),
        "F10": lambda: worker(output, moment, worker_memory),
        "F11": lambda: device(output, moment),
        "F12": lambda: poisoned(output, moment, kills=True),
        "F13": lambda: stopped(output, moment),
        "F14": lambda: odd_environment(output, moment),
        "F16": lambda: second_run(output, moment),
    }
    return direct[fault]()


def killed_at_byte(output: str, offset: int) -> int:
    """The system kills the process when a file of the run grows beyond ``offset`` bytes, after the third save."""
    import resource

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (offset, resource.RLIM_INFINITY))

    original, count = format.save, [0]

    def save(path: Path, *arguments: Any) -> None:
        count[0] += path.name == "next.safetensors"
        if count[0] == SAVES_BEFORE:
            limit()
        original(path, *arguments)

    format.save = save
    return train(output)


def damage(output: str, kind: str) -> None:
    """Damage the newest training state."""
    path = Path(output, "last.safetensors")
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "flipped":
        content[-77] ^= 4
    else:
        content = bytearray(len(content))
    path.write_bytes(content)


def resume(output: str) -> list[str]:
    """Finish the run; returns the warnings."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logging.getLogger("detrs").addHandler(Keep(logging.WARNING))
    train(output, resume=Path(output, "last.safetensors").exists() or Path(output, "next.safetensors").exists())
    return lines


def differences(output: Path, expected: Path) -> list[str]:
    """Tensors, scores and metrics of two runs that are not bit-equal; times are not compared."""
    wrong: list[str] = []
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = format.load(output / name), format.load(expected / name)
        if ours.tensors.keys() != theirs.tensors.keys():
            wrong.append(f"{name}: other tensors")
            continue
        wrong += [
            f"{name}: {key}" for key, value in ours.tensors.items() if not torch.equal(value, theirs.tensors[key])
        ]
        keys = ("step", "scores", "best_step", "best_scores", "evaluated_step")
        wrong += [f"{name}: {key}" for key in keys if ours.meta.get(key) != theirs.meta.get(key)]
    if metrics(output) != metrics(expected):
        wrong.append("metrics.jsonl")
    partial = [path.name for path in output.iterdir() if path.name.endswith(".tmp") or path.name.startswith("run.")]
    return wrong + [f"left behind: {name}" for name in partial]


def metrics(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "images_per_s")} for line in lines]


def copy(output: Path, target: Path) -> Path:
    shutil.copytree(output, target)
    return target
