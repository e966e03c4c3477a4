"""Fonts for names in any script.

DejaVu Sans, which is part of matplotlib, has Latin, Greek, Cyrillic and Arabic, but no Chinese, Japanese or Korean. For
other characters, the font of ``pip install 'detrs[fonts]'`` (Noto Sans CJK) or else an installed font of the system is
used. Without one, a name is replaced and a warning is logged once: empty rectangles would be unreadable.

matplotlib takes time to import and is not needed for ASCII, of which the default font has all printable characters.
"""

import functools
import importlib.util
import logging
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.text import Text

logger = logging.getLogger("detrs")

ASCII = frozenset(range(32, 127))
PACKAGE, PACKAGE_FILE = "noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc"
"""The package of ``detrs[fonts]``, and its font."""
MAX_NAME = 26
"""Characters of a name in a figure; longer ones are shortened."""
UNUSUAL = ("bold", "black", "light", "thin", "medium", "italic", "oblique", "mono", "serif", "condensed", "narrow")
"""Parts of file names of fonts that are used only if there is no regular one."""


@functools.lru_cache(maxsize=1)
def default_file() -> str:
    """The file of DejaVu Sans."""
    spec = importlib.util.find_spec("matplotlib")
    folders = (spec and spec.submodule_search_locations) or []
    found = [str(Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")) for folder in folders]
    if found and Path(found[0]).is_file():
        return found[0]
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))  # distributions move the folder


@functools.lru_cache(maxsize=32)
def font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font for ``text``, ``size`` pixels high."""
    return sized(file_for(text), size)


@functools.lru_cache(maxsize=16)
def sized(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=4096)
def legible(text: str, replacement: str | None = None) -> str:
    """``text`` as one line of characters that a font has.

    Args:
        text: A name from a dataset or of a file.
        replacement: Returned if no font has all characters of ``text``; ``None``: each missing one is written as its
            code, such as ``U+8840``.
    """
    text = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())
    if not (missing := missing_characters(file_for(text), text)):
        return text
    warn_of_missing_font("".join(missing))
    if replacement is not None:
        return replacement
    return " ".join("".join(f"U+{ord(c):04X} " if c in missing else c for c in text).split())


@functools.lru_cache(maxsize=1)
def _warned() -> list[str]:
    """What was warned of; empty before."""
    return []


def warn_of_missing_font(characters: str) -> None:
    """Log once how to get a font."""
    if not _warned():
        _warned().append(characters)
        logger.warning(
            "No installed font has the characters %s, so names with them are replaced in images. Install a font: "
            "pip install 'detrs[fonts]' (Noto Sans CJK: Chinese, Japanese, Korean), or any font of the system.",
            characters[:20],
        )


def label_of(name: str) -> str:
    """A name as a label of matplotlib, which reads ``$...$`` as a formula, and skips labels that begin with ``_``."""
    name = legible(name)
    name = name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def set_font(written: "Text") -> None:
    """Give a text of a figure the font that has its characters; matplotlib's list of fonts is not changed."""
    from matplotlib import font_manager

    if (path := file_for(written.get_text())) != default_file():
        written.set_fontproperties(font_manager.FontProperties(fname=path, size=written.get_fontsize()))


@functools.lru_cache(maxsize=4096)
def file_for(text: str) -> str:
    """The font file that has the most characters of ``text``: the default one if it has all."""
    default = default_file()
    if not (missing := missing_characters(default, text)):
        return default
    best, fewest = default, len(missing)
    for path in other_files():
        number = len(missing_characters(path, text))
        if number < fewest:
            best, fewest = path, number
        if not number:
            break
    return best


def missing_characters(path: str, text: str) -> list[str]:
    """The characters that a font file does not have, each once, without spaces and control characters."""
    has = ASCII if text.isascii() and path == default_file() else characters_of(path)
    return [c for c in dict.fromkeys(text) if ord(c) not in has and unicodedata.category(c)[0] not in "CZ"]


@functools.lru_cache(maxsize=64)
def characters_of(path: str) -> frozenset[int]:
    """Code points of a font file; empty if it cannot be read, or has images instead of outlines."""
    from matplotlib.ft2font import FT2Font

    try:
        file = FT2Font(path)
        return frozenset(file.get_charmap()) if file.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@functools.lru_cache(maxsize=1)
def other_files() -> tuple[str, ...]:
    """Font files beside the default one: that of the package, then those of the system, regular ones first."""
    from matplotlib import font_manager

    spec = importlib.util.find_spec(PACKAGE)
    packaged = [str(Path(folder, PACKAGE_FILE)) for folder in (spec and spec.submodule_search_locations) or []]
    system = sorted(
        font_manager.findSystemFonts(), key=lambda path: (any(p in Path(path).name.lower() for p in UNUSUAL), path)
    )
    return (*packaged, *system)
