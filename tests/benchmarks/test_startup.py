"""The benchmark of start-up measures commands of two checkouts in the same rounds."""

import sys
from pathlib import Path

import pytest
import startup
from startup import Case, Time

FAST = Case("import detrs", ("-c", "import detrs, sys; sys.exit(3)"), 0.1, 3)


def test_commands_exist_and_use_their_placeholders() -> None:
    from detrs.cli import COMMANDS

    for case in startup.CASES:
        if case.words[:2] == ("-m", "detrs"):
            assert case.words[2] in (*COMMANDS, "--help", "trian"), case
    assert [case.limit_s for case in startup.CASES if startup.IMAGE in case.words] == [4.0]


def test_a_command_is_timed_with_the_package_of_a_checkout(tmp_path: Path) -> None:
    times = startup.measure((FAST,), [startup.REPOSITORY / "src"] * 2, 2, {}, tmp_path)
    assert [len(each) for each in times["import detrs"]] == [2, 2]
    assert all(0 < each.cpu < 60 and 0 < each.wall < 60 for row in times["import detrs"] for each in row)
    code = "import detrs, sys; sys.exit(not detrs.__file__.startswith(sys.argv[1]))"
    other = tmp_path / "other" / "src"
    (other / "detrs").mkdir(parents=True)
    (other / "detrs" / "__init__.py").touch()
    startup.run(Case("x", ("-c", code, str(other)), 0.1), other, tmp_path, {})


def test_another_exit_code_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="expected exit code 0, got 3"):
        startup.run(FAST._replace(code=0), startup.REPOSITORY / "src", tmp_path, {})


def test_report_has_medians_and_the_ratio_of_cpu_times() -> None:
    own, other = [Time(0.3, 0.2), Time(9.0, 0.1), Time(0.2, 0.4)], [Time(1.0, 0.6), Time(1.0, 0.6), Time(1.0, 5.0)]
    (row,) = startup.report((FAST,), {FAST.name: [own, other]})
    assert (row["wall_s"], row["cpu_s"], row["other_cpu_s"]) == (0.3, 0.2, 0.6)
    assert row["ratio"] == pytest.approx(3.0)
    assert startup.table([row]).splitlines()[-1] == "| `import detrs` | 0.30 s | 0.20 s | 0.1 s | 0.60 s | 3.0 |"
    (alone,) = startup.report((FAST,), {FAST.name: [own]})
    assert startup.table([alone]).splitlines()[-1] == "| `import detrs` | 0.30 s | 0.20 s | 0.1 s |"


def test_exit_code_tells_whether_a_limit_is_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["startup.py", "--checkpoint", "a", "--image", "b", "--rounds", "1"])
    for wall, code in ((1.0, 1), (0.05, 0)):
        monkeypatch.setattr(startup, "CASES", (FAST,))
        monkeypatch.setattr(startup, "run", lambda *_, wall=wall: Time(wall, wall))
        assert startup.main() == code
