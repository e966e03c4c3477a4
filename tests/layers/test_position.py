import pytest
import torch

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
    position = SinePosition(8, shift)(padding)
    torch.testing.assert_close(position[0, 1, 2], torch.tensor(expected), atol=2e-6, rtol=0)


def test_rows_come_before_columns() -> None:
    position = SinePosition(8, 0.0)(torch.zeros(1, 5, 3, dtype=torch.bool))[0]
    assert torch.equal(position[2, 0, :4], position[2, 1, :4])  # the features of the row are constant along a row
    assert torch.equal(position[0, 2, 4:], position[3, 2, 4:])


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
