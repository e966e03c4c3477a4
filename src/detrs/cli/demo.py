"""``detrs demo``: one command from nothing to a detector and pictures of what it finds."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from detrs.cli.arguments import Flag, new_folder, parse
from detrs.cli.report import console, print_json

PRESET = "deformable-detr-tiny"
DATA = "digits"
MINUTES = 8.0
"""Budget of the training: with imports, data, evaluation and pictures, ten minutes on two CPU cores."""
NUM_PICTURES = 12
THRESHOLD = 0.3
"""Score above which a digit is drawn."""


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Train a small detector to find handwritten digits on photographs, score it, and draw what it finds.

    Needs no network. Everything is made on the spot; the best weights, the curves and the pictures lie in the output
    folder.
    """

    output: Path | None = None
    """Folder of the run; by default runs/demo-N."""
    minutes: float = MINUTES
    """Time to train for."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    seed: int = 42
    """Start of every random stream."""
    quiet: Flag = False
    """Show no progress."""
    json: Flag = False
    """Print one JSON object; the table goes to the standard error stream."""


def run(argv: list[str]) -> None:
    """Train, evaluate, predict."""
    began = time.monotonic()
    arguments = parse(DemoArguments, argv, "detrs demo")
    from detrs.engine.evaluate import evaluate_checkpoint
    from detrs.engine.train import train
    from detrs.presets import preset

    experiment = preset(PRESET)
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, path=DATA, augment="none"),  # a mirrored digit is no digit
        schedule=dataclasses.replace(experiment.schedule, max_minutes=arguments.minutes),
        runtime=dataclasses.replace(experiment.runtime, device=arguments.device),
        seed=arguments.seed,
    )
    result = train(experiment, arguments.output or new_folder("demo"), quiet=arguments.quiet)
    report = evaluate_checkpoint(result.checkpoint, device=arguments.device).report  # from the file, as anyone would
    pictures = draw(result.checkpoint, result.output / "pictures", arguments.device)

    screen = console(as_json=arguments.json)
    screen.print(report.table())
    screen.print(f"Look at {pictures} and {result.output / 'results.png'}", soft_wrap=True)
    if arguments.json:
        print_json(
            {
                "ap": report.ap,
                "ap50": report.ap50,
                "seconds": round(time.monotonic() - began, 1),
                "steps": result.steps,
                "checkpoint": str(result.checkpoint),
                "pictures": str(pictures),
                "num_images": report.num_images,
            }
        )


def draw(checkpoint: Path, folder: Path, device: str) -> Path:
    """Held-out pictures with what the detector finds in them; returns ``folder``."""
    from detrs.data import open_dataset
    from detrs.predictor import Predictor
    from detrs.visualization.draw import draw_detections

    dataset = open_dataset(DATA, "val")
    images = (dataset[index].image for index in range(min(NUM_PICTURES, len(dataset))))
    folder.mkdir()
    found = Predictor.load(checkpoint, device).predict_iter(images, threshold=THRESHOLD)
    for number, (image, detections) in enumerate(found):
        draw_detections(image, detections, THRESHOLD).save(folder / f"{number + 1:02}.jpg", quality=95)
    return folder
