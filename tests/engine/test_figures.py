from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from detrs.data.collate import collate
from detrs.engine import figures
from detrs.engine.figures import MAX_SIDE, save_predictions, save_training_batch, spread


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call of ``draw_boxes``."""
    calls: list[tuple[Any, ...]] = []
    draw = figures.draw_boxes

    def remember(*arguments: Any) -> Image.Image:
        calls.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(figures, "draw_boxes", remember)
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
    with Image.open(tmp_path / "batch.jpg") as figure:
        assert figure.format == "JPEG"


def test_predictions_are_drawn_beside_the_ground_truth_of_their_own_image(
    tiny: ModuleType, tmp_path: Path, drawn: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, Any] = {}
    monkeypatch.setattr(figures, "grid", lambda images, **texts: (written.update(texts), images[0])[1])
    dataset = tiny.Tiny("val")
    dataset.classes = dataset.classes._replace(category_ids=tuple(range(100, 200, 10)))
    results = [
        {"image_id": dataset.image_ids[3], "category_id": 170, "bbox": [10.0, 20.0, 30.0, 50.0], "score": 0.8},
        {"image_id": dataset.image_ids[3], "category_id": 120, "bbox": [1.0, 2.0, 3.0, 5.0], "score": 0.2},
    ]
    save_predictions(dataset, results, tmp_path / "found.jpg", threshold=0.3)
    truths, founds = drawn[::2], drawn[1::2]
    assert len(truths) == len(founds) == 5
    for index, ((image, boxes_xyxy, labels, _), found) in enumerate(zip(truths, founds, strict=True)):
        sample = dataset[index]
        assert torch.equal(image, sample.image) and torch.equal(found[0], sample.image)
        assert torch.equal(boxes_xyxy, sample.boxes.as_subclass(torch.Tensor)) and torch.equal(labels, sample.labels)
    assert [len(boxes_xyxy) for _, boxes_xyxy, *_ in founds] == [0, 0, 0, 1, 0]
    _, boxes_xyxy, labels, names, scores = founds[3]
    assert boxes_xyxy.tolist() == [[10.0, 20.0, 40.0, 70.0]]
    assert [names[label] for label in labels] == ["7"] and scores.tolist() == pytest.approx([0.8])
    objects = len(dataset[3].labels)
    assert written["captions"][3] == f"{Path(dataset[3].path).name}: {objects} objects, 1 detection"
    assert "left: ground truth" in written["title"] and "at least 0.30" in written["title"]
    with Image.open(tmp_path / "found.jpg") as both:
        assert both.width > 2 * dataset[0].image.shape[2]


def test_validation_images_are_spread_over_the_whole_split() -> None:
    assert spread(5, 8) == [0, 1, 2, 3, 4] and spread(0, 8) == [] and spread(1, 8) == [0]
    for number in (8, 9, 100, 5000):
        chosen = spread(number, 8)
        assert len({*chosen}) == 8 and chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < number
        gaps = [b - a for a, b in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1 and abs(chosen[0] - (number - 1 - chosen[-1])) <= 1


def test_large_images_and_their_boxes_are_scaled_down_before_drawing(
    tiny: ModuleType, tmp_path: Path, drawn: list[Any]
) -> None:
    height, width = 1201, 1999
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, 300:601, 500:1001] = 255

    class Photographs(tiny.Tiny):  # type: ignore[name-defined,misc]
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)._replace(image=tv_tensors.Image(image), original_size=(height, width))

    dataset = Photographs("val")
    box = {"image_id": dataset.image_ids[0], "category_id": 7, "bbox": [500.0, 300.0, 501.0, 301.0], "score": 0.8}
    save_predictions(dataset, [box], tmp_path / "found.jpg", threshold=0.5)
    small, boxes_xyxy, *_ = drawn[1]
    assert max(small.shape) == MAX_SIDE == small.shape[2] and small.shape[1] == round(1201 * 800 / 1999)
    left, top, right, bottom = (round(corner) for corner in boxes_xyxy[0].tolist())
    assert small[:, top + 2 : bottom - 2, left + 2 : right - 2].min() > 250  # the white rectangle is inside its box
    assert small.sum() == pytest.approx(255 * 3 * (right - left) * (bottom - top), rel=0.02)
