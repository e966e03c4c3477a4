"""Datasets of the ``datasets`` library: saved folders, and the Hub without network."""

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert import assert_equal_targets, subset, to_saved_dataset, train_one_epoch
from PIL import Image

from detrs.cli import main
from detrs.cli.train import check_data_exists
from detrs.data.check import Annotations, read_annotations
from detrs.data.detect import find_split, find_splits
from detrs.data.formats import huggingface_arrow, huggingface_datasets
from detrs.errors import UserError
from detrs.files import PARTIAL

datasets = pytest.importorskip("datasets")

BOX = datasets.Sequence(datasets.Value("float32"), length=4)
NAMES = datasets.ClassLabel(names=["dog", "cat"])
OBJECTS = {"bbox": [[1.0, 2.0, 13.0, 17.0], [3.0, 7.0, 11.0, 23.0]], "category": [0, 1]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETRS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    huggingface_datasets._download.cache_clear()
    return tmp_path / "cache" / "huggingface"


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (47, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def dataset(num_rows: int = 2, *, value: Any = None, feature: Any = None, **columns: tuple[Any, Any]) -> Any:
    """``columns``: name -> (feature, value of all rows); by default, two objects in the column ``objects``."""
    rows = {"image": [{"bytes": png(seed), "path": f"photo {seed}.png"} for seed in range(num_rows)]}
    features = {"image": datasets.Image()}
    if not columns:
        columns["objects"] = (feature or datasets.Sequence({"bbox": BOX, "category": NAMES}), value or OBJECTS)
    for name, (kind, each) in columns.items():
        rows[name], features[name] = [each] * num_rows, kind
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def save(data: Any, folder: Path) -> Path:
    with huggingface_arrow.quiet(datasets):
        data.save_to_disk(str(folder))
    return folder


def read(folder: Path, split: str | None = None) -> Annotations:
    return read_annotations(find_splits(folder)[0] if split is None else find_split(folder, split))


def test_equal_to_coco(shared: Path, tmp_path: Path) -> None:
    coco = shared / "data" / "bccd"
    for split in ("train", "val"):
        to_saved_dataset(coco, split, tmp_path / "set")
    for split in ("train", "val"):
        assert_equal_targets(tmp_path / "set", split, coco)


def test_training_on_the_command_line(shared: Path, tmp_path: Path) -> None:
    coco = subset(shared / "data" / "bccd", tmp_path / "coco")
    for split in ("train", "val"):
        to_saved_dataset(coco, split, tmp_path / "set")
    train_one_epoch(tmp_path / "set", tmp_path / "run")


def test_images_are_extracted_once_byte_for_byte(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(dataset(), tmp_path / "set")
    first = read(folder)
    assert [image.path.name for image in first.images] == ["photo 0.png", "photo 1.png"]
    assert [image.path.read_bytes() for image in first.images] == [png(0), png(1)]
    assert first.classes == (("dog", "cat"), (0, 1))
    assert all(image.path.is_relative_to(cache) for image in first.images)
    assert not [path for path in cache.iterdir() if path.suffix == ".tmp"]
    monkeypatch.setattr(huggingface_arrow, "_extract_to", None)  # raises if it is called
    assert read(folder).images[:] == first.images[:]


def test_what_a_killed_process_left_is_removed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(dataset(), tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(os, "rename", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            read(folder)
    (partial,) = [path for path in cache.iterdir() if path.is_dir()]
    assert PARTIAL.fullmatch(partial.name)
    read(folder)
    (extracted,) = [path for path in cache.iterdir() if path.is_dir()]
    assert not PARTIAL.fullmatch(extracted.name)


def test_changed_data_are_extracted_again(tmp_path: Path) -> None:
    assert len(read(save(dataset(2), tmp_path / "set")).images) == 2
    assert len(read(save(dataset(3), tmp_path / "set")).images) == 3


def test_the_digest_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    digests = {read(save(dataset(), tmp_path / name)).digest for name in ("a", "b")}
    assert len(digests) == 1
    other = {"bbox": OBJECTS["bbox"], "category": [1, 0]}
    assert read(save(dataset(value=other), tmp_path / "c")).digest not in digests


def test_nothing_global_is_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(dataset(), tmp_path / "set")
    environment, state = dict(os.environ), datasets.are_progress_bars_disabled()
    capsys.readouterr()
    read(folder)
    assert dict(os.environ) == environment and datasets.are_progress_bars_disabled() == state
    assert capsys.readouterr() == ("", "")


def test_splits(tmp_path: Path) -> None:
    saved = save(datasets.DatasetDict({"train": dataset(2), "validation": dataset(1)}), tmp_path / "dict")
    assert [split.name for split in find_splits(saved)] == ["train", "validation"]
    assert len(read(saved, "val").images) == 1
    single = save(dataset(), tmp_path / "single")
    assert [split.name for split in find_splits(single)] == [""]
    state = json.loads((single / "state.json").read_text())
    (single / "state.json").write_text(json.dumps(state | {"_split": "train"}))
    assert [split.name for split in find_splits(single)] == ["train"]


@pytest.mark.parametrize(
    ("columns", "classes"),
    [
        ({"objects": ([{"bbox": BOX, "category": NAMES}], [{"bbox": [1, 2, 3, 4], "category": 1}])}, ("dog", "cat")),
        ({"things": ({"bbox": [BOX], "label": [NAMES]}, {"bbox": [[1, 2, 3, 4]], "label": [1]})}, ("dog", "cat")),
        ({"bboxes": ([BOX], [[1, 2, 3, 4]]), "labels": ([NAMES], [1])}, ("dog", "cat")),
        ({"bbox": ([BOX], [[1, 2, 3, 4]]), "label": ([datasets.Value("string")], ["cat"])}, ("cat",)),
        ({"bbox": ([BOX], [[1, 2, 3, 4]]), "category": ([datasets.Value("int64")], [1])}, ("class 1",)),
        (
            {"objects": ({"bbox": [BOX], "id": [datasets.Value("int64")], "kind": [NAMES]},
                         {"bbox": [[1, 2, 3, 4]], "id": [17], "kind": [1]}),
             "scene": (datasets.ClassLabel(names=["in", "out"]), 0), "mask": (datasets.Image(), None)},
            ("dog", "cat"),
        ),
    ],
)  # fmt: skip
def test_columns_are_found_by_type(tmp_path: Path, columns: dict[str, Any], classes: tuple[str, ...]) -> None:
    found = read(save(dataset(**columns), tmp_path / "set"))
    assert found.classes.names == classes
    assert [each.bbox for each in found.objects] == [(1, 2, 3, 4)] * 2
    assert {classes[found.classes.category_ids.index(each.category_id)] for each in found.objects} == {classes[-1]}


def test_names_without_a_class_label_are_those_of_all_splits(tmp_path: Path) -> None:
    feature = datasets.Sequence({"bbox": BOX, "category": datasets.Value("string")})
    parts = {
        split: dataset(value={"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "category": names}, feature=feature)
        for split, names in (("train", ["b", "c"]), ("test", ["a", "c"]))
    }
    saved = save(datasets.DatasetDict(parts), tmp_path / "set")
    assert read(saved, "train").classes.names == read(saved, "test").classes.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"objects": (datasets.Sequence({"bbox": BOX, "category": NAMES}), {"bbox": [[1, 2, 3, 4]], "category": [-1]})},
         "unknown category: row:1: -1"),
        ({"objects": (datasets.Sequence({"bbox": BOX, "category": NAMES}), {"bbox": [[1, 2, -3, 4]], "category": [0]})},
         "negative width or height .*: row:1: "),
        ({"label": (NAMES, 0)}, "has no columns of objects with a 'bbox'. Found: image, label."),
        ({"a": ({"bbox": [BOX], "label": [NAMES]}, None), "b": ({"bbox": [BOX], "label": [NAMES]}, None)},
         "has several columns of objects with a 'bbox': a, b. Keep one, or name it 'objects'."),
        ({"objects": ({"bbox": [BOX]}, {"bbox": [[1, 2, 3, 4]]})},
         "has no columns with the classes of objects. Found: bbox."),
        ({"objects": ({"bbox": [BOX], "a": [NAMES], "b": [NAMES]}, None)},
         "several columns with the classes of objects: a, b. Keep one, or name it 'category'."),
        ({"image": (datasets.Image(), None), "objects": (datasets.Sequence({"bbox": BOX, "category": NAMES}), OBJECTS)},
         "row 1 has no image. Remove the row"),
        ({"image": (datasets.Value("string"), "a.png"), "bbox": ([BOX], []), "label": ([NAMES], [])},
         "has no image columns. Found: image, bbox, label."),
    ],
)  # fmt: skip
def test_faulty_columns(tmp_path: Path, cache: Path, columns: dict[str, Any], message: str) -> None:
    folder = save(dataset(**columns), tmp_path / "set")
    with pytest.raises(UserError, match=message):
        read(folder)
    assert not [path for path in cache.glob("*") if path.suffix == ".tmp"]


def test_two_image_columns(tmp_path: Path) -> None:
    data = (
        dataset().rename_column("image", "left").add_column("right", [None] * 2).cast_column("right", datasets.Image())
    )
    with pytest.raises(UserError, match="has several image columns: left, right. Keep one, or name it 'image'"):
        read(save(data, tmp_path / "set"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("train/data-00000-of-00001.arrow", "train cannot be loaded by the datasets library: "),
        ("train/dataset_info.json", "train cannot be loaded by the datasets library: "),
        ("train/state.json", "train cannot be loaded by the datasets library: "),
        ("dataset_dict.json", "dataset_dict.json: invalid JSON"),
    ],
)
def test_truncated_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, message: str) -> None:
    folder = save(datasets.DatasetDict({"train": dataset(), "val": dataset()}), tmp_path / "set")
    truncate(folder / file)
    assert main(["train", "deformable-detr-tiny", "--data", str(folder), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_name_of_a_split_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(UserError, match="has no list of splits"):
        find_splits(tmp_path)


def test_unsafe_and_repeated_names_of_images_are_replaced(tmp_path: Path) -> None:
    rows = [{"bytes": png(number), "path": path} for number, path in enumerate(("../a.png", "x/A.png", ".b.png", "c"))]
    features = datasets.Features(
        {"image": datasets.Image(), "objects": datasets.Sequence({"bbox": BOX, "category": NAMES})}
    )
    data = datasets.Dataset.from_dict({"image": rows, "objects": [OBJECTS] * 4}, features=features)
    names = [image.path.name for image in read(save(data, tmp_path / "set")).images]
    assert names == ["a.png", "row-00000002.png", "row-00000003.png", "row-00000004.png"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    folder = save(dataset(), tmp_path / "set")
    cache.parent.write_text("a file")
    with pytest.raises(UserError, match=r"Cannot write the images of .*set DETRS_CACHE\."):
        read(folder)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(dataset(), tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"requires the datasets library. Install it with: pip install 'detrs\[hf\]'"):
        read(folder)


class Hub:
    """Replaces the requests to the Hub."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: Any) -> None:
        import huggingface_hub

        self.data, self.requests, self.is_reachable = data, [], True
        hub = self

        class Api:
            def dataset_info(self, name: str, *, revision: str | None, timeout: float) -> Any:
                hub.requests.append((name, revision))
                if not hub.is_reachable:
                    raise OSError("no network")
                return type("Info", (), {"sha": "abc"})

        def load(name: str, *, revision: str) -> Any:
            assert revision == "abc"
            return self.data

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(datasets, "load_dataset", load)


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = Hub(monkeypatch, datasets.DatasetDict({"train": dataset(2), "validation": dataset(1)}))
    source = Path("hf:someone/pets@v1.0")
    assert [split.name for split in find_splits(source)] == ["train", "validation"]
    assert len(read(source, "train").images) == 2
    assert hub.requests == [("someone/pets", "v1.0")]  # one request in each process

    huggingface_datasets._download.cache_clear()
    hub.is_reachable = False
    assert len(read(source, "train").images) == 2  # from the cache
    with pytest.raises(UserError, match=r"hf:someone/pets@v1.0' is not in the cache, and .* cannot be reached"):
        read(source, "val")
    with pytest.raises(UserError, match=r"hf:someone/pets' is not in the cache, and .* cannot be reached \(OSError\)"):
        find_splits(Path("hf:someone/pets"))


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:../x", "hf:/etc", "hf:a b", "hf:a/b@", "hf:a@-x"])
def test_faulty_names_of_the_hub(name: str) -> None:
    with pytest.raises(UserError, match=r"Expected hf:OWNER/NAME\[@REVISION\]"):
        find_splits(Path(name))


def test_the_hub_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = Hub(monkeypatch, None)
    hub.is_reachable = False
    check_data_exists("hf:someone/pets")  # of a resumed run
    assert main(["train", "deformable-detr-tiny", "--data", "hf:someone/pets", "--output", "run"]) == 2
    assert "'hf:someone/pets' is not in the cache" in capsys.readouterr().err
    hub.is_reachable = True
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ValueError("Config name.\nx")))
    assert main(["train", "deformable-detr-tiny", "--data", "hf:someone/pets", "--output", "run"]) == 2
    assert "'someone/pets' cannot be loaded: ValueError: Config name." in capsys.readouterr().err


def test_a_local_folder_has_priority_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(dataset(), tmp_path / "hf:set")
    assert len(read(Path("hf:set")).images) == 2
