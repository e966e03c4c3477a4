import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detrs import config
from detrs.checkpoints.detector import load_detector
from detrs.classification import Focal, Softmax
from detrs.cli import train
from detrs.engine import trainer
from detrs.errors import UserError
from detrs.presets import preset

SMALL = (
    "--device cpu --batch-size 2 --image-size 61 83 --quiet --model.dim 64 --model.num-heads 4 --model.ffn-dim 48 "
    "--model.decoder-layers 2 --model.encoder-layers 1 --model.num-queries 17 "
    "--model.backbone.name test_efficientnet --model.backbone.weights none"
)


def experiment(words: str) -> config.Experiment:
    return train.read(["deformable-detr-tiny", *words.split()])[0]


def test_track_needs_a_tracker() -> None:
    assert experiment("--track tensorboard wandb").runtime.track == ("tensorboard", "wandb")
    with pytest.raises(UserError, match="--track expects at least one of tensorboard, wandb, mlflow, trackio"):
        experiment("--data D --track --epochs 3")


def test_short_flags_set_their_settings() -> None:
    values = experiment(
        "--data D --epochs 3 --batch-size 6 --lr 1e-2 --device cpu --workers 2 --max-minutes 1.5 --seed 7 "
        "--image-size 96 128"
    )
    assert (values.data.path, values.data.batch_size, values.data.resize_to) == ("D", 6, (96, 128))
    assert (values.optimizer.lr, values.runtime.device, values.runtime.workers) == (1e-2, "cpu", 2)
    assert (values.schedule.epochs, values.schedule.max_minutes, values.seed) == (3, 1.5, 7)
    assert values.name == "deformable-detr-tiny"
    assert experiment("--threads 3").runtime.threads == 3 and values.runtime.threads is None
    long = experiment(
        "--data.path D --schedule.epochs 3 --data.batch-size 6 --optimizer.lr 1e-2 --runtime.device cpu "
        "--runtime.workers 2 --schedule.max-minutes 1.5 --seed 7 --data.resize-to 96 128"
    )
    assert long == values


def test_without_flags_it_is_the_preset() -> None:
    assert experiment("") == preset("deformable-detr-tiny")
    assert train.read(["deformable-detr-r50-refine"])[0] == preset("deformable-detr-r50-refine")


@pytest.mark.parametrize("name", ["detr-r50", "conditional-detr-r50-dc5", "anchor-detr-r50", "deformable-detr-r50"])
def test_settings_of_a_model_are_those_of_its_preset(name: str) -> None:
    """The section is that of another class in each detector."""
    model = train.read([name, "--model.num-queries", "17", "--model.backbone.name", "resnet18"])[0].model
    backbone = dataclasses.replace(preset(name).model.backbone, name="resnet18")
    assert model == dataclasses.replace(preset(name).model, num_queries=17, backbone=backbone)


def test_settings_of_one_detector_are_unknown_to_another() -> None:
    values = train.read(["detr-r50", "--model.classification.no-object-weight", "0.2"])[0]
    assert values.model.classification == Softmax(weight=1.0, no_object_weight=0.2)
    for name in ("detr-r50-dc5-plus", "conditional-detr-r50", "anchor-detr-r50", "deformable-detr-r50"):
        values = train.read([name, "--model.classification.alpha", "0.5", "--model.classification.weight", "3"])[0]
        assert values.model.classification == Focal(weight=3.0, alpha=0.5)
    for words in (
        ["detr-r50", "--model.num-points", "3"],
        ["conditional-detr-r50", "--model.classification.no-object-weight", "0.2"],
    ):
        with pytest.raises(UserError, match=f"Unknown flag '{words[1]}'"):
            train.read(words)
    message = (
        "--model.classification.gamma is a setting of Focal, but the kind of --model.classification is Softmax: add "
        "--model.classification.kind Focal."
    )
    with pytest.raises(UserError) as error:
        train.read(["detr-r50", "--model.classification.gamma", "3"])
    assert str(error.value) == message
    words = ["--model.classification.kind", "Focal", "--model.classification.gamma", "3"]
    assert train.read(["detr-r50", *words])[0].model.classification == Focal(gamma=3.0)


def test_weights_are_those_that_training_starts_from(tmp_path: Path) -> None:
    assert experiment("").initial is None
    assert experiment("--weights runs/a/best.safetensors").initial == "runs/a/best.safetensors"
    with pytest.raises(UserError, match=r"Unknown flag '--initial'"):  # it would duplicate --weights
        experiment("--initial a.safetensors")


