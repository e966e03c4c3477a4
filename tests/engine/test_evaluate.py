import dataclasses
import gc
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from run_tiny import Tiny, training
from torchvision import tv_tensors

import detrs
from detrs import models
from detrs.boxes import xyxy_to_cxcywh
from detrs.checkpoints import format
from detrs.checkpoints.detector import TrainedDetector, load_detector, preprocessing_of, save_detector
from detrs.checkpoints.sources import open_detector
from detrs.config import RuntimeConfig
from detrs.data.sample import Sample
from detrs.engine import trainer
from detrs.engine.evaluate import Scores, evaluate, evaluate_checkpoint
from detrs.engine.report import report_values
from detrs.engine.runtime import Runtime
from detrs.engine.trainer import Trainer
from detrs.engine.validation import validating
from detrs.errors import UserError
from detrs.evaluation.coco import coco_report
from detrs.models.detector import Model
from detrs.presets import preset
from detrs.structures import Boxes, Classes


@pytest.fixture(scope="module")
def run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scores]:
    """The best checkpoint of a run, and its evaluation in training."""
    output = tmp_path_factory.mktemp("evaluate") / "run"
    recorded: list[Scores] = []
    record = Trainer.record

    def remember(self: Trainer, scores: Scores) -> bool:
        recorded.append(scores)
        return record(self, scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "record", remember)
        for name in ("save_training_batch", "save_predictions", "save_curves"):
            patch.setattr(trainer, name, lambda *arguments: None)
        list(training(tiny.experiment(evaluation={"batch_size": 2}), output))
    best = max(recorded, key=lambda scores: (scores.report.ap or 0.0, recorded.index(scores)))
    return output / "best.safetensors", best


