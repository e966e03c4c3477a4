"""One thread runs the model: images of equal size that wait at the same time share a forward pass."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from detrs.serving.problems import RequestProblem
from detrs.structures import Detections

logger = logging.getLogger("detrs.serving")

MAX_FAILURES = 3
"""Failures in a row after which the worker is not ready: a device that failed needs a new process."""
SMOOTHING = 0.2
"""Weight of the newest batch in the average time per image."""


class Resized(NamedTuple):
    """An image as the model expects it, before normalization."""

    image: Tensor
    """(3, H, W) uint8, resized."""
    image_size: tuple[int, int]
    """(height, width) in pixels of the original image."""
    source: str | None
    """Name of the file, as the client sent it."""


@dataclass(eq=False)
class Job:
    """Work for the thread of the model: an image, or a function that is called alone."""

    work: Resized | Callable[[], Any]
    deadline: float
    """On the clock of ``time.monotonic``; work that was not started by then is dropped."""
    future: "Future[Any]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Jobs of equal shape share a forward pass; ``None``: alone."""
        return tuple(self.work.image.shape) if isinstance(self.work, Resized) else None


class Worker:
    """The thread of the model and its queue, which is bounded by the caller.

    The thread starts with the first job. A job that fails affects no other: after an error, the images of a batch are
    computed one by one.

    Args:
        detect: detections of images of equal size.
        max_batch: images per forward pass.
        window_seconds: how long an image waits for others to fill its batch.
        on_batch: called in the thread after each forward pass, with the number of images and the seconds it took.
    """

    def __init__(
        self,
        detect: Callable[[Sequence[Resized]], list[Detections]],
        max_batch: int,
        window_seconds: float,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._detect = detect
        self._max_batch = max_batch
        self._window = window_seconds if max_batch > 1 else 0.0
        self._on_batch = on_batch
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failures = 0
        self.seconds_per_image = 0.1
        """Moving average."""

    def submit(self, works: Sequence[Resized | Callable[[], Any]], deadline: float) -> "list[Future[Any]]":
        """Add jobs, in order. Cancelling a future before its job starts drops the job.

        Args:
            works: images, or functions.
            deadline: on the clock of ``time.monotonic``.

        Returns:
            A future for each job: of ``Detections``, or of what the function returns. A job that was dropped at its
            deadline raises ``TimeoutError``.

        Raises:
            RuntimeError: the worker is closed.
        """
        jobs = [Job(work, deadline) for work in works]
        with self._changed:
            if self._closing:
                raise RuntimeError("the worker is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="detrs-model", daemon=True)
                self._thread.start()
            self._jobs.extend(jobs)
            self._changed.notify()
        for job in jobs:
            job.future.add_done_callback(partial(self._drop, job))
        return [job.future for job in jobs]

    @property
    def waiting(self) -> int:
        """Number of jobs that were not started."""
        return len(self._jobs)

    @property
    def is_ready(self) -> bool:
        """Whether new jobs may succeed."""
        is_alive = self._thread is None or self._thread.is_alive()
        return is_alive and not self._closing and self._failures < MAX_FAILURES

    def close(self, timeout: float | None = None) -> None:
        """Finish the jobs that were submitted, and end the thread.

        Args:
            timeout: seconds to wait for it.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _drop(self, job: Job, future: "Future[Any]") -> None:
        """Remove a job that was cancelled: images of clients that left would occupy memory until the model is free."""
        if future.cancelled():
            with self._changed:
                self._jobs = deque(each for each in self._jobs if each is not job)
                self._changed.notify()

    def _run(self) -> None:
        while jobs := self._next():
            self._process([job for job in jobs if job.future.set_running_or_notify_cancel()])

    def _next(self) -> list[Job]:
        """The oldest job with those that share its forward pass; none if the worker is closed and has no more jobs."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return []
                oldest = self._jobs[0]
                if self._window and not self._closing:
                    self._changed.wait_for(
                        lambda: self._closing or len(self._companions(oldest)) in (0, self._max_batch),  # noqa: B023
                        oldest.submitted + self._window - time.monotonic(),
                    )
                if batch := self._companions(oldest):
                    self._jobs = deque(job for job in self._jobs if job not in batch)
                    return batch

    def _companions(self, oldest: Job) -> list[Job]:
        """``oldest`` and the next jobs of its shape, at most ``max_batch``; none if it was cancelled."""
        if oldest not in self._jobs:
            return []
        if oldest.shape is None:
            return [oldest]
        return [job for job in self._jobs if job.shape == oldest.shape][: self._max_batch]

    def _process(self, jobs: list[Job]) -> None:
        now = time.monotonic()
        for job in [job for job in jobs if job.deadline <= now]:
            job.future.set_exception(TimeoutError())
        jobs = [job for job in jobs if job.deadline > now]
        if not jobs:
            return
        try:
            results = self._results(jobs)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._process([job])
                return
            if not isinstance(error, RequestProblem):
                self._failures += 1
                logger.exception("the model failed")
            jobs[0].future.set_exception(error)
            return
        self._failures = 0
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)

    def _results(self, jobs: list[Job]) -> list[Any]:
        start = time.perf_counter()
        if not isinstance(jobs[0].work, Resized):
            return [jobs[0].work()]
        results = self._detect([job.work for job in jobs if isinstance(job.work, Resized)])
        seconds = time.perf_counter() - start
        self.seconds_per_image += SMOOTHING * (seconds / len(jobs) - self.seconds_per_image)
        self._on_batch(len(jobs), seconds)
        return results
