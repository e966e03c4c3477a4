"""Hook of MkDocs: tables of commands, settings and presets, made from what the commands print.

A page contains ``<!-- detrs COMMAND ... --help -->`` or ``<!-- detrs presets --json -->`` where a table belongs. The
command is run when the site is built, so that the page has every flag, default and help text of the installed version.
``<!-- detrs --help -->`` stands for all commands, one section each.
"""

import contextlib
import functools
import html
import io
import json
import os
import re
from collections.abc import Iterator
from unittest import mock

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

from detrs import cli

MARKER = re.compile(r"^<!-- detrs (.+) -->$", flags=re.MULTILINE)
EXAMPLES = {"train": ["deformable-detr-small"]}
"""Command -> arguments with which its help has all flags."""
ACTIONS = re.compile(r"^  (\w+) .*  ", flags=re.MULTILINE)
FLAG = re.compile(r"^  (\S.*?)(?:  +(\S.*))?$")
DEFAULT = re.compile(r" ?\(default: (.*)\)$|^Default: (.*)\.$| Default: (.*)\.$")
REQUIRED = " (required)"


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace each marker by what its command prints."""
    return MARKER.sub(lambda match: section(tuple(match[1].split())), markdown)


def section(words: tuple[str, ...]) -> str:
    """Markdown for one marker."""
    if words == ("--help",):
        return "\n\n".join(command_section(command) for command in cli.COMMANDS)
    if words == ("presets", "--json"):
        return presets()
    if words[-1] != "--help":
        raise PluginError(f"Expected <!-- detrs COMMAND --help -->, got <!-- detrs {' '.join(words)} -->.")
    return help_table(printed(words), level=3)


@functools.cache
def printed(words: tuple[str, ...]) -> str:
    """What ``detrs WORDS`` prints: ASCII, and groups of flags below each other, as on a terminal of medium width."""
    output, terminal = io.StringIO(), {"COLUMNS": "100", "NO_COLOR": "1"}
    with mock.patch.dict(os.environ, terminal), contextlib.redirect_stdout(output):
        code = cli.main(words)
    if code != 0:
        raise PluginError(f"detrs {' '.join(words)} failed with exit code {code}.")
    return output.getvalue()


def command_section(command: str) -> str:
    """Heading, description and flags of a command, and of its actions if it has any."""
    text = printed((command, *EXAMPLES.get(command, []), "--help"))
    parts = [f"## detrs {command}"]
    if "\nactions:\n" in text:
        about, _, rest = text.partition("\nactions:\n")
        parts += [escaped(about.partition("\n\n")[2])]
        for action in ACTIONS.findall(rest):
            parts += [f"### detrs {command} {action}", help_table(printed((command, action, "--help")), level=4)]
    else:
        parts += [help_table(text, level=3)]
    return "\n\n".join(part for part in parts if part)


def help_table(text: str, level: int) -> str:
    """The output of ``--help`` as Markdown: usage, description, and one table for each group of flags.

    Args:
        text: the output.
        level: level of the headings of groups.
    """
    about, *groups = re.split(r"\n (?=\S.*\n -{20,})", text.rstrip())
    usage, _, description = about.partition("\n\n")
    parts = [f"```text\n{' '.join(usage.removeprefix('usage: ').split())}\n```"]
    parts += [" ".join(escaped(description).split())] if description.strip() else []
    for group in groups:
        title, _, *lines = group.splitlines()
        if title.strip() not in ("options", "positional arguments"):
            parts.append(f"{'#' * level} {title.strip().removesuffix(' options')}")
        parts += list(group_parts(lines))
    return "\n\n".join(parts)


def group_parts(lines: list[str]) -> Iterator[str]:
    """The description of a group of flags, and its table."""
    lines = [line.rstrip() for line in lines if line.strip()]
    ruler = next((number for number, line in enumerate(lines) if set(line.strip()) == {"-"}), None)
    if ruler is not None:
        yield escaped(" ".join(" ".join(lines[:ruler]).split()))
        lines = lines[ruler + 1 :]
    rows = []
    for line in lines:
        match = FLAG.match(line)
        if match and not line.startswith("   "):
            rows.append([match[1], match[2] or ""])
        else:
            rows[-1][1] = f"{rows[-1][1]} {line.strip()}".strip()
    rows = [row for row in rows if row[0] != "-h, --help"]
    if rows:
        yield "| flag | description | default |\n|---|---|---|\n" + "\n".join(map(row_of, rows))


def row_of(row: list[str]) -> str:
    """A flag as a row of a table, its default in a column of its own."""
    flag, text = row
    match = DEFAULT.search(text)
    default = next(filter(None, match.groups())) if match else ""
    if match:
        text = text[: match.start()]
        default = code(default) if match[1] else escaped(default)
    if text.endswith(REQUIRED):
        text, default = text.removesuffix(REQUIRED), "required"
    name, _, value = flag.partition(" ")
    return f"| {code(name)} {code(value) if value else ''} | {escaped(text)} | {default} |"


def presets() -> str:
    """A table of all presets, from their own descriptions."""
    rows = []
    for row in json.loads(printed(("presets", "--json")))["presets"]:
        ap = "" if row["ap"] is None else f"{row['ap']:.1f}" + (" (test-dev)" if row["ap_split"] == "test-dev" else "")
        size = " x ".join(map(str, row["image_size"]))
        about = " ".join(row["about"].split())
        name = f"{code(row['name'])}<br>{markdown_of(about)}"
        cells = (name, ap, size, str(row["epochs"]), str(row["batch_size"]))
        rows.append(f"| {' | '.join(cells)} |")
    head = "| preset | COCO AP | image size | epochs | batch size |\n|---|---:|---:|---:|---:|\n"
    return head + "\n".join(rows)


def code(text: str) -> str:
    """``text`` as inline code in a cell of a table."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def escaped(text: str) -> str:
    """Plain ``text`` for a cell of a table."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)


def markdown_of(docstring: str) -> str:
    """A docstring on one line, whose double backticks are inline code."""
    return docstring.replace("|", "\\|")
