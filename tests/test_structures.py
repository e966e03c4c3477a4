import torch

from detrs.structures import Classes, Detections

CLASSES = Classes(("ape", "bee", "cat"), (7, 3, 90))


def found() -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[1.0, 2.0, 31.5, 42.25], [5.125, 6.0, 7.0, 9.0]]),
        scores=torch.tensor([0.9, 0.25]),
        labels=torch.tensor([2, 0]),
        classes=CLASSES,
        image_size=(97, 131),
        source="a.jpg",
    )


def test_filter_keeps_scores_of_at_least_the_threshold() -> None:
    assert len(found().filter(0.25)) == 2
    assert found().filter(0.2500001).names == ["cat"]
    assert len(found().filter(1.0)) == 0


def test_coco_results_carry_the_data_sets_own_ids_and_full_precision() -> None:
    first, second = found().to_coco(image_id=12)
    assert first == {"image_id": 12, "category_id": 90, "bbox": [1.0, 2.0, 30.5, 40.25], "score": first["score"]}
    assert first["score"] == torch.tensor(0.9).item()
    assert second["category_id"] == 7


def test_json_names_everything() -> None:
    assert found().to_json() == {
        "source": "a.jpg",
        "image_size": [97, 131],
        "detections": [
            {"box_xyxy": [1.0, 2.0, 31.5, 42.25], "score": 0.9, "name": "cat", "category_id": 90},
            {"box_xyxy": [5.12, 6.0, 7.0, 9.0], "score": 0.25, "name": "ape", "category_id": 7},
        ],
    }
