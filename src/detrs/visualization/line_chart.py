"""Curves as SVG, which take their colors from the style sheet of the page."""

from collections.abc import Mapping, Sequence

from detrs.html_table import text

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 18, 36
Points = Sequence[tuple[float, float]]


def line_chart(
    lines: Mapping[str, Points],
    *,
    labels: tuple[str, str],
    thin: Mapping[str, Points] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
    dots: bool = False,
) -> str:
    """Curves in the unit square.

    Args:
        lines: name -> points; the first is drawn thicker, each in a color of its own (at most four).
        labels: of the horizontal and of the vertical axis.
        thin: further curves, drawn thin and gray.
        marks: vertical lines: value and text.
        diagonal: draw the line of equal values.
        dots: draw a dot at each point.
    """
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = []
    for tick in range(6):
        value = tick / 5
        x, y = LEFT + width * value, TOP + height * (1 - value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + height}"/>')
        parts.append(f'<text class="small" x="{x:.1f}" y="{TOP + height + 15}" text-anchor="middle">{value:g}</text>')
        parts.append(f'<text class="small" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    if diagonal:
        parts.append(f'<line class="mark" x1="{LEFT}" y1="{TOP + height}" x2="{LEFT + width}" y2="{TOP}"/>')
    curves = [("thin", name, points) for name, points in (thin or {}).items()]
    curves += [(f"l{number % 4}", name, points) for number, (name, points) in reversed([*enumerate(lines.items())])]
    for kind, name, points in curves:
        places = [(LEFT + width * x, TOP + height * (1 - y)) for x, y in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="curve {kind}" points="{line}"><title>{text(name)}</title></polyline>')
        if dots:
            parts += [
                f'<circle class="s{kind[1]}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{px:.3f}: {py:.3f}</title></circle>'
                for (x, y), (px, py) in zip(places, points, strict=True)
            ]
    for value, name in marks:
        x = LEFT + width * value
        side, anchor = (-5, "end") if value > 0.6 else (5, "start")
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + height}"/>')
        parts.append(f'<text class="mark" x="{x + side:.1f}" y="{TOP + 12}" text-anchor="{anchor}">{text(name)}</text>')
    middle = LEFT + width / 2
    parts.append(f'<text class="small" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{text(labels[0])}</text>')
    parts.append(f'<text class="small" x="{LEFT}" y="{TOP - 6}">{text(labels[1])}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(labels[1])} over {text(labels[0])}">'
        f"{''.join(parts)}</svg>"
    )
