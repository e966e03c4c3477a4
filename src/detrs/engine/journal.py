"""Output of a training run: ``metrics.jsonl`` and the progress display."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column
from torch import nn

from detrs import files
from detrs.config import Experiment
from detrs.errors import UserError, counted
from detrs.evaluation.coco import CocoReport

logger = logging.getLogger("detrs")

PLAIN_LINE_SECONDS = 10.0
"""Seconds between two progress lines if the output is not a terminal."""
WIDE = 110
"""Columns from which the bar is long, with learning rate and memory; it stays on one line of 80."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step, as ``training`` yields it."""

    step: int
    """Optimizer steps so far, including this one."""
    total_steps: int
    epoch: int
    """Epoch of this step, counted from 1."""
    epochs: int
    loss: float
    """Total loss of the whole batch, over all processes and micro-batches."""
    terms: dict[str, float]
    """The terms of the loss."""
    lr: float
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    skipped: bool
    """The loss or the gradient was not finite, so no weights were updated."""
    images: int
    """Number of images in the batch."""
    images_per_s: float
    seconds: float
    """Wall-clock time since the start of the run, including the time before it was resumed."""
    progress: float
    """Completed fraction of the run, in [0, 1]."""
    memory_bytes: int
    evaluation: CocoReport | None = None
    """Scores after this step, if it was followed by an evaluation."""
    is_best: bool = False
    """The evaluation has the highest score so far."""


@dataclass
class Window:
    """Running sums since the last line of ``metrics.jsonl``."""

    steps: int = 0
    skipped: int = 0
    images: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    """Learning rate of the last step."""
    sums: Counter[str] = field(default_factory=Counter)

    def add(self, report: StepReport) -> None:
        """Adds a step."""
        self.images += report.images
        self.seconds += report.images / report.images_per_s
        self.lr = report.lr
        if report.skipped:
            self.skipped += 1
        else:
            self.steps += 1
            self.sums.update({"loss": report.loss, "grad_norm": report.grad_norm})
            self.sums.update({f"terms/{name}": value for name, value in report.terms.items()})

    def line(self) -> dict[str, Any]:
        """Means over the window; ``None`` if all steps were skipped."""
        means = {name: value / self.steps for name, value in self.sums.items()}
        return {
            "loss": means.get("loss"),
            "terms": {name.removeprefix("terms/"): v for name, v in means.items() if name.startswith("terms/")},
            "lr": self.lr,
            "images_per_s": round(self.images / self.seconds, 3),
            "grad_norm": means.get("grad_norm"),
            "skipped": self.skipped,
        }


class Metrics:
    """Writes ``metrics.jsonl``: one line with means per ``log_every`` steps and one per evaluation.

    Args:
        path: File to append to.
        log_every: Steps per line.
        writes: False in all processes except the main process.
    """

    def __init__(self, path: Path, log_every: int, *, writes: bool = True) -> None:
        self.path, self.log_every, self.writes = path, log_every, writes
        self.window = Window()
        self.on_line: Callable[[dict[str, Any]], None] | None = None
        """Called with every line after it was written."""

    def step(self, report: StepReport) -> None:
        """Adds a step and writes a line every ``log_every`` steps."""
        self.window.add(report)
        if report.step % self.log_every == 0:
            self._flush(report.step, report.epoch, report.seconds)

    def evaluation(self, report: CocoReport, *, step: int, epoch: int, seconds: float) -> None:
        """Writes the pending means and the scores after ``step``."""
        if self.window.images:
            self._flush(step, epoch, seconds)
        self._write("evaluation", step, epoch, report.to_json(), seconds)

    def _flush(self, step: int, epoch: int, seconds: float) -> None:
        self._write("step", step, epoch, self.window.line(), seconds)
        self.window = Window()

    def _write(self, kind: str, step: int, epoch: int, values: dict[str, Any], seconds: float) -> None:
        if self.writes:
            line = {"kind": kind, "step": step, "epoch": epoch, **values, "seconds": round(seconds, 3)}
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(line, allow_nan=False) + "\n")
            except OSError as error:
                raise UserError(f"Cannot write to {self.path}: {error.strerror}.") from error
            if self.on_line is not None:
                self.on_line(line)

    def state(self) -> dict[str, Any]:
        """The pending sums, for ``resume``."""
        return vars(self.window)

    def resume(self, state: dict[str, Any], step: int, *, evaluated: bool) -> None:
        """Restores the state after ``step`` and removes all later lines.

        Args:
            state: From ``state()``.
            step: Step of the checkpoint.
            evaluated: Whether the evaluation after ``step`` was finished; otherwise its line is removed as well.
        """
        self.window = Window(**{**state, "sums": Counter(state["sums"])})
        if not self.writes or not self.path.exists():
            return
        kept, damaged = [], 0
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"Cannot read {self.path}: {error.strerror}.") from error
        for text in content.splitlines(keepends=True):
            line = _parsed(text)
            if line is None:
                damaged += 1
                continue
            done = evaluated if line["kind"] == "evaluation" else not self.window.images
            if line["step"] < step or (line["step"] == step and done):
                kept.append(text.decode())
        if damaged:
            logger.warning(
                "%s: removed %d damaged line%s, for example after a power failure. Training is not affected.",
                *(self.path, damaged, "s" * (damaged != 1)),
            )
        files.write_text(self.path, "".join(kept))


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line of ``metrics.jsonl``, or ``None`` if it is incomplete or damaged."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):  # torn, filled with zeros, not UTF-8
        return None
    is_complete = text.endswith(b"\n") and isinstance(line, dict) and isinstance(line.get("kind"), str)
    return line if is_complete and type(line.get("step")) is int else None


