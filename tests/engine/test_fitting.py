"""Settings that follow from the training images."""

import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from detrs.checkpoints import sources
from detrs.cli import train
from detrs.cli.train import as_saved, fitted_to_data, given_settings
from detrs.config import Experiment, save, validate, with_setting
from detrs.data import open_dataset
from detrs.data.opening import open_splits, open_training_part
from detrs.engine.fitting import TrainingImages, fitted, training_images
from detrs.errors import counted
from detrs.presets import preset
from detrs.presets.fitted import FITTED, FITTED_SETTINGS

SMALL = preset("dino-small")  # 288 x 384, batch 4, 100 queries
LARGE_BOXES = ((288, 384, 40.0),) * 20


def facts(images: int = 205, most: int = 20, boxes: Any = LARGE_BOXES) -> TrainingImages:
    return TrainingImages(images=images, most_objects=most, boxes=boxes)


@pytest.mark.parametrize(
    ("images", "epochs", "batch"),
    [(205, 59, 4), (88, 136, 4), (20, 300, 4), (7, 300, 4), (1, 300, 4), (1999, 12, 4), (2000, 12, 8), (500, 24, 4)],
)
def test_epochs_make_about_equal_numbers_of_steps(images: int, epochs: int, batch: int) -> None:
    found, reasons = fitted(SMALL, facts(images))
    assert (found.schedule.epochs, found.data.batch_size) == (epochs, batch)
    assert any(
        reason.startswith(f"schedule.epochs {epochs} instead of 60: {counted(images, 'image')},") for reason in reasons
    )


def test_average_and_evaluations_follow_from_the_steps() -> None:
    found, _ = fitted(SMALL, facts(20))  # 300 epochs of 5 steps
    assert found.optimizer.ema_decay == 0.996 and found.evaluation.every_epochs == 25
    assert fitted(SMALL, facts(205))[0].optimizer.ema_decay == 0.998


def test_queries_and_detections_for_the_image_with_most_objects() -> None:
    found, reasons = fitted(SMALL, facts(most=130))
    assert found.model.num_queries == 300 and found.evaluation.max_detections == 200  # type: ignore[union-attr]
    assert "model.num_queries 300 instead of 100: two for each object of the image with most, 130" in reasons
    assert fitted(SMALL, facts(most=3))[0].model.num_queries == 100  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("side", "stages", "size"),
    [
        (8.0, (3, 4, 5), (288, 384)),
        (7.9, (2, 3, 4), (288, 384)),
        (4.0, (2, 3, 4), (288, 384)),
        (3.2, (2, 3, 4), (384, 480)),
        (2.7, (2, 3, 4), (416, 576)),
        (0.5, (2, 3, 4), (416, 576)),
    ],
)
def test_finer_maps_and_then_larger_images_for_small_objects(
    side: float, stages: tuple[int, ...], size: tuple[int, int]
) -> None:
    """Of the objects of images of 288 x 384, a fifth is small; cells of the finest map have 8 pixels, then 4."""
    boxes = ((288, 384, side),) * 4 + LARGE_BOXES[:16]
    found, reasons = fitted(SMALL, facts(boxes=boxes))
    assert (found.model.backbone.stages, found.data.resize_to) == (stages, size)
    told = {reason.split(" ")[0] for reason in reasons}
    assert ("model.backbone.stages" in told) == (stages != (3, 4, 5))
    assert ("data.resize_to" in told) == (size != (288, 384))


@pytest.mark.parametrize(("side", "size"), [(8.0, (288, 384)), (6.4, (384, 480)), (1.0, (416, 576))])
def test_only_larger_images_where_the_maps_are_given(side: float, size: tuple[int, int]) -> None:
    boxes = ((288, 384, side),) * 4 + LARGE_BOXES[:16]
    found, _ = fitted(SMALL, facts(boxes=boxes), {"model.backbone.stages"})
    assert (found.model.backbone.stages, found.data.resize_to) == ((3, 4, 5), size)
    boxes = ((288, 384, side / 2),) * 4 + LARGE_BOXES[:16]
    found, _ = fitted(preset("faster-rcnn-small"), facts(boxes=boxes))  # it has C2 already
    assert (found.model.backbone.stages, found.data.resize_to) == ((2, 3, 4, 5), size)


