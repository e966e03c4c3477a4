"""The page of ``detrs check``: one HTML file with all facts about a dataset, without scripts and external files."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image

from detrs.data.advice import Advice, Plan, scales, training_split
from detrs.data.doctor import DatasetFacts, SplitFacts
from detrs.data.findings import Finding
from detrs.html_table import text
from detrs.visualization.page import document, images, tiles
from detrs.visualization.suspects import data_uri, suspects
from detrs.visualization.svg import bars, histogram, scatter

HEAT = 48
"""Cells of the heat map along each side."""
MAX_CLASSES = 60
"""Classes in the chart, the most frequent first."""


def page(facts: DatasetFacts, advice: Sequence[Advice], plan: Plan) -> str:
    """The page as HTML."""
    train = training_split(facts) or facts.splits[0]
    sections = [_summary(facts, plan), _findings(facts), _advice(facts, advice, plan), _table(facts), _classes(facts)]
    if len(train.objects):
        sections += [_charts(train, plan)]
    sections += [_images(facts)]
    return document(f"{facts.root.name}: detrs check", sections)


def _summary(facts: DatasetFacts, plan: Plan) -> str:
    images, objects = (sum(map(len, each)) for each in zip(*((s.images, s.objects) for s in facts.splits), strict=True))
    classes = max(len(split.classes) for split in facts.splits)
    numbers = {
        "images": f"{images:,}",
        "objects": f"{objects:,}",
        "classes": f"{classes:,}",
        "kinds of errors": f"{sum(kind == 'error' for kind, *_ in facts.findings)}",
        "kinds of notes": f"{sum(kind == 'note' for kind, *_ in facts.findings)}",
        "groups of copies": f"{len(facts.copies):,}",
    }
    if facts.similar is not None:
        numbers["pairs of similar images"] = f"{len(facts.similar):,}"
    bad = {"kinds of errors"} if facts.num_errors else set()
    about = f"{facts.format} dataset, compared with the preset {plan.preset} at image size {_size(plan.resize_to)}"
    return f'<h1>{text(facts.root)}</h1><p class="sub">{text(about)}</p>{tiles(numbers, bad)}'


def _findings(facts: DatasetFacts) -> str:
    listed = "".join(_finding(*row) for row in facts.findings) or "<li>No errors and no notes.</li>"
    return f"<h2>Findings</h2><ul>{listed}</ul>"


def _finding(kind: str, split: str, finding: Finding) -> str:
    places = ", ".join(finding.places) + (", ..." if finding.count > len(finding.places) and finding.places else "")
    count = f"{finding.count:,} x " if finding.places else ""
    where = f"{split}: " if split else ""
    small = f"<br><small>{text(places)}</small>" if places else ""
    return f'<li class="{kind}"><b>{kind}</b>{text(where + count + finding.kind)}{small}</li>'


def _advice(facts: DatasetFacts, advice: Sequence[Advice], plan: Plan) -> str:
    listed = "".join(f"<li><b>{text(each.topic)}</b>{text(each.text)}</li>" for each in advice)
    none = "Fix the errors first." if facts.num_errors else f"Nothing to change for {plan.preset}."
    return f"<h2>Advice</h2><ul>{listed or f'<li>{text(none)}</li>'}</ul>"


def _table(facts: DatasetFacts) -> str:
    head = (
        *("split", "images", "without objects", "objects", "crowd regions", "objects per image (median, max)"),
        *("box side (5%, median, 95%)", "small / medium / large"),
    )
    rows = []
    for split in facts.splits:
        values = split.to_json()
        per, side, shares = values["objects_per_image"], values["box_side"], values["box_shares"]
        rows.append(
            (
                split.name or "(undivided)",
                f"{values['num_images']:,}",
                f"{values['num_empty']:,}",
                f"{values['num_objects']:,}",
                f"{values['num_crowd']:,}",
                "-" if per is None else f"{per['50%']:.0f}, {per['max']:.0f}",
                "-" if side is None else f"{side['5%']:.0f}, {side['50%']:.0f}, {side['95%']:.0f}",
                "-" if side is None else " / ".join(f"{share:.0%}" for share in shares.values()),
            )
        )
    cells = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    heads = "".join(f"<th>{text(cell)}</th>" for cell in head)
    return (
        f'<h2>Splits</h2><div class="card scroll"><table><tr>{heads}</tr>{cells}</table></div>'
        '<p class="sub">Box side: square root of the area in pixels of the original image. Small, medium and large by '
        "the limits of COCO, 32² and 96² square pixels.</p>"
    )


def _classes(facts: DatasetFacts) -> str:
    splits = [split for split in facts.splits if split.classes][:4]
    totals: dict[str, int] = {}
    for split in splits:
        for name, count in split.per_class.items():
            totals[name] = totals.get(name, 0) + count
    names = sorted(totals, key=lambda name: -totals[name])
    shown = names[:MAX_CLASSES]
    chart = bars(shown, {split.name: [split.per_class.get(name, 0) for name in shown] for split in splits})
    legend = "".join(f'<i class="s{number}"></i>{text(split.name)}' for number, split in enumerate(splits))
    rest = f"; the {len(shown)} most frequent of {len(names)} classes" if len(names) > len(shown) else ""
    return (
        '<h2>Classes</h2><div class="card"><h3>Objects per class</h3>'
        f'{chart}<p class="legend">{legend}<br>Square-root scale{rest}.</p></div>'
    )


def _charts(train: SplitFacts, plan: Plan) -> str:
    sides = train.sides * scales(train, plan.resize_to)
    sizes, counts = np.unique(train.image_sizes[:, ::-1], axis=0, return_counts=True)
    charts = {
        f"Box sizes at image size {_size(plan.resize_to)}": histogram(
            sides,
            label="square root of the area in pixels",
            logarithmic=True,
            marks=[(plan.stride, f"stride {plan.stride}")],
        ),
        "Where boxes lie": f'<img class="heat" alt="heat map of the boxes" src="{heat_map(train)}">'
        '<p class="legend">Coverage by boxes over all images, from none (dark) to the maximum (bright).</p>',
        "Objects per image": histogram(train.per_image, label="objects"),
        "Image sizes": scatter(sizes, counts, labels=("width in pixels", "height in pixels")),
        "Aspect ratios of boxes": histogram(
            train.objects.boxes[:, 2] / train.objects.boxes[:, 3], label="width / height", logarithmic=True
        ),
    }
    cards = "".join(f'<div class="card"><h3>{text(title)}</h3>{chart}</div>' for title, chart in charts.items())
    return f'<h2>Boxes and images of the split {text(train.name)}</h2><div class="cards">{cards}</div>'


def heat_map(split: SplitFacts) -> str:
    """How often each part of the images is covered by a box, as a data URI; images are scaled to a square."""
    extents = np.tile(split.image_sizes[split.objects.image][:, ::-1], 2)  # (N, 4)
    boxes = split.objects.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    left, top, right, bottom = np.clip(np.rint(boxes / extents * HEAT), 0, HEAT).astype(int).T
    right, bottom = np.minimum(np.maximum(right, left + 1), HEAT), np.minimum(np.maximum(bottom, top + 1), HEAT)
    steps = np.zeros((HEAT + 1, HEAT + 1))
    for y, x, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(steps, (y, x), sign)
    cover = steps.cumsum(0).cumsum(1)[:HEAT, :HEAT]
    colors = matplotlib.colormaps["viridis"](cover / max(cover.max(), 1))[..., :3]
    return data_uri(Image.fromarray((255 * colors).astype(np.uint8)).resize((8 * HEAT, 8 * HEAT), 0), "PNG")


def _images(facts: DatasetFacts) -> str:
    return "\n".join(f"<h2>{text(kind)}</h2>{images(found)}" for kind, found in suspects(facts).items())


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]} {size[1]}"
