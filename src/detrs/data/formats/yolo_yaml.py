"""Reads ``data.yaml`` of YOLO datasets: the folders of the splits and the class names, with their lines.

All scalars are read as text: YAML would read the class names ``no`` and ``1`` as other types. Nothing in the file is
constructed or executed, including tags such as ``!!python/object``.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detrs.data.content import SYNONYMS
from detrs.data.findings import Findings
from detrs.data.formats.yolo_files import is_list
from detrs.errors import UserError, did_you_mean
from detrs.files import open_regular

MAX_BYTES = 2**19
"""YAML is parsed in Python, at about 0.2 MB per second. A file with the 80 classes of COCO has 2 KB."""
SPLITS = tuple(name for names in SYNONYMS for name in names)
OTHER_KEYS = frozenset(
    {"path", "names", "nc", "download", "kpt_shape", "kpt_names", "flip_idx", "roboflow", "channels"}
)
"""Keys that are not splits."""
UNUSED = "test"
"""A split that may be listed although its images do not exist, as Roboflow does for every dataset."""


class _Loader(yaml.SafeLoader):
    """Without aliases, with which a small file can have a value of any size."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=mark)
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class DataFile:
    """A ``data.yaml``."""

    path: Path
    top: dict[str, yaml.Node]

    def root(self, notes: Findings) -> Path:
        """The folder to which the splits are relative: ``path``, relative to the file or to the working directory."""
        node = self.top.get("path")
        if node is None or _is_empty(node):
            return self.path.parent
        declared = Path(os.path.expanduser(_text(node, self.path)))
        for root in (self.path.parent / declared, Path.cwd() / declared):
            if os.path.isdir(root):
                return Path(os.path.normpath(root))
        place = f"{self.path.name}:{_line(node)}: {declared}"
        notes.add(f"path that does not exist, replaced by the folder of {self.path.name}", place)
        return self.path.parent

    def splits(self) -> list[str]:
        """The names of the splits that are not empty."""
        root = self.root(Findings())
        names = []
        for key, node in self.top.items():
            if key in OTHER_KEYS or _is_empty(node):
                continue
            text = node.value if isinstance(node, yaml.ScalarNode) else None
            found = next(iter(_find(text, root, self.path.parent)), None) if text is not None else None
            if key == UNUSED and text is not None and found is None:
                continue
            if key in SPLITS or (found is not None and (found.is_dir() or (found.suffix == ".txt" and is_list(found)))):
                names.append(key)
        return names

    def note_unused(self, notes: Findings) -> None:
        """Adds a note if the file lists test images that do not exist."""
        node = self.top.get(UNUSED)
        if node is not None and not _is_empty(node) and UNUSED not in self.splits():
            notes.add(
                f"split '{UNUSED}' whose images do not exist, ignored", f"{self.path.name}:{_line(node)}: {node.value}"
            )

    def sources(self, split: str, notes: Findings) -> list[Path]:
        """The folders of images and lists of image files of a split.

        Raises:
            UserError: One of them does not exist, or may be one of two folders.
        """
        node, root = self.top[split], self.root(notes)
        found = []
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            text = _text(each, self.path)
            candidates = _find(text, root, self.path.parent)
            if not candidates:
                expected = Path(os.path.normpath(root / text))
                siblings = os.listdir(expected.parent) if os.path.isdir(expected.parent) else []
                raise UserError(
                    f"{self.path}:{_line(each)}: the images of the split '{split}' are expected in '{expected}', "
                    f"which does not exist.{did_you_mean(expected.name, siblings)}"
                )
            if text.startswith("../") and len(candidates) > 1:
                listed = " and ".join(f"'{candidate}'" for candidate in candidates)
                raise UserError(
                    f"{self.path}:{_line(each)}: expected one folder for '{text}', but {listed} exist. Write the path "
                    "of one of them."
                )
            found.append(candidates[0])
        return found

    def names(self) -> dict[int, str] | None:
        """Class names by index; ``None`` if the file has none.

        Raises:
            UserError: ``names`` is neither a list nor a mapping of integers, or ``nc`` differs from it.
        """
        node = self.top.get("names")
        if node is None or _is_empty(node):
            return None
        names: dict[int, str] = {}
        if isinstance(node, yaml.SequenceNode):
            names = {index: _text(each, self.path) for index, each in enumerate(node.value)}
        elif isinstance(node, yaml.MappingNode):
            for key, each in node.value:
                text = _text(key, self.path)
                if not text.isdecimal():
                    raise UserError(
                        f"{self.path}:{_line(key)}: expected a class index from 0 in 'names', got {text!r}."
                    )
                names[int(text)] = _text(each, self.path)
        else:
            raise UserError(f"{self.path}:{_line(node)}: expected a list of class names, got {node.value!r:.40}.")
        count = self.top.get("nc")
        if count is not None and not _is_empty(count) and _text(count, self.path) != str(len(names)):
            raise UserError(f"{self.path}:{_line(count)}: nc is {count.value}, but names has {len(names)} classes.")
        return names

    def keypoint_values(self) -> int:
        """Numbers of the keypoints at the end of each line, from ``kpt_shape``; 0 if there is none."""
        node = self.top.get("kpt_shape")
        if node is None or _is_empty(node):
            return 0
        values = [each.value for each in node.value] if isinstance(node, yaml.SequenceNode) else []
        if len(values) != 2 or not all(isinstance(value, str) and value.isdecimal() for value in values):
            raise UserError(f"{self.path}:{_line(node)}: expected two integers in 'kpt_shape', such as [17, 3].")
        return int(values[0]) * int(values[1])


def read_data_file(path: Path) -> DataFile:
    """Parses ``data.yaml``.

    Raises:
        UserError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise UserError(
            f"{path} has more than {MAX_BYTES:,} bytes. Expected a short YAML file with train, val and names."
        )
    try:
        node = _Loader(content.decode("utf-8-sig")).get_single_node()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{path}: invalid YAML: {error.reason} at character {error.position}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{line}: invalid YAML: {error.problem or error.context}.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply. Expected the keys train, val and names.") from None
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path} is not a mapping. Expected the keys train, val and names of a YOLO dataset.")
    _check_keys(node, path)
    return DataFile(path, {_text(key, path): value for key, value in node.value})


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    """Rejects duplicate keys, at the top level and one level below."""
    lines: dict[str, int] = {}
    for key, value in node.value:
        text = _text(key, path)
        if text in lines:
            raise UserError(f"{path}:{_line(key)}: duplicate key '{text:.40}' (also in line {lines[text]}).")
        lines[text] = _line(key)
        if isinstance(value, yaml.MappingNode):
            _check_keys(value, path)


def _find(text: str, root: Path, folder: Path) -> list[Path]:
    """The existing folders or files that an entry may refer to, most likely first.

    A leading ``../`` that leads out of the dataset, as in the files of Roboflow, may be ignored, as by Ultralytics.
    """
    for spelling in dict.fromkeys((text, text.replace("\\", "/"))):
        entry = Path(os.path.expanduser(spelling))
        inside = Path(spelling.removeprefix("../"))
        candidates = [Path(os.path.normpath(each)) for each in (root / entry, root / inside, folder / entry)]
        if found := [each for each in dict.fromkeys(candidates) if os.path.exists(each)]:
            return found
    return []


def _text(node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
        raise UserError(f"{path}:{_line(node)}: expected a single value, got a {kind}.")
    return str(node.value)


def _is_empty(node: yaml.Node) -> bool:
    return not node.value or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
