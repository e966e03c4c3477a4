"""Faults at three moments of a run: the process ends as documented, and the resumed run is bit-equal."""

from pathlib import Path

import matrix
import pytest
from faults import MOMENTS, differences
from known import KNOWN_FAULTS
from sandbox import Sandbox

FAST = {("F1", "early"), ("F3", "save"), ("F5", "save"), ("F7", "epoch end"), ("F12", "early"), ("F14", "early")}
"""Cells in the default run."""


def parameter(fault: str, moment: str) -> object:
    marks = [pytest.mark.reliability] + ([] if (fault, moment) in FAST else [pytest.mark.slow])
    reason = KNOWN_FAULTS.get((fault, moment)) or KNOWN_FAULTS.get((fault, ""))
    if reason:
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(fault, moment, id=f"{fault}-{moment}".replace(" ", "-"), marks=marks)


@pytest.fixture(scope="module")
def undisturbed(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    result = sandbox.run("faults", "train", {"output": str(output)})
    assert result.kind == "ok" and result.value == 6, result
    return output


@pytest.mark.parametrize(
    ("fault", "moment"), [parameter(fault, moment) for fault in matrix.IN_ONE_PROCESS for moment in MOMENTS]
)
def test_fault(sandbox: Sandbox, undisturbed: Path, tmp_path: Path, fault: str, moment: str) -> None:
    assert matrix.cell(sandbox, fault, moment, tmp_path, undisturbed) == ""


@pytest.mark.reliability
@pytest.mark.slow
def test_second_ctrl_c_stops_at_once(sandbox: Sandbox, undisturbed: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    end = sandbox.run("faults", "cause_of", {"fault": "F2 twice", "output": output, "moment": "early"})
    assert (end.kind, end.code) == ("exit", 130), end
    assert sandbox.run("faults", "resume", {"output": output}).kind == "ok"
    assert differences(tmp_path / "run", undisturbed) == []


@pytest.mark.reliability
def test_diverging_run_stops_and_leaves_no_state(sandbox: Sandbox, tmp_path: Path) -> None:
    """F12: three steps in a row without a finite loss."""
    end = sandbox.run("faults", "diverging", {"output": str(tmp_path / "run")})
    assert end.kind == "error" and "Training diverged: 3 consecutive steps" in end.value
    assert all(part in end.value for part in ("loss", "learning rate", "images ["))
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.reliability
@pytest.mark.slow
def test_resumed_at_every_step(sandbox: Sandbox, tmp_path: Path) -> None:
    """Twelve runs of twelve steps, each stopped after another step."""
    expected = tmp_path / "expected"
    assert sandbox.run("faults", "whole", {"output": str(expected), "epochs": 4}).value == 12
    for number in range(1, 13):
        output = tmp_path / str(number)
        sandbox.run("faults", "resumed_until", {"output": str(output), "number": number, "epochs": 4})
        again = sandbox.run("faults", "whole", {"output": str(output), "resume": True, "epochs": 4})
        assert again.kind == "ok", again
        assert differences(output, expected) == [], number
