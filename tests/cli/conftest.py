"""A small dataset on disk and a detector of a hundred thousand parameters for it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from detrs import models
from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints.detector import TrainedDetector, preprocessing_of, save_detector
from detrs.cli import main
from detrs.config import Experiment
from detrs.data.transforms import DataConfig
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.ops import use
from detrs.structures import Classes

CLASSES = Classes(("bright", "dark"), (7, 3))
SIZES = {"train": ((61, 97), (83, 47), (59, 71), (67, 73)), "val": ((53, 89), (101, 79), (43, 107))}


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def message(self) -> str:
        """The error message at the end of stderr."""
        before, mark, message = self.err.partition("error: ")
        assert mark and "Traceback" not in self.err and (not before or before.endswith("\n"))
        return message.removesuffix("\n")


@pytest.fixture
def detrs(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process: ``detrs("presets", "--json")``."""

    def run(*words: Any) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """One thread, no compilation, long lines, and an empty working directory."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    with use("reference"):
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with seven images; its category ids are neither contiguous nor sorted."""
    root = tmp_path_factory.mktemp("data")
    (root / "annotations").mkdir()
    (root / "images").mkdir()
    random = np.random.default_rng(0)
    for split, sizes in SIZES.items():
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [
            {"id": id, "name": name} for name, id in zip(CLASSES.names, CLASSES.category_ids, strict=True)
        ]
        for number, (height, width) in enumerate(sizes):
            image = random.integers(90, 160, (height, width, 3), dtype=np.uint8)
            name = f"{split}-{number}.png"
            for which, id in enumerate(CLASSES.category_ids):
                x, y, w, h = 3 + which * width // 2, 5 + number, width // 3, height // 2
                image[y : y + h, x : x + w] = 255 * (id == 7)
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": 10 + number, "category_id": id, "iscrowd": 0}
                    | {"bbox": [x, y, w, h], "area": w * h}
                )
            Image.fromarray(image).save(root / "images" / name)
            content["images"].append({"id": 10 + number, "file_name": name, "height": height, "width": width})
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """An untrained detector, saved as training saves it."""
    torch.manual_seed(0)
    experiment = Experiment(
        name="tiny",
        model=DeformableDETRConfig(
            num_classes=2,
            backbone=BackboneConfig(name="test_efficientnet", weights="none", freeze_stem=False),
            dim=64,
            num_heads=4,
            encoder_layers=1,
            decoder_layers=2,
            ffn_dim=48,
            num_queries=17,
            queries="proposals",
            reference="refine",
        ),
        data=DataConfig(path=str(data), resize_to=(61, 113), batch_size=2),
    )
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    detector = TrainedDetector(
        module=models.build(experiment.model),
        classes=CLASSES,
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=1,
        epoch=1,
    )
    save_detector(path, detector)
    return path


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A folder with the three validation images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (data / "images").glob("val-*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
