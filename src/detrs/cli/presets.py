"""``detrs presets``: list the presets."""

import inspect
import re
from dataclasses import dataclass

from detrs.cli.arguments import Flag, parse
from detrs.cli.report import console, print_json


@dataclass(frozen=True, kw_only=True)
class PresetsArguments:
    """List the presets: image size, training recipe and published COCO AP."""

    json: Flag = False
    """Print one JSON object instead of a table, with a description of each preset."""


def run(argv: list[str]) -> None:
    """List the presets."""
    arguments = parse(PresetsArguments, argv, "detrs presets")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from detrs.presets import PRESETS, preset

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("preset", no_wrap=True)
    for column in ("image size", "epochs", "batch size", "AP"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = []
    for name, make in PRESETS.items():
        about, experiment = inspect.getdoc(make) or "", preset(name)
        size, epochs = experiment.data.resize_to, experiment.schedule.epochs
        batch_size, (ap, split) = experiment.data.batch_size, published_ap(about)
        figure = "-" if ap is None else f"{ap:.1f}"
        table.add_row(name, f"{size[0]}, {size[1]}", str(epochs), str(batch_size), figure + "*" * (split == "test-dev"))
        rows.append(
            {
                "name": name,
                "image_size": list(size),
                "epochs": epochs,
                "batch_size": batch_size,
                "ap": ap,
                "ap_split": split,
                "about": about,
            }
        )
    if arguments.json:
        print_json({"presets": rows})
    else:
        screen = console(as_json=False)
        screen.print(table)
        screen.print("AP: published COCO AP on val2017 (*: test-dev). More: detrs presets --json")


def published_ap(about: str) -> tuple[float | None, str | None]:
    """COCO AP and its split, as the description of a preset begins with; ``None`` if none is published."""
    match = re.match(r"AP (\d+\.\d)( on test-dev)?", about)
    return (float(match[1]), "test-dev" if match[2] else "val2017") if match else (None, None)
