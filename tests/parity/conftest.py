from typing import Any

from theirs import largest


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The largest differences from ``transformers``, for whoever wants to know more than that they are small."""
    if largest:
        terminalreporter.section("largest differences from transformers")
        for what, difference in sorted(largest.items()):
            terminalreporter.write_line(f"{what:45} {difference:.1e}")
