"""One optimizer step: forward and backward over the micro-batches, clipping, update, average."""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from detrs.config import Experiment
from detrs.data.preprocessing import Preprocessing
from detrs.devices import memory_errors
from detrs.engine.buffers import Buffers
from detrs.engine.clock import Clock
from detrs.engine.journal import StepReport
from detrs.engine.optimizer import set_lr
from detrs.engine.runtime import Runtime
from detrs.engine.schedule import lr_factor
from detrs.engine.state import TrainingState
from detrs.errors import UserError
from detrs.isolation import random_streams
from detrs.structures import Batch, Totals

REMEDY = (
    "Continue with --resume and a higher --runtime.accumulate or --runtime.checkpoint-activations True, or start again "
    "with a lower --batch-size or --image-size"
)
MAX_FAILURES = 3
"""Consecutive steps without a finite loss and gradient after which a run stops."""


class Step:
    """A callable that makes one optimizer step.

    Args:
        experiment: learning rate, clipping, batch size and seed.
        objective: a prepared module, ``Batch`` and ``Totals`` to ``Losses``.
        optimizer: the prepared optimizer of ``state``.
        state: what a step changes.
        preprocessing: normalization of the images.
        clock: progress of the run.
        runtime: device and processes.
    """

    def __init__(
        self,
        experiment: Experiment,
        objective: nn.Module,
        optimizer: Any,
        state: TrainingState,
        preprocessing: Preprocessing,
        clock: Clock,
        runtime: Runtime,
    ) -> None:
        self.experiment, self.objective, self.optimizer, self.state = experiment, objective, optimizer, state
        self.preprocessing, self.clock, self.runtime = preprocessing, clock, runtime
        self.buffers = Buffers(state.detector)

    def __call__(self, batches: tuple[Batch, ...]) -> StepReport:
        """Train on the micro-batches of this process; a step whose loss or gradient is not finite changes nothing.

        Running statistics (BatchNorm) that are not finite count as a loss that is not finite.

        Raises:
            UserError: it is the third in a row to be skipped.
        """
        experiment, state, clock = self.experiment, self.state, self.clock
        batch_size, progress = experiment.data.batch_size, clock.progress(state.step)
        lr = experiment.optimizer.lr * lr_factor(experiment.schedule, state.step, progress, batch_size)
        set_lr(state.optimizer, lr)
        self.buffers.remember()
        largest = max((batch.images for batch in batches), key=Tensor.numel)
        try:
            # Dropout is a function of seed, step and process, like the data, so resuming needs no generator state.
            with random_streams(experiment.seed, state.step + 1, self.runtime.rank), memory_errors(largest, REMEDY):
                terms = self.backward(batches)
        except BaseException:  # the state before the step may be saved
            self.buffers.restore()
            raise
        loss, grad_norm = terms.pop("total"), terms.pop("grad_norm")

        is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        state.is_consistent = False
        if is_finite:
            self.optimizer.step()
            if state.average is not None:
                state.average.update()
            state.failures = 0
        else:
            self.buffers.restore()
            if not self.runtime.back_off() or not math.isfinite(loss):
                state.failures += 1
        self.optimizer.zero_grad()
        if state.failures == MAX_FAILURES:
            self.raise_diverged(batches, loss, grad_norm, terms, lr)
        state.step += 1
        state.is_consistent = True

        step_seconds = clock.end_step()
        return StepReport(
            step=state.step,
            total_steps=clock.total_steps,
            epoch=clock.epoch(state.step),
            epochs=experiment.schedule.epochs,
            loss=loss,
            terms=terms,
            lr=lr,
            grad_norm=grad_norm,
            skipped=not is_finite,
            images=batch_size,
            images_per_s=batch_size / step_seconds,
            seconds=clock.seconds,
            progress=clock.progress(state.step),
            memory_bytes=self.runtime.memory_bytes(),
        )

    def backward(self, batches: tuple[Batch, ...]) -> dict[str, float]:
        """Clipped gradient of the whole batch, over all micro-batches and processes.

        Every loss is a sum divided by counts of the whole batch (``Totals``), so it does not depend on how the batch is
        divided.

        Returns:
            The ``total`` loss, its terms, and the ``grad_norm`` before clipping.
        """
        num_objects = sum(len(target.labels) for batch in batches for target in batch.targets)
        totals = Totals(self.experiment.data.batch_size, self.runtime.total(num_objects), self.runtime.world_size)
        sums: dict[str, Any] = {}
        for number, batch in enumerate(batches, start=1):
            batch = self.preprocessing.normalize(batch.to(self.runtime.device))
            with self.runtime.micro_batch(self.objective, last=number == len(batches)):
                with self.runtime.autocast():
                    losses = self.objective(batch, totals)
                self.runtime.backward(losses.total)
            assert not {"total", "grad_norm"} & losses.terms.keys(), "reserved names"
            for name, value in {"total": losses.total.detach(), **losses.terms}.items():
                sums[name] = sums.get(name, 0.0) + value
        sums["total"] = sums["total"] + self.buffers.zero_or_nan()  # all processes skip the step if one has to
        values = self.runtime.mean(torch.stack(list(sums.values())))
        grad_norm = self.runtime.clip(self.state.named_parameters.values(), self.experiment.optimizer.clip_norm)
        # The only synchronization with the device in a step of a single process; several also reduce their totals.
        numbers = torch.cat([values, grad_norm[None]]).tolist()
        return dict(zip([*sums, "grad_norm"], numbers, strict=True))

    def raise_diverged(
        self, batches: tuple[Batch, ...], loss: float, grad_norm: float, terms: dict[str, float], lr: float
    ) -> NoReturn:
        """Report a run that diverged."""
        images = [target.image_id for batch in batches for target in batch.targets]
        parts = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        raise UserError(
            f"Training diverged: {MAX_FAILURES} consecutive steps, the last one step {self.state.step + 1}, had a loss "
            f"({loss:.4g}: {parts}) or gradient (norm {grad_norm:.4g}) that is not finite, at learning rate {lr:.3g} "
            f"with the images {images}. These steps did not change the weights. Lower --lr, or check these images and "
            "their boxes."
        )
