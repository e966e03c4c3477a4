"""The table of the reliability suite, without running it."""

from typing import Any

import reliability


def report(**changes: Any) -> dict[str, Any]:
    figures = {"rows": 112, "silent acceptances": [], "tracebacks": [], "hangs": [], "executions": 0}
    figures |= {"faults": 48, "faults survived bit-equal": 48, "mutations": 2000, "mutations detected": 2000}
    figures |= {"resumed at each step": 12, "resumed bit-equal": 12, "deviations": {"93": "a link is accepted"}}
    return figures | changes


def test_table() -> None:
    lines = reliability.text(report(hangs=["1-named-pipe"])).splitlines()
    assert "hangs                                  1" in lines and "  1-named-pipe" in lines
    assert "  93: a link is accepted" in lines


def test_any_failure_counts() -> None:
    assert reliability.is_good(report())
    for wrong in ({"tracebacks": ["1-x"]}, {"executions": 1}, {"mutations detected": 1999}, {"resumed bit-equal": 11}):
        assert not reliability.is_good(report(**wrong))
