"""Equal objects are found by a hash of their values, of which only equal ones are compared."""

import numpy as np
import pytest

from detrs.data import object_checks
from detrs.data.object_checks import repeats


@pytest.mark.parametrize("factor", [object_checks.HASH_FACTOR, np.uint64(0)])
@pytest.mark.parametrize("count", [0, 1, 2, 3000])
def test_repeats_are_those_of_a_dictionary(monkeypatch: pytest.MonkeyPatch, factor: np.uint64, count: int) -> None:
    """With the factor 0, all hashes are equal."""
    monkeypatch.setattr(object_checks, "HASH_FACTOR", factor)
    random = np.random.default_rng(count)
    keys = (
        random.integers(0, 12, count, dtype=np.int32),
        random.choice([0.0, -0.0, 1e-300, 0.1, 0.1 + 1e-17, 7.5, -1e9], count),
        random.integers(0, 6, count).astype(np.float64),
    )
    seen: set[tuple[float, ...]] = set()
    expected = []
    for row in zip(*(key.tolist() for key in keys), strict=True):
        expected.append(row in seen)
        seen.add(row)
    assert repeats(keys).tolist() == expected
    assert count < 3000 or 1000 < sum(expected) < 3000