def test_training_starts_from_weights(detrs: Callable, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "save_curves", lambda *arguments: None)  # slow, and tested elsewhere
    command = ["train", "deformable-detr-tiny", "--data", data, *SMALL.split(), "--epochs", 1]
    command += ["--model.backbone.norm", "frozen", "--lr", 1e-12, "--json"]
    first = detrs(*command, "--output", "first", "--seed", 7)
    start = Path(first.json["checkpoint"])
    bare, started = detrs(*command, "--output", "bare"), detrs(*command, "--output", "second", "--weights", start)
    assert started.code == 0, started.err
    paths = [start, *(Path(done.json["checkpoint"]) for done in (bare, started))]
    before, other, after = (load_detector(path).module.state_dict() for path in paths)
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-6) for name in before)
    assert not all(torch.allclose(before[name], other[name], rtol=0, atol=1e-6) for name in before)
    assert config.load(Path("second/experiment.json")).initial == str(start)

    done = detrs(*command, "--model.num-levels", 4, "--weights", start, "--output", "third")
    assert done.code == 2 and "are of another model (deformable-detr-tiny): " in done.message
    done = detrs(*command, "--weights", "nowhere.safetensors", "--output", "third")
    assert done.code == 2 and "nowhere.safetensors" in done.message
    assert not Path("third").exists()


def test_without_a_preset_it_follows_from_the_weights(detrs: Callable, data: Path) -> None:
    command = ["--data", data, *SMALL.split(), "--epochs", 1, "--json", "--quiet"]
    first = detrs("train", "deformable-detr-tiny", "--model.num-points", 2, *command, "--output", "first")
    start = Path(first.json["checkpoint"])
    command = ["train", "--weights", start, *command, "--output", "tuned"]
    done = detrs(*command)
    assert done.code == 0, done.err
    saved = config.load(Path("tuned/experiment.json"))
    assert (saved.name, saved.initial, saved.model.num_points) == ("deformable-detr-tiny", str(start), 2)
    start.unlink()
    for words in (["train", "--resume", "tuned"], [*command, "--resume"]):
        done = detrs(*words)
        assert done.code == 0 and "AP" in done.out + done.err, done.err


def test_the_weights_of_a_command_without_a_preset_are_checked(detrs: Callable, data: Path) -> None:
    done = detrs("train", "--weights", "nowhere.safetensors", "--data", data)
    assert done.code == 2 and "nowhere.safetensors" in done.message
    done = detrs("train", "--weights", "nowhere.safetensors", "--data", data, "--output", "none", "--resume")
    assert done.code == 2 and "There is no run to resume in 'none'" in done.message


def test_limits_are_off_by_default_and_can_be_switched_off() -> None:
    values = train.read(["deformable-detr-r50"])[0]
    assert (values.schedule.max_minutes, values.optimizer.ema_decay, values.initial) == (None, None, None)
    assert (values.evaluation.every_steps, values.evaluation.patience, values.data.path) == (None, None, None)
    start = preset("deformable-detr-tiny")
    assert (start.optimizer.ema_decay, start.optimizer.clip_norm) == (0.998, 0.1)
    values = experiment("--optimizer.ema-decay None --optimizer.clip-norm None --schedule.max-minutes None")
    assert (values.optimizer.ema_decay, values.optimizer.clip_norm, values.schedule.max_minutes) == (None, None, None)
    words = "--evaluation.every-steps 7 --evaluation.patience 3 --evaluation.batch-size 2 --data.padded-together 4"
    values = experiment(f"{words} --optimizer.ema-decay 0.9")
    assert (values.evaluation.every_steps, values.evaluation.patience, values.evaluation.batch_size) == (7, 3, 2)
    assert (values.data.padded_together, values.optimizer.ema_decay) == (4, 0.9)


def test_switches_of_settings_take_a_value() -> None:
    start, values = experiment(""), experiment("--model.backbone.freeze-stem True --data.keep-empty False")
    assert (start.model.backbone.freeze_stem, start.data.keep_empty) == (False, True)
    assert (values.model.backbone.freeze_stem, values.data.keep_empty) == (True, False)


def test_one_number_is_both_sides() -> None:
    assert experiment("--image-size 96").data.resize_to == (96, 96)


