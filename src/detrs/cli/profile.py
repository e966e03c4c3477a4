"""``detrs profile``: parameters, FLOPs and latency."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from detrs.choices import Precision
from detrs.cli.arguments import Flag, Size, as_pair, parse
from detrs.cli.report import console, print_json
from detrs.presets import preset


@dataclass(frozen=True, kw_only=True)
class ProfileArguments:
    """Count the parameters and multiply-adds of a preset and measure its latency on random input."""

    preset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRESET")]
    """Name of a preset, as listed by detrs presets."""
    image_size: Size | None = None
    """Height and width in pixels, or one number for both. Default: the image size of the preset."""
    batch_size: int = 1
    """Images per forward pass."""
    repeats: int = 5
    """Number of timed forward passes; the median is reported."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16. auto: bf16 where the processor or GPU multiplies it in hardware, else fp32."""
    complexity: Flag = False
    """Also list the terms of the complexity of attention, O(...), evaluated for this image size."""
    json: Flag = False
    """Print one JSON object instead of a table."""


def run(argv: list[str]) -> None:
    """Profile a preset."""
    arguments = parse(ProfileArguments, argv, "detrs profile")
    experiment = preset(arguments.preset)
    from detrs import models
    from detrs.devices import pick_device
    from detrs.evaluation import complexity
    from detrs.evaluation.speed import profile
    from detrs.precision import resolve

    device = pick_device(arguments.device)
    detector = models.build(experiment.model)
    image_size = as_pair(arguments.image_size) if arguments.image_size else experiment.data.resize_to
    terms = complexity.complexity(detector, image_size) if arguments.complexity else []
    report = profile(
        detector,
        image_size,
        batch_size=arguments.batch_size,
        repeats=arguments.repeats,
        device=device,
        precision=resolve(arguments.precision, device),
    )
    if arguments.json:
        listed = {"complexity": [row.to_json() for row in terms]} if arguments.complexity else {}
        print_json({"preset": arguments.preset, **report.to_json(), **listed})
        return
    screen = console(as_json=False)
    screen.print(report.table())
    if arguments.complexity:
        screen.print(complexity.table(terms))
