"""``detrs demo``: train a small detector on built-in data and draw its detections."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from detrs.cli.arguments import Flag, new_folder, parse
from detrs.cli.report import console, print_json

PRESET = "dino-tiny"
DATA = "digits"
MINUTES = 9.5
"""Budget for training. The whole command takes ten minutes on two CPU cores."""
NUM_IMAGES = 12


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Train a small detector on handwritten digits, evaluate it, and draw its detections.

    Needs no network: the images are generated from data included in scikit-learn. The output folder contains the
    best weights, the training curves and annotated validation images.
    """

    output: Path | None = None
    """Output folder. Default: runs/demo-N."""
    minutes: float = MINUTES
    """Training time in minutes."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """CPU threads. Default: one per core that other programs leave free."""
    seed: int = 42
    """Random seed."""
    quiet: Flag = False
    """Hide the progress display."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr."""


def run(argv: list[str]) -> None:
    """Train, evaluate, predict."""
    began = time.monotonic()
    arguments = parse(DemoArguments, argv, "detrs demo")
    from detrs import config
    from detrs.cli.cores import threads_beside_others
    from detrs.engine.evaluate import evaluate_checkpoint
    from detrs.engine.train import train
    from detrs.ops.threads import num_threads
    from detrs.presets import preset

    experiment = preset(PRESET)
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, path=DATA, augment="none"),  # no mirrored digits
        schedule=dataclasses.replace(experiment.schedule, max_minutes=arguments.minutes),
        runtime=dataclasses.replace(experiment.runtime, device=arguments.device, threads=arguments.threads),
        seed=arguments.seed,
    )
    config.validate(experiment)
    with num_threads(threads_beside_others(experiment.runtime)):
        result = train(experiment, arguments.output or new_folder("demo"), quiet=arguments.quiet)
        # from the file, to check the file itself
        report = evaluate_checkpoint(result.checkpoint, device=arguments.device).report
        images = draw(result.checkpoint, result.output / "images", arguments.device)

    screen = console(as_json=arguments.json)
    screen.print(report.table())
    screen.print(f"Annotated images: {images}\nTraining curves: {result.output / 'results.png'}", soft_wrap=True)
    if arguments.json:
        print_json(
            {
                "ap": report.ap,
                "ap50": report.ap50,
                "seconds": round(time.monotonic() - began, 1),
                "steps": result.steps,
                "checkpoint": str(result.checkpoint),
                "images": str(images),
                "num_images": report.num_images,
            }
        )


def draw(checkpoint: Path, folder: Path, device: str) -> Path:
    """Draw the detections in the first validation images; returns ``folder``."""
    from detrs.data import open_dataset
    from detrs.predictor import Predictor
    from detrs.visualization.draw import draw_detections

    dataset = open_dataset(DATA, "val")
    images = (dataset[index].image for index in range(min(NUM_IMAGES, len(dataset))))
    folder.mkdir()
    predictor = Predictor.load(checkpoint, device)
    for number, (image, detections) in enumerate(predictor.predict_iter(images)):
        draw_detections(image, detections, predictor.threshold).save(folder / f"{number + 1:02}.jpg", quality=95)
    return folder
