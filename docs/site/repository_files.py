"""Hook of MkDocs: files outside of ``docs/`` become pages, so that one link works both on GitHub and in the site.

README files, the changelog and the like are pages of their own (``PAGES``). Other files that a page links to, such as a
script in ``benchmarks/``, become pages with their source code. A link to a file that does not exist stays as it is, and
``mkdocs build --strict`` reports it.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "src/detrs/ops/ms_deform_attn/README.md": "operator_internals.md",
}
"""File of the repository -> page of the site."""

LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^[ \t]*(?:```|~~~).*?^[ \t]*(?:```|~~~)[ \t]*$)", flags=re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml", ".jsonl": "json", ".sh": "bash", "": "bash"}


def repository(config: MkDocsConfig) -> Path:
    """The root of the repository."""
    return Path(config.docs_dir).parent


def source_of(uri: str) -> str:
    """The file of the repository that the page ``uri`` is made from."""
    return next((path for path, page in PAGES.items() if page == uri), f"docs/{uri}")


def uri_of(path: str) -> str:
    """The page or file of the site that is made from the file ``path`` of the repository."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def targets(text: str, source: str) -> Iterator[str]:
    """Paths in the repository that the Markdown ``text`` of the file ``source`` links to."""
    for part in FENCE.split(text)[::2]:
        for match in LINK.finditer(part):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the files that pages link to."""
    root = repository(config)
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(root / path)))
    linked: set[str] = set()
    for file in files.documentation_pages():
        linked |= set(targets(file.content_string, source_of(file.src_uri)))
    for path in sorted(linked):
        is_source = not path.startswith(("docs/", "../")) and path not in PAGES
        if is_source and (root / path).is_file():
            text = (root / path).read_text(encoding="utf-8")
            page = File.generated(config, uri_of(path), content=source_page(path, text))
            page.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(page)
    return files


def source_page(path: str, text: str) -> str:
    """Markdown of a page with the content of a file."""
    ticks = "`" * max([4, *(len(run) + 1 for run in re.findall("`+", text))])
    language = LANGUAGES.get(PurePosixPath(path).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n{ticks}{language}\n{text.rstrip()}\n{ticks}\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository to their pages."""
    source, folder = source_of(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        uri = uri_of(path)
        if files.get_file_from_path(uri) is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(uri, folder or '.')}{match[3]}"

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)
