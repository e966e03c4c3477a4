"""Opens a dataset of the size of COCO: time and memory of the first and the second opening, and of several processes.

    python benchmarks/data.py [--images 118000] [--boxes 826000] [--polygons] [--folder FOLDER] [--json]

The images are hard links to a few JPEG files of different sizes, so that they take little space; every file is opened,
read and hashed as any other. The files are in the cache of the operating system: a disk that is slower than the
processor adds the time to read 32 KiB of each image to the first opening.

Memory is that of the whole process with PyTorch (peak resident set size) for one process, and for several processes the
sum of their proportional set sizes (pages that processes share are counted once) minus that of the same processes with
a dataset of 100 images. Linux only.

The result is appended to ``results/data.jsonl``, and shown in README.md.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "data.jsonl"
SIZES = ((480, 640), (640, 480), (427, 640), (375, 500), (612, 612), (333, 500), (640, 427), (425, 640))
"""(height, width) of the JPEG files."""
NUM_CLASSES = 80
WORKERS, PROCESSES, STEPS = 2, 2, 4
COUNTS = "counts.json"
"""In the folder of a dataset: its numbers of images and boxes, and whether it has polygons."""
SMALL = 100
"""Images of the dataset whose memory is subtracted."""
TIMEOUT_S = 1200
HEADER = (
    "machine",
    "images",
    "boxes",
    "first opening",
    "peak",
    "second opening",
    "peak",
    "2 processes, 2 workers each",
)


def main() -> None:
    options = parsed()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options.folder)))
        return
    import page  # the measured processes do not need it

    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="detrs-data-"))
    try:
        entry = {"commit": page.commit(), **measure(folder, options)}
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    if options.json:
        print(json.dumps(entry))
        return
    page.append(RESULTS, entry)
    lines = page.newest(RESULTS, lambda line: (line["machine"], line["images"], line["polygons"]))
    page.put("data", page.table(HEADER, [*map(row, lines)]), page.README)
    print(page.table(HEADER, [row(entry)]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=826_000)
    parser.add_argument("--polygons", action="store_true", help="annotations with a polygon of 22 points, as in COCO")
    parser.add_argument("--folder", type=Path, help="keep the dataset in this folder, or use the one that is there")
    parser.add_argument("--json", action="store_true", help="print the result instead of storing it")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Makes the datasets if they do not exist, and opens them with an empty cache."""
    large = dataset(folder / "large", options.images, options.boxes, polygons=options.polygons)
    small = dataset(folder / "small", SMALL, SMALL * 7, polygons=options.polygons)
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    time.sleep(3)  # files that have just changed are not cached
    first, second = child("open", large, cache), child("open", large, cache)
    load = {name: several(path, cache) for name, path in (("small", small), ("large", large))}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "images": options.images,
        "boxes": options.boxes,
        "polygons": options.polygons,
        "first": first,
        "second": second,
        "several_mib": load["large"] - load["small"],
    }


def dataset(folder: Path, num_images: int, num_boxes: int, *, polygons: bool) -> Path:
    """Makes a dataset in a folder, or checks that the one that is there has the same content."""
    content, counts = {"images": num_images, "boxes": num_boxes, "polygons": polygons}, folder / COUNTS
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was interrupted
        make_dataset(partial, num_images, num_boxes, polygons=polygons)
        (partial / COUNTS).write_text(json.dumps(content))
        partial.rename(folder)
    found = json.loads(counts.read_text()) if counts.exists() else f"a folder without {COUNTS}"
    if found != content:
        sys.exit(f"{folder} is {found}, not {content}: remove it, or pass its counts or another --folder.")
    return folder


