"""Dispatch: fast help, nearest names, exit codes."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import detrs as package
from detrs import cli
from detrs.errors import UserError


def in_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_every_public_name_is_there() -> None:
    assert package.preset("deformable-detr-tiny").name == "deformable-detr-tiny"
    assert all(callable(getattr(package, name)) for name in ("train", "evaluate", "load", "Predictor", "Detections"))
    assert package.__version__.count(".") == 2
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'predcit'"):
        package.predcit  # type: ignore[attr-defined]  # noqa: B018


def test_python_m_detrs_is_detrs() -> None:
    done = subprocess.run([sys.executable, "-m", "detrs", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, package.__version__)
    done = subprocess.run([sys.executable, "-m", "detrs", "trian"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Unknown command 'trian'. Did you mean 'train'? See: detrs --help\n"


def test_help_lists_every_command(detrs: Callable) -> None:
    assert all(f"\n  {command} " in detrs("--help").out for command in cli.COMMANDS)
    assert detrs("-h") == detrs("--help")
    nothing = detrs()
    assert (nothing.code, nothing.out) == (2, "") and "usage: detrs COMMAND" in nothing.err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(detrs: Callable, command: str) -> None:
    done = detrs(command, "--help")
    assert done.code == 0 and "--json" in done.out and not done.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("No such thing."), 2, "error: No such thing.\n"),
        (
            UserError("[red]brackets[/] and [1] stay, and long lines are not broken " + "x " * 200),
            2,
            "[red]brackets[/] and [1]",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (SystemExit(143), 143, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_exit_codes(
    detrs: Callable, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "dispatch", fail)
    done = detrs("anything")
    assert done.code == code and message in done.err and done.err.count("\n") <= 1


def test_a_bug_keeps_its_traceback(detrs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str]) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "dispatch", fail)
    with pytest.raises(ValueError, match="a bug"):
        detrs("anything")


def test_a_closed_pipe_is_no_error() -> None:
    script = (
        "import os, sys, detrs.cli\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "sys.exit(detrs.cli.main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("output", ["x" * 10_000_000, ""])
def test_another_broken_pipe_is_a_bug(output: str) -> None:
    """Output longer than the buffer is written at once, so that a closed stdout leaves nothing to flush."""
    script = (
        "import os, sys, detrs.cli\n"
        "def fail(words):\n"
        f"    print('x' * {len(output)}, flush=True)\n"
        "    raise BrokenPipeError('of a worker')\n"
        "detrs.cli.dispatch = fail\n"
        "if sys.argv[1] == 'closed':\n"
        "    reader, writer = os.pipe()\n"
        "    os.close(reader)\n"
        "    os.dup2(writer, 1)\n"
        "sys.exit(detrs.cli.main(['x']))"
    )
    closed, open_ = (
        subprocess.run([sys.executable, "-c", script, which], capture_output=True, text=True, check=False)
        for which in ("closed", "open")
    )
    assert (closed.returncode, closed.stderr) == (141, "")
    assert open_.returncode == 1 and "BrokenPipeError: of a worker" in open_.stderr


def test_a_killed_loader_process_gets_a_message(detrs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from detrs.data import loader

    def fail(words: list[str]) -> int:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    assert loader.worker_failure(RuntimeError("else")) == ""
    monkeypatch.setattr(cli, "dispatch", fail)
    done = detrs("anything")
    assert done.code == 2 and "A loader process died" in done.message and "--workers 0" in done.message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": str(cli.SPIN_COUNT)}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_waiting_threads_release_their_core_before_torch_is_loaded(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    script = (
        "import os, sys, detrs.cli\n"
        "variables = lambda: {n: v for n, v in os.environ.items() if n in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')}\n"
        "import detrs; before = variables()\n"
        "detrs.cli.main(['--version'])\n"
        "print([before, variables(), 'torch' in sys.modules])"
    )
    assert in_new_process(script).splitlines()[-1] == str([given, expected, False])


def test_environment_of_a_program_that_has_loaded_torch_is_not_changed(
    detrs: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch  # noqa: F401

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    detrs("--version")
    assert "GOMP_SPINCOUNT" not in os.environ
