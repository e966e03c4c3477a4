"""The page of ``detrs evaluate --report``: one HTML file without scripts and external files.

It shows the numbers of ``report.json`` and nothing else, beside images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from detrs.errors import counted
from detrs.html_table import score, text
from detrs.visualization.line_chart import Points, line_chart
from detrs.visualization.page import Shown, document, images, tiles

SHOWN_CLASSES = 3
"""Classes with a curve in color, those with most objects; up to ``THIN_CLASSES`` more are gray."""
THIN_CLASSES = 40
CONFUSED = 15
"""Largest number of classes of a confusion matrix; with more, the most frequent confusions are listed."""
LISTED = 15
"""Most frequent confusions that are listed, queries that are shown as bars."""
STYLE = """
.grid { stroke: var(--line); stroke-width: .7; } .curve { fill: none; stroke-width: 1.6; } .thin { stroke: var(--soft);
  stroke-width: .8; stroke-opacity: .5; } .l0 { stroke: var(--s0); stroke-width: 3; } .l1 { stroke: var(--s1); }
.l2 { stroke: var(--s2); } .l3 { stroke: var(--s3); } .legend i.s0 { margin-left: 0; }
td.cell { text-align: center; min-width: 46px; border: 1px solid var(--back); } td.cell.low { color: var(--text); }
.matrix th { font-weight: 600; } .matrix th.top { text-align: center; max-width: 110px; overflow-wrap: anywhere; }
.bar { display: grid; grid-template-columns: 1fr auto; column-gap: 10px; align-items: baseline; padding: 4px 0; }
.bar small, .bar span { color: var(--soft); font-size: 13px; } .bar small { font-weight: 400; margin-left: 6px; }
.bar div { grid-column: 1 / 3; background: var(--s0); height: 9px; border-radius: 3px; min-width: 1px; }
.bar div.wrong { background: var(--mark); }
.wide { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(540px, 100%), 1fr)); gap: 20px; }
.wide img { max-height: none; } p.note { color: var(--soft); font-size: 13px; margin: 8px 0 0; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 10px; }
tr.whole td { font-weight: 600; }
"""
EXPLAINED = {
    "localization": "right class, IoU 0.1 to 0.5",
    "classification": "right box, wrong class",
    "duplicate": "object found already",
    "background": "no object there",
    "both": "wrong class, IoU 0.1 to 0.5",
    "covered": "object with a wrong box or class",
    "missed": "object without detection",
}


def page(values: Mapping[str, Any], worst: Sequence[Shown], labels: Mapping[str, Sequence[Shown]]) -> str:
    """The page as HTML.

    Args:
        values: content of ``report.json``.
        worst: images with most errors.
        labels: kind -> probable label errors.
    """
    diagnosis = values["diagnosis"]
    sections = [_summary(values), _classes(diagnosis, values["report"]), _curves(diagnosis), _errors(diagnosis)]
    sections += [_confusion(diagnosis), _calibration(diagnosis)]
    sections += [_layers_and_queries(diagnosis), _worst(worst), _labels(labels, diagnosis)]
    return document(f"{values['name']}: detrs evaluate", [each for each in sections if each], STYLE)


def _summary(values: Mapping[str, Any]) -> str:
    report, diagnosis = values["report"], values["diagnosis"]
    found = diagnosis["at_threshold"]
    numbers = {
        "AP": score(report["ap"]),
        "AP50": score(report["ap50"]),
        "images": f"{report['num_images']:,}",
        "objects": f"{report['num_objects']:,}",
        "threshold": f"{diagnosis['threshold']:g}",
        "precision": score(found["precision"]),
        "recall": score(found["recall"]),
        "F1": score(found["f1"]),
    }
    origin = {
        "checkpoint": "stored in the checkpoint, which predictions use by default",
        "best F1": "with the best F1 of this evaluation, since the checkpoint contains none",
        "default": "the default, since no detection is right",
    }[diagnosis["threshold_origin"]]
    best = diagnosis["best_threshold"]
    here = "" if best is None else f" The best F1 of this evaluation is {score(diagnosis['best_f1'])}, at {best:g}."
    skipped = f" Missing or unreadable: {counted(report['num_skipped'], 'image')}." if report["num_skipped"] else ""
    return (
        f'<h1>{text(values["name"])}</h1><p class="sub">{text(values["about"])}</p>{tiles(numbers)}'
        '<p class="note">Precision, recall, F1 and all numbers of errors: IoU 0.5, detections with a score of at least '
        f"{diagnosis['threshold']:g}, the threshold {origin}.{here}{skipped}</p>"
    )


def _classes(diagnosis: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    head = [*("class", "objects", "AP", "AP50", "AP small", "AP medium", "AP large")]
    head += ["precision", "recall", "F1", "best threshold", "F1 there"]
    keys = ("ap", "ap50", "ap_small", "ap_medium", "ap_large")

    def row(name: str, count: int, aps: Mapping[str, Any], found: Mapping[str, Any], best: Mapping[str, Any]) -> str:
        threshold = "–" if best["best_threshold"] is None else f"{best['best_threshold']:g}"
        cells = [f"{count:,}", *(score(aps[key]) for key in keys)]
        cells += [score(found[key]) for key in ("precision", "recall", "f1")] + [threshold, score(best["best_f1"])]
        return f"<td>{text(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}"

    whole = row("all", report["num_objects"], report, diagnosis["at_threshold"], diagnosis)
    rows = "".join(
        f"<tr>{row(name, each['num_objects'], each, each['at_threshold'], each)}</tr>"
        for name, each in diagnosis["per_class"].items()
    )
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    return (
        f'<h2>Classes</h2><div class="card scroll"><table><tr>{heads}</tr><tr class="whole">{whole}</tr>{rows}</table>'
        '</div><p class="note">AP over IoU 0.50 to 0.95. Small, medium and large by the limits of COCO, 32² and 96² '
        "square pixels. Best threshold: the score with the best F1 of the class alone.</p>"
    )


def _curves(diagnosis: Mapping[str, Any]) -> str:
    curves, classes = diagnosis["curves"], diagnosis["per_class"]
    names = sorted(classes, key=lambda name: -classes[name]["num_objects"])
    names = [name for name in names if classes[name]["num_objects"]]
    shown, thin = names[:SHOWN_CLASSES], names[SHOWN_CLASSES : SHOWN_CLASSES + THIN_CLASSES]
    if len(names) == 1:
        shown = []  # equal to that of all classes

    def points(kind: str, over: str, name: str) -> Points:
        return list(zip(curves[over], curves[kind][name] or (), strict=False))

    def chart(kind: str, over: str, whole: str, labels: tuple[str, str], marks: Sequence[tuple[float, str]]) -> str:
        lines = {whole: points(kind, over, "")} | {name: points(kind, over, name) for name in shown}
        gray = {name: points(kind, over, name) for name in thin}
        keys = "".join(f'<i class="s{index}"></i>{text(name)}' for index, name in enumerate(lines))
        more = len(names) - len(shown) - len(thin)
        of = f" of {len(thin) + more:,}" if more else ""
        rest = f"<br>Gray: {len(thin)}{of} other {'class' if len(thin) == 1 else 'classes'}." if thin else ""
        return f'{line_chart(lines, labels=labels, thin=gray, marks=marks)}<p class="legend">{keys}{rest}</p>'

    threshold = diagnosis["threshold"]
    precision = chart("precision", "recall", "mean over classes", ("recall", "precision"), ())
    f1 = chart("f1", "threshold", "all detections", ("threshold", "F1"), [(threshold, f"{threshold:g}")])
    return (
        '<h2>Precision, recall and thresholds</h2><div class="cards">'
        f'<div class="card"><h3>Precision over recall, IoU 0.5</h3>{precision}</div>'
        f'<div class="card"><h3>F1 over the threshold, IoU 0.5</h3>{f1}</div></div>'
    )


def bar(name: str, value: float, most: float, shown: str, *, kind: str = "", note: str = "") -> str:
    """A horizontal bar below a name, a note and a text."""
    width = max(100 * value / most, 0) if most > 0 else 0
    small = f"<small>{text(note)}</small>" if note else ""
    return (
        f'<div class="bar"><b>{text(name)}{small}</b><span>{text(shown)}</span>'
        f'<div class="{kind}" style="width:{width:.1f}%"></div></div>'
    )


def _errors(diagnosis: Mapping[str, Any]) -> str:
    errors, duplicates = diagnosis["errors"], diagnosis["duplicates"]
    detections, objects = errors["wrong"], {key: errors[key] for key in ("covered", "missed")}
    total, lost = sum(detections.values()), sum(objects.values())
    most = max((*detections.values(), *objects.values()), default=0)

    def bars(counts: Mapping[str, int], whole: int) -> str:
        return "".join(
            bar(
                *(name, count, most, f"{count:,} ({count / whole:.0%})" if whole else "0"),
                kind="wrong",
                note=EXPLAINED[name],
            )
            for name, count in counts.items()
        )

    delta = errors["delta_ap50"]
    largest = max(*delta.values(), 1e-9)
    rows = "".join(bar(name, value, largest, f"+{100 * value:.1f} AP50") for name, value in delta.items())
    repeated = duplicates["num_detections"]
    several = (
        f"More than one detection: {counted(duplicates['num_objects'], 'object')} in "
        f"{counted(duplicates['num_images'], 'image')} (up to {duplicates['most']}), {counted(repeated, 'duplicate')}."
        if repeated
        else "No object has more than one detection."
    )
    return (
        '<h2>Errors</h2><div class="cards">'
        f'<div class="card"><h3>{counted(total, "wrong detection")}</h3>{bars(detections, total)}'
        f'<p class="note">{several} Ignored in crowd regions: {counted(errors["ignored"], "detection")}.</p></div>'
        f'<div class="card"><h3>Not found: {counted(lost, "object")}</h3>{bars(objects, lost)}</div>'
        f'<div class="card"><h3>What fixing one kind of error would add (TIDE)</h3>{rows}'
        '<p class="note">Over all scores. The kinds do not add up: fixing one changes the others.</p></div></div>'
    )


def _confusion(diagnosis: Mapping[str, Any]) -> str:
    names, entries = diagnosis["confusion"]["names"], diagnosis["confusion"]["entries"]
    note = (
        '<p class="note">Rows: class of the object; columns: class of the detection, matched regardless of class. '
        "Background column: objects that are not found; background row: detections of nothing. The color is the share "
        "of the row.</p>"
    )
    if len(names) > CONFUSED:
        wrong = [each for each in entries if None not in each.values() and each["truth"] != each["detected"]]
        wrong.sort(key=lambda each: -each["count"])
        most = wrong[0]["count"] if wrong else 0
        rows = "".join(
            bar(f"{each['truth']} → {each['detected']}", each["count"], most, f"{each['count']:,}", kind="wrong")
            for each in wrong[:LISTED]
        )
        title = "Most frequent confusions: object → detection" if wrong else "No class is taken for another."
        figure = '<p class="note">The whole matrix: confusion_matrix.png, report.json.</p>'
        return f'<h2>Confusion</h2><div class="card"><h3>{title}</h3>{rows}{figure}</div>'
    table = {(each["truth"], each["detected"]): each["count"] for each in entries}
    head = "".join(f'<th class="top">{_class(name)}</th>' for name in (*names, None))
    rows = ""
    for truth in (*names, None):
        whole = sum(table.get((truth, other), 0) for other in (*names, None))
        cells = "".join(_cell(table.get((truth, name), 0), whole, truth == name) for name in (*names, None))
        rows += f"<tr><th>{_class(truth)}</th>{cells}</tr>"
    matrix = f'<table class="matrix"><tr><th></th>{head}</tr>{rows}</table>'
    return f'<h2>Confusion matrix</h2><div class="card scroll">{matrix}</div>{note}'


def _cell(count: int, whole: int, is_right: bool) -> str:
    share = count / whole if whole else 0.0
    color = "--s2" if is_right else "--mark"
    style = f"background:color-mix(in srgb, var({color}) {80 * share:.0f}%, transparent)"
    return f'<td class="cell" style="{style}" title="{share:.1%}">{f"{count:,}" if count else ""}</td>'


def _class(name: str | None) -> str:
    return "<i>background</i>" if name is None else text(name)


def _calibration(diagnosis: Mapping[str, Any]) -> str:
    found = diagnosis["calibration"]
    bins = [each for each in found["bins"] if each["count"]]
    if not bins:
        return ""
    points = [(each["score"], each["precision"]) for each in bins]
    chart = line_chart({"precision": points}, labels=("score", "share of right detections"), diagonal=True, dots=True)
    rows = "".join(
        f"<tr><td>{each['low']:.1f} to {each['high']:.1f}</td><td>{each['count']:,}</td>"
        f"<td>{score(each['score'])}</td><td>{score(each['precision'])}</td></tr>"
        for each in found["bins"]
    )
    return (
        '<h2>Calibration</h2><div class="cards">'
        f'<div class="card"><h3>How often detections of a score are right</h3>{chart}'
        '<p class="note">Below the diagonal scores are too high, above it too low. Expected calibration error '
        f"{score(found['expected_error'])}, largest {score(found['largest_error'])}.</p></div>"
        '<div class="card scroll"><table><tr><th>score</th><th>detections</th><th>mean score</th><th>share right</th>'
        f"</tr>{rows}</table></div></div>"
    )


def _layers_and_queries(diagnosis: Mapping[str, Any]) -> str:
    cards = []
    if len(diagnosis["layers"]) > 1:
        rows = "".join(
            bar(f"layer {each['layer']}", each["ap"] or 0.0, 1.0, f"{score(each['ap'])} / {score(each['ap50'])}")
            for each in diagnosis["layers"]
        )
        note = '<p class="note">AP / AP50 of the detections of each decoder layer; the last is the result.</p>'
        cards.append(f'<div class="card"><h3>Decoder layers</h3>{rows}{note}</div>')
    if (use := diagnosis["queries"]) is not None:
        cards.append(f'<div class="card"><h3>Queries</h3><ul>{"".join(map(_item, query_facts(use)))}</ul></div>')
    return f'<h2>Inside the detector</h2><div class="cards">{"".join(cards)}</div>' if cards else ""


def query_facts(use: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sentences about the use of queries, each with its kind: ``error``, or empty."""
    facts = []
    most, limit, queries = use["most_objects"], use["max_detections"], use["num_queries"]
    image = use["image_with_most_objects"]
    if most > queries:
        has = f"Image {image} has {counted(most, 'object')}, {counted(queries, 'query', 'queries')}"
        facts.append(("error", f"{has}: raise --model.num-queries."))
        facts.append(("error", f"More objects than queries: {counted(use['images_above_queries'], 'image')}."))
    elif most:
        facts.append(("", f"Image {image} has most objects, {most:,}, for {queries:,} queries."))
    if most > limit:
        facts.append(
            ("error", f"Image {image} has {most:,} objects, but at most {limit:,} detections per image are returned.")
        )
    facts.append(("", f"{use['num_used']:,} of {queries:,} queries give detections above the threshold."))
    median, largest = use["per_image"]
    facts.append(("", f"In an image, {median:g} of them do (median), at most {largest:g}."))
    if use["several_classes"]:
        others = counted(use["several_classes"], "detection")
        facts.append(("", f"Same query as a better detection, but another class: {others}."))
    if total := sum(use["counts"]):
        busiest = sorted(use["counts"], reverse=True)[: max(1, queries // 10)]
        facts.append(("", f"The busiest tenth of the queries gives {sum(busiest) / total:.0%} of the detections."))
    return facts


def _item(fact: tuple[str, str]) -> str:
    return f'<li class="{fact[0]}">{text(fact[1])}</li>'


def _worst(shown: Sequence[Shown]) -> str:
    if not shown:
        return ""
    keys = (
        '<p class="note">Left or top: ground truth; right or bottom: detections. Thin green: found objects and right '
        "detections. With names: objects that are not found, wrong detections.</p><br>"
    )
    return f"<h2>Images with most errors</h2>{keys}{images(shown, 'wide')}"


def _labels(labels: Mapping[str, Sequence[Shown]], diagnosis: Mapping[str, Any]) -> str:
    if not labels:
        return ""
    counts: dict[str, int] = {}
    for each in diagnosis["label_errors"]:
        counts[each["kind"]] = counts.get(each["kind"], 0) + 1
    parts = [
        f'<h3 style="margin-top:20px">{text(kind)}: {len(shown)} of {counts[kind]}</h3>{images(shown)}'
        for kind, shown in labels.items()
    ]
    return (
        '<h2>Labels to check</h2><p class="note">Places where confident detections contradict the labels. Many are '
        "errors of the detector: check the image before you change a label. White: label, orange: detection.</p>"
        + "".join(parts)
    )
