"""The parts of a run: data, model, optimizer, and what is done with them."""

import dataclasses
import logging
from collections.abc import Callable, Iterator

from detrs import models
from detrs.checkpoints.detector import DEFAULT_THRESHOLD, TrainedDetector, preprocessing_of, save_detector
from detrs.config import Experiment
from detrs.config.data import most_objects, without_strong_augmentation
from detrs.data.loader import check_skipped, steps_per_epoch, training_batches
from detrs.data.overlap import overlap
from detrs.data.protocol import checked_ground_truth
from detrs.data.sample import Dataset
from detrs.engine.average import Average
from detrs.engine.clock import Clock
from detrs.engine.compatibility import for_data, object_limit
from detrs.engine.evaluate import Scores, evaluate
from detrs.engine.figures import save_curves, save_predictions, save_training_batch
from detrs.engine.finetuning import initialize
from detrs.engine.journal import Metrics, StepReport, summary
from detrs.engine.optimizer import build_optimizer
from detrs.engine.run import RunFolder
from detrs.engine.runtime import Runtime
from detrs.engine.saving import Saver
from detrs.engine.state import TrainingState, named_parameters
from detrs.engine.step import Step
from detrs.engine.tracking import Tracking
from detrs.errors import UserError
from detrs.evaluation.thresholds import f1_thresholds
from detrs.files import free_bytes
from detrs.isolation import random_streams
from detrs.layers.activation_checkpointing import checkpoint_activations
from detrs.structures import Batch

logger = logging.getLogger("detrs")

DRAWN_BATCHES = 3
"""First batches that are drawn with their labels."""
PATH_OF_OBJECTIVE = (0, 1)
"""For ``random_streams``: initialization of parameters that only training has. Those of steps start with their number,
from 1."""


