"""The parts of a run, and what is done with them: an optimizer step, an evaluation, a save."""

import dataclasses
import importlib.metadata
import logging
import math
import shlex
from collections.abc import Iterator
from typing import Any, NoReturn

import torch

from detrs import config, models
from detrs.checkpoints import format
from detrs.classification import classification_of
from detrs.config import Experiment
from detrs.criterion.set_criterion import SetCriterion, Totals
from detrs.data import open_dataset
from detrs.data.collate import normalize
from detrs.data.loader import steps_per_epoch, training_batches, worker_failure
from detrs.data.overlap import overlap
from detrs.engine.average import Average
from detrs.engine.clock import Clock
from detrs.engine.detector_file import save_detector
from detrs.engine.evaluate import Scores, evaluate, evaluation_batch_size
from detrs.engine.figures import save_curves, save_predictions, save_training_batch
from detrs.engine.fitting import check_divisible, for_data
from detrs.engine.journal import Metrics, StepReport
from detrs.engine.optimizer import build_optimizer, set_lr
from detrs.engine.run import RunFolder
from detrs.engine.runtime import Runtime, seed_everything
from detrs.engine.schedule import Pace, lr_factor
from detrs.engine.state import TrainingState
from detrs.errors import UserError
from detrs.layers.repeat import checkpoint_activations
from detrs.structures import Batch

logger = logging.getLogger("detrs")

MAX_FAILURES = 3
"""Steps in a row without a finite loss and gradient after which a run stops."""
PICTURED_BATCHES = 3
"""First batches that are drawn with their labels."""


