"""The folder of a run: one run at a time, files that are old or new but never torn.

::

    experiment.json         what was run
    metrics.jsonl           one line per log interval and per evaluation
    results.png             its curves
    best.safetensors        the best weights so far, with all that is needed to predict
    last.safetensors        everything needed to continue
    previous.safetensors    the ``last`` before, should the disk damage that
    train_batch_*.jpg       the first batches with their labels
    val_predictions.jpg     what the best weights find
"""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from detrs import config
from detrs.checkpoints import format
from detrs.config import Experiment
from detrs.errors import UserError

logger = logging.getLogger("detrs")

FREE_TO_CHANGE = ("name", "schedule", "evaluation", "runtime")
"""Sections that may differ when a run is resumed: how long, how scored, where. The rest would make it another run."""


class RunFolder:
    """The folder ``path`` of one run; ``open`` makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.experiment = path / "experiment.json"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.png"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.previous = path / "previous.safetensors"
        self.predictions = path / "val_predictions.jpg"
        self._lock = path / "run.lock"

    def check(self, *, resume: bool) -> None:
        """Refuse at once what would fail after minutes of loading.

        Raises:
            UserError: the folder holds something already, or, with ``resume``, no run.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise UserError(f"The output '{path}' is a file: choose a folder.")
        if resume and not self.experiment.is_file():
            raise UserError(f"There is no run to resume in '{path}': it has no experiment.json.")
        if resume and not (self.last.exists() or self.previous.exists()):
            raise UserError(
                f"The run in '{path}' stopped before its first checkpoint: delete the folder, start without --resume."
            )
        if not resume and path.exists() and any(path.iterdir()):
            self._refuse_if_running()
            raise UserError(
                f"The output folder '{path}' is not empty: choose another, or continue the run in it with --resume."
            )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Own the folder: made if need be, locked against a second run, cleaned of what a killed one left.

        Raises:
            UserError: another run owns it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise UserError(f"The output folder '{self.path}' cannot be written: {error.strerror}.") from error
        try:
            format.remove_partial(self.path)
            yield
        finally:
            self._lock.unlink(missing_ok=True)

    def check_unchanged(self, experiment: Experiment) -> None:
        """Refuse to resume with settings that would make it another run.

        Raises:
            UserError: naming them.
        """
        before, now = config.to_dict(config.load(self.experiment)), config.to_dict(experiment)
        for values in (before, now):
            values["data"].pop("path")  # data may move; its fingerprint is compared instead
            values["model"].pop("num_classes")  # comes from the data
        changed = [line for section in before for line in _changes(before[section], now[section], section)]
        fixed = [line for line in changed if not line.startswith(FREE_TO_CHANGE)]
        if fixed:
            raise UserError(f"The run in '{self.path}' cannot be resumed with other settings: {'; '.join(fixed)}.")
        for line in changed:
            if not line.startswith("runtime."):
                logger.warning("resumed with another setting: %s", line)

    def save_last(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Replace ``last``, and keep the one before as ``previous``."""
        coming = self.path / "next.safetensors"
        format.save(coming, tensors, meta)
        if self.last.exists():
            os.replace(self.last, self.previous)
        os.replace(coming, self.last)

    def load_last(self) -> format.Checkpoint:
        """The newest training state that is whole.

        Raises:
            UserError: there is none.
        """
        reasons = []
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                checkpoint = format.load(path)
            except UserError as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                logger.warning("%s Resuming from %s instead.", reason, path.name)
            return checkpoint
        raise UserError(f"The run in '{self.path}' cannot be resumed. " + " ".join(reasons))

    def _acquire(self) -> None:
        for _ in range(2):
            try:
                descriptor = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                self._refuse_if_running()
                self._lock.unlink(missing_ok=True)
                continue
            process = psutil.Process()
            owner = {"pid": process.pid, "started": process.create_time(), "host": socket.gethostname()}
            with open(descriptor, "w") as file:
                file.write(json.dumps(owner))
            return
        raise UserError(f"Another run has just taken the folder '{self.path}': choose another.")

    def _refuse_if_running(self) -> None:
        """Refuse when the lock's owner lives, or cannot be asked."""
        try:
            owner = json.loads(self._lock.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return  # no lock, or its writer died while writing it
        if owner["host"] != socket.gethostname():
            raise UserError(
                f"The folder '{self.path}' belongs to a run on the machine '{owner['host']}': choose another, or "
                f"delete {self._lock.name} in it if that run is dead."
            )
        try:
            # A process number is used again after a while; with the time of birth it means one process.
            alive = abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 1
        except psutil.NoSuchProcess:
            alive = False
        if alive:
            raise UserError(f"The process {owner['pid']} is running in the folder '{self.path}': choose another.")


def _changes(before: Any, now: Any, where: str) -> list[str]:
    """``setting: old -> new`` for every setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        return [line for key in before for line in _changes(before[key], now[key], f"{where}.{key}")]
    return [] if before == now else [f"{where}: {json.dumps(before)} -> {json.dumps(now)}"]
