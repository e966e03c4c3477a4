"""The documentation site: built strictly, complete, without a network, with links that lead somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from detrs import cli
from detrs.cli import arguments
from detrs.cli.train import COMMON_FLAGS
from detrs.presets import PRESETS, preset

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Html(HTMLParser):
    """What the tests need of one page."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    """Addresses that a browser loads by itself."""
    anchors: set[str] = field(default_factory=set)
    without_alt: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loaded += [values[name] for name in ("src", "data", "poster") if name in values]
        self.loaded += [values["href"]] if tag == "link" and values.get("rel") not in ("next", "prev") else []
        if tag == "img" and "alt" not in values:
            self.without_alt.append(values["src"])

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def build(folder: Path) -> None:
    """Build the site as ``.ci/run`` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return once("site", build)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    found = {}
    for path in site.rglob("*.html"):
        found[path] = page = Html()
        page.feed(path.read_text(encoding="utf-8"))
    return found


def navigation(entries: Any) -> Iterator[str]:
    """The pages in a part of the navigation of mkdocs.yml."""
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from navigation(entry)


def test_the_navigation_lists_every_page_once() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    listed = sorted(navigation(yaml.safe_load(text.partition("\nnav:\n")[2])))
    docs = REPOSITORY / "docs"
    written = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    written -= {"progress.md"}  # of the work in progress, excluded from the site
    # pages that a hook makes from files outside of docs/
    assert listed == sorted(written | {"changelog.md", "contributing.md", "benchmarks.md", "operator_internals.md"})


def test_every_link_leads_to_a_page_and_an_anchor(site: Path, pages: dict[Path, Html]) -> None:
    assert len(pages) > 40
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"https?:|mailto:", link):
                continue
            file, _, anchor = unquote(link).partition("#")
            target = (path.parent / file).resolve() if file else path
            if file.startswith("/"):  # of 404.html, which is shown at any address
                target = site / file.strip("/")
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_a_browser_loads_nothing_from_the_network(site: Path, pages: dict[Path, Html]) -> None:
    assert {address for page in pages.values() for address in page.loaded if "//" in address} == set()
    for path in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")) == [], path
    # the theme fetches Mermaid for diagrams, and MathJax is loaded by pages with formulas; no page has any
    assert not [path for path in pages if re.search(r'class="(mermaid|arithmatex)', path.read_text("utf-8"))]


def test_every_image_has_a_description(site: Path, pages: dict[Path, Html]) -> None:
    assert {str(path.relative_to(site)): page.without_alt for path, page in pages.items() if page.without_alt} == {}


def test_the_reference_of_commands_has_every_flag(site: Path, pages: dict[Path, Html]) -> None:
    text = pages[site / "reference" / "commands.html"].text
    for command in cli.COMMANDS:
        assert f"detrs {command}" in text
    shown = set(re.findall(r"--[a-z][\w.-]+", text))
    settings = set(arguments.flags(preset("deformable-detr-small")))
    assert len(settings) > 60
    assert settings | {f"--{flag.replace('_', '-')}" for flag in COMMON_FLAGS} <= shown


def test_the_reference_of_presets_has_every_preset(site: Path, pages: dict[Path, Html]) -> None:
    text = pages[site / "reference" / "presets.html"].text
    assert [name for name in PRESETS if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)] == []


@pytest.mark.parametrize("page", ["python", "explanation", "configuration", "structures", "datasets", "operator"])
def test_the_reference_of_python_has_every_object(site: Path, page: str) -> None:
    text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", (REPOSITORY / "docs" / "reference" / f"{page}.md").read_text(), re.MULTILINE)
    assert len(named) > 3
    for name in named:
        assert f'id="{name}"' in text, name


def test_the_papers_to_cite_are_those_of_the_citation_file() -> None:
    page = (REPOSITORY / "docs" / "cite.md").read_text(encoding="utf-8")
    file = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    entries = re.findall(r"@article\{(\w+),\n  title = \{(.*)\},\n.*\n  year = \{(.*)\},\n  url = \{(.*)\}", page)
    assert [(title, int(year), url) for _, title, year, url in entries] == [
        (paper["title"], paper["year"], paper["url"]) for paper in file["references"]
    ]
    assert all(page.count(f"`{key}`") == 1 for key, *_ in entries)
    assert f"version = {{{file['version']}}}" in page and f"title = {{{file['title']}}}" in page


@pytest.fixture
def home(site: Path, browser: Any) -> Iterator[Any]:
    """The home page as a file in Chromium, without a server."""
    page = browser.new_page()
    problems: list[str] = []
    page.on("request", lambda request: problems.append(request.url) if not is_local(request.url) else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((site / "index.html").as_uri())
    yield page
    assert problems == []
    page.close()


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "about:", "blob:"))


@pytest.mark.parametrize(
    ("words", "title"),
    [("train yolo", "Train on YOLO data"), ("choose threshold", "Choose a threshold"), ("cite", "How to cite")],
)
def test_the_search_finds_the_page_without_a_server(home: Any, words: str, title: str) -> None:
    home.fill("[data-md-component=search-query]", words)
    first = home.locator(".md-search-result__item h1").first
    first.wait_for(state="attached")
    assert first.text_content() == title


def test_the_switch_changes_the_colors(home: Any) -> None:
    seen = set()
    for _ in range(3):
        home.locator("form[data-md-component=palette] label:visible").click()
        seen.add(home.evaluate("document.body.getAttribute('data-md-color-scheme')"))
    assert {"default", "slate"} <= seen
