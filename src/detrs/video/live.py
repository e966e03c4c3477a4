"""Live sources: the newest frames, read by a thread of their own, and a connection that is opened again if it breaks.

If detection is slower than the source, the oldest frames are dropped: results do not fall behind, and the memory is
bounded.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from detrs.errors import UserError, counted
from detrs.video.connection import Connection, Frame

MAX_DELAY_SECONDS = 30.0
"""Between two attempts to open a connection again; the first delay is one second, each further one twice as long."""
MIN_STEP_SECONDS = 0.001
"""Between the times of two frames, if the source has none of its own."""
CLOSE_SECONDS = 1.0
"""Time for the thread to end; one that is blocked by a silent source ends at its timeout."""
POLL_SECONDS = 0.5
"""Condition variables without a timeout cannot be interrupted by Ctrl-C on every platform."""


class LiveReader:
    """Reads a live source in a thread.

    Args:
        connection: the open source; the thread closes it.
        stride: step between two frames.
        capacity: frames that are kept.
        reconnect: attempts to open a broken connection again, in sequence.
    """

    def __init__(self, connection: Connection, *, stride: int, capacity: int, reconnect: int) -> None:
        self._source, self._stride, self._reconnect = connection.source, stride, reconnect
        self._frames: deque[Frame] = deque(maxlen=capacity)
        self._errors: deque[UserError] = deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._started: float | None = None
        self._next_index, self._last_time = 0, -MIN_STEP_SECONDS
        self._thread = threading.Thread(target=self._run, args=(connection,), name="detrs-live", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[list[Frame], list[UserError]]]:
        """The frames, and errors of damaged ones, that arrived since the last step."""
        while True:
            with self._changed:
                while not self._frames and not self._errors and self._thread.is_alive():
                    self._changed.wait(POLL_SECONDS)
                if not self._frames and not self._errors:
                    if self._failure is not None:
                        raise self._failure
                    return
                frames, errors = list(self._frames), list(self._errors)
                self._frames.clear()
                self._errors.clear()
            yield frames, errors

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self, connection: Connection) -> None:
        try:
            broken = self._read(connection)
            if broken is not None and self._started is None:
                raise broken
            attempt = 0
            while attempt < self._reconnect and not self._stop.wait(min(2 ** min(attempt, 30), MAX_DELAY_SECONDS)):
                attempt += 1
                before = self._next_index
                try:
                    error = self._read(Connection(self._source))
                except UserError:  # cannot be opened yet
                    continue
                if self._next_index > before:
                    broken, attempt = error, 0
            if broken is not None and not self._stop.is_set():
                again = f"; {counted(self._reconnect, 'attempt')} to open it again failed" if self._reconnect else ""
                self._add(self._errors, UserError(f"{str(broken).removesuffix('.')}{again}."))
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _read(self, connection: Connection) -> UserError | None:
        """Read until the connection ends or the reader is closed, and close it.

        Returns:
            Why it broke; ``None`` at its regular end.
        """
        first, delay = self._next_index, None

        def damaged(index: int, error: UserError) -> None:
            self._next_index = first + index + 1
            if (first + index) % self._stride == 0:
                self._add(self._errors, UserError(f"{self._source.name}: frame {first + index} is damaged."))

        try:
            for frame in connection.frames(1, damaged):
                now = time.monotonic()
                self._started = now if self._started is None else self._started
                if delay is None or not connection.has_times:  # the times of each connection have their own start
                    elapsed = max(now - self._started, self._last_time + MIN_STEP_SECONDS)  # frames may come in a burst
                    delay = elapsed - frame.time_seconds
                index = first + frame.frame_index
                self._next_index, self._last_time = index + 1, frame.time_seconds + delay
                if index % self._stride == 0:
                    self._add(self._frames, frame._replace(frame_index=index, time_seconds=self._last_time))
                if self._stop.is_set():
                    break
            return None
        except UserError as error:
            return error
        finally:
            connection.close()

    def _add(self, queue: deque[Any], item: object) -> None:
        with self._changed:
            queue.append(item)
            self._changed.notify_all()
