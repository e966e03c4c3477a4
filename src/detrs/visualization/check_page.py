"""The page of ``detrs check``: one HTML file with all facts about a dataset, without scripts and external files."""

import html
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image

from detrs.data.advice import Advice, Plan, scales, training_split
from detrs.data.doctor import DatasetFacts, SplitFacts
from detrs.data.findings import Finding
from detrs.visualization.suspects import data_uri, suspects
from detrs.visualization.svg import bars, histogram, scatter

HEAT = 48
"""Cells of the heat map along each side."""
MAX_CLASSES = 60
"""Classes in the chart, the most frequent first."""
STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --card: #f6f7f9; --text: #1c2024; --soft: #616a75; --line: #dfe3e8;
  --s0: #0072b2; --s1: #e69f00; --s2: #009e73; --s3: #cc79a7; --bad: #b3261e; --mark: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --back: #16191d; --card: #20242a; --text: #e8eaed; --soft: #9aa4b0;
  --line: #343a42; --s0: #56b4e9; --s1: #e69f00; --s2: #2fc796; --s3: #de9cc2; --bad: #ff8a80; --mark: #ff9b54; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 24px 64px; max-width: 1180px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 0 0 8px; color: var(--soft); font-weight: 600; }
p.sub { margin: 0; color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px; }
.tile { background: var(--card); border-radius: 8px; padding: 12px 18px; min-width: 120px; }
.tile b { display: block; font-size: 22px; } .tile span { color: var(--soft); font-size: 13px; }
.bad b { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 16px; }
.card { background: var(--card); border-radius: 8px; padding: 16px; min-width: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
ul { margin: 0; padding: 0; list-style: none; } li { padding: 8px 12px; margin-bottom: 8px; background: var(--card);
  border-left: 4px solid var(--s0); border-radius: 4px; overflow-wrap: anywhere; }
li.error { border-color: var(--bad); } li.note { border-color: var(--s1); } li b { margin-right: 6px; }
li small { color: var(--soft); }
svg { max-width: 100%; height: auto; display: block; }
svg text { fill: var(--text); font: 12.5px system-ui, sans-serif; }
svg text.small { fill: var(--soft); font-size: 11px; } svg text.mark { fill: var(--mark); }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); } .s3 { fill: var(--s3); }
.soft { fill-opacity: .45; } .axis { stroke: var(--line); } line.mark { stroke: var(--mark); stroke-dasharray: 4 3; }
.legend { color: var(--soft); font-size: 13px; } .legend i { display: inline-block; width: 10px; height: 10px;
  border-radius: 2px; margin: 0 5px 0 12px; }
.legend i.s0 { background: var(--s0); } .legend i.s1 { background: var(--s1); }
.legend i.s2 { background: var(--s2); } .legend i.s3 { background: var(--s3); }
.heat { width: 100%; max-width: 340px; image-rendering: pixelated; border-radius: 4px; display: block; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 16px;
  align-items: end; }
figure { margin: 0; } figure img { width: 100%; max-height: 360px; object-fit: contain; border-radius: 6px;
  background: var(--card); display: block; }
figcaption { font-size: 12px; color: var(--soft); overflow-wrap: anywhere; margin-top: 4px; }
"""


def page(facts: DatasetFacts, advice: Sequence[Advice], plan: Plan) -> str:
    """The page as HTML."""
    train = training_split(facts) or facts.splits[0]
    sections = [_summary(facts, plan), _findings(facts), _advice(facts, advice, plan), _table(facts), _classes(facts)]
    if len(train.objects):
        sections += [_charts(train, plan)]
    sections += [_images(facts)]
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(facts.root.name)}: detrs check</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _summary(facts: DatasetFacts, plan: Plan) -> str:
    images, objects = (sum(map(len, each)) for each in zip(*((s.images, s.objects) for s in facts.splits), strict=True))
    classes = max(len(split.classes) for split in facts.splits)
    tiles = {
        "images": f"{images:,}",
        "objects": f"{objects:,}",
        "classes": f"{classes:,}",
        "kinds of errors": f"{sum(kind == 'error' for kind, *_ in facts.findings)}",
        "kinds of notes": f"{sum(kind == 'note' for kind, *_ in facts.findings)}",
        "groups of copies": f"{len(facts.copies):,}",
    }
    if facts.similar is not None:
        tiles["pairs of similar images"] = f"{len(facts.similar):,}"
    cells = "".join(
        f'<div class="tile{" bad" if name == "kinds of errors" and facts.num_errors else ""}"><b>{value}</b>'
        f"<span>{name}</span></div>"
        for name, value in tiles.items()
    )
    about = f"{facts.format} dataset, compared with the preset {plan.preset} at image size {_size(plan.resize_to)}"
    return f'<h1>{_text(facts.root)}</h1><p class="sub">{_text(about)}</p><div class="tiles">{cells}</div>'


def _findings(facts: DatasetFacts) -> str:
    listed = "".join(_finding(*row) for row in facts.findings) or "<li>No errors and no notes.</li>"
    return f"<h2>Findings</h2><ul>{listed}</ul>"


def _finding(kind: str, split: str, finding: Finding) -> str:
    places = ", ".join(finding.places) + (", ..." if finding.count > len(finding.places) and finding.places else "")
    count = f"{finding.count:,} x " if finding.places else ""
    where = f"{split}: " if split else ""
    small = f"<br><small>{_text(places)}</small>" if places else ""
    return f'<li class="{kind}"><b>{kind}</b>{_text(where + count + finding.kind)}{small}</li>'


def _advice(facts: DatasetFacts, advice: Sequence[Advice], plan: Plan) -> str:
    listed = "".join(f"<li><b>{_text(each.topic)}</b>{_text(each.text)}</li>" for each in advice)
    none = "Fix the errors first." if facts.num_errors else f"Nothing to change for {plan.preset}."
    return f"<h2>Advice</h2><ul>{listed or f'<li>{_text(none)}</li>'}</ul>"


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
    cells = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    heads = "".join(f"<th>{_text(cell)}</th>" for cell in head)
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
    legend = "".join(f'<i class="s{number}"></i>{_text(split.name)}' for number, split in enumerate(splits))
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
    cards = "".join(f'<div class="card"><h3>{_text(title)}</h3>{chart}</div>' for title, chart in charts.items())
    return f'<h2>Boxes and images of the split {_text(train.name)}</h2><div class="cards">{cards}</div>'


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
    parts = []
    for kind, found in suspects(facts).items():
        figures = "".join(
            f'<figure><img alt="{_text(each.caption)}" src="{each.uri}">'
            f"<figcaption>{_text(each.caption)}</figcaption></figure>"
            for each in found
        )
        parts.append(f'<h2>{_text(kind)}</h2><div class="images">{figures}</div>')
    return "\n".join(parts)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]} {size[1]}"


def _text(value: object) -> str:
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())
