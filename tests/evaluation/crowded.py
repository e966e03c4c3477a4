"""A small dataset with everything that matching must get right. Imported by the tests."""

from typing import Any

import numpy as np


def dataset(seed: int, num_images: int = 6) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects, crowd regions and detections that often overlap, with equal scores and equal IoUs.

    One image has no object, one no detection; class 9 has no object.
    """
    random = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": 100 - 7 * number} for number in range(num_images)],
        "categories": [{"id": id, "name": f"class {id}"} for id in (4, 2, 9)],
        "annotations": [],
    }
    results: list[dict[str, Any]] = []
    for number, image in enumerate(truth["images"]):
        for _ in range(0 if number == 1 else int(random.integers(1, 9))):
            x, y, w, h = random.integers(0, 5, 4) * 8 + np.array([0, 0, 16, 16])
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "bbox": [x, y, w, h]}
            label = int(random.choice([4, 2]))
            truth["annotations"].append(
                entry | {"category_id": label, "iscrowd": int(random.random() < 0.25), "area": w * h}
            )
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for _ in range(0 if number == 2 else 14):
            box = random.integers(0, 5, 4) * 8 + np.array([0, 0, 16, 16])
            if own and random.random() < 0.6:  # near an object, sometimes exactly on it
                box = own[int(random.integers(len(own)))]["bbox"] + random.integers(-1, 2, 4) * int(random.integers(5))
            found = {"image_id": image["id"], "category_id": int(random.choice([4, 2, 9]))}
            results.append(found | {"bbox": [float(v) for v in box], "score": int(random.integers(1, 8)) / 8})
    return truth, results
