"""``detrs presets``: list the presets."""

import inspect
from dataclasses import dataclass

from detrs.cli.arguments import Flag, parse
from detrs.cli.report import console, print_json


@dataclass(frozen=True, kw_only=True)
class PresetsArguments:
    """List the presets: published AP, input size and training recipe."""

    json: Flag = False
    """Print one JSON object instead of a table."""


def run(argv: list[str]) -> None:
    """List the presets."""
    arguments = parse(PresetsArguments, argv, "detrs presets")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from detrs.presets import PRESETS, preset

    table = Table("preset", "image size", "epochs", "batch", "about", box=SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    rows = []
    for name, make in PRESETS.items():
        about, experiment = inspect.getdoc(make) or "", preset(name)
        size, epochs = experiment.data.resize_to, experiment.schedule.epochs
        batch_size = experiment.data.batch_size
        table.add_row(name, f"{size[0]}, {size[1]}", str(epochs), str(batch_size), about)
        rows.append(
            {"name": name, "image_size": list(size), "epochs": epochs, "batch_size": batch_size, "about": about}
        )
    if arguments.json:
        print_json({"presets": rows})
    else:
        console(as_json=False).print(table)
