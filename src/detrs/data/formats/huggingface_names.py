"""Class names of a Hugging Face image folder: a list beside the images, the card of the dataset, or its objects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from detrs.errors import UserError
from detrs.files import open_regular

LIST = "classes.txt"
INFOS = ("dataset_infos.json", "dataset_info.json")
CARD = "README.md"
MAX_BYTES = 2**20
"""Of these files; YAML is parsed in Python, at about 0.2 MB per second."""


def class_list(folders: tuple[Path, ...]) -> tuple[str, ...]:
    """The class names in their order, from the first folder that has any; empty if there are none.

    Raises:
        UserError: A file is damaged, or has several lists of names.
    """
    for folder in folders:
        if lines := _text(folder / LIST).splitlines():
            return tuple(line.strip() for line in lines if line.strip())
        for file in INFOS:
            if names := _names(folder / file, _from_json(folder / file)):
                return names
        if names := _names(folder / CARD, _from_card(folder / CARD)):
            return names
    return ()


def _names(path: Path, content: Any) -> tuple[str, ...]:
    """The names of the class label of the objects."""
    found = dict.fromkeys(_labels(content, ()))
    of_objects = [names for keys, names in found if "objects" in keys] or [names for _, names in found]
    lists = [*dict.fromkeys(of_objects)]
    if len(lists) > 1:
        raise UserError(
            f"{path} has {len(lists)} lists of class names. Write those of the objects to {LIST} beside it."
        )
    return lists[0] if lists else ()


def _labels(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The class labels in a description of features, with the names of the columns that contain them."""
    if isinstance(node, list):
        for item in node:
            yield from _labels(item, keys)
    elif isinstance(node, dict):
        names = node.get("names") if node.get("_type") == "ClassLabel" else None
        if isinstance(label := node.get("class_label"), dict):  # the YAML of cards: {"0": "cat", "1": "dog"}
            names = label.get("names")
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=lambda key: (len(str(key)), str(key)))]
        if isinstance(names, list):
            yield keys, tuple(map(str, names))
        column = node.get("name")
        inside = (*keys, column) if isinstance(column, str) else keys
        for key, value in node.items():
            yield from _labels(value, (*inside, str(key)))


def _from_json(path: Path) -> Any:
    text = _text(path)
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: invalid JSON: {error}.") from None


def _from_card(path: Path) -> Any:
    """The metadata at the head of a card, between two lines of dashes."""
    text = _text(path)
    if not text.startswith("---\n"):
        return None
    head, separator, _ = text[4:].partition("\n---")
    if not separator or "class_label" not in head:
        return None
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(head, yaml.SafeLoader)):
            raise UserError(f"{path}: aliases (*name) are not supported. Write the class names to {LIST}.")
        return yaml.safe_load(head)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        line = mark.line + 2 if (mark := getattr(error, "problem_mark", None)) else 1
        raise UserError(f"{path}:{line}: the metadata is not valid YAML. Correct it, or write {LIST}.") from None


def _text(path: Path) -> str:
    """The text of a file; empty if there is none."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        return ""
    if len(content) > MAX_BYTES:
        return "" if path.name == CARD else _too_large(path)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from None


def _too_large(path: Path) -> str:
    raise UserError(f"{path} is larger than {MAX_BYTES // 2**20} MiB. Write the class names to {LIST} beside it.")