class Trainer:
    """Everything one run consists of.

    Args:
        experiment: what to train; the number of classes comes from the data.
        folder: where to write.
        runtime: where to run.
        began: ``time.monotonic()`` when the run began.
        pretrained: start the backbone from pretrained weights; not needed for a run that is resumed.

    Raises:
        UserError: the data cannot be read or do not fit the experiment.
    """

    def __init__(
        self, experiment: Experiment, folder: RunFolder, runtime: Runtime, *, began: float, pretrained: bool
    ) -> None:
        self.folder, self.runtime = folder, runtime
        data, cache_gib = experiment.data, experiment.runtime.cache_gib
        self.train_set = open_dataset(data.path, data.train_split, keep_empty=data.keep_empty, cache_gib=cache_gib)
        self.val_set = open_dataset(data.path, data.val_split, cache_gib=cache_gib)
        self.classes = self.train_set.classes
        self.experiment = for_data(experiment, self.train_set, self.val_set)
        check_divisible(experiment.data.batch_size, runtime.world_size, experiment.runtime.accumulate)
        self.steps_per_epoch = steps_per_epoch(len(self.train_set), experiment.data.batch_size)
        self.total_steps = experiment.schedule.epochs * self.steps_per_epoch
        self.clock = Clock(
            Pace(self.total_steps, experiment.schedule.max_minutes * 60),
            runtime,
            began=began,
            steps_to_evaluate=len(self.val_set) / experiment.data.batch_size,
        )
        self.criterion = SetCriterion(experiment.criterion, experiment.model.classification)
        self.metrics = Metrics(folder.metrics, experiment.runtime.log_every, writes=runtime.is_main)

        seed_everything(experiment.seed)
        with runtime.main_first():
            detector = models.build(self.experiment.model, pretrained=pretrained).to(runtime.device).train()
        detector = runtime.synchronize_batch_norm(detector)
        optimizer = build_optimizer(detector, experiment.optimizer)
        self.state = TrainingState(detector, Average(detector, experiment.optimizer.ema_decay), optimizer)
        if experiment.runtime.checkpoint_activations:
            checkpoint_activations(detector.encoder.layers)
            checkpoint_activations(detector.decoder.layers)
        self.model, self.optimizer = runtime.prepare(detector, optimizer)
        self.saved: tuple[int, int] | None = None
        """Step and evaluated step of the state that was written or read last."""
        self.stored_best: dict[str, Any] | None = None
        """What a ``best`` that was there before says of itself, until the first evaluation."""

        sizes = len(self.train_set), len(self.val_set), len(self.classes.names)
        logger.info("training on %d images, validating on %d, %d classes", *sizes)
        for split, dataset in ((data.train_split, self.train_set), (data.val_split, self.val_set)):
            for note in dataset.notes:
                logger.info("%s: %s", split, note)
        for note in overlap(self.train_set, self.val_set) if runtime.is_main and pretrained else ():
            logger.warning("%s", note)
        if len(self.train_set) < data.batch_size and runtime.is_main:
            counts = len(self.train_set), data.batch_size
            logger.warning(
                "%d training images for batches of %d: they repeat within a batch; lower --batch-size", *counts
            )
        if self.experiment.model.backbone.norm == "batch" and experiment.runtime.accumulate > 1 and runtime.is_main:
            logger.warning("BatchNorm takes its statistics from one micro-batch at a time: accumulation changes them")

    def restore(self) -> None:
        """Continue where the run in the folder stopped.

        Raises:
            UserError: it was another run, its data have changed, or no state of it is whole.
        """
        self.folder.check_unchanged(self.experiment)
        checkpoint = self.folder.load_last()
        self.check_data(checkpoint.meta)
        try:
            self.state.restore(checkpoint)
            self.look_at_best()
            is_evaluated = self.state.evaluated_step == self.state.step
            self.metrics.resume(checkpoint.meta["metrics"], self.state.step, evaluated=is_evaluated)
            self.runtime.load_scaler_state(checkpoint.meta["scaler"])
            self.clock.resume(checkpoint.meta["clock"])
        except (KeyError, RuntimeError) as error:
            version, reason = checkpoint.meta.get("detrs", "unknown"), str(error).partition("\n")[0]
            raise UserError(
                f"The training state in '{self.folder.path}' was written by detrs {version}, and this is "
                f"{importlib.metadata.version('detrs')}, which cannot continue it ({reason}): use that version."
            ) from error
        self.saved = self.state.step, self.state.evaluated_step
        logger.info("resuming after step %d of %d", self.state.step, self.total_steps)

    def check_data(self, meta: dict[str, Any]) -> None:
        """Refuse data that changed since ``meta`` was saved; different pictures can be allowed, other classes cannot.

        Raises:
            UserError: saying what changed, and what to do.
        """
        data, output = self.experiment.data, self.folder.path
        before, now = meta.get("class_names", list(self.classes.names)), list(self.classes.names)
        if before != now:
            raise UserError(
                f"The run in '{output}' began with the classes {', '.join(before)}; the data set '{data.path}' has "
                f"{', '.join(now)} now: restore it, or start a new run."
            )
        prints = self.fingerprints()
        changed = [getattr(data, f"{split}_split") for split in prints if prints[split] != meta["fingerprints"][split]]
        splits = " and ".join(f"'{split}'" for split in changed)
        if changed and not self.experiment.runtime.allow_changed_data:
            raise UserError(
                f"The data set '{data.path}' is not what the run in '{output}' began with: {splits} changed. Restore "
                "it, start a new run, or go on with what is there now: --runtime.allow-changed-data True"
            )
        if changed:
            logger.warning("going on although %s changed: scores before and after may not be comparable", splits)
        runtime = dataclasses.replace(self.experiment.runtime, allow_changed_data=False)  # this once
        self.experiment = dataclasses.replace(self.experiment, runtime=runtime)

    def look_at_best(self) -> None:
        """Compare ``best`` with the state: it may come from steps that the state has not seen, or be lost."""
        try:
            self.stored_best = format.read_meta(self.folder.best)
        except UserError as error:
            if self.state.best_scores is not None:
                logger.warning("%s The next evaluation writes a new one.", error)
            self.state.best_scores, self.state.evaluated_step = None, 0

    def batches(self) -> Iterator[tuple[Batch, ...]]:
        """What is left of the current epoch: for each step the micro-batches of this process."""
        epoch, first_step = divmod(self.state.step, self.steps_per_epoch)
        yield from training_batches(
            self.train_set,
            self.experiment.data,
            seed=self.experiment.seed,
            epoch=epoch,
            first_step=first_step,
            workers=self.experiment.runtime.workers,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            accumulate=self.experiment.runtime.accumulate,
            pin_memory=self.runtime.device.type == "cuda",
        )

    def step(self, batches: tuple[Batch, ...]) -> StepReport:
        """One optimizer step; left out, and counted, when the loss or its gradient is not finite.

        Raises:
            UserError: it was left out for the third time in a row.
        """
        experiment, state = self.experiment, self.state
        if state.step < PICTURED_BATCHES and self.runtime.is_main:
            path = self.folder.path / f"train_batch_{state.step}.jpg"
            save_training_batch(batches[0], self.classes.names, path)
        progress = self.clock.progress(state.step)
        lr = experiment.optimizer.lr * lr_factor(experiment.schedule, state.step, progress, experiment.data.batch_size)
        set_lr(state.optimizer, lr)
        # Dropout is a function of seed, step and process, like the data: a resumed run need not remember a stream.
        seed_everything(experiment.seed, state.step + 1, self.runtime.rank)
        terms = self.backward(batches)
        loss, grad_norm = terms.pop("total"), terms.pop("grad_norm")

        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        state.is_whole = False
        if finite:
            self.optimizer.step()
            state.average.update()
            state.failures = 0
        elif not self.runtime.back_off() or not math.isfinite(loss):
            state.failures += 1
        self.optimizer.zero_grad()
        if state.failures == MAX_FAILURES:
            self.give_up(batches, loss, grad_norm, terms, lr)
        state.step += 1
        state.is_whole = True

        step_seconds = self.clock.end_step()
        report = StepReport(
            step=state.step,
            total_steps=self.total_steps,
            epoch=(state.step - 1) // self.steps_per_epoch + 1,
            epochs=experiment.schedule.epochs,
            loss=loss,
            terms=terms,
            lr=lr,
            grad_norm=grad_norm,
            skipped=not finite,
            images=experiment.data.batch_size,
            images_per_s=experiment.data.batch_size / step_seconds,
            seconds=self.clock.seconds,
            progress=self.clock.progress(state.step),
            memory_bytes=self.runtime.memory_bytes(),
        )
        self.metrics.step(report)
        return report

    def backward(self, batches: tuple[Batch, ...]) -> dict[str, float]:
        """Gradient of the whole batch, over all micro-batches and processes, clipped.

        Every loss is a sum. Divided by what the whole batch holds (``Totals``), it does not depend on how the batch is
        divided.

        Returns:
            ``total`` loss, its terms, and the ``grad_norm`` before clipping.
        """
        backbone = self.experiment.model.backbone
        num_objects = sum(len(target.labels) for batch in batches for target in batch.targets)
        totals = Totals(self.experiment.data.batch_size, self.runtime.total(num_objects), self.runtime.world_size)
        sums: dict[str, Any] = {}
        for number, batch in enumerate(batches, start=1):
            batch = normalize(batch.to(self.runtime.device), backbone.mean, backbone.std)
            with self.runtime.micro_batch(self.model, last=number == len(batches)):
                losses = self.criterion(self.model(batch.images, batch.padding), batch.targets, totals)
                self.runtime.backward(losses.total)
            for name, value in {"total": losses.total.detach(), **losses.terms}.items():
                sums[name] = sums.get(name, 0.0) + value
        values = self.runtime.mean(torch.stack(list(sums.values())))
        grad_norm = self.runtime.clip(self.state.detector.parameters(), self.experiment.optimizer.clip_norm)
        numbers = torch.cat([values, grad_norm[None]]).tolist()  # the only wait for the device in a step
        return dict(zip([*sums, "grad_norm"], numbers, strict=True))

    def evaluate(self) -> Scores:
        """Score the averaged weights on the validation split."""
        experiment, detector = self.experiment, self.state.average.module
        self.runtime.copy_from_main(detector.buffers())  # statistics of BatchNorm are of each process's own pictures
        return evaluate(
            detector,
            self.val_set,
            image_size=experiment.data.image_size,
            batch_size=evaluation_batch_size(experiment),
            mean=experiment.model.backbone.mean,
            std=experiment.model.backbone.std,
            runtime=self.runtime,
            max_detections=experiment.evaluation.max_detections,
            workers=experiment.runtime.workers,
            names=self.classes.names,
            classification=classification_of(experiment.model.classification),
        )

    def record(self, scores: Scores) -> bool:
        """Save the weights if they are the best so far, remember the scores, and draw curves and predictions."""
        state, folder, report = self.state, self.folder, scores.report
        before, ap = (state.best_scores or {}).get("ap") or 0.0, report.ap or 0.0
        is_best = state.best_scores is None or ap >= before
        is_gain = state.best_scores is None or ap > before
        # After a resume from an older state the file may be better than anything that this state knows of.
        stored, self.stored_best = self.stored_best, None
        is_kept = stored is not None and (stored["scores"]["ap"] or 0.0) > max(ap, before)
        is_best = is_best and not is_kept
        epoch = (state.step - 1) // self.steps_per_epoch + 1
        self.clock.look()
        if self.runtime.is_main and is_best:
            save_detector(
                folder.best,
                state.average.module,
                self.experiment,
                self.classes,
                scores=report.scalars(),
                step=state.step,
                epoch=epoch,
            )
        self.metrics.evaluation(report, step=state.step, epoch=epoch, seconds=self.clock.seconds)
        state.evaluations_without_gain = 0 if is_gain else state.evaluations_without_gain + 1
        state.evaluated_step = state.step
        if is_best:
            state.best_scores, state.best_step = report.scalars(), state.step
        elif stored is not None and is_kept:
            state.best_scores, state.best_step = stored["scores"], stored["step"]
            logger.warning("kept best.safetensors, which is of step %d and better", state.best_step)
        if self.runtime.is_main:
            if is_best:
                save_predictions(self.val_set, scores.results, folder.predictions)
            save_curves(folder.metrics, folder.results)
        return is_best

    def save(self) -> None:
        """Write ``last``, from which the run can be continued to the bit."""
        if self.runtime.is_main:
            with self.clock.saving_state():
                self.folder.save_last(
                    self.state.tensors(),
                    {
                        "detrs": importlib.metadata.version("detrs"),
                        "experiment": config.to_dict(self.experiment),
                        "class_names": list(self.classes.names),
                        "fingerprints": self.fingerprints(),
                        "metrics": self.metrics.state(),
                        "scaler": self.runtime.scaler_state(),
                        "clock": self.clock.state(),
                        **self.state.meta(),
                    },
                )
        self.saved = self.state.step, self.state.evaluated_step

    def is_saved(self) -> bool:
        """Whether ``last`` holds the state as it is."""
        return self.saved == (self.state.step, self.state.evaluated_step)

    def save_before_evaluation(self) -> None:
        """An evaluation may fail, or be stopped, after minutes: save, unless saves would take too much of the time."""
        if self.is_finished() or self.clock.seconds_since_save() >= 20 * self.clock.saving:
            self.save()

    def stop(self) -> None:
        """Save what is not saved, and say how to go on."""
        if not self.is_saved():
            try:
                self.save()
            except RuntimeError as error:
                if not worker_failure(error):
                    raise
                self.save()  # a loader process, ended by the same signal: raised once, wherever the main process is
        if self.runtime.is_main:
            logger.info("stopped after step %d, saved; go on with: %s", self.state.step, self.resume_command())

    def rescue(self) -> None:
        """Save what the error that ends the run would lose; one more error here must not hide that one."""
        if not self.runtime.is_main or not self.state.is_whole or self.state.step == 0 or self.is_saved():
            return
        try:
            self.save()
        except Exception as error:
            logger.warning("step %d could not be saved: %s", self.state.step, error)
        else:
            logger.warning("an error stopped the run; step %d is saved: %s", self.state.step, self.resume_command())

    def resume_command(self) -> str:
        """What continues the run."""
        return f"detrs train --resume {shlex.quote(str(self.folder.path))}"

    def is_finished(self) -> bool:
        """Whether no step is left: by epochs, by the time budget, or by lack of progress."""
        patience = self.experiment.evaluation.patience
        is_over = self.clock.progress(self.state.step) >= 1 or 0 < patience <= self.state.evaluations_without_gain
        return self.state.step > 0 and is_over

    def is_evaluation_due(self) -> bool:
        """Whether the weights after the last step are to be scored, and have not been."""
        evaluation = self.experiment.evaluation
        regular = self.state.step % (evaluation.every_steps or evaluation.every_epochs * self.steps_per_epoch) == 0
        wanted = self.is_finished() or (regular and self.clock.allows_evaluation())
        return wanted and 0 < self.state.step != self.state.evaluated_step

    def is_save_due(self) -> bool:
        """Whether the last save is long ago, or an epoch is over; saves take a twentieth of the time at most."""
        seconds = self.clock.seconds_since_save()
        is_epoch = self.state.step % self.steps_per_epoch == 0 and seconds >= 20 * self.clock.saving
        return is_epoch or seconds >= 60 * self.experiment.runtime.save_every_minutes

    def fingerprints(self) -> dict[str, str]:
        """What the data were."""
        return {"train": self.train_set.fingerprint(), "val": self.val_set.fingerprint()}

    def give_up(
        self, batches: tuple[Batch, ...], loss: float, grad_norm: float, terms: dict[str, float], lr: float
    ) -> NoReturn:
        """Say all there is to say about a run that diverged."""
        images = [target.image_id for batch in batches for target in batch.targets]
        parts = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        raise UserError(
            f"Training diverged: {MAX_FAILURES} steps in a row, the last being step {self.state.step + 1}, had a loss "
            f"({loss:.4g}: {parts}) or a gradient (norm {grad_norm:.4g}) that is not finite, at learning rate {lr:.3g} "
            f"with the images {images}. The weights were not updated with them. Lower optimizer.lr, or look at these "
            "images and their boxes."
        )