def test_a_few_small_objects_do_not_change_the_size() -> None:
    assert fitted(SMALL, facts(boxes=((288, 384, 1.0), *LARGE_BOXES)))[0].data.resize_to == (288, 384)


@pytest.mark.parametrize("place", FITTED_SETTINGS)
def test_given_settings_stay(place: str) -> None:
    boxes = ((288, 384, 2.0),) * 9
    found, reasons = fitted(SMALL, facts(2500, 300, boxes), {place})
    assert attrgetter(place)(found) == attrgetter(place)(SMALL)
    assert not any(reason.startswith(place) for reason in reasons)


@pytest.mark.parametrize("name", FITTED)
def test_every_result_is_valid(name: str) -> None:
    for data in (facts(1, 0, ()), facts(10_000, 900, ((10, 4000, 0.5),))):
        validate(fitted(preset(name), data)[0])


def write(folder: Path, boxes: list[list[float]]) -> None:
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(folder / "images" / split / "a.png")
        found = [{"id": i, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0} for i, box in enumerate(boxes)]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
            "annotations": [{**each, "area": each["bbox"][2] * each["bbox"][3]} for each in found],
            "categories": [{"id": 1, "name": "x"}],
        }
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def test_facts_of_a_dataset(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 8, 18], [5, 5, 9, 4]])
    found = training_images(open_dataset(str(tmp_path), "train"))
    assert found == TrainingImages(images=1, most_objects=2, boxes=((30, 40, 12.0), (30, 40, 6.0)))


def test_the_command_prints_reasons_and_keeps_what_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [[1, 2, 8, 18]])

    def read(experiment: Experiment, *words: str, quiet: bool = False) -> Experiment:
        path = replace(experiment, data=replace(experiment.data, path=str(tmp_path)))
        return fitted_to_data(path, given_settings(list(words)), quiet=quiet)

    found = read(SMALL, "--image-size", "288", "384", "--optimizer.ema-decay=0.998")
    assert found.schedule.epochs == 300 and found.optimizer.ema_decay == 0.998
    text = capsys.readouterr().err
    assert "--epochs 300 instead of 60: 1 image, 300 steps of 4 images; at most 300 epochs" in text
    assert "--fixed-settings" in text
    read(SMALL, quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_a_dataset_without_splits_and_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float | None
) -> None:
    """As it is trained: all images, or those that are not held out."""
    write(tmp_path, [[1, 2, 8, 18]])
    (tmp_path / "annotations" / "val.json").unlink()
    found = json.loads((tmp_path / "annotations" / "train.json").read_text())
    found["images"] = [{**found["images"][0], "id": id_, "file_name": f"{id_}.png"} for id_ in range(1, 5)]
    found["annotations"] = [{**found["annotations"][0], "id": id_, "image_id": id_} for id_ in range(1, 5)]
    (tmp_path / "annotations" / "train.json").unlink()
    (tmp_path / "annotations.json").write_text(json.dumps(found))
    for id_ in range(1, 5):
        Image.new("RGB", (40, 30), (id_, 0, 0)).save(tmp_path / "images" / f"{id_}.png")
    monkeypatch.setenv("DETRS_CACHE", str(tmp_path / "cache"))
    experiment = replace(
        SMALL,
        data=replace(
            SMALL.data, path=str(tmp_path), val_split="none" if fraction is None else "val", val_fraction=fraction
        ),
        runtime=replace(SMALL.runtime, cache_annotations=False),
    )
    fitted_to_data(experiment, (), quiet=True)
    part = open_training_part(experiment.data, cache_annotations=False)
    assert len(part) == (4 if fraction is None else 2)
    assert part.fingerprint() == open_splits(experiment.data, cache_annotations=False)[0].fingerprint()
    assert not (tmp_path / "cache").exists()