def test_one_setting_given_twice() -> None:
    assert experiment("--epochs 3 --schedule.epochs 3").schedule.epochs == 3
    with pytest.raises(
        UserError, match=r"--epochs and --schedule\.epochs are the same setting, but their values differ: 3 and 4"
    ):
        experiment("--epochs 3 --schedule.epochs 4")
    usual = preset("deformable-detr-tiny").schedule.epochs
    for words in (f"--epochs {usual} --schedule.epochs 4", f"--epochs 4 --schedule.epochs={usual}"):
        with pytest.raises(UserError, match="are the same setting"):  # also when one of them is the default
            experiment(words)
    with pytest.raises(UserError, match=r"--batch-size and --data\.batch-size"):
        experiment("--batch-size 3 --data.batch-size 5")


def test_a_folder_with_the_name_of_the_demo_set(detrs: Callable, checkpoint: Path) -> None:
    assert experiment("--data digits").data.path == "digits"
    Path("digits").mkdir()
    with pytest.raises(UserError, match=r"Use \./digits for the folder"):
        experiment("--data digits")
    assert experiment("--data ./digits").data.path == str(Path("digits").absolute())
    assert "Use ./digits" in detrs("evaluate", checkpoint, "--data", "digits").message


def test_backbone_by_name_and_by_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    assert experiment("--backbone resnet18").model.backbone.name == "resnet18"
    path = tmp_path / "weights.safetensors"
    save_file(
        {"x": torch.zeros(3)}, path, {"timm_model": "mobilenetv2_100", "mean": "0.1,0.2,0.3", "std": "0.4,0.5,0.6"}
    )
    backbone = experiment(f"--backbone {path}").model.backbone
    assert (backbone.name, backbone.weights) == ("mobilenetv2_100", str(path))
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with pytest.raises(UserError, match="There is no file .*nowhere"):
        experiment(f"--backbone {tmp_path}/nowhere.safetensors")


def test_default_output_is_a_new_folder() -> None:
    Path("runs/deformable-detr-tiny-1").mkdir(parents=True)
    assert train.read(["deformable-detr-tiny"])[1] == Path("runs/deformable-detr-tiny-2")


def test_train_then_resume_by_folder_and_by_command(
    detrs: Callable, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "save_curves", lambda *arguments: None)  # slow, and tested elsewhere
    command = ["train", "deformable-detr-tiny", "--data", data, "--output", "run", "--json", *SMALL.split()]
    first = detrs(*command, "--epochs", 1)
    assert first.code == 0, first.err
    assert len(first.out.splitlines()) == 1
    assert (first.json["output"], first.json["checkpoint"]) == ("run", "run/best.safetensors")
    assert first.json["steps"] == 2 and {"ap", "ap50", "best_step", "seconds"} <= set(first.json)
    saved = config.load(Path("run/experiment.json"))
    assert (saved.model.num_queries, saved.data.resize_to, saved.model.num_classes) == (17, (61, 83), 2)

    by_folder = detrs("train", "--resume", "run", "--epochs", 2, "--quiet", "--json")
    assert by_folder.code == 0, by_folder.err
    assert by_folder.json["steps"] == 4 and by_folder.json["output"] == "run"
    by_command = detrs(*command, "--epochs", 3, "--resume")
    assert by_command.code == 0, by_command.err
    assert by_command.json["steps"] == 6
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "evaluation"] == [1, 2, 3]

    again = detrs(*command, "--epochs", 3)
    assert again.code == 2 and "is not empty" in again.message and "--resume" in again.message
    changed = detrs("train", "--resume", "run", "--lr", 1)
    assert changed.code == 2 and "--lr: 0.001 -> 1.0" in changed.message

    scored = detrs("evaluate", "run/best.safetensors", "--device", "cpu", "--json")
    assert scored.code == 0 and scored.json["ap"] == pytest.approx(by_command.json["ap"], abs=1e-12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "No preset given"),
        ("--data x", "No preset given"),
        ("deformable-detr-tny --data x", "no preset 'deformable-detr-tny'. Did you mean 'deformable-detr-tiny'?"),
        ("deformable-detr-tiny --epoch 3", "Unknown flag '--epoch'. Did you mean '--epochs'?"),
        ("deformable-detr-tiny --model.num-querys 3", "Did you mean '--model.num-queries'?"),
        ("deformable-detr-tiny extra", "Unexpected argument 'extra'"),
        ("deformable-detr-tiny --resume", "--resume requires the folder of the run"),
        ("--resume nowhere", "There is no run to resume in 'nowhere'"),
        ("deformable-detr-tiny", "No dataset was given"),
        ("deformable-detr-tiny --data nowhere", "nowhere does not exist"),
        ("deformable-detr-tiny --data digits --epochs 0", "--epochs is 0, but must be at least 1"),
        ("deformable-detr-tiny --data digits --image-size 8", "--image-size is (8, 8)"),
        ("deformable-detr-r50 --data digits --image-size 640", "add --data.augment crop"),
        ("deformable-detr-tiny --data digits --model.num-heads 0", "--model.num-heads is 0"),
        ("deformable-detr-tiny --data digits --lr inf", "--lr is inf"),
        ("deformable-detr-tiny --data digits --device cupa", "'cupa' is not a device"),
    ],
)  # fmt: skip
def test_bad_input(detrs: Callable, words: str, message: str) -> None:
    done = detrs("train", *words.split())
    assert done.code == 2 and message in done.message and not done.out
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def damaged(data: Path, **changes: Any) -> Path:
    """A copy of the dataset with another train.json."""
    root = Path("damaged")
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(data / "images")
    (root / "annotations" / "val.json").write_bytes((data / "annotations" / "val.json").read_bytes())
    content = json.loads((data / "annotations" / "train.json").read_text())
    (root / "annotations" / "train.json").write_text(json.dumps({**content, **changes}))
    return root


