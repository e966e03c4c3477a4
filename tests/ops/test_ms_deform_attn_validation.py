"""Arguments that do not match are errors, and tensors without data have shapes."""

import pytest
import torch

from detrs.ops import ms_deform_attn, use


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.ones(2, 41, 9)}, r"\(B, S, M, D\)"),
        ({"value": torch.ones(2, 40, 3, 3)}, "shapes.*40"),
        ({"value": torch.ones(1, 41, 3, 3)}, "B=1"),
        ({"value": torch.ones(2, 41, 5, 3)}, "M=5"),
        ({"shapes": ()}, "shapes"),
        ({"shapes": ((41, 1), (0, 3))}, "shapes"),
        ({"shapes": ((-41, -1),)}, "shapes"),
        ({"shapes": ((41, 1),)}, "L=1"),
        ({"locations": torch.ones(2, 11, 3, 2, 2)}, r"\(B, Q, M, L, P, 2\)"),
        ({"locations": torch.ones(2, 11, 3, 2, 2, 3)}, r"\(B, Q, M, L, P, 2\)"),
        ({"shapes": torch.ones(2, 2)}, "whole numbers"),
        ({"shapes": (5, 7)}, "whole numbers"),
        ({"shapes": ((5, 7, 1), (3, 2, 1))}, "whole numbers"),
        ({"shapes": ((2.5, 14.0), (3, 2))}, "whole numbers"),
        ({"shapes": torch.ones(4, dtype=torch.int64)}, "whole numbers"),
        ({"weights": torch.ones(2, 11, 3, 4)}, r"\(2, 11, 3, 2, 2\)"),
        ({"weights": torch.ones(2, 11, 3, 2, 2, device="meta")}, "meta"),
    ],
)
def test_mismatched_inputs_are_errors(draw, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*draw()._replace(**change))


@pytest.mark.parametrize("shape", [(1, 2**24 + 3), (2**16, 2**15)])
def test_more_pixels_than_can_be_numbered_are_an_error(shape) -> None:
    value = torch.ones(1, 1, 1, 1).expand(1, shape[0] * shape[1], 1, 1)
    with pytest.raises(ValueError, match="16777216"):
        ms_deform_attn(value, (shape,), torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))


def test_integers_are_errors(draw) -> None:
    with pytest.raises(TypeError, match=r"value.*floating-point.*int64"):
        ms_deform_attn(*draw()._replace(value=torch.ones(2, 41, 3, 3, dtype=torch.int64)))


def test_meta_tensors_have_shapes(draw) -> None:
    value, shapes, locations, weights = draw()
    with use(None):
        assert ms_deform_attn(value.to("meta"), shapes, locations.to("meta"), weights.to("meta")).shape == (2, 11, 9)
