"""Folders of ``transformers`` give the same predictions here, and are written bit-exact."""

from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from hf_models import VARIANTS, build, images, model_class, processor, saved

from detrs import postprocess
from detrs.checkpoints.foreign.transformers import load_transformers, save_transformers

EVERY = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    hf_models.transformers.utils.logging.disable_progress_bar()


@EVERY
@torch.no_grad()
def test_predictions_are_equal_and_the_way_back_is_bit_exact(name: str, tmp_path: Path) -> None:
    theirs = build(name)
    detector = load_transformers(saved(theirs, tmp_path / "theirs"))
    module: Any = detector.module
    pixels, padding = images()
    expected, found = theirs(pixels, (~padding).long()), module(pixels, padding).last
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.boxes, expected.pred_boxes, atol=3e-6, rtol=0)

    sizes = [(326, 458), (386, 298)]
    arguments = {} if name.startswith("detr") else {"top_k": 20}
    other = processor(name).post_process_object_detection(
        expected, threshold=-1, target_sizes=torch.tensor(sizes), **arguments
    )
    boxes = postprocess.detections(module.detect(pixels, padding, max_detections=20), sizes, detector.classes)
    for mine, his in zip(boxes, other, strict=True):
        order = his["scores"].argsort(descending=True, stable=True)
        assert mine.labels.tolist() == his["labels"][order].tolist()
        torch.testing.assert_close(mine.scores, his["scores"][order])
        torch.testing.assert_close(mine.boxes_xyxy, his["boxes"][order], atol=2e-3, rtol=0)

    save_transformers(detector, tmp_path / "back")
    back = model_class(name).from_pretrained(tmp_path / "back").eval()
    again = back(pixels, (~padding).long())
    if "own-resnet" in name:  # written as the same timm model
        torch.testing.assert_close(again.logits, expected.logits, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(again.logits, expected.logits) and torch.equal(again.pred_boxes, expected.pred_boxes)
        tensors = back.state_dict()
        assert tensors.keys() == theirs.state_dict().keys()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in theirs.state_dict().items())
    ours = load_transformers(tmp_path / "back")
    assert ours.module.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(ours.module.state_dict()[key], tensor) for key, tensor in module.state_dict().items())
    assert (ours.classes, ours.preprocessing, ours.experiment) == (
        detector.classes,
        detector.preprocessing,
        detector.experiment,
    )
