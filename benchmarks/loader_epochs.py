"""One loader as a process that ``loader.py`` starts: for each line of numbers of workers on its input, one epoch.

    python benchmarks/loader_epochs.py detrs | torchvision | ultralytics DATA SHORT LONG BATCH_SIZE

An epoch ends with the last batch as it enters the backbone: float32 on the CPU. Its figures are one JSON line.

Equal for all loaders: the files, which have one size; half of the images are mirrored; the size of the resized image,
which is that of detrs (DETR's rule for the short and the long side); batches of that size without padding; labels and
annotations are read before; one thread per process.

Different is what each library does in its own training:

- The decoder: Pillow's for detrs and torchvision, OpenCV's for Ultralytics.
- The interpolation: bilinear, with antialiasing in detrs only.
- The order: torchvision resizes in the main process, in float32, as its detection models do. The others resize in the
  loader processes, in uint8.
- The normalization: by mean and standard deviation in detrs and torchvision, a division by 255 in Ultralytics.
- The memory format: channels-last for detrs, whose backbones are.
- Shuffling: Ultralytics and torchvision shuffle with the ``DataLoader``, detrs by its own order.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Epoch = Callable[[int], Iterator[torch.Tensor]]
"""Number of workers to the input of each batch."""


def detrs(data: Path, short: int, long: int, batch_size: int) -> Epoch:
    from detrs.data import open_dataset
    from detrs.data.loader import training_batches
    from detrs.data.preprocessing import Preprocessing
    from detrs.data.transforms import DataConfig

    dataset = open_dataset(str(data), "train")
    config = DataConfig(resize_to=(short, long), augment="flip", min_scale=1.0, batch_size=batch_size)
    preprocessing = Preprocessing(resize_to=(short, long), mean=MEAN, std=STD)

    def epoch(workers: int) -> Iterator[torch.Tensor]:
        for (batch,) in training_batches(dataset, config, seed=0, epoch=0, workers=workers):
            yield preprocessing.normalize(batch).images.contiguous(memory_format=torch.channels_last)

    return epoch


def torchvision(data: Path, short: int, long: int, batch_size: int) -> Epoch:
    """The detection reference: Pillow's decoder, ``RandomHorizontalFlip`` of ``transforms.v2`` on tensors, then
    ``GeneralizedRCNNTransform`` in the main process, which normalizes and resizes. It pads to multiples of 1 pixel, not
    of 32, so that batches are those of the others."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import tv_tensors
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.transforms import v2

    change = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float32, scale=True)])
    files = sorted((data / "images" / "train").iterdir())
    labels = [_rows(data / "labels" / "train" / f"{file.stem}.txt") for file in files]
    model = GeneralizedRCNNTransform(short, long, MEAN, STD, size_divisible=1)

    class Files(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            image, rows = Image.open(files[index]).convert("RGB"), labels[index]
            boxes = rows[:, 1:] * torch.tensor([image.width, image.height] * 2)
            found = tv_tensors.BoundingBoxes(boxes, format="CXCYWH", canvas_size=(image.height, image.width))
            boxes = v2.functional.convert_bounding_box_format(found, new_format="XYXY")
            return change(image, {"boxes": boxes, "labels": rows[:, 0].long()})

    def epoch(workers: int) -> Iterator[torch.Tensor]:
        loader = DataLoader(Files(), batch_size, shuffle=True, num_workers=workers, collate_fn=_columns, drop_last=True)
        for images, targets in loader:
            yield model(images, targets)[0].tensors

    return epoch


def ultralytics(data: Path, short: int, long: int, batch_size: int) -> Epoch:
    """Its training loader with its transforms, of which only the horizontal flip changes the image: no mosaic.

    ``imgsz`` is the long side of the resized image. By default, its training pads images to a square of that side;
    ``rect`` pads them to the smallest multiple of ``stride`` that contains all images of a batch, which is the image
    itself with a stride of 1. It trains without shuffling then, since the images of a batch must have similar aspect
    ratios; here all are equal.
    """
    from PIL import Image
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader, build_yolo_dataset
    from ultralytics.utils import DEFAULT_CFG, LOGGER

    from detrs.data.preprocessing import resized_size

    LOGGER.setLevel("ERROR")
    off = dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "erasing"), 0.0)
    images = data / "images" / "train"
    with Image.open(next(images.iterdir())) as image:
        width, height = image.size
    imgsz = max(resized_size((height, width), (short, long)))
    config = get_cfg(DEFAULT_CFG, {"imgsz": imgsz, "fliplr": 0.5, "cache": False, **off})
    content = {"names": {0: "object"}, "nc": 1, "channels": 3, "path": data}
    dataset = build_yolo_dataset(config, str(images), batch_size, content, mode="train", rect=True, stride=1)

    def epoch(workers: int) -> Iterator[torch.Tensor]:
        dataset.ims, dataset.buffer = [None] * dataset.ni, []  # images of the epoch before, for mosaics
        loader = build_dataloader(dataset, batch_size, workers, shuffle=True, drop_last=True)
        for batch in loader:
            yield batch["img"].float() / 255
        loader.close()

    return epoch


def _rows(label: Path) -> torch.Tensor:
    """The objects of an image: class, center and size."""
    return torch.tensor(np.loadtxt(label, ndmin=2), dtype=torch.float32)


def _columns(samples: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*samples, strict=True))


def _cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loader", choices=("detrs", "torchvision", "ultralytics"))
    parser.add_argument("data", type=Path)
    parser.add_argument("numbers", type=int, nargs=3)
    arguments = parser.parse_args()
    output = os.dup(sys.stdout.fileno())  # whatever a library prints goes to the standard error stream
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)
    epoch = {"detrs": detrs, "torchvision": torchvision, "ultralytics": ultralytics}[arguments.loader](
        arguments.data, *arguments.numbers
    )
    for line in sys.stdin:
        started, cpu, images, first = time.perf_counter(), _cpu_seconds(), 0, 0.0
        for batch in epoch(int(line)):
            first = first or time.perf_counter() - started
            images += len(batch)
            shape = list(batch.shape)
        seconds = time.perf_counter() - started
        figures = {"seconds": seconds, "cpu_seconds": _cpu_seconds() - cpu, "first_seconds": first, "images": images}
        os.write(output, (json.dumps({**figures, "shape": shape}) + "\n").encode())


if __name__ == "__main__":
    main()
