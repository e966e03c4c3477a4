from collections.abc import Callable, Iterator

import pytest
from theirs import largest


@pytest.fixture(autouse=True)
def recorded(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """The largest differences of a test are part of its report, for the summary of all (``tests/conftest.py``)."""
    largest.clear()
    yield
    for what, difference in largest.items():
        record_property(what, difference)
