"""Words that CONTRIBUTING.md rules out do not come back: in source, messages, help and documentation."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

NOT_YET_CONVERTED: tuple[str, ...] = ()
"""Folders and files that still use other words. Remove an entry when it is converted; the aim is an empty tuple."""

CHECKED = (
    *("src/**/*.py", "src/**/*.md", "src/**/*.js", "src/**/*.html", "docs/**/*.md", "docs/**/*.svg", "benchmarks/*.md"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
)

CHECKED_IN_PART = ("tests/**/*.py", "benchmarks/*.py")
"""Files in which only ``EVERYWHERE`` is checked."""

EVERYWHERE = {
    r"\w*pictures?\w*": "image",
    r"data sets?": "dataset",
}

WORDS = {
    **EVERYWHERE,
    r"verbs?": "command",
    r"wish(es|ed|ing)?": "personified: requires, expects",
    r"says?|saying|said|tells?(?!\()|telling|told|hears?|heard": "personified: states, reports, prints, receives",
    r"knows|wants|thinks|hopes|refuses to": "personified: has, expects, computes, rejects",
    r"look(s|ed|ing)? at|\w+(?-i:Look)": "attends to, cross-attention; for readers: see, open, check",
    r"(come|comes|coming|came) to (its|their|an) end": "ends, finishes",
    r"(?<!there )(is|are|was|were) no (?!longer|more|fewer|less|other)\w+": "is not a",
    r"by heart": "overfits, memorizes",
    r"to the bit": "bit-exact, bitwise",
    r"in silence": "silently",
    r"the house": "architecture, package",
    r"random streams?": "random seed, generator",
    r"be it": "whether, even if",
    r"for want of|at need|if need be|by its like": "without, if needed",
    r"hands? (back|over|out)": "returns, passes",
    r"take turns": "round-robin",
    r"refuse[sd]?": "check that, raise, reject",
    r"half boxes": "scaled by box size / (2P)",
    r"lacks? \d+|lacks \{": "is missing",
    r"the sentence": "pipeline",
}
"""Pattern, matched as a whole word without regard to case -> what to write instead."""

ALLOWED = (
    ("CHANGELOG.md", "was `picture`"),
    ("CHANGELOG.md", "was `pictures`"),
)
"""File and phrase; every entry must occur."""


def compiled(words: dict[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE), hint) for pattern, hint in words.items()]


FORBIDDEN, FORBIDDEN_EVERYWHERE = compiled(WORDS), compiled(EVERYWHERE)
NOT_COLUMN = re.compile(r"^(\|[^|]*\|)[^|]*\|$", re.MULTILINE)
"""Rows of two columns; in CONTRIBUTING.md, the second one lists the words to avoid."""


def files(globs: tuple[str, ...] = CHECKED) -> list[str]:
    """Paths of the files that are checked, relative to the repository."""
    paths = (path.relative_to(REPOSITORY).as_posix() for glob in globs for path in REPOSITORY.glob(glob))
    return sorted(path for path in paths if not path.startswith(NOT_YET_CONVERTED))


def slips(text: str, forbidden: list[tuple[re.Pattern[str], str]] = FORBIDDEN) -> list[str]:
    """``...CONTEXT... (HINT)`` for each forbidden expression in ``text``; expressions may span lines of a comment."""
    words = re.sub(r"\n[\s#\"]*", " ", text)
    return [
        f"...{words[max(match.start() - 30, 0) : match.end() + 20]}... ({hint})"
        for pattern, hint in forbidden
        for match in pattern.finditer(words)
    ]


def content(path: str) -> str:
    """The text of a file without its allowed phrases."""
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    if path == "CONTRIBUTING.md":
        text = NOT_COLUMN.sub(r"\1", text)
    for file, phrase in ALLOWED:
        if file == path:
            text = text.replace(phrase, " " * len(phrase))
    return text


@pytest.mark.parametrize("path", files())
def test_words(path: str) -> None:
    assert slips(content(path)) == []


@pytest.mark.parametrize(
    "path", sorted(set(files(CHECKED_IN_PART)) - {Path(__file__).relative_to(REPOSITORY).as_posix()})
)
def test_words_in_tests_and_benchmarks(path: str) -> None:
    assert slips(content(path), FORBIDDEN_EVERYWHERE) == []


def test_allowed_phrases_occur() -> None:
    assert [(file, phrase) for file, phrase in ALLOWED if phrase not in (REPOSITORY / file).read_text("utf-8")] == []


def test_exempt_paths_exist_and_need_their_exemption() -> None:
    for path in NOT_YET_CONVERTED:
        found = [REPOSITORY / path] if (REPOSITORY / path).is_file() else (REPOSITORY / path).rglob("*")
        texts = [file.read_text("utf-8") for file in found if file.suffix in (".py", ".md", ".svg")]
        assert any(map(slips, texts)), f"{path} has no slips left: remove it from NOT_YET_CONVERTED"


@pytest.mark.parametrize(
    "text",
    [
        "Pictures that are missing",
        "num_pictures = 3",
        "the file\n    # says what",
        "A query looks\n    at the image",
        "class GlobalLook(nn.Module)",
        "'cupa' is no device",
        "until it comes to its\nend",
        "what the model has been told",
        "equal to the\nbit",
        "a data\n    set in COCO format",
        '"""Refuse a folder',
    ],
)
def test_slips_are_found(text: str) -> None:
    assert len(slips(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "There is no checkpoint in 'runs'",
        "it is no longer supported",
        "lookup tables; imread; adverbs",
        "you know the images",
        "bit-exact resume",
        "essays, retells, unwanted",
        "train_data_set, the dataset",
    ],
)
def test_other_words_are_allowed(text: str) -> None:
    assert slips(text) == []
