"""Training: ``training`` is the loop, ``train`` runs it with a progress display."""

import dataclasses
import logging
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrs import config
from detrs.choices import Precision
from detrs.config import Experiment
from detrs.config.data import NO_SPLIT
from detrs.data import open_dataset
from detrs.data.opening import open_splits
from detrs.data.protocol import check_protocol
from detrs.data.sample import Dataset
from detrs.engine.compatibility import check_batch_norm, check_divisible
from detrs.engine.finetuning import open_initial
from detrs.engine.interruption import Interrupted, Interruption
from detrs.engine.journal import StepReport, display, format_scores
from detrs.engine.run import RunFolder
from detrs.engine.runtime import Runtime, is_main_process
from detrs.engine.tracking import check_trackers
from detrs.engine.trainer import Trainer
from detrs.errors import UserError
from detrs.ops.threads import num_threads
from detrs.visualization import notebook

logger = logging.getLogger("detrs")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a finished run."""

    output: Path
    checkpoint: Path
    """``best.safetensors``: the best weights, with everything needed to predict; without validation the last."""
    scores: dict[str, Any]
    """Scores of the best weights on the validation split: ``ap``, ``ap50``, ... (``None``: undefined); empty without
    validation."""
    best_step: int
    """Optimizer steps of the best weights."""
    steps: int
    """Optimizer steps of the run."""
    seconds: float
    """Wall-clock time of the whole run, including earlier parts of a resumed run."""

    def _repr_html_(self) -> str:
        facts = {
            "best weights": f"step {self.best_step} of {self.steps}",
            "time": f"{self.seconds:,.0f} s",
            "checkpoint": str(self.checkpoint),
        }
        return notebook.result_html(self.scores, facts, RunFolder(self.output).results)


def training(
    experiment: Experiment,
    output: Path | str,
    *,
    resume: bool = False,
    train_set: Dataset | None = None,
    val_set: Dataset | None = None,
    on_evaluation: Callable[[int, int], None] | None = None,
) -> Generator[StepReport, None, TrainResult]:
    """Train, one optimizer step per iteration. ``engine.run`` lists the files in ``output``.

    SIGTERM and Ctrl-C finish the step, save and raise ``SystemExit`` with 143 or 130. Closing the generator saves, and
    so does any error outside of a step.

    Args:
        experiment: settings; the number of classes comes from the data.
        output: folder of the run.
        resume: continue the run in ``output``; bit-exact on a CPU.
        train_set: any object with the ``Dataset`` protocol, instead of ``experiment.data.path``.
        val_set: likewise, for validation.
        on_evaluation: called during an evaluation with the number of images done, and of all images.

    Yields:
        A ``StepReport`` after each step, with the scores if an evaluation followed it.

    Raises:
        UserError: invalid settings, data or folder, or training diverged.
    """
    began = time.monotonic()
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"experiment: expected an Experiment, such as detrs.preset('detr-tiny'), got {experiment!r:.80}."
        )
    if not isinstance(output, str | Path):
        raise UserError(f"output: expected the path of a folder, got {output!r:.80}.")
    if train_set is not None and (val_set is not None or experiment.data.val_split == NO_SPLIT):  # no folder is used
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path=None))
    config.validate(experiment)
    check_trackers(experiment.runtime.track)
    folder = RunFolder(Path(output))
    if resume and experiment.runtime.precision == "auto":
        experiment = _with_precision(experiment, folder.precision())
    runtime = Runtime(experiment.runtime)
    experiment = _with_precision(experiment, runtime.precision)
    check_divisible(experiment.data.batch_size, runtime.world_size, experiment.runtime.accumulate)
    images = experiment.data.batch_size // (runtime.world_size * experiment.runtime.accumulate)
    synchronized = runtime.world_size > 1 and runtime.device.type == "cuda"
    check_batch_norm(experiment, images, is_synchronized=synchronized)
    initial = None
    if experiment.initial is not None and not resume:  # before data are loaded
        with runtime.main_first():
            initial = open_initial(experiment.initial, experiment.model)
    if runtime.is_main:
        folder.check(resume=resume)
    needs_val = val_set is None and experiment.data.val_split != NO_SPLIT
    if resume and experiment.data.path is None and (train_set is None or needs_val):
        raise UserError(
            f"The run in '{folder.path}' was started with data in Python: resume it with "
            "detrs.training(..., resume=True) and the same train_set and val_set, or add --data FOLDER."
        )
    data = datasets(experiment, train_set, val_set)
    trainer = Trainer(experiment, *data, folder, runtime, began=began, resume=resume, initial=initial)
    del initial  # its weights
    trainer.on_images = on_evaluation
    state, clock, saver = trainer.state, trainer.clock, trainer.saver

    with (
        num_threads(experiment.runtime.threads),
        folder.open(resume=resume) if runtime.is_main else nullcontext(),
        Interruption() as interruption,
        ExitStack() as stack,
    ):
        if resume:
            saver.restore()
        runtime.wait_for_all()  # all processes have read what the main process may change now
        if runtime.is_main:
            folder.save_experiment(trainer.experiment)
            stack.enter_context(trainer.tracking.open(trainer.experiment, step=state.step, is_new=not resume))
        try:
            if clock.is_evaluation_due(state):  # the run was stopped during an evaluation
                found = run_evaluation(trainer, interruption)
                logger.info("step %d evaluated: %s", state.step, format_scores(**found))
                saver.save()
            if resume and clock.is_finished(state):
                logger.warning("this run is finished; to continue it, raise --epochs or --max-minutes")
            clock.begin_steps()
            while not clock.is_finished(state):
                for batches in trainer.batches():
                    report = trainer.step(batches)
                    if signum := runtime.largest(interruption.signum):
                        raise Interrupted(signum)
                    if clock.is_evaluation_due(state):
                        if clock.is_save_before_evaluation_due(state):
                            saver.save()
                        found = run_evaluation(trainer, interruption)
                        report = dataclasses.replace(report, evaluation=found["report"], is_best=found["is_best"])
                    if clock.is_save_due(state):
                        saver.save()
                    yield report
                    if clock.is_finished(state):
                        break
        except (Interrupted, GeneratorExit) as stop:
            if not (isinstance(stop, Interrupted) and stop.at_once):
                saver.stop()
            raise
        except Exception as error:
            # A signal to the process group also ends loader processes, which raises an error here.
            if interruption.signum and state.is_consistent:
                saver.stop()
                raise Interrupted(interruption.signum) from error
            saver.save_after_error()
            raise
    return TrainResult(
        output=folder.path,
        checkpoint=folder.best,
        scores=state.best_scores or {},
        best_step=state.best_step,
        steps=state.step,
        seconds=clock.used(),
    )


def _with_precision(experiment: Experiment, precision: Precision) -> Experiment:
    return dataclasses.replace(experiment, runtime=dataclasses.replace(experiment.runtime, precision=precision))


def datasets(
    experiment: Experiment, train_set: Dataset | None, val_set: Dataset | None
) -> tuple[Dataset, Dataset | None]:
    """Both splits: those given, or those of ``experiment.data``; no validation split if ``val_split`` is ``none``.

    Raises:
        UserError: a dataset cannot be read, or lacks a part of the protocol.
    """
    data, runtime = experiment.data, experiment.runtime
    options: dict[str, Any] = {"cache_gib": runtime.cache_gib, "cache_annotations": runtime.cache_annotations}
    given = {"train_set": train_set, "val_set": val_set}
    if data.val_split == NO_SPLIT and val_set is not None:
        raise UserError(f"val_set was given, but data.val_split {NO_SPLIT} trains without validation: remove one.")
    if data.val_fraction is not None and (train_set is not None or val_set is not None):
        raise UserError(
            f"data.val_fraction is {data.val_fraction}, but holds out images of data.path only: remove it, and divide "
            "data in Python into train_set and val_set."
        )
    missing = [name for name, dataset in given.items() if dataset is None]
    if len(missing) == 1 and data.path is None and data.val_split != NO_SPLIT:
        raise UserError(f"No {missing[0]} was given: expected both train_set and val_set, or data.path for the other.")
    for name, dataset in given.items():
        if dataset is not None:
            check_protocol(dataset, name)
    if train_set is None and val_set is None:
        train_set, val_set = open_splits(data, **options)
    if train_set is None:
        train_set = open_dataset(data.path, data.train_split, keep_empty=data.keep_empty, **options)
    if val_set is None and data.val_split != NO_SPLIT:
        val_set = open_dataset(data.path, data.val_split, **options)
    if train_set.num_empty and not data.keep_empty:
        raise UserError(
            f"data.keep_empty is False, but train_set has {train_set.num_empty} images without objects: leave them out "
            "of train_set, or set data.keep_empty True."
        )
    return train_set, val_set


def run_evaluation(trainer: Trainer, interruption: Interruption) -> dict[str, Any]:
    """Evaluate and record the scores: the ``report``, and whether it ``is_best``."""
    with trainer.clock.evaluating():
        with interruption.immediately():
            scores = trainer.evaluate()
        is_best = trainer.record(scores)
    return {"report": scores.report, "is_best": is_best}


def train(
    experiment: Experiment,
    output: Path | str,
    *,
    resume: bool = False,
    train_set: Dataset | None = None,
    val_set: Dataset | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Run ``training`` to its end, with a progress bar (on terminals) or plain lines on stderr.

    Args:
        experiment: settings.
        output: folder of the run.
        resume: continue the run in ``output``.
        train_set: any object with the ``Dataset`` protocol, instead of ``experiment.data.path``.
        val_set: likewise, for validation.
        quiet: show warnings only.

    Raises:
        UserError: invalid settings, data or folder, or training diverged.
    """
    with display(quiet=quiet or not is_main_process()) as shown:
        options: dict[str, Any] = {"resume": resume, "train_set": train_set, "val_set": val_set}
        steps = training(experiment, output, **options, on_evaluation=shown.show_evaluation)
        while True:
            try:
                shown.show(next(steps))
            except StopIteration as end:
                result: TrainResult = end.value
                return result
