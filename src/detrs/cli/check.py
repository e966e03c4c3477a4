"""``detrs check``: errors, numbers and advice for a dataset."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from detrs import config
from detrs.cli.arguments import Flag, Size, as_pair, parse
from detrs.cli.flags import with_flags
from detrs.cli.inputs import check_dataset
from detrs.cli.report import console, print_json
from detrs.data import data_root
from detrs.errors import UserError, printable
from detrs.files import is_present, os_errors
from detrs.presets import preset
from detrs.presets.fitted import FITTED

if TYPE_CHECKING:
    from rich.console import RenderableType

    from detrs.config import Experiment
    from detrs.data.advice import Advice, Plan
    from detrs.data.doctor import DatasetFacts

PRESET = "deformable-detr-small"
COMPARED = ("model.backbone.stages", "data.resize_to", "model.num_queries", "evaluation.max_detections")
"""Settings that advice concerns."""
MAX_LISTED = 5
"""Copies and similar images that are printed."""


@dataclass(frozen=True, kw_only=True)
class CheckArguments:
    """Check a dataset before training.

    Reports every error and note in all splits, class counts, sizes of boxes and images, and copies of images, and gives
    advice for a preset. The exit code is 2 if there are errors.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Folder or file of a dataset (COCO, YOLO, Pascal VOC, ...), or hf:OWNER/NAME."""
    preset: str = PRESET
    """Preset whose image size, strides and queries the dataset is compared with. Those of presets ending in -small
    follow from the data first, as in detrs train."""
    image_size: Size | None = None
    """Short and long side in pixels, or one number for both. Default: the image size of the preset."""
    split: str | None = None
    """Check only this split. Default: all splits."""
    near_duplicates: Flag = False
    """Also search similar images, which decodes all images."""
    output: Path | None = None
    """Write a page with charts and images to this HTML file."""
    json: Flag = False
    """Print one JSON object to stdout; the report goes to stderr."""


def run(argv: list[str]) -> None:
    """Check a dataset."""
    arguments = parse(CheckArguments, argv, "detrs check")
    if arguments.output:
        check_page_path(arguments.output)
    experiment = preset(arguments.preset)
    if arguments.image_size:
        size = as_pair(arguments.image_size)
        experiment = replace(experiment, data=replace(experiment.data, resize_to=size, augment="none"))
    config.validate(experiment)
    if str(arguments.data) == "digits" and not arguments.data.exists():
        raise UserError("The demo set 'digits' is generated and needs no check. Expected the folder of a dataset.")
    root = data_root(str(arguments.data))
    check_dataset(str(arguments.data))
    from detrs.data.advice import advise
    from detrs.data.doctor import examine_dataset

    facts = examine_dataset(root, split=arguments.split, near_duplicates=arguments.near_duplicates)
    experiment, reasons = fitted_to(experiment, facts, {"data.resize_to"} if arguments.image_size else set())
    plan = plan_of(experiment, facts)
    fitted = [with_flags(each, "train") for each in reasons]
    advice = [each._replace(text=with_flags(each.text, "train")) for each in advise(facts, plan)]
    screen = console(as_json=arguments.json)
    for part in report(facts, fitted, advice, plan):
        screen.print(part, soft_wrap=isinstance(part, str))
    if arguments.output:
        from detrs import files
        from detrs.visualization.check_page import page

        files.write_text(arguments.output, page(facts, advice, plan))
        screen.print(f"Page: {arguments.output}", soft_wrap=True)
    if arguments.json:
        as_json = [each._asdict() for each in advice]
        print_json({**facts.to_json(), "preset": arguments.preset, "settings": fitted, "advice": as_json})
    if facts.num_errors:
        listed = sum(kind == "error" for kind, *_ in facts.findings)
        kinds = "1 kind of error" if listed == 1 else f"{listed} kinds of errors"
        raise UserError(f"{root} has {kinds}, listed above. Training requires a dataset without errors.")


def check_page_path(path: Path) -> None:
    """Check that the page can be written.

    Raises:
        UserError: the path is a folder, is not an HTML file, or its folder does not exist or is not writable.
    """
    with os_errors(f"--output: cannot write '{path}'"):
        is_present(path)
    if os.path.isdir(path) or path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output must be an HTML file such as check.html, got '{path}'.")
    if not os.path.isdir(path.parent) or not os.access(path.parent, os.W_OK):
        raise UserError(f"--output: the folder '{path.parent}' does not exist or is not writable.")


def fitted_to(
    experiment: "Experiment", facts: "DatasetFacts", given: Collection[str]
) -> tuple["Experiment", list[str]]:
    """The settings with which ``detrs train`` trains on the data, and the reasons of those that advice concerns."""
    from detrs.data.advice import training_split
    from detrs.engine.fitting import TrainingImages, fitted

    train = training_split(facts)
    if experiment.name not in FITTED or train is None or not len(train.images):
        return experiment, []
    sizes = train.image_sizes[train.objects.image].tolist()
    boxes = tuple((height, width, side) for (height, width), side in zip(sizes, train.sides.tolist(), strict=True))
    images = TrainingImages(images=len(train.images), most_objects=int(train.per_image.max()), boxes=boxes)
    experiment, reasons = fitted(experiment, images, given)
    return experiment, [each for each in reasons if each.startswith(COMPARED)]


def plan_of(experiment: "Experiment", facts: "DatasetFacts") -> "Plan":
    """The settings of a preset that the dataset is compared with."""
    from detrs.data.advice import Plan, training_split

    backbone, train, capacity = experiment.model.backbone, training_split(facts), None
    try:
        experiment.model.check_capacity(int(train.per_image.max(initial=0)) if train else 0)
    except UserError as error:
        capacity = str(error)
    return Plan(
        preset=experiment.name or type(experiment.model).__name__,
        resize_to=experiment.data.resize_to,
        stride=min(16 if backbone.dilated and stage == 5 else 2**stage for stage in backbone.stages),
        capacity=capacity,
        max_detections=experiment.evaluation.max_detections,
    )


def report(
    facts: "DatasetFacts", fitted: Sequence[str], advice: Sequence["Advice"], plan: "Plan"
) -> list["RenderableType"]:
    """The report as tables and lines of text."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    splits = Table("split", box=SIMPLE_HEAD, title=f"{facts.root}: {facts.format}", title_justify="left")
    splits.columns[0].no_wrap = True
    for column in ("images", "without objects", "objects", "most in an image", "box side", "S/M/L"):
        splits.add_column(column, justify="right", no_wrap=column in ("box side", "S/M/L"))
    for split in facts.splits:
        shares = [share for share in split.shares.values() if share is not None]
        sides = split.to_json()["box_side"]
        splits.add_row(
            split.name or "(undivided)",
            f"{len(split.images):,}",
            f"{split.num_empty:,}",
            f"{len(split.objects):,}",
            f"{split.per_image.max(initial=0):,}",
            "-" if sides is None else f"{sides['5%']:.0f}..{sides['95%']:.0f}",
            "/".join(f"{share:.0%}" for share in shares) or "-",
        )
    classes = Table("class", box=SIMPLE_HEAD)
    for split in facts.splits:
        classes.add_column(split.name or "objects", justify="right")
    for name in dict.fromkeys(name for split in facts.splits for name in split.classes):
        classes.add_row(Text(printable(name)), *(f"{split.per_class.get(name, 0):,}" for split in facts.splits))
    lines = [f"{kind}: {names}{': ' * bool(names)}{finding}" for kind, names, finding in facts.findings]
    lines += [f"copies: {', '.join(map(str, group))}" for group in facts.copies[:MAX_LISTED]]
    if (rest := len(facts.copies) - MAX_LISTED) > 0:
        lines.append(f"copies: {rest:,} more {'group' if rest == 1 else 'groups'} (--json lists all)")
    similar = facts.similar or []
    lines += [f"similar: {a}, {b} (correlation {value:.3f})" for a, b, value in similar[:MAX_LISTED]]
    if (rest := len(similar) - MAX_LISTED) > 0:
        lines.append(f"similar: {rest:,} more {'pair' if rest == 1 else 'pairs'} (--json lists all)")
    size = " ".join(map(str, dict.fromkeys(plan.resize_to)))
    if fitted:
        lines += [
            f"\nSettings of {plan.preset} that follow from the data in detrs train:",
            *(f"  {each}" for each in fitted),
        ]
    lines.append(f"\nAdvice for {plan.preset} at --image-size {size}:")
    none = "fix the errors first" if facts.num_errors else "nothing to change"
    lines += [f"  {each.topic}: {each.text}" for each in advice] or [f"  {none}"]
    return [splits, classes, printable("\n".join(lines))]
