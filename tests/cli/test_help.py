"""Help pages: plain text without RST marks, readable in a terminal of 80 columns."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from detrs import cli
from detrs.cli.arguments import Flag, Size, flags, parse
from detrs.cli.help import description, plain_text
from detrs.config import Experiment
from detrs.presets import preset


@pytest.fixture(autouse=True)
def narrow(plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def unframed(text: str) -> str:
    """Words of a help page, without the frames that tyro draws where the encoding has them."""
    return " ".join(re.sub(r"[│─╭╮╰╯]", " ", text).split())


@pytest.mark.parametrize(
    "words", ["", *cli.COMMANDS, "train deformable-detr-small", "train detr-r50", "train anchor-detr-r50"]
)
def test_help_is_plain_text_of_80_columns(detrs: Callable, words: str) -> None:
    done = detrs(*words.split(), "--help")
    assert done.code == 0 and not done.err
    assert not re.search(r"`|:\w+:|\{None\}|default: (None|''|\))", done.out)
    assert all(len(line) <= 80 for line in done.out.splitlines() if not line.startswith("usage:"))


@pytest.mark.parametrize("command", ["predict", "evaluate", "serve", "checkpoint inspect"])
def test_help_states_that_exported_files_are_read(detrs: Callable, command: str) -> None:
    assert "exported file (.onnx, .pt2)" in unframed(detrs(*command.split(), "--help").out)


def test_help_of_a_preset_lists_every_setting(detrs: Callable) -> None:
    text = unframed(detrs("train", "deformable-detr-small", "--help").out)
    experiment = preset("deformable-detr-small")
    assert all(f" {flag} " in text for flag in flags(experiment))
    for section in (experiment.model, experiment.model.backbone, experiment.data, experiment.runtime):
        assert plain_text(type(section).__doc__ or "").split("\n")[0] in text
    assert "(default: 288 384)" in text


@pytest.mark.parametrize(
    ("docstring", "text"),
    [
        ("``flip``: mirror\n    ``x``; see :func:`detrs.train`.", "flip: mirror x; see detrs.train."),
        ("First.\n\n    Second\n    paragraph, with `one` mark.", "First.\n\nSecond paragraph, with one mark."),
        ("", ""),
    ],
)
def test_plain_text_removes_marks_and_joins_lines(docstring: str, text: str) -> None:
    assert plain_text(docstring) == text


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Summary with ``marks`` that is long enough to be wrapped at the eightieth column of a line.

    More.
    """

    name: tyro.conf.Positional[str]
    """Positional."""
    path: Path | None = None
    """Path."""
    size: Size | None = None
    """Size, ``small``
    ``or`` large."""
    limit: Annotated[float, "above 0"] | None = None
    """Limit."""
    ratio: Annotated[float | None, "above 0"] = None
    """Ratio."""
    clip: float | None = 0.1
    """Clip."""
    count: int = 3
    """Count."""
    either: bool = False
    """Pair."""
    json: Flag = False
    """Switch."""
    settings: Annotated[Experiment, tyro.conf.arg(name="")] = field(default_factory=Experiment)


def test_flags_show_their_kind_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Arguments, ["--help"], "detrs x")
    text = unframed(capsys.readouterr().out)
    for flag in (
        "STR Positional. (required)",
        "--path PATH Path. --",
        "--size INT [INT] Size, small or large. --",
        "--limit FLOAT Limit. --",
        "--ratio FLOAT Ratio. --",
        "--clip FLOAT|None Clip. (default: 0.1)",
        "--count INT Count. (default: 3)",
        "--either, --no-either Pair. (default: False)",
        "--json Switch. --",
        "--optimizer.lr FLOAT Learning rate",
    ):
        assert flag in text, flag


def test_description_is_wrapped() -> None:
    assert description(Arguments).splitlines() == [
        "  Summary with marks that is long enough to be wrapped at the eightieth column",
        "  of a line.",
        "  More.",
    ]
