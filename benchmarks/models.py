"""Times whole detectors on random images: python benchmarks/models.py [PRESET ...] [--device cuda]

Each preset runs with the operator of detrs and with its grid_sample reference, and, if ``transformers`` is installed,
next to the Deformable DETR of that library with the same sizes. All run round-robin in one process; the median of each
is reported. Appends JSON lines to benchmarks/results/models.jsonl and updates the table in benchmarks/README.md.
"""

import argparse
import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import page
import torch
from page import Line

from detrs import models, ops
from detrs.config import Experiment
from detrs.devices import pick_device
from detrs.presets import preset
from detrs.structures import Batch, Target, Totals

RESULTS = page.HERE / "results" / "models.jsonl"
PRESETS = (
    "deformable-detr-r50",
    "deformable-detr-r50-two-stage",
    "detr-r50",
    "conditional-detr-r50",
    "anchor-detr-r50",
)
COMPARABLE = ("deformable-detr-r50", "deformable-detr-r50-refine", "deformable-detr-r50-two-stage")
"""Presets that ``transformers`` has, too."""
OBJECTS = 8
"""Objects of each image of a training step."""
Work = Callable[[], object]


def random_batch(batch_size: int, size: tuple[int, int], num_classes: int, device: torch.device) -> Batch:
    """Images without padding and ``OBJECTS`` boxes each, from a fixed random seed."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, *size, generator=random).to(device)
    targets = tuple(
        Target(
            torch.cat([torch.rand(OBJECTS, 2, generator=random) * 0.6 + 0.2, torch.full((OBJECTS, 2), 0.2)], -1).to(
                device
            ),
            torch.randint(num_classes, (OBJECTS,), generator=random).to(device),
            i,
            size,
        )
        for i in range(batch_size)
    )
    return Batch(images, torch.zeros(batch_size, *size, dtype=torch.bool, device=device), targets)


def in_precision(run: Work, device: torch.device, dtype: str) -> Work:
    if dtype == "float32":
        return run

    def autocast() -> object:
        with torch.autocast(device.type, getattr(torch, dtype)):
            return run()

    return autocast


def ours(experiment: Experiment, batch: Batch, train: bool) -> Work:
    """Forward pass with ``detect``, or forward and backward pass of the training objective."""
    device = batch.images.device
    torch.manual_seed(0)
    model = models.build(experiment.model, pretrained=False).to(device)
    if not train:
        model.eval()

        def forward() -> object:
            with torch.no_grad():
                return model.detect(batch.images, batch.padding)

        return forward
    objective = model.objective(experiment.criterion).to(device).train()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    totals = Totals.of(batch.targets)

    def step() -> object:
        losses = objective(batch, totals)
        return torch.autograd.grad(losses.total, parameters, allow_unused=True)

    return step


def theirs(experiment: Experiment, batch: Batch, train: bool) -> Work:
    """Deformable DETR of ``transformers`` with the sizes of the preset and random weights."""
    import transformers

    device, settings = batch.images.device, experiment.model
    torch.manual_seed(0)
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        num_labels=settings.num_classes,
        num_queries=settings.num_queries,
        with_box_refine=settings.reference == "refine",
        two_stage=settings.queries == "proposals",
        two_stage_num_proposals=settings.num_queries,
        auxiliary_loss=True,
    )
    model = transformers.DeformableDetrForObjectDetection(config).to(device).train(train)
    mask = (~batch.padding).long()
    if not train:

        def forward() -> object:
            with torch.no_grad():
                return model(batch.images, mask).logits

        return forward
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> object:
        return torch.autograd.grad(model(batch.images, mask, labels=labels).loss, parameters, allow_unused=True)

    return step


def with_reference(run: Work) -> Work:
    def forced() -> object:
        with ops.use("reference"):
            return run()

    return forced


def seconds(run: Work, device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak_gib(run: Work, device: torch.device) -> float | None:
    """Largest allocation of one run, including weights and input; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**30


