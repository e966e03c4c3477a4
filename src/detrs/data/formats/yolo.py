"""YOLO: one text file for each image, and ``data.yaml`` with the splits and the class names.

The label file of ``images/train/a.jpg`` is ``labels/train/a.txt``: the last folder ``images`` of the path becomes
``labels``, and the suffix ``.txt``. If there is no such folder, label files are beside the images (Darknet).
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from detrs.data.content import Content, ImageRow, Split
from detrs.data.findings import Findings, add_items
from detrs.data.folders import IMAGE_SUFFIXES
from detrs.data.formats.yolo_files import HEAD_BYTES, find_images, is_list, read_lines
from detrs.data.formats.yolo_labels import MAX_BYTES, Labels, is_label
from detrs.data.formats.yolo_yaml import SPLITS, DataFile, read_data_file
from detrs.errors import UserError, did_you_mean
from detrs.files import open_regular

NAME = "YOLO"
LAYOUTS = (
    "data.yaml with images/{split}/ and labels/{split}/, or {split}/images/ and {split}/labels/ (YOLO)",
    "{split}/ with images, .txt files beside them, and classes.txt (Darknet)",
)
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
"""Class names, one per line."""
DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""Preferred if a folder has several YAML files."""
UNDIVIDED = ("images", "data", "obj")
"""Folders of images whose names are not splits."""
NUM_SNIFFED = 100
"""Images of a folder that are tested for a label file beside them."""
UNLABELED = "image without a label file, used as an image without objects"
NO_FOLDER = "image without a label folder, used as an image without objects"
ORPHAN = "label file without an image"


