"""Dispatch: fast help, nearest names, exit codes."""

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


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["presets", "--help"], ["predict", "--help"], ["trian"]])
def test_help_imports_nothing_slow(words: list[str]) -> None:
    loaded = in_new_process(
        f"import sys, detrs.cli\ndetrs.cli.main({words})\nprint({{'torch', 'timm', 'numpy', 'PIL'}} & set(sys.modules))"
    )
    assert loaded.splitlines()[-1] == "set()"


def test_import_detrs_imports_nothing_slow() -> None:
    loaded = in_new_process("import sys, detrs\nprint({'torch', 'numpy', 'tyro', 'rich'} & set(sys.modules))")
    assert loaded.strip() == "set()"


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
    assert done.stderr == "error: detrs has no verb 'trian'. Did you mean 'train'? See: detrs --help\n"


def test_help_names_every_verb(detrs: Callable) -> None:
    assert all(f"\n  {verb} " in detrs("--help").out for verb in cli.VERBS)
    assert detrs("-h") == detrs("--help")
    nothing = detrs()
    assert (nothing.code, nothing.out) == (2, "") and "usage: detrs VERB" in nothing.err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(detrs: Callable, verb: str) -> None:
    done = detrs(verb, "--help")
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


def test_a_fault_of_ours_keeps_its_traceback(detrs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str]) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "dispatch", fail)
    with pytest.raises(ValueError, match="a bug"):
        detrs("anything")


def test_a_reader_that_goes_is_no_error() -> None:
    script = (
        "import os, sys, detrs.cli\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "sys.exit(detrs.cli.main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
