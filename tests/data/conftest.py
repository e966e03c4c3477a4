"""A small COCO dataset on disk, to be damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.data import FolderDataset, annotation_cache
from detrs.data.detect import find_split

SIZES = ((61, 97), (83, 47), (59, 59))  # (height, width)


class Folder:
    """``data`` is the content of the annotation file; change it, then call ``open``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"
        self.images.mkdir(parents=True)
        random = np.random.default_rng(5)
        self.data: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        }
        for number, (height, width) in enumerate(SIZES):
            name = f"photo {number}.png"
            Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(self.images / name)
            self.data["images"].append({"id": 10 + number, "file_name": name, "height": height, "width": width})
        for number, (image_id, category_id, bbox) in enumerate(
            (
                (10, 7, [5.5, 7, 31, 23]),
                (10, 3, [40, 11, 29, 37]),
                (10, 7, [1, 2, 13, 17]),
                (11, 3, [3, 19, 11, 41]),
                (11, 3, [17, 5, 29, 53.25]),
                (11, 7, [2, 2, 19, 7]),
            )
        ):
            self.data["annotations"].append(
                {
                    "id": 100 + number,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": bbox,
                    "area": 0.5 * bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )

    def write(self, content: str | bytes | None = None) -> Path:
        path = self.root / "annotations" / "train.json"
        path.parent.mkdir(exist_ok=True)
        content = json.dumps(self.data) if content is None else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def image(self, number: int = 0) -> Path:
        return self.images / self.data["images"][number]["file_name"]

    def paint(self, gray: int) -> None:
        """The first image without compression, so that all grays give files of the same length."""
        size = self.data["images"][0]["width"], self.data["images"][0]["height"]
        Image.new("RGB", size, (gray, gray, gray)).save(self.image(), compress_level=0)

    def open(self, **options: Any) -> FolderDataset:
        self.write()
        return FolderDataset(find_split(self.root, "train"), **options)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "set")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[str], Folder]:
    return lambda name: Folder(tmp_path / name)


@pytest.fixture
def cache(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache; files count as unchanging at once."""
    folder.write()
    folder.paint(50)
    monkeypatch.setenv("DETRS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_cache, "SETTLED_S", -60.0)
    return tmp_path / "cache" / "annotations"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The splits that are checked, not opened from the cache."""
    checked: list[Path] = []
    check = annotation_cache.read_annotations

    def record(split: Any, **options: Any) -> Any:
        checked.append(split.path)
        return check(split, **options)

    monkeypatch.setattr(annotation_cache, "read_annotations", record)
    return checked