@dataclass(frozen=True)
class YoloSplit(Split):
    """Folders of images and lists of image files, and where the class names are."""

    name: str
    path: Path
    """``data.yaml``, or the folder of the dataset if there is none."""
    data_file: DataFile | None = None
    folders: tuple[Path, ...] = ()
    """Without ``data.yaml``: the folders or lists of this split."""
    class_folders: tuple[Path, ...] = ()
    """Folders that may contain a file with the class names."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        root = self.path if self.data_file is None else self.data_file.root(Findings())
        sources = list(self.folders) if self.data_file is None else self.data_file.sources(self.name, notes)
        if self.data_file is not None and self.name == "train":
            self.data_file.note_unused(notes)
        names = self._names(root)
        keypoints = 0 if self.data_file is None else self.data_file.keypoint_values()
        images = _distinct_images(root, sources, errors, notes)
        labels = Labels(names, keypoints, errors)
        rows: list[ImageRow | None] = []
        digest = hashlib.sha256(repr(("YOLO", keypoints, sorted(names.items()))).encode(errors="surrogatepass"))
        files = _LabelFiles(root, [image.path for image in images], self.path, notes)
        for id_, image in enumerate(images, 1):
            rows.append(ImageRow(id_, image.name, path=Path(image.path), place=image.name))
            content = files.read(image.path, image.name, errors)
            digest.update(hashlib.sha256(os.fsencode(image.name)).digest() + hashlib.sha256(content).digest())
            if content:
                labels.add_file(id_, files.name_of(image.path), content)
        labels.finish(notes)
        if len(files.missing) > len(rows) / 2:
            notes.add_many(f"{UNLABELED} (of {len(rows)} images)", len(files.missing), files.missing)
        if all(map(os.path.isdir, sources)):
            orphans = files.orphans()
            add_items(f"{ORPHAN}, ignored", f"{ORPHAN} (of {len(rows)} images)", orphans, len(rows), errors, notes)
        categories = [{"id": index, "name": name} for index, name in sorted(names.items())]
        return Content(images=rows, objects=labels.columns, categories=categories, digest=digest.digest())

    def class_files(self, root: Path) -> list[Path]:
        """The existing files with class names."""
        folders = dict.fromkeys((root, root / "data", root / "labels", *self.class_folders))
        return [file for folder in folders for name in CLASS_FILES if (file := folder / name).is_file()]

    def _names(self, root: Path) -> dict[int, str]:
        """Class names by index.

        Raises:
            UserError: There are none, or several files that differ.
        """
        names = self.data_file.names() if self.data_file else None
        if names is not None:
            return names
        found = {file: [line.strip() for line in read_lines(file)] for file in self.class_files(root)}
        if not found:
            where = "Add 'names: [...]' to it" if self.data_file else "Add data.yaml with 'names: [...]'"
            raise UserError(
                f"{self.path} has no class names. {where}, or classes.txt with one name per line, in the order of the "
                "class indices."
            )
        first, *others = found
        for other in others:
            if found[other] != found[first]:
                raise UserError(f"The class names in {first} and {other} differ. Expected one list for all splits.")
        return dict(enumerate(found[first]))


def splits(path: Path) -> list[Split]:
    """The splits in ``data.yaml``; without it, the folders of images with label files in a folder with class names."""
    if path.is_file():
        if path.suffix.lower() not in (".yaml", ".yml"):
            return []
        return _declared(path)
    files = [file for file in sorted(path.glob("*.y*ml")) if _is_data_file(file)]
    preferred = [file for file in files if file.name in DATA_FILES] or files
    if len(preferred) > 1:
        listed = ", ".join(file.name for file in preferred)
        raise UserError(f"{path} has several YOLO dataset files: {listed}. Use --data {preferred[0]} or another one.")
    return _declared(preferred[0]) if preferred else [*filter(lambda split: split.class_files(path), _undeclared(path))]


def unnamed_splits(path: Path) -> list[Split]:
    """The splits of a folder without class names, which is an error unless it has annotations in another format."""
    return [*_undeclared(path)] if path.is_dir() else []


def _declared(path: Path) -> list[Split]:
    data_file = read_data_file(path)
    found: list[Split] = [YoloSplit(name, path, data_file) for name in data_file.splits()]
    if not found:
        raise UserError(f"{path} has no images. Expected the keys train and val with folders of images.")
    return found


def _is_data_file(path: Path) -> bool:
    """Whether a YAML file has the keys of a YOLO dataset, without parsing it."""
    try:
        with open_regular(path) as file:
            lines = file.read(HEAD_BYTES).decode("utf-8-sig", errors="replace").splitlines()
    except (OSError, UserError):
        return False
    keys = {line.partition(":")[0].strip("\"'") for line in lines if ":" in line}
    return bool(keys & {*SPLITS}) and (path.name in DATA_FILES or bool(keys & {"names", "nc"}))


def _undeclared(root: Path) -> list[YoloSplit]:
    """The splits of a folder without ``data.yaml``."""
    found: dict[str, Path] = {}
    for folder in _subfolders(root / "images"):
        if _has_text_files(root / "labels" / folder.name):
            found[folder.name] = folder
    for folder in _subfolders(root):
        if (folder / "images").is_dir() and _has_text_files(folder / "labels"):
            found[folder.name] = folder / "images"
    for name in SPLITS:
        if is_list(root / f"{name}.txt") and any(map(_has_labels, (root, *_subfolders(root)))):
            found.setdefault(name, root / f"{name}.txt")
    if not found:
        found = {folder.name: folder for folder in _subfolders(root) if _has_labels(folder)}
        undivided = [found.pop(name) for name in UNDIVIDED if name in found]
        if (root / "images").is_dir() and _has_text_files(root / "labels"):
            undivided = [root / "images"]
        if not found and (undivided or _has_labels(root)):
            found = {"": (undivided or [root])[0]}
    folders = {each for source in found.values() for each in (source, _replaced(source)) if each and each.is_dir()}
    return [YoloSplit(name, root, None, (source,), tuple(sorted(folders))) for name, source in found.items()]


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())


def _has_text_files(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".txt") and entry.name not in CLASS_FILES for entry in entries)


def _has_labels(folder: Path) -> bool:
    """Whether one of the first images of a folder has a label file beside it."""
    names = {*os.listdir(folder)}
    images = (name for name in sorted(names) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
    for name, _ in zip(images, range(NUM_SNIFFED), strict=False):
        label = os.path.splitext(name)[0] + ".txt"
        if label in names and _first_line_is_label(folder / label):
            return True
    return False


def _first_line_is_label(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return is_label(file.read(HEAD_BYTES).decode(errors="replace").lstrip().partition("\n")[0])
    except (OSError, UserError):
        return False


class _Image(NamedTuple):
    name: str
    """Relative to the dataset, with slashes."""
    path: str


def _distinct_images(root: Path, sources: Iterable[Path], errors: Findings, notes: Findings) -> list[_Image]:
    """The distinct images of a split, sorted by name."""
    start = os.path.join(os.path.abspath(root), "")
    found: dict[str, str] = {}
    for source in sources:
        for path in find_images(source, root, errors, notes):
            absolute = os.path.abspath(path)
            inside = absolute.startswith(start)
            found[absolute] = absolute[len(start) :] if inside else os.path.basename(absolute)
    return sorted(_Image(name.replace(os.sep, "/"), path) for path, name in found.items())


def _replaced(folder: str | Path) -> Path | None:
    """The folder in which the last part ``images`` is replaced by ``labels``; ``None`` if there is no such part."""
    above = _above_images(folder)
    return above and above / "labels" / os.path.relpath(folder, above / "images")


def _above_images(folder: str | Path) -> Path | None:
    """The folder that contains the last part ``images`` of a path; ``None`` if there is no such part."""
    head, _, tail = (os.path.abspath(folder) + os.sep).rpartition(f"{os.sep}images{os.sep}")
    return Path(head or os.sep) if tail != os.path.abspath(folder) + os.sep else None


class _LabelFiles:
    """The label files of images.

    Args:
        root: Folder of the dataset; files are relative to it in messages.
        images: Absolute paths.
        path: The dataset in messages.
        notes: Receives images whose folder has no counterpart in ``labels``.

    Raises:
        UserError: No image has a label file, or none of those beside which there is no folder ``labels``.
    """

    def __init__(self, root: Path, images: list[str], path: Path, notes: Findings) -> None:
        self.missing: list[str] = []
        """Names of the images without a label file."""
        self._root = os.path.abspath(root)
        self._users: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        for folder in dict.fromkeys(map(os.path.dirname, images)):
            replaced = _replaced(folder)
            self._folders[folder] = str(replaced) if replaced and replaced.is_dir() else folder
        stems: dict[str, set[str]] = {}
        for image in images:
            folder, name = os.path.split(image)
            stems.setdefault(self._folders[folder], set()).add(os.path.splitext(name)[0])
        self._listings = {folder: _text_files(folder, own) for folder, own in stems.items()}
        if images and not any(self.path_of(image) for image in images):
            raise UserError(self._without_labels(images[0], path))
        self._check_folders(images, path, notes)

    def path_of(self, image: str) -> str | None:
        """The label file of an image; ``None`` if it does not exist."""
        folder, name = os.path.split(image)
        labels = self._folders[folder]
        actual = self._listings[labels].get(unicodedata.normalize("NFC", os.path.splitext(name)[0]))
        return actual and os.path.join(labels, actual)

    def name_of(self, image: str) -> str:
        """The label file of an image, relative to the dataset."""
        return self._name(self.path_of(image) or image)

    def read(self, image: str, name: str, errors: Findings) -> bytes:
        """The content of the label file; empty if there is none.

        Args:
            image: Absolute path of the image.
            name: Its name in messages.
            errors: Receives label files that cannot be read, and those of several images.
        """
        path = self.path_of(image)
        if path is None:
            self.missing.append(name)
            return b""
        if path in self._users:
            errors.add("images with the same label file", f"{self._name(path)}: {self._users[path]} and {name}")
            return b""
        self._users[path] = name
        try:
            with open_regular(Path(path)) as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            errors.add("label file that cannot be read", f"{self._name(path)}: {error.strerror}")
            return b""
        except UserError as error:
            errors.add("label file that cannot be read", str(error).rstrip("."))
            return b""
        if len(content) > MAX_BYTES:
            errors.add(f"label file with more than {MAX_BYTES:,} bytes", self._name(path))
            return b""
        return content

    def orphans(self) -> list[str]:
        """Label files that belong to none of the images. Beside images, only files with the form of a label count."""
        beside = set(self._folders)
        return sorted(
            self._name(path)
            for folder, listing in self._listings.items()
            for file in listing.values()
            if (path := os.path.join(folder, file)) not in self._users
            and (folder not in beside or _first_line_is_label(Path(path)))
        )

    def _check_folders(self, images: list[str], path: Path, notes: Findings) -> None:
        """Checks the images whose label folder does not exist: those beside a folder ``labels`` have no objects."""
        parents = {folder: _above_images(folder) for folder, labels in self._folders.items() if labels == folder}
        without: dict[Path, list[str]] = {}
        for image in images:
            if above := parents.get(os.path.dirname(image)):
                without.setdefault(above, []).append(image)
        for above, those in without.items():
            missing = [image for image in those if self.path_of(image) is None]
            if (above / "labels").is_dir():
                notes.add_many(NO_FOLDER, len(missing), map(self._name, missing))
            elif len(missing) == len(those):
                empty = f"If these images have no objects, create the empty folder {above / 'labels'}."
                raise UserError(f"{self._without_labels(those[0], path)} {empty}")

    def _without_labels(self, image: str, path: Path) -> str:
        folder = os.path.dirname(image)
        replaced = _replaced(folder)
        if replaced is None:
            return f"{path}: no image in {folder} has a label file, such as {os.path.splitext(image)[0]}.txt."
        expected = f"{path}: expected the label files of {folder} in {replaced}"
        if replaced.is_dir():
            suffixes = sorted({entry.suffix for entry in replaced.iterdir() if entry.suffix not in ("", ".cache")})
            contained = f" It contains {', '.join(suffixes)} files." if suffixes else " It is empty."
            return f"{expected}, which has none with the name of an image.{contained}"
        above = next((each for each in replaced.parents if each.is_dir()), replaced)
        missing = replaced.relative_to(above).parts[0]
        siblings = [entry.name for entry in above.iterdir() if entry.is_dir()]
        return f"{expected}, which does not exist.{did_you_mean(missing, siblings)}"

    def _name(self, path: str) -> str:
        inside = path.startswith(os.path.join(self._root, ""))
        return (path[len(self._root) :].lstrip(os.sep) if inside else path).replace(os.sep, "/")


def _text_files(folder: str, stems: set[str]) -> dict[str, str]:
    """The names of the text files of a folder by their normalized stem, without those that are not labels.

    Args:
        folder: The folder.
        stems: Of the images; a file with class names, such as ``classes.txt``, belongs to none of them.
    """
    others = {name for name in CLASS_FILES if os.path.splitext(name)[0] not in stems}
    names = (name for name in os.listdir(folder) if name.endswith(".txt") and name not in others)
    return {unicodedata.normalize("NFC", name[:-4]): name for name in names if not name.startswith(".")}
