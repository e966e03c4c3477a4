"""Rows 100 to 112: checkpoints, settings, environment."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import run_tiny
import safetensors.torch
import torch
from catalogue import Case
from dataset import Folder, one_step
from rows_annotations import case

from detrs import config, models
from detrs.checkpoints import format
from detrs.checkpoints.detector import TrainedDetector, preprocessing_of, save_detector
from detrs.ops import backend, ms_deform_attn, use
from detrs.predictor import load
from detrs.schema import to_dict
from detrs.structures import Classes

NAMES, IDS = ("dog", "cat"), (3, 7)


def save_tiny(path: Path, names: tuple[str, ...] = NAMES, **model: Any) -> Path:
    """An untrained detector for the classes of ``Folder``, saved as training saves it."""
    torch.manual_seed(0)
    experiment = run_tiny.experiment(model={"num_classes": len(names), **model})
    detector = TrainedDetector(
        module=models.build(experiment.model),
        classes=Classes(names, tuple(range(3, 3 + len(names)))),
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=1,
        epoch=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_detector(path, detector)
    return path


def loads(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Any:
    """``make`` of a case with a changed checkpoint of valid hashes."""

    def make(root: Path) -> Callable[[], Any]:
        path = save_tiny(root / "best.safetensors")
        tensors, meta = format.load(path)
        change(tensors, meta)
        format.save(
            path, tensors, {key: value for key, value in meta.items() if key != "format"}, allow_non_finite=True
        )
        return lambda: load(path) and []

    return make


def renamed_keys(prefix: str) -> Any:
    def change(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return loads(change)


def without_seven(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    for name in list(tensors)[:7]:
        del tensors[name]


def with_nan(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def starts_from(**model: Any) -> Any:
    """``make`` of a case that trains from the weights of another detector."""
    names = model.pop("names", NAMES)

    def make(root: Path) -> Callable[[], list[str]]:
        path = save_tiny(root / "start" / "best.safetensors", names, **model)
        for split, images in (("train", 4), ("val", 2)):
            Folder(root / "set", images, split).write()
        return lambda: one_step(root / "set", root / "run", {"initial": str(path)})

    return make


def file_of(write: Callable[[Path], Any]) -> Any:
    """``make`` of a case with another kind of file instead of a checkpoint."""

    def make(root: Path) -> Callable[[], Any]:
        path = root / "best.safetensors"
        write(path)
        return lambda: load(path) and []

    return make


def newer(path: Path) -> None:
    before = format.FORMAT
    format.FORMAT = before + 5
    try:
        save_tiny(path)
    finally:
        format.FORMAT = before


def other_layout(path: Path) -> None:
    """As published by transformers."""
    safetensors.torch.save_file({"model.backbone.conv.weight": torch.ones(3)}, path, metadata={"format": "pt"})


def official(path: Path) -> None:
    torch.save({"model": {"transformer.weight": torch.ones(3)}, "epoch": 3}, path)


def setting(section: str, name: str, value: Any) -> Any:
    """``make`` of a case with an ``experiment.json`` that has another value; there are no data."""

    def make(root: Path) -> Callable[[], Any]:
        path = root / "experiment.json"
        values = to_dict(run_tiny.EXPERIMENT)
        inner = values if not section else values[section]
        inner[name] = value
        path.write_text(json.dumps(values))

        def call() -> list[str]:
            experiment = config.load(path)
            return one_step_of(experiment, root)

        return call

    return make


def one_step_of(experiment: Any, root: Path) -> list[str]:
    from detrs import training

    data = dataclasses.replace(experiment.data, path=str(root / "there are no data"))
    steps = training(dataclasses.replace(experiment, data=data), root / "run")
    next(steps)
    return []


def forced(root: Path) -> Callable[[], list[str]]:
    """A kernel that cannot run on this device, chosen explicitly."""

    def call() -> list[str]:
        value, shapes = torch.rand(1, 6, 1, 4), ((2, 3),)
        with use("triton"):
            ms_deform_attn(value, shapes, torch.rand(1, 5, 1, 1, 2, 2), torch.rand(1, 5, 1, 1, 2))
        return []

    return call


def fallback(root: Path) -> Callable[[], list[str]]:
    """The compiler of the CPU kernel cannot be imported: the same results, and a line that names the fallback."""

    def call() -> list[str]:
        value, shapes = torch.rand(1, 6, 1, 4), ((2, 3),)
        locations, weights = torch.rand(1, 5, 1, 1, 2, 2), torch.rand(1, 5, 1, 1, 2)
        with use("reference"):
            expected = ms_deform_attn(value, shapes, locations, weights)
        importable, why_not = backend._importable, backend._why_not
        backend._importable = lambda package: False  # type: ignore[assignment]
        backend._why_not = lambda package: "no compiler"  # type: ignore[assignment]
        try:
            with use(None):
                assert torch.equal(ms_deform_attn(value, shapes, locations, weights), expected)
            text = backend.describe()
        finally:
            backend._importable, backend._why_not = importable, why_not
        assert "numba: no compiler" in text and "cpu: reference" in text
        return [line for line in text.splitlines() if "no compiler" in line]

    return call


def small_disk(root: Path) -> Callable[[], list[str]]:
    """Less space than two checkpoints need."""
    for split, images in (("train", 4), ("val", 2)):
        Folder(root / "set", images, split).write()

    def call() -> list[str]:
        usage = shutil.disk_usage
        shutil.disk_usage = lambda path: usage(path)._replace(free=1000)  # type: ignore[assignment]
        try:
            return one_step(root / "set", root / "run", {})
        finally:
            shutil.disk_usage = usage

    return call


CASES = [
    case(100, "three classes instead of two", "A", starts_from(names=("dog", "cat", "owl"))),
    case(100, "renamed class", "A", starts_from(names=("dog", "cow"))),
    case(100, "ambiguous class", "E", starts_from(names=("DOG", "Dog")), "'dog' matches several", "'DOG' and 'Dog'"),
    *(
        case(101, prefix, "E", renamed_keys(prefix), "missing", "its weights do not fit")
        for prefix in ("module.", "_orig_mod.", "ema.")
    ),
    case(102, "missing keys", "E", loads(without_seven), "missing", "and 2 more"),
    case(102, "unexpected key", "E", loads(lambda tensors, meta: tensors.update(extra=torch.ones(2))), "extra"),
    case(103, "NaN weights", "E", loads(with_nan), "NaN", "backbone"),
    case(104, "other dimension", "E", starts_from(dim=64), "model.dim: 64 -> 32"),
    case(104, "other levels", "E", starts_from(num_levels=5), "model.num_levels: 5 -> 4"),
    case(105, "safetensors of another library", "E", file_of(other_layout), "no config.json beside it"),
    case(105, "official .pth", "E", file_of(official), "PyTorch's .pth"),
    case(106, "newer version", "E", file_of(newer), "Update detrs", "format 7"),
    case(107, "misspelt setting", "E", setting("model", "num_querys", 3), "num_querys", "num_queries"),
    case(107, "unknown section", "E", setting("", "optimiser", {}), "optimiser", "optimizer"),
    case(108, "heads do not divide the dimension", "E", setting("model", "num_heads", 5), "model.num_heads", "32"),
    case(108, "proposals without refinement", "E", setting("model", "reference", "keep"), "model.reference"),
    case(109, "lr 0", "E", setting("optimizer", "lr", 0), "optimizer.lr", "above 0"),
    case(109, "lr negative", "E", setting("optimizer", "lr", -1), "optimizer.lr", "above 0"),
    case(109, "batch 0", "E", setting("data", "batch_size", 0), "data.batch_size", "at least 1"),
    case(109, "epochs 0", "E", setting("schedule", "epochs", 0), "schedule.epochs", "at least 1"),
    case(109, "workers -1", "E", setting("runtime", "workers", -1), "runtime.workers", "at least 0"),
    case(109, "seed 2^64", "E", setting("", "seed", 2**64), "seed", "2^63"),
    Case(110, "kernel of another device", "E", forced, ("'triton' is forced", "'cpu'")),
    Case(111, "no compiler", "W", fallback, ("no compiler",)),
    Case(112, "small disk", "W", small_disk, ("free",)),
]
