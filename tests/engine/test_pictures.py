from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from detrs.data.collate import collate
from detrs.engine import pictures
from detrs.engine.pictures import save_predictions, save_training_batch


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is handed to ``draw_boxes``, call by call."""
    calls: list[tuple[Any, ...]] = []
    draw = pictures.draw_boxes

    def remember(*arguments: Any) -> Image.Image:
        calls.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(pictures, "draw_boxes", remember)
    return calls


def test_training_batch_is_drawn_without_its_padding(tiny: ModuleType, tmp_path: Path, drawn: list[Any]) -> None:
    samples = [tiny.Tiny("train")[index] for index in range(3)]
    batch = collate(samples, (139, 181))
    save_training_batch(batch, tuple("0123456789"), tmp_path / "batch.jpg")
    assert len(drawn) == 3
    for (image, boxes_xyxy, labels, _), sample in zip(drawn, samples, strict=True):
        assert torch.equal(image, sample.image)
        torch.testing.assert_close(boxes_xyxy, sample.boxes.as_subclass(torch.Tensor), rtol=0, atol=1e-3)
        assert torch.equal(labels, sample.labels)
    with Image.open(tmp_path / "batch.jpg") as sheet:
        assert sheet.format == "JPEG"


def test_predictions_are_drawn_on_their_own_pictures(tiny: ModuleType, tmp_path: Path, drawn: list[Any]) -> None:
    dataset = tiny.Tiny("val")
    dataset.classes = dataset.classes._replace(category_ids=tuple(range(100, 200, 10)))
    results = [
        {"image_id": dataset.image_ids[3], "category_id": 170, "bbox": [10.0, 20.0, 30.0, 50.0], "score": 0.8},
        {"image_id": dataset.image_ids[3], "category_id": 120, "bbox": [1.0, 2.0, 3.0, 5.0], "score": 0.2},
    ]
    save_predictions(dataset, results, tmp_path / "found.jpg", threshold=0.3)
    assert len(drawn) == 5
    assert [len(boxes_xyxy) for _, boxes_xyxy, *_ in drawn] == [0, 0, 0, 1, 0]
    image, boxes_xyxy, labels, names, scores = drawn[3]
    assert torch.equal(image, dataset[3].image)
    assert boxes_xyxy.tolist() == [[10.0, 20.0, 40.0, 70.0]]
    assert [names[label] for label in labels] == ["7"] and scores.tolist() == pytest.approx([0.8])
