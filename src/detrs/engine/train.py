"""Training, readable from top to bottom: ``training`` is the loop, ``train`` consumes it and shows progress."""

import dataclasses
import logging
import time
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrs import config
from detrs.config import Experiment
from detrs.engine.interruption import Interrupted, Interruption
from detrs.engine.journal import StepReport, display, format_scores
from detrs.engine.run import RunFolder
from detrs.engine.runtime import Runtime, is_main_process
from detrs.engine.trainer import Trainer

logger = logging.getLogger("detrs")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run came to."""

    output: Path
    checkpoint: Path
    """``best.safetensors``: the best weights, with all that is needed to predict."""
    scores: dict[str, Any]
    """Scores of the best weights on the validation split: ``ap``, ``ap50``, ... (``None``: undefined)."""
    best_step: int
    """Optimizer steps done when they were scored."""
    steps: int
    """Optimizer steps done in all."""
    seconds: float
    """Wall-clock time of the whole run, earlier parts of a resumed run included."""


def training(
    experiment: Experiment, output: Path | str, *, resume: bool = False
) -> Generator[StepReport, None, TrainResult]:
    """Train, one optimizer step per iteration; files appear in ``output`` as described in ``engine.run``.

    SIGTERM and Ctrl-C finish the step, save and raise ``SystemExit`` with 143 or 130. Closing the generator saves, too,
    and so does any error outside of a step.

    Args:
        experiment: what to train on what; the number of classes comes from the data.
        output: folder of the run.
        resume: continue the run in ``output``; on a CPU the weights come out as if it had never stopped, to the bit.

    Yields:
        A ``StepReport`` after each step, with the scores where an evaluation followed it.

    Raises:
        UserError: settings, data or folder are at fault, or training diverged.
    """
    began = time.monotonic()
    config.validate(experiment)
    runtime = Runtime(experiment.runtime, unused_parameters=not experiment.criterion.auxiliary)
    folder = RunFolder(Path(output))
    if runtime.is_main:
        folder.check(resume=resume)
    trainer = Trainer(experiment, folder, runtime, began=began, pretrained=not resume)

    with folder.open(resume=resume) if runtime.is_main else nullcontext(), Interruption() as interruption:
        if resume:
            trainer.restore()
        runtime.wait_for_all()  # until every process has read what the main one may change now
        if runtime.is_main:
            folder.save_experiment(trainer.experiment)
        try:
            if trainer.is_evaluation_due():  # the run was stopped in the middle of it
                found = evaluated(trainer, interruption)
                logger.info("step %d, scored now: %s", trainer.state.step, format_scores(**found))
                trainer.save()
            if resume and trainer.is_finished():
                logger.warning("this run is finished; to go on, give it more --epochs or --max-minutes")
            trainer.clock.begin_steps()
            while not trainer.is_finished():
                for batches in trainer.batches():
                    report = trainer.step(batches)
                    if signum := runtime.largest(interruption.signum):
                        raise Interrupted(signum)
                    if trainer.is_evaluation_due():
                        trainer.save_before_evaluation()
                        found = evaluated(trainer, interruption)
                        report = dataclasses.replace(report, evaluation=found["report"], is_best=found["is_best"])
                    if trainer.is_save_due() or trainer.is_finished():
                        trainer.save()
                    yield report
                    if trainer.is_finished():
                        break
        except (Interrupted, GeneratorExit) as stop:
            if not (isinstance(stop, Interrupted) and stop.at_once):
                trainer.stop()
            raise
        except Exception as error:
            # A signal for the whole process group also kills loader processes, whose death is raised here.
            if interruption.signum and trainer.state.is_whole:
                trainer.stop()
                raise Interrupted(interruption.signum) from error
            trainer.rescue()
            raise
    return TrainResult(
        output=folder.path,
        checkpoint=folder.best,
        scores=trainer.state.best_scores or {},
        best_step=trainer.state.best_step,
        steps=trainer.state.step,
        seconds=trainer.clock.used(),
    )


def evaluated(trainer: Trainer, interruption: Interruption) -> dict[str, Any]:
    """Score the weights and remember the scores: ``report``, and whether it ``is_best``."""
    with trainer.clock.evaluating():
        with interruption.immediately():
            scores = trainer.evaluate()
        is_best = trainer.record(scores)
    return {"report": scores.report, "is_best": is_best}


def train(experiment: Experiment, output: Path | str, *, resume: bool = False, quiet: bool = False) -> TrainResult:
    """Consume ``training``, with a progress bar (on terminals) or plain lines on the standard error stream.

    Args:
        experiment: what to train on what.
        output: folder of the run.
        resume: continue the run in ``output``.
        quiet: warnings only.

    Raises:
        UserError: settings, data or folder are at fault, or training diverged.
    """
    with display(quiet=quiet or not is_main_process()) as shown:
        steps = training(experiment, output, resume=resume)
        while True:
            try:
                shown.show(next(steps))
            except StopIteration as end:
                result: TrainResult = end.value
                return result
