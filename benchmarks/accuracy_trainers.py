"""Peers of ``benchmarks/accuracy.py`` with a trainer of their own: RT-DETR of Ultralytics, and RF-DETR."""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from detrs.data.opening import open_splits
from detrs.data.protocol import checked_ground_truth
from detrs.data.sample import Dataset
from detrs.evaluation.coco import coco_report

CONFIG = "rtdetr-l.yaml"
"""The smallest RT-DETR of Ultralytics. Its pretrained weights are a download, so its weights are random."""


class NotInstalledError(Exception):
    """A package of a peer is missing."""


class NotTrainedError(Exception):
    """A peer that cannot be trained here."""


def ultralytics_run(settings: Any, folder: Path, coco_results: Callable[..., Any], found: Callable[..., Any]) -> Any:
    """Train, score ``best.pt`` and ``last.pt``, and return both as evaluations.

    Images are written as PNG files before the minutes begin. The two evaluations follow them.

    Raises:
        NotInstalledError: Ultralytics is not installed.
    """
    try:
        from ultralytics import RTDETR
    except ImportError as error:
        raise NotInstalledError("ultralytics") from error
    train_set, val_set = open_splits(settings.data_config)
    assert val_set is not None
    names = train_set.classes.names
    write_yolo({"train": train_set, "val": val_set}, folder)
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": list(names)})
    )
    mirrored = settings.data_config.augment != "none" and train_set.can_be_mirrored
    began = time.monotonic()
    model = RTDETR(CONFIG)
    model.train(
        data=str(folder / "data.yaml"),
        time=settings.minutes / 60,
        imgsz=max(settings.image_size),
        batch=settings.batch_size,
        seed=settings.seed,
        fliplr=0.5 if mirrored else 0.0,
        device="cpu",
        workers=0,
        amp=False,
        plots=False,
        exist_ok=True,
        project=str(folder / "runs"),
        name="run",
    )
    seconds = round(time.monotonic() - began, 1)
    epochs = model.trainer.epoch + 1
    points = []
    for name in ("best", "last"):
        trained = RTDETR(str(folder / "runs" / "run" / "weights" / f"{name}.pt"))
        results = []
        for index, image_id in enumerate(val_set.image_ids):
            height, width = val_set.size_of(index)
            (one,) = trained.predict(
                image_path(folder, "val", index),
                imgsz=max(settings.image_size),
                conf=0.001,
                max_det=100,
                device="cpu",
                verbose=False,
            )
            boxes = one.boxes.xyxyn.cpu(), one.boxes.conf.cpu(), one.boxes.cls.long().cpu()
            results += coco_results(val_set, image_id, (height, width), found(*boxes))
        report = coco_report(checked_ground_truth(val_set), results)
        images = epochs * len(train_set)
        points.append({"images": images, "seconds": seconds, "ap": report.ap, "ap50": report.ap50})
    return points


def rfdetr_run(*_: Any) -> Any:
    """RF-DETR is not trained, since nothing is downloaded.

    Raises:
        NotInstalledError: it is not installed.
        NotTrainedError: otherwise.
    """
    if importlib.util.find_spec("rfdetr") is None:
        raise NotInstalledError("rfdetr")
    raise NotTrainedError("not trained: its backbone starts from the weights of DINOv2, which are a download")


def image_path(folder: Path, split: str, index: int) -> Path:
    return folder / "images" / split / f"{index:06}.png"


def write_yolo(splits: dict[str, Dataset], folder: Path) -> None:
    """Images without loss, and labels as class, center and size in [0, 1]."""
    for split, dataset in splits.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(len(dataset)):
            sample = dataset[index]
            height, width = dataset.size_of(index)
            pixels = sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(image_path(folder, split, index))
            boxes = sample.boxes.as_subclass(torch.Tensor) / torch.tensor([width, height, width, height])
            rows = [
                f"{label} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n"
                for label, (x1, y1, x2, y2) in zip(sample.labels.tolist(), boxes.tolist(), strict=True)
            ]
            (folder / "labels" / split / f"{index:06}.txt").write_text("".join(rows))
