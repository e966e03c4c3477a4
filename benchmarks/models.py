"""Times whole detectors on random images: python benchmarks/models.py [PRESET ...] [--device cuda]

Each preset runs in each precision, and next to the same detector of ``transformers``, torchvision or ONNX Runtime (the
exported graph) where these have it and are installed. All run in turn in one process, the order rotated from round to
round; medians are reported. On a CPU, the peak memory of a training step is measured in processes of their own.
Appends JSON lines to benchmarks/results/models.jsonl and updates the table in benchmarks/README.md.
"""

import argparse
import importlib.metadata
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page
import step_memory
import torch
from model_floor import Floor
from model_peers import DTYPES, Case, Work, in_precision, works
from page import Line

from detrs.devices import pick_device

RESULTS = page.HERE / "results" / "models.jsonl"
PRESETS = (
    "deformable-detr-r50",
    "deformable-detr-r50-two-stage",
    "detr-r50",
    "conditional-detr-r50",
    "anchor-detr-r50",
    "faster-rcnn-r50-fpn",
    "deformable-detr-small",
)
IMPLEMENTATIONS = ("detrs", "grid_sample", "transformers", "torchvision", "onnxruntime")
SIZES = {False: (800, 1066), True: (480, 640)}
"""(height, width) in pixels of inference and of training."""
WARM_UP = 2
"""Rounds that are not timed."""
FP32_ONLY = ("grid_sample", "onnxruntime")
"""Implementations that run in fp32 alone."""
CAPABILITIES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets that decide the speed of a processor."""


def seconds(run: Work, device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def compare(case: Case, arguments: argparse.Namespace) -> Line:
    """Medians of all implementations of one case."""
    runs = {
        f"{name} {precision}": in_precision(run, case.device, precision)
        for name, run in works(case, arguments.implementations).items()
        for precision in arguments.precision
        if precision == "fp32" or name not in FP32_ONLY
    }
    floors = {}
    if arguments.floor and not case.is_training:
        floors = {precision: Floor(runs[f"detrs {precision}"]) for precision in arguments.precision}
    times: dict[str, list[float]] = {key: [] for key in runs}
    failed: dict[str, str] = {}
    for number in range(arguments.repeats + WARM_UP):
        for key in rotated(list(runs), number):
            if key in failed:
                continue
            try:
                took = seconds(runs[key], case.device)
            except Exception as error:  # another library may not run in this precision
                if key.startswith("detrs"):
                    raise
                failed[key] = f"{type(error).__name__}: {error}"[:200]
                continue
            if number >= WARM_UP:
                times[key].append(took)
        if number >= WARM_UP:
            for floor in floors.values():
                floor.measure(lambda run: seconds(run, case.device))
    done = {key: values for key, values in times.items() if key not in failed}
    return {
        "preset": case.name,
        "pass": "forward + backward" if case.is_training else "forward",
        "batch_size": case.batch_size,
        "image_size": list(case.image_size),
        "milliseconds": {key: 1e3 * statistics.median(values) for key, values in done.items()},
        "range": {key: [1e3 * min(values), 1e3 * max(values)] for key, values in done.items()},
        "floor": {precision: floor.line() for precision, floor in floors.items()},
        "peak_mib": dict(peaks(case, runs, done, arguments.memory)),
        "failed": failed,
        "repeats": arguments.repeats,
        "device": device_name(case.device),
        "commit": page.commit(),
        "versions": {name: version for name in ("detrs", "torch", "transformers") if (version := installed(name))},
    }


def rotated(keys: list[str], number: int) -> list[str]:
    """The keys, with another one first in each round."""
    start = number % len(keys)
    return keys[start:] + keys[:start]


def peaks(case: Case, runs: dict[str, Work], done: dict[str, Any], wanted: bool) -> Iterator[tuple[str, float]]:
    """Peak memory of one run in MiB: on a GPU including weights and input, on a CPU of a training step beyond them."""
    for key in done:
        name, precision = key.split()
        if case.device.type == "cuda":
            torch.cuda.synchronize(case.device)
            torch.cuda.reset_peak_memory_stats(case.device)
            runs[key]()
            torch.cuda.synchronize(case.device)
            yield key, torch.cuda.max_memory_allocated(case.device) / 2**20
        elif case.is_training and wanted:
            try:
                yield key, step_memory.in_own_process(name, precision, case)
            except subprocess.CalledProcessError as error:
                print(f"memory of {key}: {error.stderr.strip().splitlines()[-1]}")


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """The GPU; or the processor, its capabilities and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    fields: dict[str, str] = {}
    if (path := Path("/proc/cpuinfo")).exists():
        for text in path.read_text().splitlines():
            name, _, value = text.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    names = [name for name in CAPABILITIES if name in flags]
    family = f" model {fields['model']}" if "model" in fields else ""
    return f"{fields.get('model name', 'CPU')}{family}, {torch.get_num_threads()} threads, {' '.join(names)}"


