"""Hostile files: nothing is executed or imported, each is an error in one sentence, within time and memory limits."""

from pathlib import Path
from typing import Any

import attacks
import malicious_weights
import pytest
from attacks import GIGANTIC, HOSTILE_SETTINGS, METADATA
from known import KNOWN_ATTACKS
from sandbox import Result, Sandbox

SECONDS = 60.0
"""Limit of one file. The time is generous for busy machines; ``benchmarks/reliability.py`` reports the longest."""
GIGANTIC_SECONDS = 10.0
CPU_SECONDS = 5.0
"""Limit of one malicious weight file at one entrance, in CPU time, which hardly depends on other processes."""


def parameters(names: list[str], kind: str, *marks: Any) -> list[Any]:
    result = []
    for number, name in enumerate(names):
        id_ = f"{kind}-{number}-{name}".replace(" ", "-")
        reason = KNOWN_ATTACKS.get(id_)
        known = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        result.append(pytest.param(number, id=id_, marks=[pytest.mark.reliability, *marks, *known]))
    return result


def assert_refused(result: Result) -> None:
    assert attacks.is_rejected(result.kind, result.value, result.mib), result
    assert result.seconds < SECONDS


@pytest.mark.parametrize("number", parameters(attacks.PICKLES, "checkpoint"))
def test_pickle_as_checkpoint(sandbox: Sandbox, tmp_path: Path, number: int) -> None:
    give_pickle(sandbox, tmp_path, number, "checkpoint")


@pytest.mark.parametrize("number", parameters(attacks.PICKLES, "backbone"))
def test_pickle_as_backbone_weights(sandbox: Sandbox, tmp_path: Path, number: int) -> None:
    give_pickle(sandbox, tmp_path, number, "backbone")


def give_pickle(sandbox: Sandbox, tmp_path: Path, number: int, entrance: str) -> None:
    canary = tmp_path / "canary"
    result = sandbox.run("attacks", "open_pickle", {"folder": str(tmp_path), "number": number, "entrance": entrance})
    assert not canary.exists(), "the file was executed"
    assert_refused(result)


@pytest.mark.reliability
@pytest.mark.parametrize("name", malicious_weights.FILES)
def test_malicious_weights_at_every_entrance(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    """``load``, ``evaluate``, ``predict``, ``train``, ``checkpoint inspect``, ``convert``, ``push``, and the Hub."""
    result = sandbox.run("malicious_weights", "open_malicious", {"folder": str(tmp_path), "name": name})
    assert not (tmp_path / "canary").exists(), "the file was executed"
    assert result.kind == "ok" and result.mib < attacks.MAX_MIB, result
    assert len(result.value) == 9
    assert len({message for _, _, message, _ in result.value}) == 1, "an entrance fails for another reason"
    for entrance, kind, message, seconds in result.value:
        assert attacks.is_rejected(kind, message, 0.0) and "\n" not in message, (entrance, kind, message)
        assert seconds < CPU_SECONDS, (entrance, seconds)


@pytest.mark.parametrize("number", parameters([setting for setting, _ in HOSTILE_SETTINGS], "setting"))
def test_settings(sandbox: Sandbox, tmp_path: Path, number: int) -> None:
    result = sandbox.run("attacks", "open_settings", {"folder": str(tmp_path), "number": number})
    assert_refused(result)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("number", parameters([key for key, _ in METADATA], "metadata"))
def test_metadata(sandbox: Sandbox, tmp_path: Path, number: int) -> None:
    assert_refused(sandbox.run("attacks", "open_metadata", {"folder": str(tmp_path), "number": number}))


@pytest.mark.parametrize("number", parameters([key for key, _ in GIGANTIC], "gigantic"))
def test_gigantic_models(sandbox: Sandbox, tmp_path: Path, number: int) -> None:
    arguments = {"folder": str(tmp_path), "number": number}
    assert_refused(sandbox.run("attacks", "open_gigantic", arguments, seconds=GIGANTIC_SECONDS))


@pytest.mark.reliability
@pytest.mark.parametrize("count", [160, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutations(sandbox: Sandbox, tmp_path: Path, count: int) -> None:
    """Every damaged copy of a detector is rejected."""
    result = sandbox.run("attacks", "open_mutations", {"folder": str(tmp_path), "count": count}, seconds=600)
    assert (result.kind, result.value) == ("ok", {"detected": count, "wrong": []}), result
