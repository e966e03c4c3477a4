"""The cache of checked annotations: the same dataset, never a stale one, and no harm if it cannot be used."""

import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.data import FolderDataset, annotation_cache, open_dataset
from detrs.data.detect import find_split
from detrs.errors import UserError

Change = Callable[[Any], object]


def opened(folder: Any, **options: Any) -> FolderDataset:
    return FolderDataset(find_split(folder.root, "train"), cache_annotations=True, **options)


def content(dataset: FolderDataset) -> Any:
    samples = [(each.image.tolist(), each.boxes.tolist(), each.labels.tolist(), each.path) for each in dataset]
    about = dataset.classes, dataset.notes, dataset.num_skipped, dataset.image_ids, dataset.max_objects
    return *about, samples, dataset.ground_truth(), dataset.fingerprint()


def test_a_second_opening_checks_nothing_and_finds_the_same(folder: Any, cache: Path, checks: list[Path]) -> None:
    folder.data["images"][1]["file_name"] = folder.data["images"][1]["file_name"].replace(" ", "%20")
    folder.data["annotations"][0]["iscrowd"] = 1
    folder.write()
    plain = FolderDataset(find_split(folder.root, "train"))
    checks.clear()
    first, second = opened(folder), opened(folder)
    assert len(checks) == 1 and len(list(cache.glob("*.arrays"))) == 1
    assert content(plain) == content(first) == content(second)
    assert plain.notes and opened(folder).notes == plain.notes
    assert content(opened(folder, keep_empty=False)) == content(
        FolderDataset(find_split(folder.root, "train"), keep_empty=False)
    )
    assert len(checks) == 2  # the comparison


