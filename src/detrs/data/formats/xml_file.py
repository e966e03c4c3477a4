"""Reads XML files with the line of every element, and without the expansion of entities.

The standard library's ElementTree builds the tree, but its parser does not report lines; expat, which it is built on,
does. A document type declaration is rejected before anything in it takes effect: without it, there are neither entities
(``&a;`` that expands to gigabytes, or to another file) nor references to the network.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from detrs.errors import UserError
from detrs.files import open_regular

LINE = ""
"""Key of the line of an element in its attributes; no attribute of a file has an empty name."""
CHUNK_BYTES = 2**20
HEAD_BYTES = 4096


def read_xml(
    path: Path, name: str, *, max_bytes: int, on_child: Callable[[Element], None] | None = None
) -> tuple[Element, bytes]:
    """Parses an XML file.

    Args:
        path: A regular file.
        name: Its name in messages.
        max_bytes: Maximum size of the file. The tree takes about ten times as much memory.
        on_child: Receives each complete child of the root. It is emptied afterwards, so that a long file is never in
            memory as a whole.

    Returns:
        The root, and the SHA-256 of the file.

    Raises:
        UserError: The file cannot be read, is too large, is not valid XML or has a document type declaration. The
            message starts with ``NAME:LINE``.
    """
    parser, builder, depth = expat.ParserCreate(), TreeBuilder(), 0
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        attributes[LINE] = str(parser.CurrentLineNumber)
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        element = builder.end(tag)
        if depth == 1 and on_child is not None:
            on_child(element)
            element.clear()

    def reject(*_: object) -> None:
        raise UserError(
            f"{name}:{parser.CurrentLineNumber}: the file has a document type declaration (<!DOCTYPE ...>), which may "
            "define entities of unlimited size. Remove the declaration."
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end if on_child is None else end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = reject
    digest, size = hashlib.sha256(), 0
    try:
        with open_regular(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise UserError(f"{name} is larger than {max_bytes // 2**20} MiB, the limit of this format.")
                digest.update(chunk)
                parser.Parse(chunk, False)
        if not size:
            raise UserError(f"{name} is empty. Expected XML.")
        parser.Parse(b"", True)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.") from None
    except expat.ExpatError as error:
        problem = f"{expat.ErrorString(error.code)} at column {error.offset + 1}"
        raise UserError(f"{name}:{error.lineno}: invalid XML: {problem}. The file may be truncated.") from None
    except UserError:
        raise
    except (ValueError, LookupError) as error:
        raise UserError(f"{name}: the encoding is not supported ({error}). Save the file as UTF-8.") from None
    return builder.close(), digest.digest()


def line_of(element: Element) -> int:
    """The line of the start of an element from ``read_xml``, from 1."""
    return int(element.attrib[LINE])


def head(path: Path) -> bytes:
    """The first 4 KiB of a file; empty if it cannot be read."""
    try:
        with open_regular(path) as file:  # not a pipe, which would block
            return file.read(HEAD_BYTES)
    except (OSError, UserError):
        return b""