def text(lines: list[Line]) -> str:
    """Markdown: one section per machine, one row per case and implementation."""
    sections = []
    for device in dict.fromkeys(line["device"] for line in lines):
        here = [line for line in lines if line["device"] == device]
        versions = ", ".join(f"{name} {version}" for name, version in here[-1]["versions"].items())
        rows = [row for line in here for row in rows_of(line)]
        header = ["case", "ms", "of detrs fp32", "of detrs bf16", "peak MiB", "of detrs fp32"]
        floors = [sentence for line in here for sentence in floor_sentences(line)]
        sections.append(
            f"**{device}** ({versions})\n\n{page.table(header, rows)}\n" + "".join(f"\n{s}" for s in floors)
        )
    return "\n\n".join(sections)


def rows_of(line: Line) -> Iterator[list[str]]:
    """One row per implementation and precision, the time relative to detrs in both precisions."""
    size = " x ".join(map(str, (line["batch_size"], *line["image_size"])))
    for key, milliseconds in line["milliseconds"].items():
        name = f"{line['preset']}, {size}, {line['pass']}: {key}"
        peak = line["peak_mib"].get(key)
        yield [
            name,
            f"{milliseconds:.1f}",
            ratio(milliseconds, line["milliseconds"].get("detrs fp32"), "x"),
            ratio(milliseconds, line["milliseconds"].get("detrs bf16"), "x"),
            "-" if peak is None else f"{peak:.0f}",
            ratio(peak, line["peak_mib"].get("detrs fp32"), "x"),
        ]


def ratio(value: float | None, own: float | None, unit: str) -> str:
    return "-" if value is None or own is None else f"{value / own:.2f}{unit}"


def floor_sentences(line: Line) -> Iterator[str]:
    for precision, floor in line.get("floor", {}).items():
        own = line["milliseconds"][f"detrs {precision}"]
        rates = ", ".join(f"{kind} {rate:.0f}" for kind, rate in floor["giga_multiply_adds_per_second"].items())
        least = floor["milliseconds"]
        with_sampling = least + floor["sampling_milliseconds"]
        yield (
            f"- {line['preset']}, {precision}: {floor['giga_multiply_adds']:.1f} G multiply-adds take at least "
            f"{least:.0f} ms here (rates in G/s: {rates}), {least / own:.0%} of the forward pass; with deformable "
            f"attention {with_sampling:.0f} ms, {with_sampling / own:.0%}."
        )


def key(line: Line) -> tuple[Any, ...]:
    return (line["device"], line["preset"], line["pass"], line["batch_size"], tuple(line["image_size"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="*", default=PRESETS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--image-size", type=int, nargs=2, help="by default 800 x 1066, in training 480 x 640")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", nargs="+", default=("fp32", "bf16"), choices=tuple(DTYPES))
    parser.add_argument("--implementations", nargs="+", default=IMPLEMENTATIONS, choices=IMPLEMENTATIONS)
    parser.add_argument("--no-training", action="store_true", help="only the forward pass")
    parser.add_argument("--no-inference", action="store_true", help="only the training step")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="without the memory of training steps")
    parser.add_argument("--floor", action="store_true", help="also the least time of the forward pass's products (CPU)")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    passes = [False] * (not arguments.no_inference) + [True] * (not arguments.no_training)
    for name in arguments.preset:
        for is_training in passes:
            size = tuple(arguments.image_size or SIZES[is_training])
            line = compare(Case(name, size, arguments.batch_size, is_training, device), arguments)
            page.append(RESULTS, line)
            print("\n".join(", ".join(row) for row in rows_of(line)), *floor_sentences(line), sep="\n", flush=True)
    page.put("models", text(page.newest(RESULTS, key)), page.README)


if __name__ == "__main__":
    main()