def make_dataset(folder: Path, num_images: int, num_boxes: int, *, polygons: bool = False) -> None:
    """Writes a training split in the layout of COCO."""
    images = folder / "train2017"
    images.mkdir(parents=True)
    (folder / "annotations").mkdir()
    generator = np.random.default_rng(0)
    sources = []
    for number, (height, width) in enumerate(SIZES):
        low = generator.integers(0, 255, (height // 12, width // 12, 3), dtype=np.uint8)
        image = Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 12, (height, width, 3))
        noisy = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
        sources.append(folder / f"source{number}.jpg")
        noisy.save(sources[-1], quality=90)
    for number in range(1, num_images + 1):
        os.link(linked(sources, number), images / f"{number:012d}.jpg")
    with (folder / "annotations" / "instances_train2017.json").open("w") as file:
        for part in document(num_images, num_boxes, polygons):
            file.write(part)


def linked(sources: list[Path], number: int) -> Path:
    """The file of an image; a new copy for every 50,000 images, since ext4 allows 65,000 links to a file."""
    source = sources[number % len(sources)]
    copy = source.with_name(f"{source.stem}-{number // 50_000}.jpg")
    if not copy.exists():
        shutil.copy(source, copy)
    return copy


def document(num_images: int, num_boxes: int, polygons: bool) -> Iterator[str]:
    """The annotation file, in parts."""
    yield '{"info": {"description": "synthetic", "year": 2017}, "licenses": [{"id": 1, "name": "none"}], "images": ['
    for number in range(1, num_images + 1):
        height, width = SIZES[number % len(SIZES)]
        entry = {
            "license": 1,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
            "height": height,
            "width": width,
            "date_captured": "2013-11-14 17:02:52",
            "id": number,
        }
        yield (", " if number > 1 else "") + json.dumps(entry)
    yield '], "annotations": ['
    numbers = random.Random(0)
    for number in range(1, num_boxes + 1):
        image = (number - 1) % num_images + 1
        height, width = SIZES[image % len(SIZES)]
        w, h = round(numbers.uniform(2, width / 2), 2), round(numbers.uniform(2, height / 2), 2)
        box = [round(numbers.uniform(0, width - w), 2), round(numbers.uniform(0, height - h), 2), w, h]
        outline = [round(numbers.uniform(0, 500), 2) for _ in range(44)] if polygons else []
        entry = {
            "segmentation": [outline] if polygons else [],
            "area": round(w * h * 0.7, 4),
            "iscrowd": 0,
            "image_id": image,
            "bbox": box,
            "category_id": numbers.randint(1, NUM_CLASSES),
            "id": number,
        }
        yield (", " if number > 1 else "") + json.dumps(entry)
    names = [{"id": number, "name": f"class {number}"} for number in range(1, NUM_CLASSES + 1)]
    yield f'], "categories": {json.dumps(names)}}}'


def child(mode: str, folder: Path, cache: Path) -> dict[str, float]:
    """The output of a new process."""
    return output(started(mode, folder, cache))


def started(mode: str, folder: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", mode, "--folder", str(folder)]
    variables = os.environ | {"DETRS_CACHE": str(cache)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)


def output(process: subprocess.Popen[str]) -> dict[str, float]:
    text, _ = process.communicate(timeout=TIMEOUT_S)
    if process.returncode:
        sys.exit(f"{process.args} failed")
    result: dict[str, float] = json.loads(text.splitlines()[-1])
    return result


def several(folder: Path, cache: Path) -> float:
    """MiB of ``PROCESSES`` processes that load batches with ``WORKERS`` workers each, shared pages counted once."""
    processes = [started("load", folder, cache) for _ in range(PROCESSES)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # all batches are loaded, the workers wait
    every = [each for process in processes for each in (psutil.Process(process.pid), *children_of(process.pid))]
    total = sum(each.memory_full_info().pss for each in every) / 2**20
    for process in processes:
        output(process)
    return float(total)


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def open_once(folder: Path) -> dict[str, float]:
    """Opens the dataset and reads one sample."""
    from detrs.data.opening import open_splits
    from detrs.data.transforms import DataConfig

    before = psutil.Process().memory_info().rss / 2**20
    start, cpu = time.perf_counter(), time.process_time()
    dataset, _ = open_splits(DataConfig(path=str(folder), val_split="none"))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    _ = dataset[len(dataset) // 2]
    return {"s": seconds, "cpu_s": cpu_seconds, "before_mib": before, "peak_mib": peak_mib()}


def load(folder: Path) -> dict[str, float]:
    """Loads some batches with workers, which are kept until this process may end."""
    from detrs.data.loader import training_batches
    from detrs.data.opening import open_splits
    from detrs.data.transforms import DataConfig

    config = DataConfig(path=str(folder), val_split="none", batch_size=4, resize_to=(320, 480), augment="flip")
    dataset, _ = open_splits(config)
    batches = training_batches(dataset, config, seed=0, epoch=0, workers=WORKERS)
    for _ in range(STEPS):
        next(batches)
    print("loaded", flush=True)
    sys.stdin.readline()
    return {"peak_mib": peak_mib()}


def peak_mib() -> float:
    """Peak resident set size of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


CHILDREN = {"open": open_once, "load": load}


def row(entry: dict[str, Any]) -> list[str]:
    """The result as a row of the table."""
    boxes = f"{entry['boxes']:,}{' with polygons' if entry['polygons'] else ''}"
    cells = [entry["machine"], f"{entry['images']:,}", boxes]
    for each in (entry["first"], entry["second"]):
        cells.append(f"{each['s']:.1f} s")
        cells.append(f"{each['peak_mib']:.0f} MiB (+ {each['peak_mib'] - each['before_mib']:.0f})")
    return [*cells, f"+ {entry['several_mib']:.0f} MiB"]


if __name__ == "__main__":
    main()
