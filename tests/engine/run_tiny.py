"""A detector of a hundred thousand parameters on a few real images. Imported by the tests, and a script.

python run_tiny.py OUTPUT [--resume] [--few-objects] [--curve FILE] [--results FILE] [SETTINGS AS JSON]
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from torchvision import tv_tensors

from detrs.backbones.timm import BackboneConfig
from detrs.config import CriterionConfig, Experiment, OptimizerConfig, RuntimeConfig, ScheduleConfig
from detrs.data.digits import DigitsDataset
from detrs.data.sample import Sample
from detrs.data.transforms import DataConfig
from detrs.engine import train, trainer
from detrs.engine.evaluate import Scores
from detrs.engine.journal import StepReport
from detrs.engine.train import TrainResult
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.schema import from_dict

NUM_IMAGES = {"train": 14, "val": 5}
BACKBONE = BackboneConfig(
    name="test_efficientnet", weights="none", freeze_stem=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)
)
MODEL = DeformableDETRConfig(
    backbone=BACKBONE,
    num_levels=4,
    dim=32,
    num_heads=4,
    num_points=3,
    encoder_layers=1,
    decoder_layers=2,
    ffn_dim=48,
    dropout=0.1,
    num_queries=17,
    queries="proposals",
    reference="refine",
)
EXPERIMENT = Experiment(
    name="tiny",
    model=MODEL,
    data=DataConfig(path="tiny", resize_to=(64, 96), augment="crop", batch_size=4),
    optimizer=OptimizerConfig(lr=1e-3, ema_decay=0.9),
    schedule=ScheduleConfig(epochs=2, kind="cosine", warmup_steps=1),
    runtime=RuntimeConfig(device="cpu", log_every=2),
)
"""Two epochs of three steps."""


def experiment(**changes: dict[str, Any]) -> Experiment:
    """``EXPERIMENT`` with other settings: ``experiment(data={"batch_size": 2})``."""
    if isinstance(backbone := changes.get("model", {}).get("backbone"), dict):
        changes["model"] = {**changes["model"], "backbone": dataclasses.replace(BACKBONE, **backbone)}
    values = {
        section: dataclasses.replace(getattr(EXPERIMENT, section), **settings) for section, settings in changes.items()
    }
    return dataclasses.replace(EXPERIMENT, **values)


class Tiny(DigitsDataset):
    """A few images of the demo set; ``on_load`` is called with the index of each image before it is loaded."""

    def __init__(self, split: str, on_load: Callable[[int], None] = lambda index: None) -> None:
        super().__init__(split, NUM_IMAGES[split])
        self.on_load = on_load

    def __getitem__(self, index: int) -> Sample:
        self.on_load(index)
        return super().__getitem__(index)


class FewObjects(Tiny):
    """Only every seventh image has objects."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if index % 7 == 0:
            return sample
        boxes = tv_tensors.BoundingBoxes(sample.boxes[:0], format="XYXY", canvas_size=sample.original_size)
        return sample._replace(boxes=boxes, labels=sample.labels[:0])


def training(experiment: Experiment, output: Path | str, **options: Any) -> Generator[StepReport, None, TrainResult]:
    """``detrs.training`` on the tiny dataset, or on other data in ``options``."""
    return train.training(experiment, output, **{"train_set": Tiny("train"), "val_set": Tiny("val"), **options})


if __name__ == "__main__":
    import perturb

    from detrs.engine.runtime import is_main_process

    perturb.apply()
    arguments = sys.argv[1:]
    trainer.save_curves = trainer.save_predictions = trainer.save_training_batch = lambda *arguments: None
    settings = json.loads(arguments[-1]) if arguments[-1].startswith("{") else {}
    if "criterion" in settings:  # with kinds
        settings["criterion"] = vars(from_dict(CriterionConfig, settings["criterion"]))
    options = {"train_set": FewObjects("train")} if "--few-objects" in arguments else {}
    best: list[Any] = []
    record = trainer.Trainer.record

    def remember(self: trainer.Trainer, scores: Scores) -> bool:
        is_best = record(self, scores)
        if is_best:
            best[:] = scores.results
        return is_best

    trainer.Trainer.record = remember  # type: ignore[method-assign]
    reports = list(training(experiment(**settings), Path(arguments[0]), resume="--resume" in arguments, **options))
    if "--curve" in arguments and is_main_process():
        curve = [[r.loss, r.grad_norm, r.evaluation and r.evaluation.ap50] for r in reports]
        Path(arguments[arguments.index("--curve") + 1]).write_text(json.dumps(curve))
    if "--results" in arguments and is_main_process():
        Path(arguments[arguments.index("--results") + 1]).write_text(json.dumps(best))
