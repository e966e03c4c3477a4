"""Signals that stop a run: finish the step, save, exit with the code that shells expect."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

ONE_KEY_PRESS_SECONDS = 0.5
"""Launchers forward a signal that the terminal has already sent to every process: this is one request, not two."""


STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
"""SIGHUP: the terminal was closed (not on Windows); ``nohup`` ignores it."""


class Interrupted(SystemExit):
    """A signal stopped the run; the exit code is 128 plus its number (SIGTERM 143, SIGINT 130, SIGHUP 129).

    Args:
        signum: number of the signal.
        at_once: stop without saving.
    """

    def __init__(self, signum: int, *, at_once: bool = False) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.at_once = at_once


class Interruption:
    """While entered, SIGTERM, SIGHUP and SIGINT are recorded; a SIGINT after either stops at once.

    Previous handlers are restored at the exit, and called once after the run was stopped. A signal that was ignored
    stays ignored. Outside of the main thread nothing is changed; after an exit in another thread (a generator closed
    there), the previous handlers are restored when the next signal arrives.

    After the first signal, PyTorch's handler for the end of loader processes, which would raise wherever the main
    process is, is disabled: the same signal may have ended them.
    """

    def __init__(self) -> None:
        self.signum = 0
        """The signal that was received; 0: none."""
        self._at = 0.0
        self._immediate = False
        self._is_over = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                previous = signal.getsignal(signum)
                if previous not in (signal.SIG_IGN, None):
                    self._previous[signum] = previous
                    signal.signal(signum, self._receive)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._is_over = True
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers: _receive will do it
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
            self._ignore_loaders()
        if again or self._immediate:
            raise Interrupted(signum, at_once=again)

    def _ignore_loaders(self) -> None:
        """Disable PyTorch's handler for the end of loader processes; the handler of an application stays."""
        number = getattr(signal, "SIGCHLD", None)  # not on Windows
        previous = None if number is None else signal.getsignal(number)
        if number is not None and getattr(previous, "__module__", "").startswith("torch."):
            self._previous[number] = previous
            signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def immediately(self) -> Iterator[None]:
        """Inside, a signal stops the block at once, since it has nothing to save."""
        self._immediate = True
        try:
            if self.signum:
                raise Interrupted(self.signum)
            yield
        finally:
            self._immediate = False
