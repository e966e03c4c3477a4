import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from detrs.engine import interruption
from detrs.engine.interruption import Interrupted, Interruption


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back whatever a test leaves."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0.01)  # the handler runs between two bytecodes of the main thread


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signal_is_noted_and_maps_to_the_shells_exit_code(signum: int, code: int) -> None:
    if signum == signal.SIGHUP:  # ignored in a process started with nohup, which is respected
        signal.signal(signum, signal.SIG_DFL)
    before = signal.getsignal(signum)
    with Interruption() as noted:
        assert noted.signum == 0
        send(signum)
        assert noted.signum == signum
        assert signal.getsignal(signum) != before
    assert signal.getsignal(signum) == before
    assert Interrupted(signum).code == code


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_signal_is_obeyed_at_once(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(interruption, "ONE_KEY_PRESS_SECONDS", 0.05)
    with pytest.raises(Interrupted) as raised, Interruption():
        send(first)
        time.sleep(0.1)
        send(signal.SIGINT)
    assert raised.value.code == 130 and raised.value.at_once


def test_signal_that_a_launcher_repeats_is_one_request() -> None:
    with Interruption() as noted:
        for signum in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGTERM):
            send(signum)
        assert noted.signum == signal.SIGINT


def test_immediately_ends_the_block_and_leaves_time_to_save() -> None:
    with pytest.raises(Interrupted) as raised, Interruption() as noted, noted.immediately():
        send(signal.SIGTERM)
        raise AssertionError("the block went on")
    assert raised.value.code == 143 and not raised.value.at_once


def test_immediately_does_not_begin_after_a_signal() -> None:
    with pytest.raises(Interrupted), Interruption() as noted:
        send(signal.SIGTERM)
        with noted.immediately():
            raise AssertionError("the block began")


def test_handler_of_the_application_is_called_once_when_the_run_has_stopped() -> None:
    calls: list[Any] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: calls.append(signum))
    with pytest.raises(Interrupted), Interruption() as noted:
        send(signal.SIGTERM)
        assert calls == []
        raise Interrupted(noted.signum)
    assert calls == [signal.SIGTERM]


def test_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a shell does to background jobs
    with Interruption() as noted:
        send(signal.SIGINT)
        assert noted.signum == 0
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def run() -> None:
        with Interruption():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_left_by_another_thread_signals_reach_the_application_again() -> None:
    """A generator that holds a run may be closed, or collected, by any thread."""
    calls: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: calls.append(signum))
    noted = Interruption()
    noted.__enter__()
    errors: list[BaseException] = []

    def leave() -> None:
        try:
            noted.__exit__(GeneratorExit, GeneratorExit(), None)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert not errors
    send(signal.SIGTERM)
    assert calls == [signal.SIGTERM] and noted.signum == 0


def test_handlers_for_the_end_of_child_processes() -> None:
    """PyTorch's, which raises, is disabled after a signal and restored at the end; an application's stays."""

    def application(signum: int, frame: Any) -> None: ...

    def torchs(signum: int, frame: Any) -> None: ...

    torchs.__module__ = "torch.utils.data._utils.signal_handling"
    before = signal.getsignal(signal.SIGCHLD)
    try:
        for handler, during in ((application, application), (torchs, signal.SIG_DFL)):
            signal.signal(signal.SIGCHLD, handler)
            with Interruption():
                assert signal.getsignal(signal.SIGCHLD) == handler
                send(signal.SIGTERM)
                assert signal.getsignal(signal.SIGCHLD) == during
            assert signal.getsignal(signal.SIGCHLD) == handler
    finally:
        signal.signal(signal.SIGCHLD, before)