def compare(name: str, arguments: argparse.Namespace, device: torch.device, train: bool, dtype: str) -> Line:
    """Medians of one preset."""
    experiment = preset(name)
    size = tuple(arguments.image_size)
    batch = random_batch(arguments.batch_size, size, experiment.model.num_classes, device)
    runs = {"detrs": ours(experiment, batch, train)}
    if name.startswith("deformable"):
        runs["grid_sample"] = with_reference(runs["detrs"])
    if name in COMPARABLE and importlib.util.find_spec("transformers"):
        runs["transformers"] = theirs(experiment, batch, train)
    runs = {key: in_precision(run, device, dtype) for key, run in runs.items()}
    times: dict[str, list[float]] = {key: [] for key in runs}
    failed: dict[str, str] = {}
    for repeat in range(arguments.repeats + 2):  # two warm-up rounds
        for key, run in runs.items():
            if key in failed:
                continue
            try:
                took = seconds(run, device)
            except Exception as error:  # another library may not run in this precision
                if key == "detrs":
                    raise
                failed[key] = f"{type(error).__name__}: {error}"[:200]
                continue
            if repeat >= 2:
                times[key].append(took)
    return {
        "preset": name,
        "pass": "forward + backward" if train else "forward",
        "dtype": dtype,
        "batch_size": arguments.batch_size,
        "image_size": list(size),
        "milliseconds": {key: 1e3 * statistics.median(values) for key, values in times.items() if key not in failed},
        "peak_gib": {key: peak_gib(run, device) for key, run in runs.items() if key not in failed},
        "failed": failed,
        "repeats": arguments.repeats,
        "device": device_name(device),
        "versions": {key: importlib.metadata.version(key) for key in ("detrs", "torch")},
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def text(lines: list[Line]) -> str:
    """Markdown: one section per machine, one row per preset, pass and precision."""
    sections = []
    for device in dict.fromkeys(line["device"] for line in lines):
        here = [line for line in lines if line["device"] == device]
        versions = ", ".join(f"{name} {version}" for name, version in here[0]["versions"].items())
        rows = [
            [
                f"{line['preset']}, {line['batch_size']} x {line['image_size'][0]} x {line['image_size'][1]}, "
                f"{line['dtype']}, {line['pass']}",
                *(cell(line, key) for key in ("detrs", "grid_sample", "transformers")),
                *(memory(line, key) for key in ("detrs", "grid_sample", "transformers")),
            ]
            for line in here
        ]
        header = ["case", "detrs", "grid_sample", "transformers", "GiB, detrs", "GiB, grid_sample", "GiB, transformers"]
        sections.append(f"**{device}** ({versions})\n\n{page.table(header, rows)}\n")
    return "\n".join(sections)


def cell(line: Line, key: str) -> str:
    """Milliseconds, and the time relative to detrs."""
    time = line["milliseconds"].get(key)
    if time is None:
        return "-"
    return f"{time:.1f}" + ("" if key == "detrs" else f" ({time / line['milliseconds']['detrs']:.1f}x)")


def memory(line: Line, key: str) -> str:
    peak = line["peak_gib"].get(key)
    return "-" if peak is None else f"{peak:.1f}"


def key(line: Line) -> tuple[Any, ...]:
    return (line["device"], line["preset"], line["pass"], line["dtype"], line["batch_size"], tuple(line["image_size"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="*", default=PRESETS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--image-size", type=int, nargs=2, default=(800, 1333))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--dtype", nargs="+", default=("float32", "bfloat16"), choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--no-training", action="store_true", help="only the forward pass")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    for name in arguments.preset:
        for train in (False, True)[: 1 if arguments.no_training else 2]:
            for dtype in arguments.dtype:
                line = compare(name, arguments, device, train, dtype)
                page.append(RESULTS, line)
                print(line, flush=True)
    page.put("models", text(page.newest(RESULTS, key)), page.README)


if __name__ == "__main__":
    main()
