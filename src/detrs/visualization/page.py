"""What the pages of the library have in common: one HTML file, light and dark, without scripts and external files."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from detrs.html_table import text


class Shown(NamedTuple):
    """An image on a page."""

    caption: str
    uri: str
    """As a data URI."""


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


def document(title: str, sections: Sequence[str], style: str = "") -> str:
    """A page as HTML.

    Args:
        title: plain text.
        sections: HTML.
        style: CSS rules beside ``STYLE``.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title>\n<style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def tiles(numbers: Mapping[str, str], bad: Collection[str] = ()) -> str:
    """The most important numbers, each with its name; those in ``bad`` stand out."""
    cells = "".join(
        f'<div class="tile{" bad" if name in bad else ""}"><b>{text(value)}</b><span>{text(name)}</span></div>'
        for name, value in numbers.items()
    )
    return f'<div class="tiles">{cells}</div>'


def images(shown: Sequence[Shown], kind: str = "images") -> str:
    """Images with their captions; ``kind`` is a class of the style sheet."""
    figures = "".join(
        f'<figure><img alt="{text(each.caption)}" src="{each.uri}">'
        f"<figcaption>{text(each.caption)}</figcaption></figure>"
        for each in shown
    )
    return f'<div class="{kind}">{figures}</div>'
