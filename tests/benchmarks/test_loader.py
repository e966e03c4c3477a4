"""The benchmark of loaders: batches of one shape, settings of each loader, and the table."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import loader
import loader_epochs
import numpy as np
import page
import pytest
import torch
from PIL import Image

from detrs.data.preprocessing import resized_size


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of five small images."""
    monkeypatch.setattr(loader, "HEIGHT", 48)
    monkeypatch.setattr(loader, "WIDTH", 64)
    noise = np.random.default_rng(1).integers(0, 256, (96, 131, 3), dtype=np.uint8)
    loader.make_images(tmp_path / "set", [Image.fromarray(noise)], 5)
    return tmp_path / "set"


@pytest.mark.parametrize("size", [(32, 45), (48, 64), (80, 133)])
def test_all_loaders_give_batches_of_the_resized_size(images: Path, size: tuple[int, int]) -> None:
    """Such as 32 x 42, which is neither a square nor a multiple of 32."""
    shapes = {
        tuple(batch.shape)
        for make in (loader_epochs.detrs, loader_epochs.torchvision)
        for batch in make(images, *size, 2)(0)
    }
    assert shapes == {(2, 3, *resized_size((48, 64), size))}


def test_labels_are_read_before_the_epoch(images: Path) -> None:
    epoch = loader_epochs.torchvision(images, 48, 64, 2)
    for file in (images / "labels" / "train").iterdir():
        file.unlink()
    assert len(list(epoch(0))) == 2


@pytest.mark.parametrize("size", [(32, 45), (48, 64), (80, 133)])
def test_ultralytics_resizes_to_the_same_size(
    images: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its documented arguments: it need not be installed."""
    given: dict[str, Any] = {}

    def build_yolo_dataset(
        config: Any, path: str, batch: int, content: Any, *, mode: str, rect: bool, stride: int
    ) -> Any:
        given.update(config, path=path, mode=mode, rect=rect, stride=stride)
        return SimpleNamespace(ni=5)

    def build_dataloader(dataset: Any, batch: int, workers: int, *, shuffle: bool, drop_last: bool) -> Any:
        class Batches(list[Any]):
            def close(self) -> None: ...

        return Batches([{"img": torch.full((batch, 3, 2, 2), 255, dtype=torch.uint8)}])

    modules = {
        "ultralytics": {},
        "ultralytics.cfg": {"get_cfg": lambda _, settings: settings},
        "ultralytics.data": {"build_dataloader": build_dataloader, "build_yolo_dataset": build_yolo_dataset},
        "ultralytics.utils": {"DEFAULT_CFG": None, "LOGGER": SimpleNamespace(setLevel=lambda _: None)},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    (batch,) = loader_epochs.ultralytics(images, *size, 2)(0)
    height, width = resized_size((48, 64), size)
    assert (given["imgsz"], given["rect"], given["stride"], given["mode"]) == (width, True, 1, "train")
    assert np.ceil(48 / 64 * given["imgsz"]) == height  # its rule for the short side
    assert batch.dtype == torch.float32 and batch.max() == 1 and given["mosaic"] == given["scale"] == 0


def test_the_table_has_the_shape_of_the_batches_of_each_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- loader: begin --><!-- loader: end -->")
    monkeypatch.setattr(page, "README", readme)
    monkeypatch.setattr(loader, "RESULTS", tmp_path / "loader.jsonl")
    monkeypatch.setattr(loader, "WORKERS", (0, 1))

    class Fake:
        def __init__(self, name: str, *_: Any) -> None:
            self.name = name

        def epoch(self, workers: int) -> dict[str, Any]:
            seconds = 2.0 if self.name == "detrs" else 4.0
            figures = {"seconds": seconds / (1 + workers), "cpu_seconds": 1.0, "first_seconds": 0.1, "images": 100}
            return figures | {"shape": [8, 3, 320, 426]}

        def close(self) -> None: ...

    monkeypatch.setattr(loader, "Loader", Fake)
    noise = Image.fromarray(np.zeros((500, 700, 3), dtype=np.uint8))
    monkeypatch.setattr(loader, "photographs_of", lambda _: [noise])
    for sizes in (["320x448"], ["320x448", "480x640"]):
        monkeypatch.setattr(sys, "argv", ["loader.py", "--images", "1", "--rounds", "1", "--sizes", *sizes])
        loader.main()
    lines = readme.read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "320 x 426" in line]
    assert rows == [
        [f"{size}", name, "8 x 3 x 320 x 426", *rates, "10.0", "10.0"]
        for size in ("320 x 448", "480 x 640")
        for name, rates in (("detrs", ("50", "100")), ("torchvision", ("25", "50")))
    ]
    assert "short and long side | loader | batch" in readme.read_text() and rows[0][1] in capsys.readouterr().out


def test_the_readme_has_a_place_for_the_table(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(page.README.read_text())
    page.put("loader", "text", copy)
