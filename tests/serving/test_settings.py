"""Values out of range are errors with the name of the setting."""

from typing import Any

import pytest

from detrs.errors import UserError
from detrs.serving import ServerSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 50}, "threshold is 50, but must be in [0, 1]."),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"max_batch": 0}, "max_batch is 0, but must be at least 1."),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"max_per_client": -1}, "max_per_client is -1"),
        ({"max_body_bytes": 0}, "max_body_bytes is 0"),
        ({"max_images": 0}, "max_images is 0"),
        ({"max_pixels": 10**9}, "max_pixels is 1000000000, but must be in [1, 100,000,000]."),
        ({"timeout_seconds": 0.0}, "timeout_seconds is 0.0, but must be above 0."),
        ({"body_timeout_seconds": float("inf")}, "body_timeout_seconds is inf"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds is nan"),
        ({"batch_window_ms": -1.0}, "batch_window_ms is -1.0, but must be in [0, 1000]."),
        ({"max_images": 65}, "max_images is 65, above queue_size, 64"),
        ({"max_body_bytes": 10**9}, "max_body_bytes is 1,000,000,000, above max_total_bytes"),
        ({"token": ""}, "The token must consist of printable ASCII characters, and not be empty."),
        ({"token": "a\nb"}, "The token must"),
        ({"token": "schlüssel"}, "The token must"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ServerSettings(**values)
    assert str(error.value).startswith(message)
