"""Saving and restoring a run, so that it continues bit-exactly."""

import dataclasses
import importlib.metadata
import logging
import shlex
from collections.abc import Callable
from typing import Any

from detrs.checkpoints import format
from detrs.config import Experiment
from detrs.data.sample import Dataset
from detrs.engine.clock import Clock
from detrs.engine.journal import Metrics
from detrs.engine.run import RunFolder
from detrs.engine.runtime import Runtime
from detrs.engine.state import TrainingState
from detrs.errors import UserError
from detrs.schema import to_dict

logger = logging.getLogger("detrs")


class Saver:
    """Writes and reads the training state of a run.

    Args:
        experiment: settings, with the number of classes of the data.
        folder: folder of the run.
        train_set: its classes and fingerprint are saved and compared.
        val_set: its fingerprint likewise; ``None`` without validation.
        state: what is saved; also the metrics, the clock and the loss scale of ``runtime``.
        metrics: see ``state``.
        clock: see ``state``.
        runtime: see ``state``.
        write_best: without validation, writes ``best`` after each save, from the current weights.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        train_set: Dataset,
        val_set: Dataset | None,
        state: TrainingState,
        metrics: Metrics,
        clock: Clock,
        runtime: Runtime,
        write_best: Callable[[], None],
    ) -> None:
        self.experiment, self.folder, self.train_set, self.val_set = experiment, folder, train_set, val_set
        self.state, self.metrics, self.clock, self.runtime = state, metrics, clock, runtime
        self.write_best = write_best
        self.saved: tuple[int, int] | None = None
        """Step and evaluated step of the state that was written or read last."""
        self.stored_best: dict[str, Any] | None = None
        """Metadata of a ``best`` that existed before, until the first evaluation."""

    def restore(self) -> None:
        """Continue where the run in the folder stopped.

        Raises:
            UserError: it was another run, its data have changed, or it has no intact state.
        """
        self.folder.check_unchanged(self.experiment)
        checkpoint = self.folder.load_last()
        self.check_data(checkpoint.meta)
        try:
            self.state.restore(checkpoint)
            self.compare_best()
            is_evaluated = self.state.evaluated_step == self.state.step
            self.metrics.resume(checkpoint.meta["metrics"], self.state.step, evaluated=is_evaluated)
            self.runtime.load_scaler_state(checkpoint.meta["scaler"])
            self.clock.resume(checkpoint.meta["clock"])
        except (KeyError, RuntimeError) as error:
            version, reason = checkpoint.meta.get("detrs", "unknown"), str(error).partition("\n")[0]
            raise UserError(
                f"The training state in '{self.folder.path}' was written by detrs {version} and cannot be resumed "
                f"with detrs {importlib.metadata.version('detrs')} ({reason}). Install detrs {version}."
            ) from error
        self.saved = self.state.step, self.state.evaluated_step
        logger.info("resuming after step %d of %d", self.state.step, self.clock.total_steps)

    def check_data(self, meta: dict[str, Any]) -> None:
        """Check that the data have not changed since ``meta`` was saved; changed images can be allowed, classes cannot.

        Raises:
            UserError: with what changed and what to do.
        """
        data, output = self.experiment.data, self.folder.path
        before, now = meta.get("class_names", list(self.class_names)), list(self.class_names)
        name = "the dataset" if data.path is None else f"the dataset '{data.path}'"
        if before != now:
            raise UserError(
                f"The run in '{output}' was started with the classes {', '.join(before)}; {name} now "
                f"has {', '.join(now)}. Restore the dataset or start a new run."
            )
        prints = self.fingerprints()
        changed = [getattr(data, f"{split}_split") for split in prints if prints[split] != meta["fingerprints"][split]]
        ending = "differs" if len(changed) == 1 else "differ"
        splits = " and ".join(f"'{split}'" for split in changed)
        if changed and not self.experiment.runtime.allow_changed_data:
            raise UserError(
                f"{name[0].upper()}{name[1:]} has changed since the run in '{output}' was started: {splits} {ending}. "
                "Restore it, start a new run, or continue with the changed data: --runtime.allow-changed-data True"
            )
        if changed:
            logger.warning("continuing with changed data (%s): scores may not be comparable", splits)
        runtime = dataclasses.replace(self.experiment.runtime, allow_changed_data=False)  # for this start only
        self.experiment = dataclasses.replace(self.experiment, runtime=runtime)

    def compare_best(self) -> None:
        """Compare ``best`` with the state: it may be newer than the state, or lost."""
        if self.val_set is None:
            self.restore_best()
            return
        try:
            self.stored_best = self.folder.read_best()
        except UserError as error:
            if self.state.best_scores is not None:
                logger.warning("%s The next evaluation writes a new one.", error)
            self.state.best_scores, self.state.evaluated_step = None, 0

    def restore_best(self) -> None:
        """Without validation, write ``best`` anew unless it has the weights of the state."""
        if not self.runtime.is_main:
            return
        try:
            is_current = self.folder.read_best().get("step") == self.state.step
        except UserError:
            is_current = False
        if not is_current:
            self.write_best()

    def save(self) -> None:
        """Write ``last``, from which the run can be resumed bit-exactly.

        A state with NaN or infinity, which could not be resumed, is not written: existing states are kept, and a
        warning is logged. Without validation, ``best`` is written as well, from the current weights.
        """
        if self.val_set is None:
            self.state.best_step = self.state.step
        if self.runtime.is_main:
            with self.clock.saving_state():
                try:
                    self.folder.save_last(self.state.tensors(), self.meta())
                except format.NonFiniteError as error:
                    kept = "there is no earlier state" if self.saved is None else f"step {self.saved[0]} is kept"
                    logger.warning("step %d is not saved (%s): %s", self.state.step, kept, error)
                    return
                if self.val_set is None:
                    self.write_best()
        self.saved = self.state.step, self.state.evaluated_step

    def meta(self) -> dict[str, Any]:
        """Everything that ``last`` contains beside tensors."""
        return {
            "detrs": importlib.metadata.version("detrs"),
            "experiment": to_dict(self.experiment),
            "class_names": list(self.class_names),
            "fingerprints": self.fingerprints(),
            "metrics": self.metrics.state(),
            "scaler": self.runtime.scaler_state(),
            "clock": self.clock.state(),
            **self.state.meta(),
        }

    def is_saved(self) -> bool:
        """Whether ``last`` contains the current state."""
        return self.saved == (self.state.step, self.state.evaluated_step)

    def stop(self) -> None:
        """Save what is not saved yet, and log how to resume."""
        if not self.is_saved():
            self.save()
        if self.runtime.is_main and self.is_saved():
            logger.info("stopped after step %d, saved; resume with: %s", self.state.step, self.resume_command())

    def save_after_error(self) -> None:
        """Save after an error that ends the run; a further error here must not hide it."""
        if not self.runtime.is_main or not self.state.is_consistent or self.state.step == 0 or self.is_saved():
            return
        try:
            self.save()
        except Exception as error:
            logger.warning("step %d could not be saved: %s", self.state.step, error)
        if self.is_saved():
            logger.warning("the run failed; step %d is saved. Resume with: %s", self.state.step, self.resume_command())

    def resume_command(self) -> str:
        """The command that continues the run."""
        if self.experiment.data.path is None:
            return f"detrs.training(..., {str(self.folder.path)!r}, resume=True) with the same train_set and val_set"
        return f"detrs train --resume {shlex.quote(str(self.folder.path))}"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train_set.classes.names

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of both splits, or of the training split without validation."""
        val = {} if self.val_set is None else {"val": self.val_set.fingerprint()}
        return {"train": self.train_set.fingerprint(), **val}
