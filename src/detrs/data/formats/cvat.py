"""CVAT for images 1.1 and CVAT for video 1.1: one XML file with corners in pixels from 0."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from detrs.data.content import SYNONYMS, Content, ImageRow, Split
from detrs.data.findings import Findings
from detrs.data.folders import IMAGE_SUFFIXES
from detrs.data.formats.class_names import ClassNames
from detrs.data.formats.cvat_shapes import Shape, shape_box
from detrs.data.formats.file_per_image import files
from detrs.data.formats.xml_file import head, line_of, read_xml
from detrs.data.objects import ENCLOSED, PlacedColumns
from detrs.errors import UserError

NAME = "CVAT"
LAYOUTS = (
    "annotations.xml with images/, divided by the subsets of its images (CVAT for images 1.1)",
    "{split}/annotations.xml or {split}.xml with images/ (CVAT for images 1.1)",
)
MAX_BYTES = 512 * 2**20
IGNORED_TYPES = ("tag", "points", "skeleton", "cuboid")
FRAME = re.compile(r"frame_(\d{6,})")
"""Names of the frames of a video in the exports of CVAT."""


class _Image(NamedTuple):
    name: str
    height: Any
    width: Any
    line: int
    shapes: list[Shape]


class _Meta(NamedTuple):
    labels: list[str]
    subsets: list[str]
    size: tuple[Any, Any]
    """Height and width of the frames of a video."""


@dataclass(frozen=True)
class CvatSplit(Split):
    """An annotation file, or the images of a subset in it."""

    name: str
    path: Path
    root: Path
    """The dataset. Paths in messages are relative to it."""
    subset: str | None
    """Name of the subset in lower case; ``None`` for all images."""
    every: tuple[Path, ...]
    """The annotation files of all splits: classes are the labels of all of them."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        file = self.path.relative_to(self.root).as_posix()
        reader = _Reader(file, self.subset, _labels(self.every), errors, notes)
        root, digest = read_xml(self.path, file, max_bytes=MAX_BYTES, on_child=reader.child)
        if root.tag != "annotations":
            errors.add("XML file whose root is not <annotations>", f"{file}: <{root.tag:.40}>")
        folders = self._folders()
        images = reader.images
        if reader.tracks:
            images += _frames(self.path, folders, reader)
        rows: list[ImageRow | None] = []
        columns = PlacedColumns()
        for id_, image in enumerate(sorted(images, key=lambda image: image.name), 1):
            place = f"{file}:{image.line}" if image.line else file
            rows.append(ImageRow(id_, image.name, image.height, image.width, None, place))
            for shape in image.shapes:
                columns.add_at(file, shape.line, id_, shape.label, shape.box)
        columns.num_items = reader.num_shapes
        categories = reader.classes.categories(columns)
        digest += reader.classes.digest() + (self.subset or "").encode()
        return Content(images=rows, objects=columns, categories=categories, folders=folders, digest=digest)

    def _folders(self) -> tuple[Path, ...]:
        parent = self.path.parent
        places = (parent / "images", parent)
        names = (self.subset or self.name, "default")  # CVAT's name for no subset
        folders = [place / each for place in places for name in names for each in _spellings(place, name)]
        return tuple(folder for folder in (*folders, *places, self.root) if folder.is_dir())


class _Reader:
    """Receives the children of ``<annotations>`` one by one."""

    def __init__(
        self, file: str, subset: str | None, labels: tuple[str, ...], errors: Findings, notes: Findings
    ) -> None:
        self.file, self.subset, self.errors, self.notes = file, subset, errors, notes
        self.classes = ClassNames(notes, labels)
        self.has_labels = bool(labels)
        self.subsets: list[str] = []
        self.size: tuple[Any, Any] = (None, None)
        self.images: list[_Image] = []
        self.tracks: dict[int, list[Shape]] = {}
        """Objects by the frame of a video."""
        self.num_shapes = 0

    def child(self, element: Element) -> None:
        if element.tag == "meta":
            _, self.subsets, self.size = _meta(element)
        elif element.tag == "image":
            self._image(element)
        elif element.tag == "track" and self._is_in_subset(element):
            for shape in self._shapes(element, element.get("label")):
                self.tracks.setdefault(shape.frame, []).append(shape)

    def _image(self, element: Element) -> None:
        if not self._is_in_subset(element):
            return
        line = line_of(element)
        name = (element.get("name") or "").strip().replace("\\", "/")
        if not name:
            self.errors.add("<image> without name", f"{self.file}:{line}")
            return
        size = _number(element.get("height")), _number(element.get("width"))
        self.images.append(_Image(name, *size, line, list(self._shapes(element, None))))

    def _is_in_subset(self, element: Element) -> bool:
        """Whether an image or a track is in the subset; images of an unknown subset are an error."""
        if self.subset is None:
            return True
        name = element.get("subset", "default")
        if self.subsets and name.lower() not in self.subsets:
            listed = ", ".join(self.subsets)
            self.errors.add(f"subset that is not in <meta> ({listed})", f"{self.file}:{line_of(element)}: {name!r:.40}")
        return name.lower() == self.subset

    def _shapes(self, parent: Element, label: str | None) -> Iterator[Shape]:
        for element in parent:
            if element.get("outside") == "1":  # of a track, in frames without the object
                continue
            self.num_shapes += 1
            place = f"{self.file}:{line_of(element)}"
            name = (element.get("label") if label is None else label) or ""
            if element.tag in IGNORED_TYPES:
                self.notes.add(f"<{element.tag}>, which has no box, ignored", place)
                continue
            fault, value, box = shape_box(element)
            if not name.strip():
                self.errors.add("shape without label", place)
            elif self.has_labels and name not in self.classes:
                self.errors.add("label that is not in <meta>", f"{place}: {name!r:.40}")
            elif fault:
                self.errors.add(fault, f"{place}: {value:.80}")
            else:
                if element.tag != "box":
                    self.notes.add(ENCLOSED, place)
                frame = int(text) if (text := element.get("frame", "")).isdecimal() else -1
                yield Shape(line_of(element), self.classes.number(name, place), box, frame)


