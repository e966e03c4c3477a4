"""Signals that ask a run to stop: finish the step, save, leave with the exit code that shells expect."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

ONE_KEY_PRESS_SECONDS = 0.5
"""Launchers pass on a signal that the terminal has already sent to every process; that is one request, not two."""


class Interrupted(SystemExit):
    """The run was asked to stop; the exit code is 128 plus the signal's number (SIGTERM 143, SIGINT 130).

    Args:
        signum: number of the signal.
        at_once: it came in the middle of something; there is no time, and no consistent state, to save.
    """

    def __init__(self, signum: int, *, at_once: bool = False) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.at_once = at_once


class Interruption:
    """While entered, SIGTERM and SIGINT are noted instead of obeyed; a SIGINT after either is obeyed at once.

    Handlers that were there before are restored on the way out, and called once after the run was stopped.
    A signal that was ignored stays ignored. Outside of the main thread nothing is changed; left there (a generator
    closed by another thread), the handlers before come back when the next signal arrives.
    """

    def __init__(self) -> None:
        self.signum = 0
        """The signal that came; 0: none."""
        self._at = 0.0
        self._immediate = False
        self._is_over = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                previous = signal.getsignal(signum)
                if previous not in (signal.SIG_IGN, None):
                    self._previous[signum] = previous
                    signal.signal(signum, self._receive)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._is_over = True
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers: ours will do it
        self._restore()
        if isinstance(error, Interrupted):
            previous = self._previous.get(error.signum)
            if callable(previous) and previous is not signal.default_int_handler:
                previous(error.signum, None)

    def _restore(self) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._is_over:
            self._restore()
            signal.raise_signal(signum)
            return
        waited = time.monotonic() - self._at > ONE_KEY_PRESS_SECONDS
        again = self.signum != 0 and signum == signal.SIGINT and waited
        if not self.signum:
            self.signum, self._at = signum, time.monotonic()
        if again or self._immediate:
            raise Interrupted(signum, at_once=again)

    @contextmanager
    def immediately(self) -> Iterator[None]:
        """Inside, a signal ends the block at once: nothing in it is worth waiting for."""
        self._immediate = True
        try:
            if self.signum:
                raise Interrupted(self.signum)
            yield
        finally:
            self._immediate = False
