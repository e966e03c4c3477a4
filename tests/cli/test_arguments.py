from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from detrs.cli.arguments import Flag, Size, as_pair, flags, new_folder, parse
from detrs.config import Experiment
from detrs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """For the test."""

    name: tyro.conf.Positional[str] = "x"
    """Something."""
    batch_size: int = 3
    """Images."""
    image_size: Size = (100,)
    """Size."""
    json: Flag = False
    """JSON."""
    settings: Annotated[Experiment, tyro.conf.arg(name="")] = field(default_factory=Experiment)


def read(words: str) -> Arguments:
    return parse(Arguments, words.split(), "detrs x")


def test_values_arrive() -> None:
    values = read("y --batch-size 5 --json --model.num-queries 7 --model.backbone.name abc --schedule.kind cosine")
    assert (values.name, values.batch_size, values.json) == ("y", 5, True)
    settings = values.settings
    assert (settings.model.num_queries, settings.model.backbone.name, settings.schedule.kind) == (7, "abc", "cosine")
    assert settings.model.dim == Experiment().model.dim


@pytest.mark.parametrize(("words", "size"), [("320", (320, 320)), ("320 480", (320, 480))])
def test_one_or_two_numbers(words: str, size: tuple[int, int]) -> None:
    given = read(f"--image-size {words}").image_size
    assert as_pair(given) == size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-sze 3", "Unknown flag '--batch-sze'. Did you mean '--batch-size'"),
        ("--batch_sze=3", "Unknown flag '--batch_sze'. Did you mean '--batch-size'"),
        ("--num-queries 3", "Unknown flag '--num-queries'. Did you mean '--model.num-queries'"),
        ("--model.num-querie 3", "Unknown flag '--model.num-querie'. Did you mean '--model.num-queries'"),
        ("--schedul.kind cosine", "Unknown flag '--schedul.kind'. Did you mean '--schedule.kind'"),
        ("--zzzzzz", "Unknown flag '--zzzzzz'. See: detrs x --help"),
        ("a b", "Unexpected argument 'b'. See: detrs x --help"),
    ],
)
def test_unknown_words_get_the_nearest_flag(words: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-size abc", "--batch-size expects INT, got 'abc'. See: detrs x --help"),
        ("--batch_size=abc --json", "--batch-size expects INT, got 'abc'."),
        ("--image-size 1 2 3 --json", "--image-size expects INT [INT], got '1 2 3'."),
        ("--data.augment nne", "invalid choice 'nne' for argument '--data.augment'. Expected one of ('none', 'flip'"),
        ("--seed", "Missing value for argument '--seed'."),
    ],
)
def test_bad_values_name_the_flag(words: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(words)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("words", ["--initial x.safetensors", "--initial=x.safetensors", "--settings.initial x"])
def test_settings_without_a_flag(words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="Unknown flag"):
        read(words)
    default = Arguments(settings=Experiment(name="preset", initial="a.safetensors"))
    settings = parse(Arguments, ["--seed", "3"], "detrs x", default).settings
    assert (settings.seed, settings.name, settings.initial) == (3, "preset", "a.safetensors")
    with pytest.raises(SystemExit):
        read("--help")
    assert "--seed" in (shown := capsys.readouterr().out) and "--initial" not in shown
    assert "--initial" not in flags(Arguments())


@dataclass(frozen=True, kw_only=True)
class Required:
    """For the test."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, with a help text that is long enough to be wrapped by every terminal, even wide."""
    other: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OTHER")]
    """Another path."""


def test_missing_argument_is_named_with_its_help_text() -> None:
    with pytest.raises(UserError) as error:
        parse(Required, [], "detrs x")
    text = "path of a best.safetensors, with a help text that is long enough to be wrapped by every terminal, even wide"
    assert str(error.value) == f"Missing argument CHECKPOINT ({text}). See: detrs x --help"
    with pytest.raises(UserError, match=r"^Missing argument OTHER \(another path\)\. See: detrs x --help$"):
        parse(Required, ["best.safetensors"], "detrs x")


def test_flags_are_those_of_the_parser() -> None:
    known = set(flags(Arguments()))
    assert {"--batch-size", "--model.num-queries", "--model.backbone.name", "--seed"} <= known


def test_new_folder_takes_the_first_free_number(plain: Callable) -> None:
    assert new_folder("a") == Path("runs/a-1")
    Path("runs/a-1").mkdir(parents=True)
    Path("runs/a-3").mkdir()
    assert new_folder("a") == Path("runs/a-2")
