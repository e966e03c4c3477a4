"""Names of image files as other programs and computers write them."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from detrs.data.content import ImageRow
from detrs.data.findings import Findings
from detrs.data.locate import locate

COMPOSED = unicodedata.normalize("NFC", "Zürich")
DECOMPOSED = unicodedata.normalize("NFD", "Zürich")


def found(
    root: Path, files: Iterable[str], names: Iterable[str], folders: tuple[str, ...] = ("",)
) -> tuple[list[str | None], list[str], list[str]]:
    """The file found for each name, relative to ``root``; errors; and notes."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    errors, notes = Findings(), Findings()
    rows = {id_: ImageRow(id_, name) for id_, name in enumerate(names)}
    paths = locate(rows, tuple(root / folder for folder in folders), errors, notes)
    relative = [Path(paths[id_]).relative_to(root).as_posix() if id_ in paths else None for id_ in rows]
    return relative, errors.lines(), notes.lines()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.jpg", "./a.jpg"),
        ("sub/a.jpg", "sub\\a.jpg"),
        ("sub/a.jpg", ".\\sub\\a.jpg"),
        ("100%25.jpg", "100%25.jpg"),
        (f"{COMPOSED}/{DECOMPOSED}.jpg", f"{DECOMPOSED}/{COMPOSED}.jpg"),
        (f"{DECOMPOSED}/{DECOMPOSED}/a.jpg", f"{COMPOSED}/{COMPOSED}/a.jpg"),
    ],
)
def test_equivalent_names_need_no_note(tmp_path: Path, file: str, name: str) -> None:
    assert found(tmp_path, [file], [name]) == ([file], [], [])


@pytest.mark.parametrize(
    ("file", "name", "note"),
    [
        ("photo 1.jpg", "photo%201.jpg", "URL-encoded characters, decoded: image 0: photo%201.jpg is photo 1.jpg"),
        ("my set/a.jpg", "my%20set/a.jpg", "URL-encoded"),
        ("my set/a.jpg", "my%20set%5Ca.jpg", ""),
        (f"{DECOMPOSED}.jpg", "Z%C3%BCrich.jpg", "URL-encoded"),
        ("photo 1.png", "photo%201.jpg", "another extension"),
        ("a.JPG", "a.jpg", "another extension than the file: image 0: a.jpg is a.JPG"),
        ("a.jpeg", "a.jpg", "another extension"),
        ("a.png", "a.heic", "another extension"),
        ("000017.jpg", "000017", "another extension"),
        (f"{DECOMPOSED}.png", f"{COMPOSED}.jpg", "another extension"),
        ("sub/a.png", "sub\\a.jpg", "another extension"),
    ],
)
def test_repaired_names_are_noted(tmp_path: Path, file: str, name: str, note: str) -> None:
    paths, errors, notes = found(tmp_path, [file, "b.jpg"], [name, "b.jpg"])
    if note:
        assert (paths, errors) == ([file, "b.jpg"], [])
        (line,) = notes
        assert line.startswith("1 x file_name with ") and note in line
    else:
        assert paths == [None, "b.jpg"] and "missing image" in errors[0]


@pytest.mark.parametrize("prefix", ["/home/someone/set/", "C:\\Users\\someone\\set\\", "D:/set/"])
@pytest.mark.parametrize("folder", ["", "train/"])
def test_absolute_names_of_another_computer(tmp_path: Path, prefix: str, folder: str) -> None:
    files = [f"{folder}a.jpg", f"{folder}sub/b.jpg", f"{folder}sub/a.jpg"]
    names = [prefix + (file.replace("/", "\\") if "\\" in prefix else file) for file in files]
    paths, errors, notes = found(tmp_path / "x", files, names)
    assert (paths, errors) == (files, [])
    assert len(notes) == 1 and notes[0].startswith("3 x file_name with leading folders that the dataset does not have")


