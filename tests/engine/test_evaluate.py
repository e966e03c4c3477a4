import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detrs.engine.detector_file import load_detector

from detrs import models
from detrs.checkpoints import format
from detrs.classification import Focal
from detrs.config import RuntimeConfig
from detrs.engine import evaluate as module
from detrs.engine import trainer
from detrs.engine.evaluate import Scores, evaluate, evaluate_checkpoint
from detrs.engine.runtime import Runtime
from detrs.engine.train import training
from detrs.engine.trainer import Trainer
from detrs.errors import UserError


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
        patch.setattr(trainer, "open_dataset", tiny.open_dataset)
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
    scores = evaluate_checkpoint(alone, device="cpu")
    assert len(scores.results) == 5 * 100
    # Not to the bit: where the weights lie in memory decides in which order convolutions add on some CPUs.
    assert sorted(x["score"] for x in scores.results) == pytest.approx(
        sorted(x["score"] for x in in_training.results), abs=1e-5
    )
    assert scores.report.scalars() == pytest.approx(in_training.report.scalars(), abs=1e-3)
    assert scores.report.scalars() == pytest.approx(format.read_meta(alone)["scores"], abs=1e-3)


def test_meta_is_enough_to_predict(run: tuple[Path, Scores], tiny: ModuleType) -> None:
    meta = format.read_meta(run[0])
    assert meta["classes"] == {"names": list("0123456789"), "category_ids": list(range(10))}
    assert meta["preprocessing"] == {"image_size": [64, 96], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
    assert meta["experiment"]["model"]["num_classes"] == 10
    assert {"detrs", "scores", "step", "epoch", "format"} <= set(meta)
    saved = load_detector(run[0])
    assert not saved.detector.training and saved.classes.names == tuple("0123456789")
    assert saved.experiment.data == dataclasses.replace(tiny.EXPERIMENT.data, mirror=False)  # digits


def test_settings_can_be_overridden(run: tuple[Path, Scores]) -> None:
    path, in_training = run
    larger = evaluate_checkpoint(path, device="cpu", image_size=(96, 160))
    assert larger.results != in_training.results
    assert len(evaluate_checkpoint(path, device="cpu", max_detections=7).results) == 5 * 7


def test_classes_are_matched_by_name_whatever_their_order_and_ids(
    run: tuple[Path, Scores], tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]  # label in the reordered set -> label in training

    class Reordered(tiny.Tiny):  # type: ignore[name-defined,misc]
        def __init__(self, split: str) -> None:
            super().__init__(split)
            self.classes = self.classes._replace(
                names=tuple(str(label) for label in order), category_ids=tuple(100 + 7 * i for i in range(10))
            )

        def ground_truth(self) -> dict[str, Any]:
            truth = super().ground_truth()
            number = dict(zip(self.classes.names, self.classes.category_ids, strict=True))
            new = {old: number[str(label)] for label, old in enumerate(range(10))}
            base = tiny.Tiny(self.split).ground_truth()
            annotations = [{**a, "category_id": new[a["category_id"]]} for a in base["annotations"]]
            return {**truth, "annotations": annotations}

    path, in_training = run
    monkeypatch.setattr(module, "open_dataset", lambda path, split: Reordered(split))
    scores = evaluate_checkpoint(path, device="cpu")
    for name in ("ap", "ap50", "ar100"):
        assert getattr(scores.report, name) == pytest.approx(getattr(in_training.report, name), abs=1e-12)
    by_label = {r["category_id"] for r in scores.results}
    assert by_label <= {100 + 7 * i for i in range(10)}
    ids = {int(name): id_ for name, id_ in zip(map(str, order), (100 + 7 * i for i in range(10)), strict=True)}
    assert [r["category_id"] for r in scores.results] == [ids[r["category_id"]] for r in in_training.results]


def test_other_classes_are_refused_with_both_lists(
    run: tuple[Path, Scores], tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_dataset(path: str, split: str) -> Any:
        dataset = tiny.Tiny(split)
        dataset.classes = dataset.classes._replace(names=("cat", *dataset.classes.names[1:]))
        return dataset

    monkeypatch.setattr(module, "open_dataset", open_dataset)
    with pytest.raises(UserError, match="has 0, 1, 2.*data set 'tiny' has cat, 1, 2"):
        evaluate_checkpoint(run[0], device="cpu")


def test_training_state_is_no_detector(run: tuple[Path, Scores]) -> None:
    with pytest.raises(UserError, match="state of a training run.*best.safetensors"):
        evaluate_checkpoint(run[0].with_name("last.safetensors"), device="cpu")


def perfect(tiny: ModuleType) -> torch.nn.Module:
    """A detector that finds every object of the validation pictures, in the order in which it is shown them."""

    class Perfect(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shown = 0

        def forward(self, images: torch.Tensor, padding: torch.Tensor) -> Any:
            from detrs.structures import Prediction, Predictions

            assert not self.training and not torch.is_grad_enabled()
            logits = torch.full((len(images), 17, 10), -20.0)
            boxes = torch.full((len(images), 17, 4), 0.5)
            dataset = tiny.Tiny("val")
            for i in range(len(images)):
                sample = dataset[self.shown]
                height, width = sample.original_size
                corners = sample.boxes.as_subclass(torch.Tensor) / torch.tensor([width, height, width, height])
                for query, (box, label) in enumerate(zip(corners, sample.labels, strict=True)):
                    boxes[i, query] = torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])
                    logits[i, query, label] = 5.0 - query / 10
                self.shown += 1
            return Predictions((Prediction(logits, boxes),), None)

    return Perfect().train()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_perfect_detector_scores_one_at_any_batch_size(tiny: ModuleType, batch_size: int) -> None:
    detector = perfect(tiny)
    scores = evaluate(
        detector,
        tiny.Tiny("val"),
        image_size=(64, 96),
        batch_size=batch_size,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        runtime=Runtime(RuntimeConfig(device="cpu")),
        classification=Focal(),
    )
    assert scores.report.ap == pytest.approx(1.0) and scores.report.num_images == 5
    assert detector.training  # as it was


def test_detector_is_in_its_mode_again_after_an_error(tiny: ModuleType) -> None:
    def unreadable(index: int) -> None:
        raise UserError("no picture")

    detector = perfect(tiny)
    with pytest.raises(UserError, match="no picture"):
        evaluate(
            detector,
            tiny.Tiny("val", unreadable),
            image_size=(64, 96),
            batch_size=2,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            runtime=Runtime(RuntimeConfig(device="cpu")),
            classification=Focal(),
        )
    assert detector.training


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
    with pytest.raises(UserError, match=r"written by detrs 9\.9\.9, this is ") as raised:
        load_detector(path)
    message = str(raised.value)
    assert str(path) in message and "and 4 more" in message and "Traceback" not in message and "\n" not in message
    assert sum(name in message for name in [*names, "decoder.new"]) == 5


def test_settings_of_a_newer_version_are_refused_with_both_versions(run: tuple[Path, Scores], tmp_path: Path) -> None:
    experiment = format.read_meta(run[0])["experiment"]
    experiment["model"]["num_qeries"] = 3
    path = edited(run[0], tmp_path / "newer.safetensors", experiment=experiment, detrs="9.9.9")
    with pytest.raises(UserError, match=r"written by detrs 9\.9\.9, this is .*num_qeries.*num_queries") as raised:
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
    detector = models.build(dataclasses.replace(tiny.MODEL, num_classes=10))
    others: list[Any] = []

    def scores(runtime: Runtime) -> Scores:
        return evaluate(
            detector,
            tiny.Tiny("val"),
            image_size=(64, 96),
            batch_size=2,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            runtime=runtime,
            classification=Focal(),
        )

    expected = scores(Runtime(RuntimeConfig(device="cpu")))
    for rank in reversed(range(world_size)):  # the main process last: it has everything then
        found = scores(Rank(rank, world_size, others))
    assert found.results == expected.results and found.report == expected.report


def test_diverged_detector_is_refused(tiny: ModuleType) -> None:
    detector = models.build(dataclasses.replace(tiny.MODEL, num_classes=10))
    with torch.no_grad():
        for parameter in detector.decoder.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="diverged"):
        evaluate(
            detector,
            tiny.Tiny("val"),
            image_size=(64, 96),
            batch_size=5,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            runtime=Runtime(RuntimeConfig(device="cpu")),
            classification=Focal(),
        )
