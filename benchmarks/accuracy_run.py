"""One run of another library for ``benchmarks/accuracy.py``: settings as JSON on stdin, the result as JSON on stdout.

Peers get what the presets of detrs get: the same decoded images in the same size and order, half of them mirrored, and
the same minutes, with evaluations. Their detections are scored by the same code.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import torch
from accuracy_peers import BUILDERS, MAX_DETECTIONS, RECIPES, Found, Peer, Settings
from accuracy_trainers import NotInstalledError, NotTrainedError, rfdetr_run, ultralytics_run
from torch import nn
from torchvision.ops import batched_nms, box_convert

from detrs.data.loader import evaluation_batches, steps_per_epoch, training_batches
from detrs.data.opening import open_splits
from detrs.data.protocol import checked_ground_truth
from detrs.data.sample import Dataset
from detrs.engine.accuracy_results import Line
from detrs.engine.accuracy_run import peak_mib, scores
from detrs.errors import UserError
from detrs.evaluation.coco import coco_report

OTHERS = {"Ultralytics RT-DETR": ultralytics_run, "RF-DETR": rfdetr_run}
"""Peers with a training loop of their own."""
PEERS = (*BUILDERS, *OTHERS)


def evaluate(
    peer: Peer, dataset: Dataset, settings: Settings, nms: float | None = None
) -> tuple[float | None, float | None]:
    """AP and AP50, after non-maximum suppression with the IoU ``nms``."""
    results: list[Line] = []
    peer.model.eval()
    with torch.no_grad():
        for batch in evaluation_batches(dataset, settings.image_size, settings.batch_size):
            for target, found in zip(batch.targets, peer.detect(batch), strict=True):
                if nms is not None:
                    kept = batched_nms(found.boxes, found.scores, found.labels, nms)
                    found = Found(*(values[kept] for values in found))
                results += coco_results(dataset, target.image_id, target.original_size, found)
    peer.model.train()
    report = coco_report(checked_ground_truth(dataset), results, max_detections=MAX_DETECTIONS)
    return report.ap, report.ap50


def coco_results(dataset: Dataset, image_id: int, size: tuple[int, int], found: Found) -> list[Line]:
    """Detections of one image as COCO results; boxes are clipped to the image, as those of detrs."""
    height, width = size
    boxes = found.boxes.clamp(0, 1).double() * torch.tensor([width, height] * 2, dtype=torch.float64)
    rows = zip(box_convert(boxes, "xyxy", "xywh").tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ids = dataset.classes.category_ids
    return [{"image_id": image_id, "category_id": ids[k], "bbox": box, "score": score} for box, score, k in rows]


def train(settings: Settings, max_steps: int | None = None) -> list[Line]:
    """Train for the minutes of ``settings``, and return the evaluations.

    Args:
        settings: of the run.
        max_steps: end after this many steps, without an evaluation.

    Raises:
        UserError: training diverged.
    """
    began, budget = time.monotonic(), 60 * settings.minutes
    torch.manual_seed(settings.seed)
    train_set, val_set = open_splits(settings.data_config, cache_gib=1.0)
    assert val_set is not None
    peer = BUILDERS[settings.peer](settings, len(train_set.classes.names))
    recipe = RECIPES[settings.peer](settings)
    optimizer = recipe.optimizer(peer.model)
    rates = [group["lr"] for group in optimizer.param_groups]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    peer.model.train()
    points: list[Line] = []
    step, evaluation, fastest = 0, 0.0, math.inf
    val_batches = len(val_set) / settings.batch_size

    def left() -> float:
        """Seconds of training, without those of the last evaluation."""
        reserve = 1.25 * evaluation or 0.5 * val_batches * (fastest if step else 0.0)
        return budget - reserve - (time.monotonic() - began)

    def add_point() -> None:
        nonlocal evaluation
        start = time.monotonic()
        ap, ap50 = evaluate(peer, val_set, settings, recipe.nms)
        evaluation = time.monotonic() - start
        seconds = round(time.monotonic() - began, 3)
        points.append({"images": step * settings.batch_size, "seconds": seconds, "ap": ap, "ap50": ap50})

    for epoch in count():
        for (batch,) in training_batches(train_set, settings.data_config, seed=settings.seed, epoch=epoch):
            start = time.monotonic()
            spent = start - began
            progress = min(1.0, spent / max(spent + left(), 1e-9))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * recipe.lr_factor(step, progress)
            loss = peer.loss(batch)
            if not math.isfinite(loss.item()):
                raise UserError(f"{settings.peer} diverged: the loss of step {step + 1} is {loss.item()}.")
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.step()
            step += 1
            fastest = min(fastest, time.monotonic() - start)
            if step == max_steps:
                return points
            if left() <= fastest:
                add_point()
                return points
        done, evaluated = (step // steps_per_epoch(len(train_set), settings.batch_size)), settings.evaluate_every
        if done % evaluated == 0 and left() > 1.25 * evaluation:
            add_point()
    raise AssertionError("unreachable")


def measure(settings: Settings) -> Line:
    """The result of a run, as ``detrs.engine.accuracy_run.measure`` returns it."""
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        if settings.peer in OTHERS:
            points = OTHERS[settings.peer](settings, Path(folder), coco_results, Found)
        else:
            train(settings, max_steps=2)  # as detrs, which compiles kernels in these
            points = train(settings)
    last = points[-1]
    return {
        **scores(points),
        "images": last["images"],
        "seconds": last["seconds"],
        "peak_mib": peak_mib(torch.device("cpu")),
        "versions": versions(("torch", "torchvision", "timm", "transformers", "ultralytics")),
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    """Of the packages that were imported."""
    return {name: str(sys.modules[name].__version__) for name in names if name in sys.modules}


def main() -> int:
    """One run; a package that is missing, or an error, is a result, too."""
    values = json.load(sys.stdin)
    try:
        result = measure(Settings(**{**values, "image_size": tuple(values["image_size"])}))
    except NotInstalledError as error:
        result = {"failed": f"{error} is not installed"}
    except NotTrainedError as error:
        result = {"failed": str(error)}
    except UserError as error:
        result = {"error": str(error)}
    print(json.dumps(result, allow_nan=False), flush=True)
    return 2 * ("error" in result)


if __name__ == "__main__":
    sys.exit(main())