class Display:
    """Shows progress on the standard error stream: a bar on terminals, plain lines otherwise."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rate = 0.0
        self.last_line = self.last_evaluating = -PLAIN_LINE_SECONDS
        one_line = Column(no_wrap=True)
        self.bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24 if console.width >= WIDE else 8),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[status]}", table_column=one_line),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=1.0, status="")
        self.position = ""
        """Epoch and step of the last report."""

    def show(self, report: StepReport) -> None:
        """Shows the progress after a step."""
        self.rate = 0.9 * self.rate + 0.1 * report.images_per_s if self.rate else report.images_per_s
        epoch, step = f"{report.epoch}", f"{report.step}"
        if report.step / report.total_steps >= report.progress:  # otherwise --max-minutes ends the run before
            epoch, step = f"{epoch}/{report.epochs}", f"{step}/{report.total_steps}"
        self.position = f"epoch {epoch}"
        status = self._status(report, is_wide=self.console.width >= WIDE)
        self.bar.update(self.task, completed=report.progress, status=f"{self.position}  {status}")
        if not self.console.is_terminal and report.seconds - self.last_line >= PLAIN_LINE_SECONDS:
            self.last_line = report.seconds
            print_line(self.console, f"{self.position}  step {step}  {self._status(report, is_wide=True)}")
        if report.skipped:
            print_line(self.console, f"step {report.step} skipped: the loss or its gradient is not finite")
        if report.evaluation is not None:
            scores = format_scores(report.evaluation, is_best=report.is_best)
            print_line(self.console, f"{self.position}  step {report.step}  {scores}")

    def show_evaluation(self, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` images are evaluated."""
        status = f"evaluating {done}/{total}"
        self.bar.update(self.task, status=f"{self.position}  {status}")
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_evaluating >= PLAIN_LINE_SECONDS:
            self.last_evaluating = now
            print_line(self.console, f"{self.position}  {status}")

    def _status(self, report: StepReport, *, is_wide: bool) -> str:
        remaining = report.seconds * (1 - report.progress) / max(report.progress, 1e-9)
        eta = timedelta(seconds=round(remaining)) if report.progress > 0.001 else "-"
        parts = [f"loss {report.loss:.4g}", f"{self.rate:.3g} images/s", f"ETA {eta}"]
        if is_wide:
            parts[1:1] = [f"lr {report.lr:.2g}"]
            parts[3:3] = [f"{report.memory_bytes / 2**30:.2f} GiB"]
        return "  ".join(parts)


def summary(
    experiment: Experiment, model: nn.Module, sizes: tuple[int, int, int], device: torch.device, output: Path
) -> str:
    """What a run consists of, as a block of text.

    Args:
        experiment: its name, data and precision.
        model: the detector.
        sizes: training images, validation images (0: training without validation), classes.
        device: where the model is trained.
        output: folder of the run.
    """
    threads = experiment.runtime.threads or torch.get_num_threads()
    parameters = list(model.parameters())
    total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    frozen = "" if total == trained else f", {trained / 1e6:.2f} M of them trained"
    images, val_images, classes = sizes
    validation = counted(val_images, "validation image") if val_images else "no validation"
    counts = f"{counted(images, 'training image')}, {validation}, {counted(classes, 'class', 'classes')}"
    rows = {
        "device": f"{device}, {threads} CPU thread{'s' * (threads > 1)}, {experiment.runtime.precision}",
        "preset": experiment.name or type(experiment.model).__name__,
        "parameters": f"{total / 1e6:.2f} M{frozen}",
        "data": f"{experiment.data.path or 'Python objects'}: {counts}",
        "output": str(output),
    }
    return "\n".join(f"{name:<12}{text}" for name, text in rows.items())


def format_scores(report: CocoReport, *, is_best: bool) -> str:
    """AP, AP50 and AP75 as one line of text."""
    figures = (("AP", report.ap), ("AP50", report.ap50), ("AP75", report.ap75))
    scores = "  ".join(f"{label} {'-' if value is None else f'{value:.4f}'}" for label, value in figures)
    return scores + ("  best so far" if is_best else "")


def print_line(console: Console, text: str) -> None:
    """Prints a line without markup, highlighting or wrapping."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Prints log records above the progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print_line(self.console, prefix + record.getMessage())


@contextmanager
def display(*, quiet: bool) -> Iterator[Display]:
    """A ``Display`` that also shows the log records of the library.

    Args:
        quiet: Show warnings only.
    """
    console = Console(stderr=True, quiet=quiet)
    shown = Display(console)
    handler = ConsoleHandler(Console(stderr=True) if quiet else console)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        with shown.bar:
            yield shown
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