class Trainer:
    """Everything one run consists of.

    Args:
        experiment: settings; the number of classes comes from the data.
        train_set: training split.
        val_set: validation split; ``None`` to train without validation.
        folder: output.
        runtime: device and processes.
        began: ``time.monotonic()`` when the run began.
        resume: the weights will be restored.
        initial: detector whose weights training starts from; ``None``: those of the backbone, or ``resume``.

    Raises:
        UserError: the data do not fit the experiment.
    """

    def __init__(
        self,
        experiment: Experiment,
        train_set: Dataset,
        val_set: Dataset | None,
        folder: RunFolder,
        runtime: Runtime,
        *,
        began: float,
        resume: bool,
        initial: TrainedDetector | None = None,
    ) -> None:
        self.train_set, self.val_set, self.folder, self.runtime = train_set, val_set, folder, runtime
        self.classes = train_set.classes
        self.on_images: Callable[[int, int], None] | None = None
        """Called during an evaluation with the number of images done, and of all images."""
        experiment = for_data(experiment, train_set, train_set if val_set is None else val_set)
        self.max_objects = object_limit(experiment, train_set.max_objects)
        self.preprocessing = preprocessing_of(experiment)
        self.clock = Clock(
            experiment,
            runtime,
            steps_per_epoch=steps_per_epoch(len(train_set), experiment.data.batch_size),
            began=began,
            steps_to_evaluate=None if val_set is None else len(val_set) / experiment.data.batch_size,
        )
        self.metrics = Metrics(folder.metrics, experiment.runtime.log_every, writes=runtime.is_main)
        self.tracking = Tracking(runtime, folder)
        self.metrics.on_line = self.tracking.line

        pretrained = not resume and initial is None
        with runtime.main_first(), random_streams(experiment.seed):
            detector = models.build(experiment.model, pretrained=pretrained).to(runtime.device).train()
        if initial is not None:
            initialize(detector, initial, experiment, self.classes)
        detector = runtime.synchronize_batch_norm(detector)
        with runtime.main_first(), random_streams(experiment.seed, *PATH_OF_OBJECTIVE):
            objective = detector.objective(experiment.criterion).to(runtime.device)
        parts = objective.training_parts
        own = {*objective.parameters()} - {*detector.parameters()}
        assert own == {*parts.parameters()}, "parameters of an objective that are not in its training_parts"
        optimizer = build_optimizer(named_parameters(detector, parts), experiment.optimizer)
        decay = experiment.optimizer.ema_decay
        average = None if decay is None else Average(detector, decay)
        self.state = TrainingState(detector, average, optimizer, training_parts=parts)
        if experiment.runtime.checkpoint_activations and not checkpoint_activations(detector):
            raise UserError("runtime.checkpoint_activations is True, but the model has no encoder or decoder layers.")
        wrapped, prepared = runtime.prepare(objective, optimizer)
        self.optimizer_step = Step(experiment, wrapped, prepared, self.state, self.preprocessing, self.clock, runtime)
        shared = self.state, self.metrics, self.clock, runtime
        self.saver = Saver(experiment, folder, train_set, val_set, *shared, self.write_best)
        if runtime.is_main:
            self.log_data(experiment, is_new=not resume)

    @property
    def experiment(self) -> Experiment:
        return self.saver.experiment

    def log_data(self, experiment: Experiment, *, is_new: bool) -> None:
        """Log the size of the data, notes about them, and settings that do not suit them."""
        data = experiment.data
        val_size = 0 if self.val_set is None else len(self.val_set)
        sizes = len(self.train_set), val_size, len(self.classes.names)
        logger.info("%s", summary(experiment, self.state.detector, sizes, self.runtime.device, self.folder.path))
        for split, dataset in ((data.train_split, self.train_set), (data.val_split, self.val_set)):
            for note in dataset.notes if dataset is not None else ():
                logger.info("%s: %s", split, note)
        for note in overlap(self.train_set, self.val_set) if is_new and self.val_set is not None else ():
            logger.warning("%s", note)
        if len(self.train_set) < data.batch_size:
            logger.warning(
                "%d training images for a batch size of %d: images repeat within a batch; lower --batch-size",
                *(len(self.train_set), data.batch_size),
            )
        if self.max_objects is not None:
            logger.warning(
                "an image of mosaic or mixup can have up to %d objects, but the model detects at most %d: the largest "
                "are kept; to train on all, raise --model.num-queries",
                *(most_objects(data, self.train_set.max_objects), self.max_objects),
            )
        free, planned = free_bytes(self.folder.path), self.state.planned_bytes()
        if free is not None and free < planned:
            logger.warning(
                "%s has %.1f GB of free space, but the checkpoints need about %.1f GB",
                *(self.folder.path, free / 1e9, planned / 1e9),
            )
        if experiment.model.backbone.norm == "batch" and experiment.runtime.accumulate > 1:
            logger.warning("BatchNorm uses the statistics of each micro-batch, so runtime.accumulate changes results")

    def batches(self) -> Iterator[tuple[Batch, ...]]:
        """The rest of the current epoch: for each step the micro-batches of this process.

        Raises:
            UserError: more than 1 % of the images cannot be read, over all processes.
        """
        epoch, first_step = divmod(self.state.step, self.clock.steps_per_epoch)
        data, before = self.experiment.data, self.clock.epoch_began
        self.clock.begin_epoch(self.state.step)
        is_strong = self.clock.epoch_began < data.strong_until
        if before < data.strong_until and not is_strong and without_strong_augmentation(data) != data:
            logger.info("epoch %d begins without large-scale jitter, mosaic and mixup", epoch + 1)
        skipped: set[int] = set()
        steps = training_batches(
            self.train_set,
            data,
            seed=self.experiment.seed,
            epoch=epoch,
            first_step=first_step,
            workers=self.experiment.runtime.workers,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            accumulate=self.experiment.runtime.accumulate,
            pin_memory=self.runtime.device.type == "cuda",
            is_strong=is_strong,
            max_objects=self.max_objects,
            skipped=skipped,
        )
        for step, batches in enumerate(steps, first_step + 1):
            if step == self.clock.steps_per_epoch:
                check_skipped({*self.runtime.gather([*skipped])}, self.train_set)
            yield batches

    def step(self, batches: tuple[Batch, ...]) -> StepReport:
        """One optimizer step.

        Raises:
            UserError: training diverged.
        """
        if self.state.step < DRAWN_BATCHES and self.runtime.is_main:
            path = self.folder.path / f"train_batch_{self.state.step}.jpg"
            save_training_batch(batches[0], self.classes.names, path)
        report = self.optimizer_step(batches)
        self.metrics.step(report)
        return report

    def evaluate(self) -> Scores:
        """Score the current weights, or their average, on the validation split."""
        assert self.val_set is not None
        detector = self.snapshot()
        self.runtime.copy_from_main(detector.module.buffers())  # BatchNorm statistics differ between processes
        workers = self.experiment.runtime.workers
        return evaluate(detector, self.val_set, self.runtime, workers=workers, on_images=self.on_images)

    def snapshot(self) -> TrainedDetector:
        """The detector as it is now."""
        return TrainedDetector(
            module=self.state.evaluated,
            classes=self.classes,
            preprocessing=self.preprocessing,
            experiment=self.experiment,
            scores={},
            step=self.state.step,
            epoch=self.clock.epoch(self.state.step),
            precision=self.runtime.precision,
        )

    def record(self, scores: Scores) -> bool:
        """Save the weights if they are the best so far, keep the scores, and draw curves and predictions.

        Returns:
            Whether they are the best.
        """
        assert self.val_set is not None
        state, folder, report = self.state, self.folder, scores.report
        before, ap = (state.best_scores or {}).get("ap") or 0.0, report.ap or 0.0
        is_best = state.best_scores is None or ap >= before
        is_gain = state.best_scores is None or ap > before
        # After resuming from an older state, the file may be better than anything in this state.
        stored, self.saver.stored_best = self.saver.stored_best, None
        is_kept = stored is not None and (stored["scores"]["ap"] or 0.0) > max(ap, before)
        is_best = is_best and not is_kept
        self.clock.update()
        threshold = None
        if self.runtime.is_main and is_best:
            threshold, of_classes = f1_thresholds(checked_ground_truth(self.val_set), scores.results)
            best = dataclasses.replace(
                self.snapshot(), scores=report.scalars(), threshold=threshold, class_thresholds=of_classes
            )
            save_detector(folder.best, best)
        epoch = self.clock.epoch(state.step)
        self.metrics.evaluation(report, step=state.step, epoch=epoch, seconds=self.clock.seconds)
        state.evaluations_without_gain = 0 if is_gain else state.evaluations_without_gain + 1
        state.evaluated_step = state.step
        if is_best:
            state.best_scores, state.best_step = report.scalars(), state.step
        elif stored is not None and is_kept:
            state.best_scores, state.best_step = stored["scores"], stored["step"]
            logger.warning("kept best.safetensors of step %d, which has a higher AP", state.best_step)
        if self.runtime.is_main:
            if is_best:
                shown = DEFAULT_THRESHOLD if threshold is None else threshold
                save_predictions(self.val_set, scores.results, folder.predictions, shown)
                self.tracking.image("val_predictions", folder.predictions, state.step)
            save_curves(folder.metrics, folder.results, self.clock.steps_per_epoch)
        return is_best

    def write_best(self) -> None:
        """Without validation: save the current weights, or their average, as ``best``, and draw the curves."""
        save_detector(self.folder.best, self.snapshot())
        if self.folder.metrics.exists():
            save_curves(self.folder.metrics, self.folder.results, self.clock.steps_per_epoch)
