"""Pascal VOC: one XML file for each image, with corners in pixels.

Coordinates follow the definition of the VOC development kit, as in detectron2: they are indices of pixels that start at
1, and the last pixel is part of the box. So x = xmin - 1 and width = xmax - xmin + 1.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from detrs.data.content import Content, ImageRow, Split
from detrs.data.findings import Findings
from detrs.data.folders import IMAGE_SUFFIXES
from detrs.data.formats.class_names import ClassNames
from detrs.data.formats.file_per_image import ImageFiles, files, groups
from detrs.data.formats.xml_file import head, line_of, read_xml
from detrs.data.objects import IGNORED, REGULAR, ROTATED, PlacedColumns, box_fault
from detrs.errors import UserError

NAME = "Pascal VOC"
LAYOUTS = (
    "Annotations/*.xml, JPEGImages/ and ImageSets/Main/{split}.txt (Pascal VOC)",
    "{split}/*.xml with the images beside them (Pascal VOC of Roboflow)",
)
ANNOTATIONS = ("Annotations", "annotations")
IMAGE_SETS = ("ImageSets/Main", "ImageSets")
MAX_BYTES = 8 * 2**20
NUM_SNIFFED = 3
CORNERS = ("xmin", "ymin", "xmax", "ymax")
DIFFICULT = {"1": IGNORED, "true": IGNORED} | dict.fromkeys(("0", "false", "unspecified", ""), REGULAR)


@dataclass(frozen=True)
class VocSplit(Split):
    """A list of images, or all XML files in a folder."""

    name: str
    path: Path
    """The list, or the folder."""
    root: Path
    """The dataset. Paths in messages are relative to it."""
    annotations: Path
    """Folder of the XML files."""
    images: tuple[Path, ...]
    """Folders of the images, most likely first."""
    every: tuple[Path, ...]
    """Folders of the XML files of all splits: classes are the names of all of them."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        stems = self._stems(errors, notes)
        reader = _Reader(self, errors, notes)
        rows: list[ImageRow | None] = [reader.image(id_, stem) for id_, stem in enumerate(stems, 1)]
        reader.add_classes_of(self._others(stems))
        if reader.largest <= 1:
            errors.add("dataset with all coordinates in [0, 1] (expected pixels)", f"the largest is {reader.largest}")
        categories = reader.classes.categories(reader.columns)
        reader.digest.update(reader.classes.digest())
        return Content(
            images=rows,
            objects=reader.columns,
            categories=categories,
            folders=self.images,
            digest=reader.digest.digest(),
        )

    def _stems(self, errors: Findings, notes: Findings) -> list[str]:
        """Names of the images without suffix, sorted; each has an XML file."""
        available = {Path(name).stem for name in files(self.annotations, ".xml")}
        if self.path.is_dir():
            return sorted(available)
        found: dict[str, int] = {}
        for line, entry in _entries(self.path):
            place = f"{self.path.relative_to(self.root).as_posix()}:{line}"
            first, _, flag = entry.rpartition(" ")
            names = [entry, first.rstrip()] if flag in ("1", "0", "-1") else [entry]
            names += [stem for stem, suffix in map(os.path.splitext, names) if suffix.lower() in IMAGE_SUFFIXES]
            stem = next((name for name in names if name in available or self._is_nested(name)), None)
            if stem is None:
                errors.add("listed image without an annotation file", f"{place}: {entry}")
            elif stem in found:
                notes.add("image listed several times, used once", f"{place}: {entry}")
            else:
                found[stem] = line
        return sorted(found)

    def _is_nested(self, name: str) -> bool:
        """Whether an image is in a subfolder and has an XML file there."""
        is_inside = "/" in name and not name.startswith("/") and ".." not in name.split("/")
        return is_inside and os.path.isfile(self.annotations / f"{name}.xml")

    def _others(self, stems: list[str]) -> Iterator[Path]:
        """The XML files of the other splits."""
        used = set(stems)
        for folder in self.every:
            for name in files(folder, ".xml"):
                if folder != self.annotations or name[: -len(".xml")] not in used:
                    yield folder / name