def splits(path: Path) -> list[Split]:
    """The subsets of an annotation file, or the annotation files of a dataset."""
    root = path if path.is_dir() else path.parent
    found = [path] if path.is_file() else []
    if path.is_dir():
        found += [folder / name for folder in _places(path) for name in files(folder, ".xml")]
    found = [file for file in found if b"<annotations" in head(file)]
    return [split for file in found for split in _splits(file, root, tuple(found))]


def _places(root: Path) -> list[Path]:
    folders = [
        root / "annotations",
        *sorted(entry for entry in root.iterdir() if (entry / "annotations.xml").is_file()),
    ]
    return [root, *dict.fromkeys(folder for folder in folders if folder.is_dir())]


def _splits(file: Path, root: Path, every: tuple[Path, ...]) -> list[Split]:
    subsets = _head(file).subsets or _subsets_of_images(file)
    if len(subsets) > 1:
        return [CvatSplit(name, file, root, name, every) for name in subsets]
    name = file.stem if file.stem != "annotations" else file.parent.name if file.parent != root else ""
    if len(every) == 1 and name not in (each for names in SYNONYMS for each in names):
        name = ""
    named = [each for each in subsets if each != "default"]
    return [CvatSplit(named[0] if named and not name else name, file, root, None, every)]


def _subsets_of_images(file: Path) -> list[str]:
    """The subsets of all images, in lower case, for a file without ``<subsets>``, which other programs write."""
    if b" subset=" not in head(file):
        return []
    pattern, found = re.compile(rb'<(?:image|track)\s[^>]*?\ssubset="([^"]*)"'), dict[str, None]()
    rest = b""
    with file.open("rb") as opened:
        while chunk := opened.read(2**20):
            rest += chunk
            found |= dict.fromkeys(match.decode(errors="replace").lower() for match in pattern.findall(rest))
            rest = rest[max(rest.rfind(b"<"), 0) :]
    return list(found)


class _HeadIsComplete(Exception):
    """Ends the parser after ``<meta>``."""


def _head(file: Path) -> _Meta:
    """``<meta>`` of a file; without content if it is missing or malformed, which is an error when the file is read."""
    found = _Meta([], [], (None, None))

    def child(element: Element) -> None:
        nonlocal found
        if element.tag == "meta":
            found = _meta(element)
        if element.tag != "version":
            raise _HeadIsComplete

    with contextlib.suppress(_HeadIsComplete, UserError):
        read_xml(file, file.name, max_bytes=MAX_BYTES, on_child=child)
    return found


def _meta(element: Element) -> _Meta:
    labels = [(label.findtext("name") or "").strip() for label in element.iter("label")]
    texts = [each.text or "" for tag in ("subsets", "subset") for each in element.iter(tag)]
    subsets = dict.fromkeys(line.strip().lower() for text in texts for line in text.splitlines() if line.strip())
    sizes = [_number(element.findtext(f".//original_size/{side}")) for side in ("height", "width")]
    return _Meta([label for label in dict.fromkeys(labels) if label], list(subsets), (sizes[0], sizes[1]))


def _labels(every: tuple[Path, ...]) -> tuple[str, ...]:
    """The labels of all files in their order. A file without labels has the names of its objects, sorted."""
    found = dict[str, None]()
    for file in every:
        labels = _head(file).labels
        if not labels and len(every) > 1:
            labels = _used_labels(file)
        found |= dict.fromkeys(labels)
    return tuple(found)


def _used_labels(file: Path) -> list[str]:
    names: set[str] = set()

    def child(element: Element) -> None:
        names.update(label.strip() for each in element.iter() if (label := each.get("label")))

    try:
        read_xml(file, file.name, max_bytes=MAX_BYTES, on_child=child)
    except UserError:
        return []
    return sorted(names)


def _frames(path: Path, folders: tuple[Path, ...], reader: _Reader) -> list[_Image]:
    """The frames of a video, which are images ``frame_000000.png`` as in the exports of CVAT with images.

    Raises:
        UserError: There are no such images.
    """
    for folder in folders:
        names = {
            int(match[1]): entry.name
            for entry in sorted(folder.iterdir())
            if (match := FRAME.fullmatch(entry.stem)) and entry.suffix.lower() in IMAGE_SUFFIXES
        }
        if names:
            names |= {frame: f"frame_{frame:06d}.PNG" for frame in reader.tracks if frame not in names}
            return [_Image(name, *reader.size, 0, reader.tracks.get(frame, [])) for frame, name in names.items()]
    raise UserError(
        f"{path} has tracks of a video, but there are no images of its frames (frame_000000.png, ...). Export the task "
        "with 'Save images', or extract the frames into the folder images."
    )


def _spellings(folder: Path, name: str) -> list[str]:
    """The subfolders whose names equal ``name`` without regard to upper and lower case."""
    if not name or not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.name.lower() == name.lower())


def _number(text: str | None) -> Any:
    """``text`` as a number, or unchanged if it is not one."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
