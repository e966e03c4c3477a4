"""The parts of a run, and what is done with them: an optimizer step, an evaluation, a save."""

import dataclasses
import importlib.metadata
import logging
import math
from collections.abc import Iterator
from typing import Any, NoReturn

import torch

from detrs import config, models
from detrs.config import Experiment
from detrs.criterion.set_criterion import SetCriterion
from detrs.data import open_dataset
from detrs.data.collate import normalize
from detrs.data.loader import steps_per_epoch, training_batches
from detrs.data.overlap import overlap
from detrs.data.sample import Dataset
from detrs.engine.average import Average
from detrs.engine.clock import Clock
from detrs.engine.detector_file import save_detector
from detrs.engine.evaluate import Scores, check_same_classes, evaluate, evaluation_batch_size
from detrs.engine.journal import Metrics, StepReport
from detrs.engine.optimizer import build_optimizer, set_lr
from detrs.engine.pictures import save_predictions, save_training_batch
from detrs.engine.run import RunFolder
from detrs.engine.runtime import Runtime, seed_everything
from detrs.engine.schedule import Pace, lr_factor
from detrs.engine.state import TrainingState
from detrs.errors import UserError
from detrs.explain.curves import results_figure
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
        self.train_set = open_dataset(
            experiment.data.path, experiment.data.train_split, keep_empty=experiment.data.keep_empty
        )
        self.val_set = open_dataset(experiment.data.path, experiment.data.val_split)
        self.classes = self.train_set.classes
        self.experiment = for_data(experiment, self.train_set, self.val_set)
        self.steps_per_epoch = steps_per_epoch(len(self.train_set), experiment.data.batch_size)
        self.total_steps = experiment.schedule.epochs * self.steps_per_epoch
        self.clock = Clock(
            Pace(self.total_steps, experiment.schedule.max_minutes * 60),
            runtime,
            began=began,
            steps_to_evaluate=len(self.val_set) / experiment.data.batch_size,
        )
        self.criterion = SetCriterion(experiment.criterion)
        self.metrics = Metrics(folder.metrics, experiment.runtime.log_every, writes=runtime.is_main)

        seed_everything(experiment.seed)
        with runtime.main_first():
            detector = models.build(self.experiment.model, pretrained=pretrained).to(runtime.device).train()
        optimizer = build_optimizer(detector, experiment.optimizer)
        self.state = TrainingState(detector, Average(detector, experiment.optimizer.ema_decay), optimizer)
        if experiment.runtime.checkpoint_activations:
            checkpoint_activations(detector.encoder.layers)
            checkpoint_activations(detector.decoder.layers)
        self.model, self.optimizer = runtime.prepare(detector, optimizer)

        sizes = len(self.train_set), len(self.val_set), len(self.classes.names)
        logger.info("training on %d images, validating on %d, %d classes", *sizes)
        for split, dataset in (
            (experiment.data.train_split, self.train_set),
            (experiment.data.val_split, self.val_set),
        ):
            for note in dataset.notes:
                logger.info("%s: %s", split, note)
        for note in overlap(self.train_set, self.val_set) if runtime.is_main else ():
            logger.warning("%s", note)

    def restore(self) -> None:
        """Continue where the run in the folder stopped.

        Raises:
            UserError: it was another run, its data have changed, or no state of it is whole.
        """
        self.folder.check_unchanged(self.experiment)
        checkpoint = self.folder.load_last()
        if checkpoint.meta["fingerprints"] != self.fingerprints():
            raise UserError(
                f"The data set '{self.experiment.data.path}' is not what the run in '{self.folder.path}' began with: "
                "restore it, or start a new run."
            )
        state = self.state
        state.restore(checkpoint)
        self.runtime.load_scaler_state(checkpoint.meta["scaler"])
        self.metrics.resume(checkpoint.meta["metrics"], state.step, evaluated=state.evaluated_step == state.step)
        self.clock.seconds_before = checkpoint.meta["seconds"]
        self.clock.look()
        logger.info("resuming after step %d of %d", state.step, self.total_steps)

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

        Every loss is a sum over objects. Divided by the number of objects in the whole batch (times the number of
        processes, whose gradients are averaged), it does not depend on how the batch is divided.

        Returns:
            ``total`` loss, its terms, and the ``grad_norm`` before clipping.
        """
        backbone = self.experiment.model.backbone
        num_objects = sum(len(target.labels) for batch in batches for target in batch.targets)
        num_boxes = max(self.runtime.total(num_objects), 1) / self.runtime.world_size
        sums: dict[str, Any] = {}
        for number, batch in enumerate(batches, start=1):
            batch = normalize(batch.to(self.runtime.device), backbone.mean, backbone.std)
            with self.runtime.micro_batch(self.model, last=number == len(batches)):
                losses = self.criterion(self.model(batch.images, batch.padding), batch.targets, num_boxes)
                self.runtime.backward(losses.total)
            for name, value in {"total": losses.total.detach(), **losses.terms}.items():
                sums[name] = sums.get(name, 0.0) + value
        values = self.runtime.mean(torch.stack(list(sums.values())))
        grad_norm = self.runtime.clip(self.state.detector.parameters(), self.experiment.optimizer.clip_norm)
        numbers = torch.cat([values, grad_norm[None]]).tolist()  # the only wait for the device in a step
        return dict(zip([*sums, "grad_norm"], numbers, strict=True))

    def evaluate(self) -> Scores:
        """Score the averaged weights on the validation split."""
        experiment = self.experiment
        return evaluate(
            self.state.average.module,
            self.val_set,
            image_size=experiment.data.image_size,
            batch_size=evaluation_batch_size(experiment),
            mean=experiment.model.backbone.mean,
            std=experiment.model.backbone.std,
            runtime=self.runtime,
            max_detections=experiment.evaluation.max_detections,
            workers=experiment.runtime.workers,
            names=self.classes.names,
        )

    def record(self, scores: Scores) -> bool:
        """Remember the scores, draw curves and predictions, and save the weights if they are the best so far."""
        state, folder, report = self.state, self.folder, scores.report
        before, ap = (state.best_scores or {}).get("ap") or 0.0, report.ap or 0.0
        is_best = state.best_scores is None or ap >= before
        is_gain = state.best_scores is None or ap > before
        state.evaluations_without_gain = 0 if is_gain else state.evaluations_without_gain + 1
        state.evaluated_step = state.step
        if is_best:
            state.best_scores, state.best_step = report.scalars(), state.step
        self.clock.look()
        epoch = (state.step - 1) // self.steps_per_epoch + 1
        self.metrics.evaluation(report, step=state.step, epoch=epoch, seconds=self.clock.seconds)
        if self.runtime.is_main:
            if is_best:
                save_detector(
                    folder.best,
                    state.average.module,
                    self.experiment,
                    self.classes,
                    scores=report.scalars(),
                    step=state.step,
                    epoch=epoch,
                )
                save_predictions(self.val_set, scores.results, folder.predictions)
            results_figure(folder.metrics, folder.results)
        return is_best

    def save(self) -> None:
        """Write ``last``, from which the run can be continued to the bit."""
        if not self.runtime.is_main:
            return
        with self.clock.saving_state():
            self.folder.save_last(
                self.state.tensors(),
                {
                    "detrs": importlib.metadata.version("detrs"),
                    "experiment": config.to_dict(self.experiment),
                    "fingerprints": self.fingerprints(),
                    "metrics": self.metrics.state(),
                    "scaler": self.runtime.scaler_state(),
                    "seconds": self.clock.used(),
                    **self.state.meta(),
                },
            )

    def is_finished(self) -> bool:
        """Whether no step is left: by epochs, by the time budget, or by lack of progress."""
        patience = self.experiment.evaluation.patience
        is_over = self.clock.progress(self.state.step) >= 1 or 0 < patience <= self.state.evaluations_without_gain
        return self.state.step > 0 and is_over

    def is_evaluation_due(self) -> bool:
        """Whether the weights after the last step are to be scored, and have not been."""
        epoch, step_of_epoch = divmod(self.state.step, self.steps_per_epoch)
        regular = step_of_epoch == 0 and epoch % self.experiment.evaluation.every_epochs == 0
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


def for_data(experiment: Experiment, train_set: Dataset, val_set: Dataset) -> Experiment:
    """The experiment with the number of classes of its data.

    Raises:
        UserError: the two splits have different classes, or an image has more objects than the model has queries.
    """
    data, names = experiment.data, train_set.classes.names
    check_same_classes(names, val_set.classes.names, f"the split '{data.train_split}'", f"the split '{data.val_split}'")
    if train_set.max_objects > experiment.model.num_queries:
        raise UserError(
            f"An image of '{data.path}' has {train_set.max_objects} objects, but the model can find only "
            f"{experiment.model.num_queries} in one image: raise model.num_queries above {train_set.max_objects}."
        )
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, num_classes=len(names)))
