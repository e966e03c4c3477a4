from typing import Any

from theirs import largest


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the largest differences from ``transformers``."""
    if largest:
        terminalreporter.section("largest differences from transformers")
        for what, difference in sorted(largest.items()):
            terminalreporter.write_line(f"{what:45} {difference:.1e}")
