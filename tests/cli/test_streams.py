"""Broken standard streams, a deleted working directory and variables left by a launcher: one sentence, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detrs.cli import check_launcher
from detrs.errors import UserError

DETRS = f"{sys.executable} -m detrs"
NEEDS_FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")


def shell(command: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


@NEEDS_FULL
def test_a_full_disk_behind_stdout(tmp_path: Path) -> None:
    code, _, err = shell(f"{DETRS} presets --json > /dev/full", tmp_path)
    assert (code, err) == (2, "error: Cannot write the output: No space left on device.\n")
    assert shell(f"{DETRS} presets > /dev/full 2> /dev/full", tmp_path)[0] == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    assert shell(f"{DETRS} presets {closed}", tmp_path)[0] == 0
    code, _, err = shell(f"{DETRS} nothing {closed}", tmp_path)
    assert code == 2 and ("error: Unknown command" in err) == ("2>&-" not in closed)


def test_a_reader_of_stderr_that_is_gone(tmp_path: Path) -> None:
    assert shell(f"{DETRS} 2> >(true); sleep 0.1", tmp_path)[0] == 0
    code = shell(f"{{ sleep 0.5; {DETRS} nothing; echo $? > code; }} 2>&1 | true; cat code", tmp_path)[1]
    assert code == "2\n"


def test_a_deleted_working_directory(tmp_path: Path) -> None:
    code, _, err = shell(f"mkdir gone; cd gone; rmdir ../gone; {DETRS} presets", tmp_path)
    assert (code, err) == (2, "error: The working directory was deleted. Change to another directory.\n")


COMPLETE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1"}, r"has RANK, but not LOCAL_RANK, WORLD_SIZE.*unset RANK\)"),
        ({"LOCAL_RANK": "0"}, "has LOCAL_RANK, but not RANK"),
        ({**COMPLETE, "RANK": "2"}, "values that contradict each other"),
        ({**COMPLETE, "RANK": "one"}, "values that contradict each other"),
        ({**COMPLETE, "WORLD_SIZE": ""}, "values that contradict each other"),
    ],
)
def test_variables_left_by_a_launcher(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_launcher(environment)


def test_variables_of_a_launcher_are_accepted(tmp_path: Path) -> None:
    check_launcher(COMPLETE)
    check_launcher({})
    code, out, err = shell(f"{DETRS} presets", tmp_path, RANK="1")
    assert code == 2 and not out and "unset RANK" in err.replace("\n", " ")
