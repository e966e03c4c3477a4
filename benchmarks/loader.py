"""Images per second of the training loader, against torchvision's detection reference and Ultralytics' loader.

    python benchmarks/loader.py [--peers FOLDER] [--before FOLDER] [--photographs FOLDER] [--sizes 480x640 800x1333]

``--peers``: a folder in which Ultralytics is installed (``pip install --target FOLDER ultralytics``). ``--before``: the
``src`` folder of another version of detrs, which runs beside this one. ``--photographs``: images of which the dataset
is made; by default the two of scikit-learn.

Each loader reads the same JPEGs from the page cache, in a process of its own (``loader_epochs.py``, which lists what is
equal and what is not). Epochs alternate between the loaders; figures are medians over the rounds. CPU time is that of
the main process and its workers together.

Results are appended to ``results/loader.jsonl``, one line for a size with all loaders that ran beside each other; the
newest of each machine and size are shown in README.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import page
import torch
from PIL import Image

from detrs.errors import counted

RESULTS = page.HERE / "results" / "loader.jsonl"
HEIGHT, WIDTH, QUALITY = 480, 640, 90
NOISE = 6.0
"""Standard deviation of the noise of a sensor, in 8-bit levels. Files become as large as those of COCO."""
OBJECTS = 7
"""Boxes per image, as in COCO."""
WORKERS = (0, 1, 2)

Line = dict[str, Any]


def make_images(folder: Path, photographs: Sequence[Image.Image], number: int) -> None:
    """Writes a dataset in YOLO format: random windows of photographs, resized to one size, with noise and boxes."""
    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name / "train").mkdir(parents=True)
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/train\nnames: [object]\n")
    for index in range(number):
        photograph = photographs[random.integers(len(photographs))]
        scale = random.uniform(0.6, 1) * min(photograph.width / WIDTH, photograph.height / HEIGHT)
        width, height = scale * WIDTH, scale * HEIGHT
        left, top = random.uniform(0, photograph.width - width), random.uniform(0, photograph.height - height)
        window = photograph.resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height), reducing_gap=None
        )
        pixels = np.asarray(window) + random.normal(0, NOISE, (HEIGHT, WIDTH, 3))
        image = Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
        image.save(folder / "images" / "train" / f"{index:06}.jpg", quality=QUALITY)
        sizes = random.uniform(0.05, 0.4, (OBJECTS, 2))
        centers = random.uniform(sizes / 2, 1 - sizes / 2)
        rows = np.concatenate([centers, sizes], axis=1)
        text = "".join(f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in rows)
        (folder / "labels" / "train" / f"{index:06}.txt").write_text(text)


class Loader:
    """A process that runs epochs of one loader."""

    def __init__(self, name: str, data: Path, size: tuple[int, int], batch_size: int, paths: Sequence[Path]) -> None:
        command = [sys.executable, str(page.HERE / "loader_epochs.py"), name, str(data), *map(str, (*size, batch_size))]
        inherited = os.environ.get("PYTHONPATH", "")
        path = os.pathsep.join([*(str(each.resolve()) for each in paths), *([inherited] if inherited else [])])
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
        )

    def epoch(self, workers: int) -> Line:
        """The figures of one epoch.

        Raises:
            RuntimeError: the process ended; its own message is on the standard error stream.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{workers}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the loader ended with exit code {self.process.wait()}: {self.process.args}")
        found: Line = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(loaders: dict[str, Loader], rounds: int) -> list[Line]:
    """One line per loader and number of workers, after one epoch that is not measured."""
    for loader in loaders.values():
        loader.epoch(0)
    found: dict[tuple[int, str], list[Line]] = {}
    for _ in range(rounds):
        for workers in WORKERS:
            for name, loader in loaders.items():
                found.setdefault((workers, name), []).append(loader.epoch(workers))
    lines = []
    for (workers, name), epochs in found.items():
        rate, cpu = (
            statistics.median(epoch[key] / epoch["images"] for epoch in epochs) for key in ("seconds", "cpu_seconds")
        )
        first = statistics.median(epoch["first_seconds"] for epoch in epochs)
        figures = {"images_per_s": round(1 / rate, 1), "cpu_ms": round(1000 * cpu, 2), "first_s": round(first, 3)}
        lines.append({"loader": name, "workers": workers, **figures, "shape": epochs[0]["shape"]})
    return lines


def rows(entry: Line) -> list[list[str]]:
    """The rows of a result in the table: one per loader."""
    made = []
    for name in dict.fromkeys(line["loader"] for line in entry["loaders"]):
        own = [line for line in entry["loaders"] if line["loader"] == name]
        shapes = dict.fromkeys(" x ".join(map(str, line["shape"])) for line in own)
        rates = [f"{line['images_per_s']:.0f}" for line in own]
        cpu = [f"{line['cpu_ms']:.1f}" for line in own]
        short, long = entry["size"]
        made.append([entry["machine"], f"{short} x {long}", name, ", ".join(shapes), *rates, *cpu])
    return made


def table(entries: Sequence[Line]) -> str:
    """The results as a Markdown table."""
    counts = [counted(workers, "worker") for workers in WORKERS]
    header = [
        "machine",
        "short and long side",
        "loader",
        "batch",
        *(f"images/s, {count}" for count in counts),
        *(f"CPU ms, {count}" for count in counts),
    ]
    return page.table(header, [row for entry in entries for row in rows(entry)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder in which Ultralytics is installed")
    parser.add_argument("--before", type=Path, help="src folder of another version of detrs")
    parser.add_argument("--photographs", type=Path, help="folder of images of which the dataset is made")
    parser.add_argument("--sizes", nargs="+", default=["320x448", "480x640", "800x1333"], help="SHORTxLONG in pixels")
    parser.add_argument("--images", type=int, default=304)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON lines, and store nothing")
    arguments = parser.parse_args()
    entries: list[Line] = []
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        make_images(data, photographs_of(arguments.photographs), arguments.images)
        files = list((data / "images" / "train").iterdir())
        size_kb = round(sum(file.stat().st_size for file in files) / len(files) / 1000, 1)
        for text in arguments.sizes:
            short, long = map(int, text.split("x"))
            options = data, (short, long), arguments.batch_size
            loaders = {"detrs": Loader("detrs", *options, [])}
            if arguments.before:
                loaders["detrs before"] = Loader("detrs", *options, [arguments.before])
            loaders["torchvision"] = Loader("torchvision", *options, [])
            if arguments.peers:
                loaders["ultralytics"] = Loader("ultralytics", *options, [arguments.peers])
            entry = {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "size": [short, long],
                "images": arguments.images,
                "kb": size_kb,
                "torch": torch.__version__,
                "commit": page.commit(),
                "loaders": measure(loaders, arguments.rounds),
            }
            entries.append(entry)
            if arguments.json:
                print(json.dumps(entry), flush=True)
            else:
                page.append(RESULTS, entry)
            for loader in loaders.values():
                loader.close()
    if not arguments.json:
        newest = page.newest(RESULTS, lambda line: (line["machine"], *line["size"]))
        page.put("loader", table(newest), page.README)
        print(f"{arguments.images} images of {HEIGHT} x {WIDTH}, {size_kb} kB each\n\n{table(entries)}")


def photographs_of(folder: Path | None) -> list[Image.Image]:
    """The photographs to cut windows from."""
    if folder is None:
        from sklearn.datasets import load_sample_images

        return [Image.fromarray(pixels) for pixels in load_sample_images().images]
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [Image.open(file).convert("RGB") for file in files[:50]]


if __name__ == "__main__":
    main()