def test_bad_data(detrs: Callable, data: Path) -> None:
    command = ("train", "deformable-detr-tiny", *SMALL.split(), "--output", "run", "--data")
    root = damaged(data)
    annotations = root / "annotations" / "train.json"
    good = annotations.read_text()

    annotations.write_text(good.replace('"images": [', '"images": [,', 1))
    done = detrs(*command, root)
    assert done.code == 2 and "train.json" in done.message and "line 1, column 13" in done.message

    annotations.write_text(json.dumps({**json.loads(good), "images": [], "annotations": []}))
    done = detrs(*command, root)
    assert done.code == 2 and "train.json" in done.message

    annotations.write_text(good.replace('"category_id": 3', '"category_id": 4', 1))
    done = detrs(*command, root)
    assert done.code == 2 and "4" in done.message and "categor" in done.message

    annotations.write_text(good)
    (root / "images").unlink()
    (root / "images").mkdir()
    for path in (data / "images").iterdir():
        (root / "images" / path.name).write_bytes(path.read_bytes())
    (root / "images" / "train-2.png").write_text("a text")
    done = detrs(*command, root, "--epochs", 1)
    assert done.code == 2 and "train-2.png" in done.message
    assert not Path("run", "last.safetensors").exists()


def test_a_checkpoint_of_other_classes(detrs: Callable, data: Path, checkpoint: Path) -> None:
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    root = damaged(data, categories=categories)
    (root / "annotations" / "val.json").unlink()
    done = detrs("evaluate", checkpoint, "--data", root, "--split", "train", "--device", "cpu")
    assert done.code == 2
    assert all(name in done.message for name in ("bright", "dark", "cat", "dog"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no checkpoint"),
        (b"", "best.safetensors"),
        (b"{}", "JSON"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x08\0\0\0\0\0\0\0{}{}{}{}", "best.safetensors"),
    ],
)
def test_bad_checkpoints(detrs: Callable, data: Path, content: bytes | None, message: str) -> None:
    path = Path("best.safetensors")
    if content is not None:
        path.write_bytes(content)
    for words in (("evaluate", path), ("predict", path, data / "images")):
        done = detrs(*words)
        assert done.code == 2 and str(path) in done.message and message in done.message


def test_state_of_a_run_is_no_detector(detrs: Callable) -> None:
    from detrs.checkpoints import format

    format.save(Path("last.safetensors"), {"x": torch.zeros(3)}, {})
    Path("a.jpg").touch()
    done = detrs("predict", "last.safetensors", "a.jpg")
    assert done.code == 2 and "best.safetensors is written by the first evaluation" in done.message


def test_resume_by_the_path_of_the_state_or_without_a_folder(detrs: Callable, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert "has no experiment.json" in detrs("train", "--resume", run / "last.safetensors").message
    assert f"in '{run}'" in detrs("train", "--resume", run / "last.safetensors").message
    for words in (["--resume"], ["--resume", "--epochs", 3]):
        assert "Usage: detrs train --resume FOLDER" in detrs("train", *words).message


def test_resume_without_the_dataset_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'gone', does not exist. If it has moved, add --data FOLDER"):
        train.check_data_exists("gone")
    train.check_data_exists("digits")
    train.check_data_exists(str(tmp_path))


def test_relative_paths_of_data_are_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert train.read(["detr-r50", "--data", "data"])[0].data.path == str(tmp_path / "data")
    assert train.read(["detr-r50", "--data", "digits"])[0].data.path == "digits"