def repaint(folder: Any) -> None:
    """Other pixels in a file of the same length and modification time."""
    path, before = folder.image(), folder.image().stat()
    folder.paint(90)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def annotate(folder: Any) -> None:
    """Another box in a file of the same length and modification time."""
    path = folder.root / "annotations" / "train.json"
    before, text = path.stat(), path.read_text()
    number = json.dumps(folder.data["annotations"][0]["bbox"][2])
    changed = text.replace(f" {number},", f" {'9' * len(number)},", 1)
    assert len(changed) == len(text) and changed != text
    path.write_text(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def pipe(folder: Any) -> None:
    """Opening it would block."""
    path = folder.root / "annotations" / "train.json"
    path.unlink()
    os.mkfifo(path)


CHANGES: dict[str, Change] = {
    "annotations": lambda folder: (folder.data["annotations"].pop(), folder.write()),
    "annotations of the same length and time": annotate,
    "an image of the same length and time": repaint,
    "a removed image": lambda folder: folder.image().unlink(),
    "an image of another size": lambda folder: Image.new("RGB", (7, 7)).save(folder.image()),
    "a pipe instead of annotations": pipe,
    "a new file": lambda folder: (folder.images / "new.png").touch(),
    "a renamed folder": lambda folder: folder.images.rename(folder.images.with_name("other")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(folder: Any, cache: Path, checks: list[Path], change: str) -> None:
    opened(folder)
    CHANGES[change](folder)
    try:
        expected: Any = content(FolderDataset(find_split(folder.root, "train")))
    except UserError as error:
        expected = str(error)
    checks.clear()
    try:
        found: Any = content(opened(folder))
    except UserError as error:
        found = str(error)
    assert found == expected
    assert len(checks) == 1


def test_other_files_beside_the_images_may_change(folder: Any, cache: Path, checks: list[Path]) -> None:
    (folder.images / "train.log").touch()
    opened(folder)
    (folder.images / "train.log").write_text("epoch 1")
    opened(folder)
    assert len(checks) == 1


def test_an_annotation_file_that_is_copied_back_is_the_same(folder: Any, cache: Path, checks: list[Path]) -> None:
    opened(folder)
    folder.write()
    opened(folder)
    assert len(checks) == 1


def test_a_dataset_that_is_just_written_is_not_stored(
    folder: Any, cache: Path, checks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation_cache, "SETTLED_S", 3600.0)
    opened(folder), opened(folder)
    assert len(checks) == 2 and not list(cache.glob("*.arrays"))


@pytest.mark.parametrize("which", ["image", "annotations"])
def test_a_modification_time_in_the_future_does_not_matter(
    folder: Any, cache: Path, checks: list[Path], monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Of a camera with a wrong clock. A file that is changed once more is noticed."""
    monkeypatch.setattr(annotation_cache, "SETTLED_S", 0.0)
    path = folder.image() if which == "image" else folder.root / "annotations" / "train.json"
    year = time.time() + 365 * 24 * 3600
    os.utime(path, (year, year))
    time.sleep(0.1)
    assert content(opened(folder)) == content(opened(folder))
    assert len(checks) == 1
    (repaint if which == "image" else annotate)(folder)
    assert os.stat(path).st_mtime == pytest.approx(year)
    assert content(opened(folder)) == content(FolderDataset(find_split(folder.root, "train")))
    assert len(checks) == 3


@pytest.mark.parametrize("name", ["data/object_checks.py", "data/formats/coco.py", "magic.py"])
def test_other_sources_of_the_same_version_check_anew(
    folder: Any, cache: Path, checks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As after ``git pull`` in an editable installation."""
    package = tmp_path / "detrs"
    shutil.copytree(Path(annotation_cache.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(annotation_cache, "__file__", str(package / "data" / "annotation_cache.py"))
    for number, line in enumerate(("", "# another check\n"), 1):
        with (package / name).open("a") as file:
            file.write(line)
        annotation_cache._version.cache_clear()
        opened(folder), opened(folder)
        assert len(checks) == number
    annotation_cache._version.cache_clear()


def test_errors_are_not_stored(folder: Any, cache: Path, checks: list[Path]) -> None:
    folder.data["annotations"][0]["bbox"] = [1, 2, 3]
    folder.write()
    messages = []
    for _ in range(2):
        with pytest.raises(UserError, match="bbox that is not") as error:
            opened(folder)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and len(checks) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_written_anew(folder: Any, cache: Path, checks: list[Path], damage: str) -> None:
    expected = content(opened(folder))
    (path,) = cache.glob("*.arrays")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-100], "flipped": data, "empty": b"", "other": b"text" * 1000}[damage])
    assert content(opened(folder)) == expected and content(opened(folder)) == expected
    assert len(checks) == 2


def test_without_the_cache_nothing_is_read_or_written(folder: Any, cache: Path) -> None:
    dataset = open_dataset(str(folder.root), "train", cache_annotations=False)
    assert not cache.exists()
    open_dataset(str(folder.root), "train")
    assert len(list(cache.glob("*.arrays"))) == 1
    assert content(dataset) == content(opened(folder))  # type: ignore[arg-type]


def test_another_process_gets_the_name_of_the_file(folder: Any, cache: Path) -> None:
    dataset = opened(folder)
    expected, stored = content(dataset), pickle.dumps(dataset)
    plain = pickle.dumps(FolderDataset(find_split(folder.root, "train")))
    assert len(stored) < len(plain) and content(pickle.loads(stored)) == content(pickle.loads(plain)) == expected
    shutil.rmtree(cache)
    assert content(pickle.loads(pickle.dumps(dataset))) == expected  # the arrays themselves
    with pytest.raises(UserError, match="was removed or replaced while a loader process started"):
        pickle.loads(stored)


def test_it_gets_the_name_after_any_number_of_openings(folder: Any, cache: Path, checks: list[Path]) -> None:
    """Each opening sets the time of the file, also for processes that opened it before."""
    first = opened(folder)
    os.utime(next(cache.glob("*.arrays")), (10**9, 10**9))
    second, lengths = opened(folder), set()
    for prepared in (first._prepared, second._prepared, opened(folder)._prepared):
        assert prepared.source is not None and prepared.source.is_current()
        lengths.add(len(pickle.dumps(prepared)))
    assert len(checks) == 1 and len(lengths) == 1 and lengths.pop() < 500
    (path,) = cache.glob("*.arrays")
    shutil.copy(path, cache / "copy")
    os.replace(cache / "copy", path)
    assert not second._prepared.source.is_current()  # type: ignore[union-attr]


def test_arrays_are_views_of_the_file(folder: Any, cache: Path) -> None:
    prepared = opened(folder)._prepared
    arrays = [each for each in prepared.arrays().values() if each.size]
    assert len(arrays) > 10 and not any(each.flags.writeable or each.flags.owndata for each in arrays)
    part = opened(folder).select(np.arange(len(folder.data["images"])) > 0)
    assert part._prepared.objects is not prepared.objects and not part._prepared.objects.boxes.flags.owndata


def test_only_one_of_several_checks_while_the_others_wait(
    folder: Any, cache: Path, checks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads here; the lock is one of the operating system, which is the same for processes."""
    everyone, check = threading.Barrier(3), annotation_cache._check

    def slow(*arguments: Any) -> Any:
        time.sleep(0.2)
        return check(*arguments)

    def start(_: int) -> str:
        everyone.wait()
        return opened(folder).fingerprint()

    monkeypatch.setattr(annotation_cache, "_check", slow)
    with ThreadPoolExecutor(3) as threads:
        found = set(threads.map(start, range(3)))
    assert found == {FolderDataset(find_split(folder.root, "train")).fingerprint()}
    assert len(checks) == 2  # the first, and the comparison


def test_files_that_are_not_used_are_removed(folder: Any, cache: Path) -> None:
    cache.mkdir(parents=True)
    day = 24 * 3600.0
    ages = {
        "old.arrays": 61 * day,
        "recent.arrays": 59 * day,
        "old.lock": 61 * day,
        "recent.lock": 59 * day,
        ".a.arrays.0123456789ab.tmp": 1.1 * day,  # of a process that was killed
        ".b.arrays.0123456789ab.tmp": 0.9 * day,
        "other.txt": 100 * day,
    }
    for name, age in ages.items():
        (cache / name).touch()
        os.utime(cache / name, (time.time() - age,) * 2)
    opened(folder)
    kept = {"recent.arrays", "recent.lock", ".b.arrays.0123456789ab.tmp", "other.txt"}
    assert {path.name for path in cache.iterdir()} & ages.keys() == kept
