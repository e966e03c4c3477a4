"""The output folder of a run: locked while the run is active, every file written atomically.

::

    experiment.json         settings of the run
    metrics.jsonl           one line per log interval and per evaluation
    results.png             its curves
    best.safetensors        the best weights so far, with everything needed to predict; without validation the last
    last.safetensors        training state, from which the run is resumed
    previous.safetensors    the training state before ``last``, in case ``last`` is damaged
    next.safetensors        the next ``last`` while it is written
    run.lock, run.owner     lock of the folder and the process that holds it, during a run
    train_batch_*.jpg       the first batches with their labels
    val_predictions.jpg     detections of the best weights beside the ground truth of validation images
    trackers.json           names of the run in experiment trackers, to continue there
    tensorboard/            events of TensorBoard
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrs import config, files
from detrs.choices import Precision
from detrs.config import Experiment
from detrs.engine.lock import FolderLock
from detrs.errors import UserError
from detrs.files import PARTIAL, os_errors
from detrs.schema import to_dict

if TYPE_CHECKING:
    from torch import Tensor

    from detrs.checkpoints.format import Checkpoint

logger = logging.getLogger("detrs")

FREE_TO_CHANGE = ("name", "schedule", "evaluation", "runtime")
"""Settings that may differ when a run is resumed. Others would make it a different run."""


class RunFolder:
    """The folder ``path`` of one run, created by ``open``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.experiment = path / "experiment.json"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.png"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.previous = path / "previous.safetensors"
        self.next = path / "next.safetensors"
        self.predictions = path / "val_predictions.jpg"
        self.trackers = path / "trackers.json"
        self.tensorboard = path / "tensorboard"
        self._lock = FolderLock(path)

    def check(self, *, resume: bool) -> None:
        """Check that the folder can be used, before data are loaded.

        Raises:
            UserError: the folder is not empty, or cannot be read, or, with ``resume``, has no run.
        """
        with os_errors(f"Cannot read the output folder '{self.path}'"):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"The output '{self.path}' is a file: choose a folder.")
            if resume and not self.experiment.is_file():
                raise UserError(f"There is no run to resume in '{self.path}': it has no experiment.json.")
            if resume and not any(state.exists() for state in self.states):
                raise UserError(
                    f"The run in '{self.path}' stopped before its first checkpoint: repeat it without --resume."
                )
            if not resume and self.path.exists():
                self._lock.raise_if_held()
                self._raise_if_used()

    @contextmanager
    def open(self, *, resume: bool) -> Iterator[None]:
        """Create and lock the folder, and remove partial files of a killed run.

        Args:
            resume: keep the files of the run; otherwise only files of a run that failed before its first checkpoint
                may exist, and are removed.

        Raises:
            UserError: another run has locked the folder, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise UserError(f"Cannot write to the output folder '{self.path}': {error.strerror}.") from error
        try:
            files.remove_partial(self.path)
            if not resume:
                self._raise_if_used()  # another run may have used it since the check
                for path in self.path.iterdir():
                    if path == self.tensorboard:
                        shutil.rmtree(path)
                    elif path not in (self._lock.path, self._lock.owner):
                        path.unlink()
            yield
        finally:
            self._lock.release()

    @property
    def states(self) -> tuple[Path, ...]:
        """Files with a training state; of equally new ones the first is preferred."""
        return self.last, self.next, self.previous

    def precision(self) -> Precision:
        """The precision of the run in the folder, ``auto`` if there is none.

        Raises:
            UserError: ``experiment.json`` cannot be read.
        """
        return config.load(self.experiment).runtime.precision if self.experiment.is_file() else "auto"

    def save_experiment(self, experiment: Experiment) -> None:
        """Write ``experiment.json`` unless it has the same content.

        Raises:
            UserError: it cannot be written.
        """
        if not self.experiment.exists() or config.load(self.experiment) != experiment:
            config.save(experiment, self.experiment)

    def check_unchanged(self, experiment: Experiment) -> None:
        """Check that the run is not resumed with settings that would make it a different run.

        Raises:
            UserError: naming the settings.
        """
        before, now = to_dict(config.load(self.experiment)), to_dict(experiment)
        for values in (before, now):
            values["data"].pop("path")  # data may be moved; the fingerprint is compared instead
            values["model"].pop("num_classes")  # comes from the data
        changed = [line for section in before for line in changes(before[section], now[section], section)]
        fixed = [line for line in changed if not line.startswith(FREE_TO_CHANGE)]
        if fixed:
            raise UserError(f"The run in '{self.path}' cannot be resumed with other settings: {'; '.join(fixed)}.")
        for line in changed:
            if not line.startswith("runtime.") or line.startswith("runtime.precision"):
                logger.warning("resumed with another setting: %s", line)

    def save_last(self, tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
        """Replace ``last``, and keep the old one as ``previous``.

        Raises:
            UserError: it cannot be written; existing states are unchanged.
        """
        from detrs.checkpoints import format

        format.save(self.next, tensors, meta)
        if self.last.exists():
            files.rename(self.last, self.previous)
        files.rename(self.next, self.last)

    def load_last(self) -> "Checkpoint":
        """The newest intact training state.

        Raises:
            UserError: there is none.
        """
        from detrs.checkpoints import format

        reasons, found = [], []
        for path in self.states:
            if path.exists():
                try:
                    meta = format.read_meta(path)
                    check_training_state(path, meta)
                    found.append((meta["step"], meta.get("evaluated_step", 0), path))
                except UserError as error:
                    reasons.append(str(error))
        for *_, path in sorted(found, key=lambda state: state[:2], reverse=True):
            try:
                checkpoint = format.load(path)
            except UserError as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                logger.warning("%s", reason)
            if path != self.last:
                logger.warning("resuming from %s, the newest intact training state", path.name)
            return checkpoint
        raise UserError(f"The run in '{self.path}' cannot be resumed. " + " ".join(reasons))

    def read_best(self) -> dict[str, Any]:
        """The metadata of ``best``.

        Raises:
            UserError: it is missing, damaged, or not a detector.
        """
        from detrs.checkpoints import format

        meta = format.read_meta(self.best)
        if "classes" not in meta or "scores" not in meta:
            raise UserError(f"'{self.best}' is not a detector (a copy of last.safetensors?).")
        return meta

    def _raise_if_used(self) -> None:
        """Raise ``UserError`` unless all files are those of a run that failed before its first checkpoint."""
        events = {self.tensorboard} if self.experiment.is_file() else {}
        others = [path for path in self.path.iterdir() if path not in events]
        if not all(path.is_file() and _is_of_a_failed_start(path) for path in others):
            raise UserError(
                f"The output folder '{self.path}' is not empty: choose another, or resume the run in it with --resume."
            )


def check_training_state(path: Path, meta: Mapping[str, Any]) -> None:
    """Check that a checkpoint is the state of a run, not a detector such as ``best``, which has no optimizer state.

    Raises:
        UserError: it is not.
    """
    if "classes" in meta:
        raise UserError(f"'{path}' is a detector, not a training state (a copy of best.safetensors?).")
    if not all(type(meta.get(name, 0)) is int for name in ("step", "evaluated_step")) or "step" not in meta:
        raise UserError(f"'{path}' is not a training state: its metadata have no step.")


def _is_of_a_failed_start(path: Path) -> bool:
    if path.name == "metrics.jsonl":
        return b'"evaluation"' not in path.read_bytes()  # otherwise the run had checkpoints, and its scores are kept
    known = path.name in ("experiment.json", "trackers.json", "run.lock", "run.owner") or PARTIAL.fullmatch(path.name)
    return bool(known or re.fullmatch(r"train_batch_\d+\.jpg", path.name))


def changes(before: Any, now: Any, where: str) -> list[str]:
    """``setting: old -> new`` for every setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        return [line for key in before for line in changes(before[key], now[key], f"{where}.{key}")]
    return [] if before == now else [f"{where}: {json.dumps(before)} -> {json.dumps(now)}"]
