"""The course (``docs/learn``): its Python runs, and every number on its pages is printed or computed there.

- The ``python`` blocks of a page run in order in one namespace. A ``text`` block directly below one is its output.
- A number in prose, a table, a comment or alternative text must be a number in the code or in the output of its page.
- A ``py`` block quotes consecutive lines of the source file that its first line names.
"""

import contextlib
import importlib
import io
import itertools
import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
COURSE = REPOSITORY / "docs" / "learn"
CHAPTERS = sorted(COURSE.glob("[0-9]_*.md"))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)
EXECUTED = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?:^|\s)#.*$", flags=re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])\d+(?:[,_]\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!\w)")
CITATIONS = re.compile(
    r"\]\([^)]*\)|^#+ .*$|[Cc]hapters? \d|arXiv [\d.]+|(?:Eq\.|Sec\.|Table|Appendix) [A-Z\d.]+",
    flags=re.MULTILINE,
)
"""Numbers that are names: targets of links, parts of papers, headings and chapters."""


def numbers(text: str) -> set[Decimal]:
    """The numbers of a text; 1,000 and 1_000 are one number, and 2.50 is 2.5."""
    return {Decimal(re.sub("[,_]", "", match)) for match in NUMBER.findall(text)}


def outputs(text: str, page: str) -> list[tuple[str, str]]:
    """What each Python block of a page prints, and the output that the page shows; the blocks run in one namespace."""
    namespace: dict[str, object] = {}
    found = []
    for code, shown in EXECUTED.findall(text):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, page, "exec"), namespace)
        found.append((printed.getvalue(), shown))
    return found


def unsupported(text: str) -> set[Decimal]:
    """Numbers in the prose and the comments of a page that are neither in its code nor in its outputs."""
    code = "\n".join(code for code, _ in EXECUTED.findall(text))
    shown = "\n".join(shown for _, shown in EXECUTED.findall(text))
    prose = CITATIONS.sub(" ", FENCE.sub("", text))
    claims = numbers(prose) | numbers("\n".join(COMMENT.findall(code)))
    return claims - numbers(COMMENT.sub("", code)) - numbers(shown)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_the_code_of_a_chapter_prints_what_the_page_shows(page: Path) -> None:
    torch.manual_seed(0)  # chapters set their own
    before = torch.get_default_dtype()
    found = outputs(page.read_text("utf-8"), page.name)
    assert found
    for printed, shown in found:
        assert printed == shown
    assert torch.get_default_dtype() == before


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_numbers_of_the_prose_are_in_the_code_or_its_output(page: Path) -> None:
    assert unsupported(page.read_text("utf-8")) == set()


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_quoted_lines_are_in_the_source(page: Path) -> None:
    text = page.read_text("utf-8")
    for language, block in FENCE.findall(text):
        if language == "py":
            title, _, quoted = block.partition("\n")
            path = title.removeprefix("# ")
            assert f"](../../{path})" in text, f"{path} is quoted and not linked"
            lines = [line.strip() for line in quoted.splitlines() if line.strip()]
            source = "\n".join(
                line.strip() for line in (REPOSITORY / path).read_text("utf-8").splitlines() if line.strip()
            )
            assert "\n".join(lines) in source, f"{path} does not contain:\n{quoted}"


def test_each_chapter_has_a_figure_with_alternative_text_that_a_script_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(COURSE / "figures")
    drawn = {*importlib.import_module("draw").DRAWN, *importlib.import_module("draw_trained").OF_CHECKPOINT}
    shown = {}
    for page in CHAPTERS:
        images = re.findall(r"!\[([^\]]*)\]\(figures/([^)]+)\)", page.read_text("utf-8"))
        assert images, page.name
        shown |= {name: alternative for alternative, name in images}
    assert all(len(alternative) > 30 for alternative in shown.values())
    files = {path.name for path in (COURSE / "figures").iterdir() if path.is_file() and path.suffix != ".py"}
    assert set(shown) == files == drawn
    assert all((COURSE / "figures" / name).stat().st_size < 200_000 for name in files)


def test_the_index_lists_the_chapters_in_order() -> None:
    links = re.findall(r"\]\((\d_[^)]+\.md)\)", (COURSE / "index.md").read_text("utf-8"))
    assert links == [page.name for page in CHAPTERS]
    for page, after in itertools.pairwise(CHAPTERS):
        assert f"]({after.name})" in page.read_text("utf-8"), f"{page.name} does not lead to {after.name}"


@pytest.mark.parametrize(
    "text",
    [
        "The cost is 4.3.\n\n```python\nprint(2.5)\n```\n\n```text\n2.5\n```\n",
        "```python\nx = 2  # a third of 7\n```\n",
        "Chapter 2 has 12,400 tokens.\n\n```python\nprint(12401)\n```\n",
    ],
)
def test_a_number_without_support_is_found(text: str) -> None:
    assert len(unsupported(text)) == 1


def test_other_numbers_are_supported() -> None:
    text = (
        "12,400 tokens ([Sec. 4](x_9.md), Eq. 3) on level l1.\n\n```python\nprint(12400)\n```\n\n```text\n12400\n```\n"
    )
    assert unsupported(text) == set()


def test_blocks_of_a_page_share_a_namespace_and_their_output_is_captured() -> None:
    text = "```python\nx = 3\n```\n\n```python\nprint(x)\n```\n\n```text\n4\n```\n"
    assert outputs(text, "page") == [("", ""), ("3\n", "4\n")]