def test_steps_are_those_of_the_training() -> None:
    """The incomplete last batch of an epoch is dropped: seven images are one step of four."""
    found, reasons = fitted(SMALL, facts(7))
    assert found.optimizer.ema_decay == 0.98
    assert "schedule.epochs 300 instead of 60: 7 images, 300 steps of 4 images; at most 300 epochs" in reasons


def test_with_a_time_limit_the_steps_are_not_known() -> None:
    limited = replace(SMALL, schedule=replace(SMALL.schedule, max_minutes=5.0))
    found, _ = fitted(limited, facts(20, 130))
    assert found.schedule == limited.schedule and found.optimizer == limited.optimizer
    assert found.evaluation.every_epochs == limited.evaluation.every_epochs
    assert found.model.num_queries == 300  # type: ignore[union-attr]


def test_a_repeated_command_resumes_with_the_settings_of_the_run(tmp_path: Path) -> None:
    before, _ = fitted(SMALL, facts(88, 130, ((288, 384, 5.0),)))
    assert before.model.backbone.stages == (2, 3, 4)
    (tmp_path / "run").mkdir()
    save(before, tmp_path / "run" / "experiment.json")
    assert as_saved(SMALL, tmp_path / "run", set()) == before
    longer = replace(SMALL, schedule=replace(SMALL.schedule, epochs=500))
    save(preset("faster-rcnn-small"), tmp_path / "run" / "experiment.json")  # which has no queries
    assert as_saved(SMALL, tmp_path / "run", set()).model == SMALL.model
    save(before, tmp_path / "run" / "experiment.json")
    found = as_saved(longer, tmp_path / "run", given_settings(["--epochs", "500"]))
    assert found.schedule.epochs == 500 and found.model == before.model


def trained(monkeypatch: pytest.MonkeyPatch, *words: str) -> Experiment:
    """The experiment that ``detrs train`` passes to the engine."""

    class Stop(Exception):
        """Instead of a training."""

    def stop(experiment: Experiment, *arguments: object, **options: object) -> None:
        found.append(experiment)
        raise Stop

    found: list[Experiment] = []
    monkeypatch.setattr("detrs.engine.train.train", stop)
    monkeypatch.setattr("detrs.cli.cores.threads_beside_others", lambda runtime: None)
    with pytest.raises(Stop):
        train.run([*words, "--quiet"])
    return found[0]


def test_the_model_and_the_size_of_initial_weights_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data", [[i / 2, 2, 0.4, 0.4] for i in range(70)])
    words = ("--data", str(tmp_path / "data"))
    start = trained(monkeypatch, "dino-small", *words)
    assert start.model.backbone.stages == (2, 3, 4) and start.data.resize_to != SMALL.data.resize_to
    of_weights = replace(SMALL, initial="best.safetensors")
    monkeypatch.setattr(train, "of_weights", lambda source, argv: of_weights)
    found = trained(monkeypatch, "--weights", "best.safetensors", *words)
    assert found == replace(of_weights, data=replace(SMALL.data, path=str(tmp_path / "data")))


@pytest.mark.parametrize("stages", [(3, 4, 5), (2, 3, 4)])
@pytest.mark.parametrize("small", [False, True])
def test_the_feature_maps_of_initial_weights_stay(
    stages: tuple[int, ...], small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With a preset; its other settings follow from the data."""
    write(tmp_path, [[i / 2, 2, *((0.4, 0.4) if small else (9, 9))] for i in range(70)])
    weights = with_setting(SMALL, "model.backbone.stages", stages)
    monkeypatch.setattr(sources, "open_weights", lambda source: SimpleNamespace(experiment=weights))
    given = replace(SMALL, initial="best.safetensors", data=replace(SMALL.data, path=str(tmp_path)))
    found = fitted_to_data(given, (), quiet=False)
    assert found.model.backbone == weights.model.backbone and found.schedule.epochs == 300
    assert found.model.num_queries == 150  # type: ignore[union-attr]
    reason = "--model.backbone.stages 2 3 4 instead of 3 4 5: those of the initial weights"
    assert (reason in capsys.readouterr().err) == (stages == (2, 3, 4))
    stays = fitted_to_data(given, ("model.backbone.stages",), quiet=True)
    assert stays.model.backbone == SMALL.model.backbone
