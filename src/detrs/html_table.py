"""Text and tables as HTML. Tables are those of notebooks: in the colors of the notebook, light or dark."""

import html
from collections.abc import Sequence

from detrs.errors import printable


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with text on the left of each row and numbers on the right.

    Args:
        head: Titles of the columns, as HTML; none if all are empty.
        rows: Cells, as HTML: text from outside must be escaped, by ``text``.
    """
    header = f"<thead><tr>{_cells('th', head)}</tr></thead>" if any(head) else ""
    lines = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table>{header}<tbody>{lines}</tbody></table>"


def text(value: object) -> str:
    """``value`` as HTML text, without a meaning in HTML; lone surrogates of file names are written as escapes."""
    return html.escape(printable(value))


def score(value: float | None) -> str:
    """A score with three decimals; a dash where undefined."""
    return "–" if value is None else f"{value:.3f}"


def _cells(tag: str, cells: Sequence[str]) -> str:
    sides = ("left", *("right",) * (len(cells) - 1))
    return "".join(f'<{tag} style="text-align: {side}">{cell}</{tag}>' for side, cell in zip(sides, cells, strict=True))