def test_checkpoint_alone_gives_the_results_of_training(
    run: tuple[Path, Scores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, in_training = run
    alone = tmp_path / "copied.safetensors"
    alone.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    scores = evaluate_checkpoint(alone, data=Tiny("val"), device="cpu")
    assert len(scores.results) == 5 * 100
    # Not to the bit: where the weights lie in memory decides in which order convolutions add on some CPUs.
    assert sorted(x["score"] for x in scores.results) == pytest.approx(
        sorted(x["score"] for x in in_training.results), abs=1e-5
    )
    assert scores.report.scalars() == pytest.approx(in_training.report.scalars(), abs=1e-3)
    assert scores.report.scalars() == pytest.approx(format.read_meta(alone)["scores"], abs=1e-3)


def test_the_threshold_of_the_best_f1_is_stored(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All objects but those of class 3 are found with a score of 0.8, beside as many detections of nothing at 0.4."""
    truth = Tiny("val").ground_truth()
    results: list[dict[str, Any]] = []
    for each in truth["annotations"]:
        x, y, w, h = each["bbox"]
        found = {"image_id": each["image_id"], "category_id": each["category_id"]}
        if each["category_id"] != 3:
            results.append(found | {"bbox": [x, y, w, h], "score": 0.8})
        results.append(found | {"bbox": [x + 1000, y, w, h], "score": 0.4})
    monkeypatch.setattr(Trainer, "evaluate", lambda self: Scores(coco_report(truth, results), results))
    experiment = tiny.experiment(schedule={"epochs": 1})
    list(training(experiment, tmp_path / "run"))
    path = tmp_path / "run" / "best.safetensors"
    meta, saved = format.read_meta(path), load_detector(path)
    assert saved.threshold == meta["threshold"] == 0.6 and saved.class_thresholds == meta["class_thresholds"]
    present = {str(each["category_id"]) for each in truth["annotations"]} - {"3"}
    assert saved.class_thresholds == {name: 0.6 if name in present else None for name in "0123456789"}
    assert detrs.load(path, device="cpu").threshold == 0.6


def test_meta_is_enough_to_predict(run: tuple[Path, Scores], tiny: ModuleType) -> None:
    meta = format.read_meta(run[0])
    assert meta["classes"] == {"names": list("0123456789"), "category_ids": list(range(10))}
    assert meta["preprocessing"] == {"resize_to": [64, 96], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
    assert meta["experiment"]["model"]["num_classes"] == 10
    assert {"detrs", "scores", "step", "epoch", "format"} <= set(meta)
    saved = load_detector(run[0])
    assert not saved.module.training and saved.scores == meta["scores"] and saved.classes.names == tuple("0123456789")
    assert saved.experiment.data == dataclasses.replace(
        tiny.EXPERIMENT.data, mirror=False, path=None
    )  # digits, in Python


def test_scores_do_not_keep_the_weights(
    run: tuple[Path, Scores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = []
    save_detector(tmp_path / "best.safetensors", dataclasses.replace(load_detector(run[0]), threshold=0.25))

    def opened(path: Path) -> Any:
        detector = open_detector(path)
        modules.append(weakref.ref(detector.module))
        return detector

    monkeypatch.setattr("detrs.engine.evaluate.open_detector", opened)
    scores = evaluate_checkpoint(tmp_path / "best.safetensors", data=Tiny("val"), device="cpu", diagnose=True)
    gc.collect()
    assert [module() for module in modules] == [None]
    assert scores.diagnosis.layers[-1].ap == scores.report.ap
    assert (scores.diagnosis.threshold, scores.diagnosis.threshold_origin) == (0.25, "checkpoint")


def test_a_report_does_not_name_the_training_images_for_data_in_python() -> None:
    """The checkpoint has the path of its training images."""
    experiment = preset("deformable-detr-tiny")
    trained = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path="train/cells"))
    report = Scores(
        coco_report(Tiny("val").ground_truth(), []), [], Tiny("val"), validating(trained, Tiny("val"), None)
    )
    values = report_values(report)
    assert values["name"] == "DeformableDETR on data in Python"
    assert values["about"].startswith("deformable-detr-tiny, data in Python, image size")
    own, other = (validating(trained, data, None).data.path for data in (None, Path("other/cells")))
    assert (own, other) == ("train/cells", "other/cells")


def test_settings_can_be_overridden(run: tuple[Path, Scores]) -> None:
    path, in_training = run
    larger = evaluate_checkpoint(path, data=Tiny("val"), device="cpu", resize_to=(96, 160))
    assert larger.results != in_training.results
    assert len(evaluate_checkpoint(path, data=Tiny("val"), device="cpu", max_detections=7).results) == 5 * 7


def test_a_precision_that_is_given_needs_no_environment_variable(
    run: tuple[Path, Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETRS_PRECISION", "fp16")  # which a CPU does not have
    assert evaluate_checkpoint(run[0], data=Tiny("val"), device="cpu", precision="fp32").results


def test_the_precision_of_a_file_needs_no_support_of_the_device(
    run: tuple[Path, Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported files compute in their own precision, here fp16, which training on a CPU does not have."""
    exported = dataclasses.replace(load_detector(run[0]), own_precision="fp16")
    monkeypatch.setattr("detrs.engine.evaluate.open_detector", lambda path: exported)
    given = evaluate_checkpoint(run[0], data=Tiny("val"), device="cpu", precision="fp16")
    assert given.results == evaluate_checkpoint(run[0], data=Tiny("val"), device="cpu").results
    with pytest.raises(UserError, match="an exported file has its own, fp16"):
        evaluate_checkpoint(run[0], data=Tiny("val"), device="cpu", precision="bf16")


def test_classes_are_matched_by_name_whatever_their_order_and_ids(
    run: tuple[Path, Scores],
) -> None:
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]  # label in the reordered set -> label in training

    class Reordered(Tiny):
        def __init__(self, split: str) -> None:
            super().__init__(split)
            self.classes = self.classes._replace(
                names=tuple(str(label) for label in order), category_ids=tuple(100 + 7 * i for i in range(10))
            )

        def ground_truth(self) -> dict[str, Any]:
            truth = super().ground_truth()
            number = dict(zip(self.classes.names, self.classes.category_ids, strict=True))
            new = {old: number[str(label)] for label, old in enumerate(range(10))}
            base = Tiny(self.split).ground_truth()
            annotations = [{**a, "category_id": new[a["category_id"]]} for a in base["annotations"]]
            return {**truth, "annotations": annotations}

    path, in_training = run
    scores = evaluate_checkpoint(path, data=Reordered("val"), device="cpu")
    for name in ("ap", "ap50", "ar100"):
        assert getattr(scores.report, name) == pytest.approx(getattr(in_training.report, name), abs=1e-12)
    by_label = {r["category_id"] for r in scores.results}
    assert by_label <= {100 + 7 * i for i in range(10)}
    ids = {int(name): id_ for name, id_ in zip(map(str, order), (100 + 7 * i for i in range(10)), strict=True)}
    assert [r["category_id"] for r in scores.results] == [ids[r["category_id"]] for r in in_training.results]


def test_missing_classes_are_listed(run: tuple[Path, Scores]) -> None:
    other = Tiny("val")
    other.classes = other.classes._replace(names=("cat", "dog", *other.classes.names[2:]))
    with pytest.raises(UserError, match="does not have all classes of the dataset: cat, dog are missing. Its .* 0, 1"):
        evaluate_checkpoint(run[0], data=other, device="cpu")


class Some(Tiny):
    """The validation images with the objects of some classes only, whose names are spelled differently."""

    NAMES = ("Seven ", "3")

    def __init__(self) -> None:
        super().__init__("val")
        self.classes = Classes(self.NAMES, (70, 30))

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        kept = [i for i, label in enumerate(sample.labels.tolist()) if label in (7, 3)]
        labels = torch.tensor([(7, 3).index(int(sample.labels[i])) for i in kept], dtype=torch.long)
        boxes = tv_tensors.BoundingBoxes(sample.boxes[kept], format="XYXY", canvas_size=sample.boxes.canvas_size)
        return sample._replace(boxes=boxes, labels=labels)

    def ground_truth(self) -> dict[str, Any]:
        base, ids = Tiny("val").ground_truth(), {7: 70, 3: 30}
        annotations = [
            {**a, "category_id": ids[a["category_id"]]} for a in base["annotations"] if a["category_id"] in ids
        ]
        categories = [{"id": ids[label], "name": name} for label, name in zip((7, 3), self.NAMES, strict=True)]
        return {**base, "annotations": annotations, "categories": categories}


@pytest.fixture(scope="module")
def renamed(run: tuple[Path, Scores], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector of ``run`` whose class 7 is named in a word and whose class 0 is unused."""
    path = tmp_path_factory.mktemp("renamed") / "best.safetensors"
    names = ("N/A 0", *"123456", "seven", "8", "9")
    save_detector(path, dataclasses.replace(load_detector(run[0]), classes=Classes(names, tuple(range(10)))))
    return path


def test_other_classes_of_the_checkpoint_are_not_scored(
    run: tuple[Path, Scores], renamed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The detections of the others are those of an evaluation of all classes."""
    everything = evaluate_checkpoint(run[0], data=Tiny("val"), device="cpu")
    assert "not scored" not in caplog.text
    scores = evaluate_checkpoint(renamed, data=Some(), device="cpu")
    ids = {7: 70, 3: 30}
    expected = [{**r, "category_id": ids[r["category_id"]]} for r in everything.results if r["category_id"] in ids]
    assert 0 < len(expected) < len(everything.results)
    for kind in ("score", "category_id", "image_id"):  # not to the bit, as above
        values = [sorted(result[kind] for result in results) for results in (scores.results, expected)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
    for name, old in (("Seven ", "7"), ("3", "3")):
        assert scores.report.per_class[name] == pytest.approx(everything.report.per_class[old], abs=1e-3)
    assert (
        caplog.messages.count("classes that are not in the dataset are not scored: N/A 0, 1, 2, 4, 5 and 3 more") == 1
    )


def test_an_unused_class_is_missing(renamed: Path) -> None:
    other = Some()
    other.classes = Classes(("seven", "N/A 0"), (70, 30))
    with pytest.raises(UserError, match="N/A 0 is missing"):
        evaluate_checkpoint(renamed, data=other, device="cpu")


def test_data_set_of_training_that_is_gone_gives_the_flag(run: tuple[Path, Scores]) -> None:
    with pytest.raises(UserError, match="does not contain the path of a dataset.*: pass data="):
        evaluate_checkpoint(run[0], device="cpu")


def test_object_without_the_protocol_is_refused(run: tuple[Path, Scores]) -> None:
    with pytest.raises(UserError, match="data: expected a dataset, .* got list without classes"):
        evaluate_checkpoint(run[0], data=[], device="cpu")  # type: ignore[arg-type]


def test_training_state_is_no_detector(run: tuple[Path, Scores]) -> None:
    with pytest.raises(UserError, match="is a training state, not a detector.*best.safetensors"):
        evaluate_checkpoint(run[0].with_name("last.safetensors"), device="cpu")


class Perfect(Model):
    """Detects every object of the validation images, which it receives in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def objective(self, config: Any) -> Any:
        raise NotImplementedError

    def detect(self, images: torch.Tensor, padding: torch.Tensor, max_detections: int = 100) -> Boxes:
        assert not self.training and not torch.is_grad_enabled()
        boxes, scores = torch.full((len(images), 17, 4), 0.5), torch.zeros(len(images), 17)
        labels = torch.zeros(len(images), 17, dtype=torch.long)
        for i in range(len(images)):
            sample = Tiny("val")[self.seen]
            height, width = sample.original_size
            corners = sample.boxes.as_subclass(torch.Tensor) / torch.tensor([width, height, width, height])
            count = len(sample.labels)
            boxes[i, :count] = xyxy_to_cxcywh(corners)
            scores[i, :count] = torch.linspace(0.9, 0.8, count)
            labels[i, :count] = sample.labels
            self.seen += 1
        return Boxes(boxes, scores, labels)  # padded with boxes of score 0


def trained(tiny: ModuleType, module: Model, batch_size: int) -> TrainedDetector:
    experiment = tiny.experiment(evaluation={"batch_size": batch_size})
    return TrainedDetector(
        module=module,
        classes=Tiny("val").classes,
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=0,
        epoch=1,
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_perfect_detector_scores_one_at_any_batch_size(tiny: ModuleType, batch_size: int) -> None:
    module = Perfect().train()
    scores = evaluate(trained(tiny, module, batch_size), Tiny("val"), Runtime(RuntimeConfig(device="cpu")))
    assert scores.report.ap == pytest.approx(1.0) and scores.report.num_images == 5
    assert len(scores.results) == len(Tiny("val").ground_truth()["annotations"])  # without the padding
    assert module.training  # as before


def test_skipped_images_are_reported(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiny, "num_skipped", 2, raising=False)
    scores = evaluate(trained(tiny, Perfect(), 2), Tiny("val"), Runtime(RuntimeConfig(device="cpu")))
    assert scores.report.num_skipped == scores.report.to_json()["num_skipped"] == 2


def test_detector_is_in_its_mode_again_after_an_error(tiny: ModuleType) -> None:
    def unreadable(index: int) -> None:
        raise UserError("no image")

    module = Perfect().train()
    with pytest.raises(UserError, match="no image"):
        evaluate(trained(tiny, module, 2), Tiny("val", unreadable), Runtime(RuntimeConfig(device="cpu")))
    assert module.training


def edited(path: Path, to: Path, tensors: dict[str, Any] | None = None, **meta: Any) -> Path:
    """A copy of a checkpoint, as another version of detrs might have written it."""
    checkpoint = format.load(path)
    kept = {**checkpoint.tensors, **(tensors or {})}
    format.save(to, {name: t for name, t in kept.items() if t is not None}, {**checkpoint.meta, **meta})
    return to


def test_detector_of_other_shapes_or_names_is_refused_with_both_versions(
    run: tuple[Path, Scores], tmp_path: Path
) -> None:
    names = [name for name in format.load(run[0]).tensors if "decoder" in name]
    missing = dict.fromkeys(names[:7])
    changed = {names[8]: torch.zeros(2, 3, 5), "decoder.new": torch.zeros(1)}
    path = edited(run[0], tmp_path / "other.safetensors", {**missing, **changed}, detrs="9.9.9")
    with pytest.raises(UserError, match=r"written by detrs 9\.9\.9, read with detrs ") as raised:
        load_detector(path)
    message = str(raised.value)
    assert str(path) in message and "and 4 more" in message and "Traceback" not in message and "\n" not in message
    assert sum(name in message for name in [*names, "decoder.new"]) == 5


def test_settings_of_a_newer_version_are_refused_with_both_versions(run: tuple[Path, Scores], tmp_path: Path) -> None:
    experiment = format.read_meta(run[0])["experiment"]
    experiment["model"]["num_qeries"] = 3
    path = edited(run[0], tmp_path / "newer.safetensors", experiment=experiment, detrs="9.9.9")
    with pytest.raises(
        UserError, match=r"written by detrs 9\.9\.9, read with detrs .*num_qeries.*num_queries"
    ) as raised:
        load_detector(path)
    assert str(path) in str(raised.value)
    broken = edited(run[0], tmp_path / "broken.safetensors", classes={"names": ["a"]})
    with pytest.raises(UserError, match=r"broken.safetensors.*category_ids"):
        load_detector(broken)


class Rank(Runtime):
    """One of several processes, without the others: what it would send is kept."""

    def __init__(self, rank: int, world_size: int, others: list[Any]) -> None:
        super().__init__(RuntimeConfig(device="cpu"))
        self.rank, self.world_size, self.others = rank, world_size, others

    def gather(self, items: list[Any]) -> list[Any]:
        self.others.extend(items)
        return list(self.others)

    def from_main(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_share_the_images_and_give_the_results_of_one(tiny: ModuleType, world_size: int) -> None:
    torch.manual_seed(0)
    detector = trained(tiny, models.build(dataclasses.replace(tiny.MODEL, num_classes=10)), batch_size=2)
    others: list[Any] = []
    expected = evaluate(detector, Tiny("val"), Runtime(RuntimeConfig(device="cpu")))
    for rank in reversed(range(world_size)):  # the main process last: it gathers everything
        found = evaluate(detector, Tiny("val"), Rank(rank, world_size, others))
    assert found.results == expected.results and found.report == expected.report


def test_diverged_detector_is_refused(tiny: ModuleType) -> None:
    detector = models.build(dataclasses.replace(tiny.MODEL, num_classes=10))
    with torch.no_grad():
        for parameter in detector.get_submodule("decoder").parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="diverged"):
        evaluate(trained(tiny, detector, 5), Tiny("val"), Runtime(RuntimeConfig(device="cpu")))
