"""A program that uses detrs and has settings of its own. It prints what detrs changed, and its results, as JSON.

python guest.py FOLDER [--odd]
"""

import gc
import hashlib
import json
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import scipy.optimize  # noqa: F401
import sklearn.datasets  # noqa: F401
import timm
import torch
import torchvision  # noqa: F401
from accelerate import Accelerator
from PIL import Image, ImageFile

sys.path.insert(0, str(Path(__file__).parent / "engine"))

FLAGS = (
    "cudnn.benchmark",
    "cudnn.deterministic",
    "cudnn.enabled",
    "cudnn.allow_tf32",
    "cuda.matmul.allow_tf32",
    "mkldnn.enabled",
    "openmp.is_available",
    "mha._is_fastpath_enabled",
)


def settings() -> dict[str, Any]:
    """Global settings of the process as text."""
    found: dict[str, Any] = {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "matmul": torch.get_float32_matmul_precision(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "start method": torch.multiprocessing.get_start_method(allow_none=True),
        "process group": torch.distributed.is_initialized(),
        "print options": vars(torch._tensor_str.PRINT_OPTS),
        "numpy": (np.geterr(), np.get_printoptions()),
        "warnings": warnings.filters,
        "hooks": (warnings.showwarning, sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "folder": os.getcwd(),
        "path": sys.path,
        "locale": locale.setlocale(locale.LC_ALL),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "recursion": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK),
        "matplotlib": (matplotlib.get_backend(auto_select=False), dict(matplotlib.rcParams)),
        "timm": (timm.layers.is_scriptable(), timm.layers.is_exportable(), timm.layers.use_fused_attn()),
        "loggers": {
            name: (logger.level, logger.handlers, logger.filters, logger.propagate, logger.disabled)
            for name in ("", "detrs", "timm", "timm.models._builder", "torch", "PIL", "matplotlib", "accelerate")
            for logger in [logging.getLogger(name or None)]
        },
        "log": (logging.root.manager.disable, logging.getLoggerClass()),
    }
    found |= {f"environment {name}": value for name, value in os.environ.items()}
    for flag in FLAGS:
        value: Any = torch.backends
        for part in flag.split("."):
            value = getattr(value, part, None)
        found[flag] = value() if callable(value) else value
    os.umask(umask := os.umask(0))
    found["umask"] = umask
    return {name: repr(value) for name, value in found.items()}


class Guest:
    """Compares the settings before and after each use of the library, and draws random numbers in between."""

    def __init__(self, accelerator: Accelerator | None) -> None:
        self.accelerator = accelerator
        self.changed: dict[str, list[str]] = {}
        self.drawn: list[list[float]] = []
        self.before = self.state()

    def state(self) -> dict[str, Any]:
        state = settings()
        if self.accelerator is not None:
            own = self.accelerator
            steps, precision = own.gradient_accumulation_steps, own.mixed_precision
            state["accelerator"] = repr((steps, precision, own.state, own.gradient_state.sync_gradients, own.device))
        return state

    def draw(self) -> None:
        self.drawn.append([random.random(), float(np.random.rand()), float(torch.rand(()))])

    def check(self, name: str) -> None:
        """Record what changed since the last check as the effect of ``name``."""
        now = self.state()
        keys = sorted(self.before.keys() | now.keys())
        different = [
            f"{key}: {self.before.get(key)} -> {now.get(key)}" for key in keys if self.before.get(key) != now.get(key)
        ]
        if different:
            self.changed[name] = different
        self.before = now
        self.draw()


def in_threads(work: Callable[[], Any], number: int = 4) -> list[Any]:
    """The results of ``work`` in several threads at once."""
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == number
    return results


def digest(tensors: dict[str, torch.Tensor]) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return content.hexdigest()


def main(folder: Path, *, odd: bool) -> None:
    accelerator = None
    logging.getLogger("timm.models._builder")
    if odd:
        torch.set_default_dtype(torch.float64)
        os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4, mixed_precision="bf16")
        warnings.simplefilter("error")
        logging.getLogger("timm.models._builder").setLevel(logging.DEBUG)
        np.seterr(all="raise")
        signal.signal(signal.SIGTERM, lambda *_: None)
        matplotlib.rcParams["figure.dpi"] = 77
    matplotlib.use("agg")
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)

    guest = Guest(accelerator)
    import detrs
    from detrs.backbones import timm as backbone  # noqa: F401

    for name in detrs.__all__:
        getattr(detrs, name)
    guest.check("import")
    import run_tiny

    guest.check("import of the tiny run")
    experiment = run_tiny.experiment(model={"backbone": {"norm": "batch"}})
    steps = run_tiny.training(experiment, folder / "run")
    reports = [next(steps)]
    guest.draw()
    reports.append(next(steps))
    steps.close()
    guest.check("training, closed after two steps")
    splits = {"train_set": run_tiny.Tiny("train"), "val_set": run_tiny.Tiny("val")}
    detrs.train(experiment, folder / "run", resume=True, quiet=True, **splits)
    guest.check("train")
    best = folder / "run" / "best.safetensors"
    scores = detrs.evaluate(best, data=run_tiny.Tiny("val"), device="cpu")
    guest.check("evaluate")
    detrs.load(best, device="cpu")
    guest.check("load")
    predictor = in_threads(lambda: detrs.load(best, device="cpu"))[0]
    guest.check("load in threads")

    images = [run_tiny.Tiny("val")[index].image for index in range(5)]
    for number, image in enumerate(images):
        exif = Image.Exif()
        exif[0x0112] = 3
        path = folder / f"{number}.jpg"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, exif=exif.tobytes()[:-9])  # damaged metadata
    paths = sorted(folder.glob("*.jpg"))
    found = predictor(paths, threshold=0.0)
    guest.check("predict")
    for others in in_threads(lambda: [predictor(paths, threshold=0.0) for _ in range(3)]):
        for other in others:
            assert all(torch.equal(a.scores, b.scores) for a, b in zip(found, other, strict=True))
    guest.check("predict in threads")
    explanation = explained(predictor, paths[0])
    guest.check("explain")
    assert all(other == explanation for other in in_threads(lambda: explained(predictor, paths[0])))
    guest.check("explain in threads")

    opened = os.open(folder / "0.jpg", os.O_RDONLY)
    for source in ([opened], [np.int64(opened)], [True], [float(opened)], [[opened]], [None]):
        try:
            predictor(source)
        except ValueError:
            pass
        else:
            raise AssertionError(source)
    assert len(predictor(bytearray(paths[0].read_bytes()), threshold=0.0)[0]) == len(found[0])
    os.fstat(opened)  # it is still open
    guest.check("wrong sources")

    assert {tensor.dtype for tensor in predictor.detector.module.parameters()} == {torch.float32}
    state = detrs_state(folder / "run" / "last.safetensors")
    built = detrs.build(experiment.model)
    print(
        json.dumps(
            {
                "changed": guest.changed,
                "drawn": guest.drawn,
                "weights": digest(state),
                "reports": [[report.loss, report.grad_norm] for report in reports],
                "scores": scores.report.scalars(),
                "detections": [digest({"boxes": each.boxes_xyxy, "scores": each.scores}) for each in found],
                "explanation": explanation,
                "built": [str(tensor.dtype) for tensor in built.state_dict().values()],
            }
        )
    )


def explained(predictor: Any, path: Path) -> str:
    """The JSON of the explanation of an image, as a digest."""
    import detrs

    (found,) = detrs.explain(predictor, path, threshold=0.0, num_gradients=1)
    assert len(found.gradients) == 1 and len(found.views) > 0 and not predictor.detector.module.training
    page = found.to_json() | {"source": path.name}
    return hashlib.sha256(json.dumps(page, allow_nan=False).encode()).hexdigest()


def detrs_state(path: Path) -> dict[str, torch.Tensor]:
    from detrs.checkpoints import format

    return format.load(path).tensors


if __name__ == "__main__":
    main(Path(sys.argv[1]), odd="--odd" in sys.argv)
