import math

import pytest
import torch

from detrs.layers import position
from detrs.layers.position import SinePosition, sine_features


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (0.0, [-0.866025, -0.500001, 0.041876, 0.999123, -0.000002, 1.0, 0.062790, 0.998027]),  # DETR
        (-0.5, [0.000001, -1.0, 0.031411, 0.999507, -0.866026, 0.499999, 0.052336, 0.998630]),  # Deformable DETR
    ],
)
def test_golden_values_of_the_official_modules(shift: float, expected: list[float]) -> None:
    padding = torch.zeros(1, 3, 4, dtype=torch.bool)
    padding[..., 3] = True
    embedding = SinePosition(8, shift)(padding)
    torch.testing.assert_close(embedding[0, 1, 2], torch.tensor(expected), atol=2e-6, rtol=0)


def test_rows_come_before_columns() -> None:
    embedding = SinePosition(8, 0.0)(torch.zeros(1, 5, 3, dtype=torch.bool))[0]
    assert torch.equal(embedding[2, 0, :4], embedding[2, 1, :4])  # the features of the row are constant along a row
    assert torch.equal(embedding[0, 2, 4:], embedding[3, 2, 4:])


def test_padding_changes_nothing_on_valid_cells() -> None:
    padding = torch.ones(1, 7, 11, dtype=torch.bool)
    padding[:, :5, :3] = False
    alone = SinePosition(16, -0.5)(torch.zeros(1, 5, 3, dtype=torch.bool))
    torch.testing.assert_close(SinePosition(16, -0.5)(padding)[:, :5, :3], alone)


def test_features_interleave_sine_and_cosine_in_float32() -> None:
    features = sine_features(torch.tensor([1.5], dtype=torch.float16), 4)
    angles = torch.tensor([1.5, 1.5 / 100])
    expected = torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[0], expected)


def test_images_of_a_batch_count_their_own_rows_and_columns() -> None:
    """Against cumulative sums of the whole mask, as the official modules compute them."""
    padding = torch.zeros(3, 11, 13, dtype=torch.bool)
    padding[1, 7:], padding[1, :, 5:], padding[2, :, 2:] = True, True, True
    y, x = (~padding).float().cumsum(1), (~padding).float().cumsum(2)
    angles = ((y - 0.5) / (y[:, -1:] + 1e-6) * 2 * math.pi, (x - 0.5) / (x[:, :, -1:] + 1e-6) * 2 * math.pi)
    expected = torch.cat([sine_features(angle, 8) for angle in angles], dim=-1)
    torch.testing.assert_close(SinePosition(16, -0.5)(padding)[~padding], expected[~padding], atol=0, rtol=0)


def test_sines_are_computed_once_per_row_and_once_per_column(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = []
    monkeypatch.setattr(position, "sine_features", lambda x, *rest: angles.append(x.shape) or sine_features(x, *rest))
    SinePosition(16, -0.5)(torch.zeros(2, 11, 13, dtype=torch.bool))
    assert angles == [(2, 11), (2, 13)]