@pytest.mark.parametrize("name", ["images/a.jpg", "images/train/a.jpg", "train\\a.jpg"])
def test_redundant_leading_folders(tmp_path: Path, name: str) -> None:
    file = "images/a.jpg" if name == "images/a.jpg" else "images/train/a.jpg"
    folder = str(Path(file).parent)
    paths, errors, notes = found(tmp_path, [file], [name], (folder,))
    assert (paths, errors) == ([file], []) and "leading folders" in notes[0]


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        (["a.png", "a.webp"], ["a.jpg"], "1 x missing image (of 1): {root}/a.jpg (found a.png and a.webp)"),
        (["a.png"], ["a.jpg", "a.png"], "{root}/a.jpg (a.png is the file of a.png)"),
        (["a.png"], ["a.jpg", "a.bmp"], "2 x missing image"),
        (["a b.jpg"], ["a%20b.jpg", "a b.jpg"], "a%20b.jpg (a b.jpg is the file of a b.jpg)"),
        (["a.json", "a.txt"], ["a.jpg"], "1 x missing image"),
        (["a.jpg", "b.jpg"], ["a.jpg", "/data/b.jpg"], "outside the image folder: image 1: /data/b.jpg (b.jpg is in "),
        (["a.jpg"], ["../a.jpg"], "outside the image folder: image 0: ../a.jpg (a.jpg is in "),
        (["a.jpg"], ["%2e%2e/a.jpg"], "1 x missing image"),
        (["a.jpg"], ["%2Fetc%2Fpasswd"], "1 x missing image"),
        (["a.jpg"], ["a%00.jpg"], "1 x missing image"),
        (["a.jpg"], ["/etc/passwd"], "outside the image folder: image 0: /etc/passwd"),
        (["a.jpg"], ["/x/../a.jpg"], "outside the image folder"),
        (["a.jpg"], ["A.jpg"], "different upper and lower case: image 0: A.jpg is a.jpg in"),
        (["a.jpg"], ["other/a.jpg"], "1 x missing image"),
    ],
)
def test_doubtful_names_are_errors(tmp_path: Path, files: list[str], names: list[str], message: str) -> None:
    paths, errors, notes = found(tmp_path, files, names)
    assert None in paths and notes == []
    assert message.format(root=tmp_path) in "\n".join(errors)


def test_files_of_one_stem_in_several_folders_are_kept_apart(tmp_path: Path) -> None:
    paths, errors, _ = found(tmp_path, ["1/a.png", "2/a.png"], ["1/a.jpg", "2/a.jpg"])
    assert (paths, errors) == (["1/a.png", "2/a.png"], [])


def test_the_folder_of_encoded_names_is_found(tmp_path: Path) -> None:
    files = ["train/other.txt", "images/a b.jpg"]
    assert found(tmp_path, files, ["a%20b.jpg"], ("train", "images", ""))[0] == ["images/a b.jpg"]


def test_no_folder_is_listed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: Counter[str] = Counter()
    listdir = os.listdir

    def count(path: str) -> list[str]:
        listed[os.fspath(path)] += 1
        return listdir(path)

    monkeypatch.setattr("detrs.data.locate.os.listdir", count)
    files = [f"images/{DECOMPOSED}/{number} b.JPG" for number in range(30)]
    names = [f"{COMPOSED}/{number}%20b.jpg" for number in range(30)]
    paths, errors, notes = found(tmp_path, files, names, ("images", ""))
    assert (paths, errors) == (files, []) and notes
    assert set(listed.values()) == {1} and all(path.startswith(str(tmp_path)) for path in listed)


def test_files_outside_the_folder_are_not_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside.jpg").touch()
    inspected: list[str] = []
    isfile = os.path.isfile

    def record(path: str) -> bool:
        inspected.append(os.path.normpath(path))
        return isfile(path)

    monkeypatch.setattr("detrs.data.locate.os.path.isfile", record)
    names = ["../outside.jpg", str(tmp_path / "outside.jpg"), "..\\outside.jpg"]
    paths, errors, _ = found(tmp_path / "set", ["a.jpg"], names)
    assert paths == [None] * 3 and errors[0].startswith("3 x file_name outside the image folder")
    assert all(path.startswith(str(tmp_path / "set")) for path in inspected)