class _Reader:
    def __init__(self, split: VocSplit, errors: Findings, notes: Findings) -> None:
        self.split, self.errors, self.notes = split, errors, notes
        self.columns = _VocColumns()
        self.classes = ClassNames(notes)
        self.digest = hashlib.sha256()
        self.largest = float("inf")
        """Largest coordinate; infinity if there is no object."""
        self._images = ImageFiles(split.images)

    def image(self, id_: int, stem: str) -> ImageRow:
        """Reads the XML file of an image."""
        path = self.split.annotations / f"{stem}.xml"
        place = path.relative_to(self.split.root).as_posix()
        try:
            root, digest = read_xml(path, place, max_bytes=MAX_BYTES)
        except UserError as error:
            self.errors.add("annotation file that cannot be read", str(error).rstrip("."))
            root, digest = Element("annotation"), b""
        self.digest.update(f"{stem}\0".encode(errors="surrogateescape") + digest)
        if root.tag != "annotation":
            self.errors.add("XML file whose root is not <annotation>", f"{place}: <{root.tag:.40}>")
        for element in root.iterfind("object"):
            self._object(element, id_, place)
        name = (root.findtext("filename") or "").strip().replace("\\", "/")
        height, width = _size(root)
        found = self._file(stem, name, place)
        return ImageRow(id_, name.rpartition("/")[2] or f"{stem}.jpg", height, width, found, place)

    def _file(self, stem: str, name: str, place: str) -> Path | None:
        """The image with the stem of the XML file, as in the development kit; without it, that with the file name."""
        found = self._images.with_stem(stem)
        base = name.rpartition("/")[2]
        if len(found) > 1 and not (found := [path for path in found if path.name == base] or found)[1:]:
            return found[0]
        if len(found) > 1:
            self.errors.add(
                "annotation file with several images of its name (keep one, or set <filename>)",
                f"{place}: {', '.join(path.name for path in found)}",
            )
        return found[0] if found else self._images.named(base) if base else None

    def _object(self, element: Element, image_id: int, file: str) -> None:
        self.columns.num_items += 1
        line = line_of(element)
        place = f"{file}:{line}"
        fault, value, box = _box(element)
        name = element.findtext("name") or ""
        difficult = (element.findtext("difficult") or "").strip().lower()
        if not name.strip():
            self.errors.add("object without <name>", place)
        elif fault:
            self.errors.add(fault, f"{place}{value and ': '}{value:.80}")
        elif difficult not in DIFFICULT:
            self.errors.add("<difficult> that is neither 0 nor 1", f"{place}: {difficult:.40}")
        else:
            largest = max(box[0] + box[2], box[1] + box[3])  # xmax, ymax
            self.largest = largest if self.largest == float("inf") else max(self.largest, largest)
            number = self.classes.number(name, place)
            self.columns.add_at(file, line, image_id, number, box, kind=DIFFICULT[difficult])

    def add_classes_of(self, paths: Iterable[Path]) -> None:
        """Adds the class names of other splits, whose faults are reported when those are read."""
        for path in paths:
            try:
                root = read_xml(path, path.name, max_bytes=MAX_BYTES)[0]
            except UserError:
                continue
            for element in root.iterfind("object"):
                if (name := element.findtext("name") or "").strip():
                    self.classes.add(name)


class _VocColumns(PlacedColumns):
    ignored = "object with <difficult>1</difficult>"


def splits(path: Path) -> list[Split]:
    """The image sets of a dataset, or its folders of XML files."""
    if not path.is_dir():
        return []
    kits = [*sorted(path.glob("VOC[0-9]*")), *sorted(path.glob("VOCdevkit/VOC*"))]
    found = [split for root in kits if root.is_dir() for split in _splits(path, root)]
    return found or _splits(path, path)


def _splits(dataset: Path, root: Path) -> list[Split]:
    found = groups(root, ANNOTATIONS, _is_voc)
    every = tuple(group.folder for group in found)
    lists = next((lists for name in IMAGE_SETS if (lists := _image_sets(root / name))), [])
    if lists and len(found) == 1 and not found[0].split:
        return [VocSplit(file.stem, file, dataset, found[0].folder, found[0].images, every) for file in lists]
    return [VocSplit(each.split, each.folder, dataset, each.folder, each.images, every) for each in found]


def _image_sets(folder: Path) -> list[Path]:
    """The lists of images, without those of single classes, such as ``cat_train.txt`` beside ``train.txt``."""
    names = files(folder, ".txt") if folder.is_dir() else []
    return [folder / name for name in names if "_" not in name or name.rpartition("_")[2] not in names]


def _is_voc(folder: Path) -> bool:
    """Whether one of the first XML files in a folder is of this format."""
    contents = [head(folder / name) for name in files(folder, ".xml")[:NUM_SNIFFED]]
    return any(b"<annotation>" in content or b"<annotation " in content for content in contents)


def _entries(path: Path) -> list[tuple[int, str]]:
    """The lines of a list of images that are not empty, with their numbers."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8. Expected a list of image names, one on each line.") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _size(root: Element) -> tuple[Any, Any]:
    """The declared height and width; ``None`` if they are missing or 0, as some programs write."""
    values = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    return (None, None) if values in ([0, 0], [None, None]) else (values[0], values[1])


def _number(text: str | None) -> Any:
    """``text`` as a number, or unchanged if it is not one."""
    try:
        return None if text is None or not text.strip() else float(text)
    except ValueError:
        return text


def _box(element: Element) -> tuple[str, str, tuple[float, float, float, float]]:
    """The kind of fault of an object and the faulty value, empty if there is none, and (x, y, width, height)."""
    none = (0.0, 0.0, 0.0, 0.0)
    corners = element.find("bndbox")
    if element.find("robndbox") is not None:
        return ROTATED, "<robndbox>", none
    if corners is None:
        return "object without <bndbox>", "", none
    texts = [corners.findtext(side) or "" for side in CORNERS]
    try:
        xmin, ymin, xmax, ymax = map(float, texts)
    except ValueError:
        fault, box = "<bndbox> without four numbers (expected xmin, ymin, xmax and ymax in pixels)", none
    else:
        box = (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1)
        is_swapped = xmax < xmin or ymax < ymin
        fault = "<bndbox> with xmax below xmin or ymax below ymin" if is_swapped else box_fault(box)
    if not fault:
        return "", "", box
    return fault, " ".join(f"{side}={text.strip()}" for side, text in zip(CORNERS, texts, strict=True)), none
