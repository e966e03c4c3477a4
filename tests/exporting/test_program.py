"""The traced program of an export."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from exported_files import INFO, checkpoint
from torch import Tensor

from detrs.errors import UserError
from detrs.exporting import program
from detrs.models.detector import Model
from detrs.structures import Boxes


class DependsOnValues(Model):
    """A model with a branch that no graph can have."""

    def objective(self, config):
        raise AssertionError

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        boxes = images.mean((2, 3))[:, None, :1].expand(-1, 3, 4)
        return Boxes(boxes if images.sum() > 0 else -boxes, boxes[..., 0], boxes[..., 0].long())


@pytest.mark.parametrize(
    ("static", "message"),
    [
        (
            None,
            r"cannot trace this model for images of any size \(.+\)\. Choose a static size \(--static\), or another",
        ),
        ((96, 128), r"cannot trace this model \(.+\)\. Choose another backbone\."),
    ],
)
def test_a_model_that_cannot_be_traced(
    static: tuple[int, int] | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic sizes are not of type int
    detector = replace(checkpoint(), module=DependsOnValues())
    with pytest.raises(UserError, match=message) as raised:
        program.trace(detector, replace(INFO, static=static))
    assert "\n" not in str(raised.value)
    assert torch.is_grad_enabled()
