"""The traced program of an export."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from exported_files import INFO, checkpoint
from torch import Tensor, nn
from trained import experiment, trained

from detrs.backbones.folding import FoldedConv2d
from detrs.config.backbone import BackboneConfig
from detrs.errors import UserError
from detrs.exporting import program
from detrs.models.detector import Model
from detrs.postprocess import without_duplicates
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


def test_the_weights_of_folded_convolutions_are_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, the graph scales them in every run, and the quantizer ignores them."""
    traced: list[nn.Module] = []
    monkeypatch.setattr(torch.export, "export", lambda module, *arguments, **options: traced.append(module))
    backbone = BackboneConfig(name="test_resnet", weights="none")
    detector = trained(experiment("deformable-detr-tiny", backbone=backbone))
    program.trace(detector, INFO)

    def is_folded(model: nn.Module) -> bool:
        return any(isinstance(module, FoldedConv2d) for module in model.modules())

    assert is_folded(detector.module) and not is_folded(traced[0])
    detection = next(module for module in traced[0].modules() if isinstance(module, program.Detection))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = (model.get_submodule("backbone")(images) for model in (detection.model, detector.module))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_suppression_of_the_training_is_part_of_the_program() -> None:
    detector, images = trained(experiment("detr-tiny")), torch.randn(2, 3, 96, 128)
    info = replace(INFO, max_detections=40)
    with torch.no_grad():
        exported = program.program(detector.suppressing(0.3), info)(images)
        plain = detector.module.detect(images, torch.zeros(2, 96, 128, dtype=torch.bool), info.max_detections)
    expected = without_duplicates(plain, 0.3, 3)[0]._asdict()
    assert all(torch.equal(exported[name], expected[name]) for name in Boxes._fields)
    assert (plain.scores > 0).all() and (exported["scores"] == 0).any()


@pytest.mark.parametrize(("nms", "expected"), [(None, 1), (1.0, 0), (0.5, 1)])
def test_a_program_without_suppression(nms: float | None, expected: int) -> None:
    detector = trained(experiment("detr-tiny")).suppressing(nms)
    stages = program.program(detector, INFO).modules()
    assert sum(isinstance(stage, program.Suppression) for stage in stages) == expected
