"""Two processes of which one is killed, and two nodes on one machine."""

from pathlib import Path

import launch
import pytest
from faults import MOMENTS, differences
from known import KNOWN_FAULTS

pytestmark = [pytest.mark.reliability, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("two") / "run"
    code, errors, _ = launch.finish(launch.start(output, "none"))
    assert code == 0, errors
    return output


def parameter(moment: str) -> object:
    reason = KNOWN_FAULTS.get(("F15", moment)) or KNOWN_FAULTS.get(("F15", ""))
    return pytest.param(moment, marks=[pytest.mark.xfail(reason=reason, strict=True)] if reason else [])


@pytest.mark.parametrize("moment", [parameter(moment) for moment in MOMENTS])
def test_lost_peer(undisturbed: Path, tmp_path: Path, moment: str) -> None:
    assert launch.lost_peer(moment, tmp_path, undisturbed) == ""


def test_two_nodes_equal_two_processes(undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    both = [launch.start(output, "none", launcher=launcher) for launcher in launch.nodes(launch.free_port())]
    for code, errors, _ in map(launch.finish, both):
        assert code == 0, errors
    assert differences(output, undisturbed) == []
