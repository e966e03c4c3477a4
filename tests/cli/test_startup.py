"""Which modules a command imports: none that it does not use, and PyTorch only after arguments and files are checked.

Every list of commands runs in one new process, since imported modules stay.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from detrs import cli
from detrs.presets import PRESETS

SLOW = ("torch", "numpy", "torchvision", "timm", "scipy", "sympy", "numba", "matplotlib", "accelerate", "PIL")

RUN = """
import contextlib, io, json, sys
import detrs.cli
for words in json.loads(sys.argv[1]):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = detrs.cli.main(words)
    found = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(json.dumps([code, output.getvalue(), found]))
"""


def drop_privileges() -> None:
    """In a new process of root on Linux: permissions of files apply to the program that it starts."""
    if sys.platform == "linux":
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails for other users, who have none


class Ended(NamedTuple):
    """The end of one command."""

    code: int
    output: str
    imported: list[str]
    """The modules of a list that the process has imported since it started."""


def run(*commands: list[Any], watched: tuple[str, ...] = SLOW, folder: Path | None = None) -> list[Ended]:
    """Run commands one after another in a new process."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN, words, json.dumps(watched)],
        capture_output=True,
        text=True,
        cwd=folder,
        preexec_fn=drop_privileges,
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*json.loads(line)) for line in done.stdout.splitlines()]


def test_import_detrs_imports_nothing_slow() -> None:
    code = (
        "import sys, detrs; print(*sorted({'torch', 'numpy', 'tyro', 'rich', 'importlib.metadata'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_lists_and_help_import_nothing_slow() -> None:
    commands = [["--help"], ["--version"], ["presets"], ["presets", "--json"], ["checkpoint", "list"], ["checkpoint"]]
    commands += [[command, "--help"] for command in cli.COMMANDS if command != "checkpoint"]
    commands += [["train", "detr-r50", "--help"], ["checkpoint", "inspect", "--help"]]
    for command, ended in zip(commands, run(*commands), strict=True):
        assert (ended.code, ended.imported) == (0, []), command
        assert ended.output, command


def test_experiments_of_all_presets_are_built_and_checked_without_pytorch() -> None:
    code = f"""
import sys
from detrs import config, preset
from detrs.presets import PRESETS
for name in PRESETS:
    experiment = preset(name)
    config.validate(experiment)
    assert config.from_dict(config.Experiment, config.to_dict(experiment)) == experiment
print(len(PRESETS), *[name for name in {SLOW} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(PRESETS))]


SMALL = "deformable-detr-small"
LONG = "x" * 5000
WRONG = {
    "trian": "Did you mean 'train'?",
    "train detr": "Did you mean 'detr-r50'?",
    f"train {SMALL}l": f"Did you mean '{SMALL}'?",
    f"train {SMALL}": "No dataset was given: use --data FOLDER, or --data digits for the demo set.",
    f"train {SMALL} --epoch 3": "Did you mean '--epochs'?",
    f"train {SMALL} --model.num-querie 3": "Did you mean '--model.num-queries'?",
    f"train {SMALL} --epochs three": "--epochs expects INT, got 'three'.",
    f"train {SMALL} --epochs 0": "--epochs is 0, but must be at least 1.",
    f"train {SMALL} --model.num-heads 7": "--model.num-heads is 7, but must divide --model.dim (128).",
    f"train {SMALL} --schedule.kind stepp": "Did you mean 'step'?",
    f"train {SMALL} --data imgaes": "The data folder imgaes does not exist. Did you mean 'images'?",
    f"train {SMALL} --data locked/data": "The data folder 'locked/data' cannot be read: Permission denied.",
    f"train {SMALL} --data ~nobodyhere/x": "There is no data folder '~nobodyhere/x': Could not determine home",
    f"train {SMALL} --data images --output images": "The output folder 'images' is not empty",
    "train --resume images": "There is no run to resume in 'images'",
    "train --weights wieghts.pth --data images": "Did you mean 'weights.pth'?",
    "evaluate wieghts.pth": "Did you mean 'weights.pth'?",
    "evaluate nothing.safetensors": "There is no checkpoint nothing.safetensors.",
    "evaluate locked": "Cannot read the checkpoint 'locked': Permission denied.",
    "evaluate locked/x": "Cannot read the checkpoint 'locked/x': Permission denied.",
    "evaluate locked/data/best.safetensors": "Cannot read the checkpoint 'locked/data/best.safetensors': Permission",
    f"evaluate {LONG}": "': File name too long.",
    f"evaluate {LONG}.safetensors": ".safetensors': File name too long.",
    f"evaluate {LONG}/x": "/x': File name too long.",
    "evaluate unlisted": "Cannot read the checkpoint 'unlisted': Permission denied.",
    "evaluate unlisted/b.safetensors": "There is no checkpoint unlisted/b.safetensors.",
    "evaluate ~nobodyhere/x": "'~nobodyhere/x' is not a valid path: the home folder cannot be determined.",
    "evaluate weights.pth --data imgaes": "Did you mean 'images'?",
    "evaluate weights.pth --data locked/data": "The data folder 'locked/data' cannot be read: Permission denied.",
    "evaluate images": "The folder 'images' has no best.safetensors",
    "evaluate weights.pth --nms 2": "nms is 2.0, but must be an IoU above 0 and at most 1",
    "evaluate weights.pth --tile 8": "tile is 8, but must be an integer of at least 32",
    "predict facebook/detr-resnet-50 images/b.png": "images/b.png does not exist. Expected an image file.",
    "predict facebook/detr-resnet-50 b.mp4": "b.mp4 does not exist. Expected a video file, the number of a camera",
    "predict facebok/detr-resnet-50.pth images": "There is no file or folder 'facebok/detr-resnet-50.pth'.",
    "predict weights.pth images --threshold 50": "threshold is 50.0, but must be in [0, 1].",
    "predict weights.pth images --color-by size": "Expected one of ('class', 'instance').",
    "predict ~nobodyhere/x images": "'~nobodyhere/x' is not a valid path",
    "explain facebook/detr-resnet-50 b.mp4": "b.mp4 does not exist. Expected an image file.",
    "explain wieghts.pth images": "Did you mean 'weights.pth'?",
    "explain weights.pth images --threshold 50": "threshold is 50.0, but must be in [0, 1].",
    "export wieghts.pth": "Did you mean 'weights.pth'?",
    "export weights.pth --format onxn": "Did you mean 'onnx'?",
    "serve wieghts.pth": "Did you mean 'weights.pth'?",
    "serve ~nobodyhere/x": "'~nobodyhere/x' is not a valid path",
    "push wieghts.pth owner/name": "Did you mean 'weights.pth'?",
    "convert wieghts.pth out --to detrs": "Did you mean 'weights.pth'?",
    "convert ~nobodyhere/x out --to detrs": "'~nobodyhere/x' is not a valid path",
    "convert ~nobodyhere/x out --to coco": "'~nobodyhere/x' is not a valid path",
    "convert locked out --to detrs": "Cannot read the checkpoint 'locked': Permission denied.",
    "convert locked/x out --to detrs": "Cannot read the checkpoint 'locked/x': Permission denied.",
    "convert locked/x out --to coco": "The data folder 'locked/x' cannot be read: Permission denied.",
    f"convert {LONG} out --to detrs": "': File name too long.",
    f"convert {LONG} out --to coco": "cannot be read: File name too long.",
    "checkpoint inspect wieghts.pth": "Did you mean 'weights.pth'?",
    "checkpoint lst": "Did you mean 'list'?",
    "check images --prest x": "Did you mean '--preset'?",
    "check imgaes": "The data folder imgaes does not exist. Did you mean 'images'?",
    "check locked/data": "The data folder 'locked/data' cannot be read: Permission denied.",
    f"check {LONG}": "cannot be read: File name too long.",
    f"evaluate weights.pth --data {LONG}": "cannot be read: File name too long.",
    "convert imgaes out --to coco": "The data folder imgaes does not exist. Did you mean 'images'?",
    "check images --preset detr": "Did you mean 'detr-r50'?",
    "profile detr-r5": "Did you mean 'detr-r50'?",
    "benchmark wieghts.pth weights.pth": "Did you mean 'weights.pth'?",
    "benchmark op": "Did you mean 'ops'?",
    "demo --minute 3": "Did you mean '--minutes'?",
}
"""Command -> part of its error message. There are an empty file ``weights.pth``, a folder ``images`` with a file, and a
folder ``locked`` that may not be opened, and ``unlisted``, whose names may not be read."""


def test_arguments_and_files_are_checked_before_pytorch_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    (tmp_path / "weights.pth").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "locked").mkdir(mode=0)
    (tmp_path / "unlisted").mkdir(mode=0o300)
    watched = tuple(name for name in SLOW if name != "numpy")  # formats of datasets and videos need it
    ended = run(*(command.split() for command in WRONG), watched=watched, folder=tmp_path)
    for (command, message), each in zip(WRONG.items(), ended, strict=True):
        assert each.code == 2 and message in each.output, (command, each.output)
        assert each.imported == [], command
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "images", "locked", "unlisted", "weights.pth"]


def test_prediction_imports_what_they_use(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    watched = (
        "matplotlib",
        "accelerate",
        "scipy.optimize",
        "onnxruntime",
        "transformers",
        "sklearn",
        "numba",
    )
    image, predicted = data / "images" / "val-0.png", tmp_path / "out" / "predictions.json"
    (ended,) = run(["predict", checkpoint, image, "--threshold", "0", "--output", predicted.parent], watched=watched)
    assert ended.code == 0 and json.loads(predicted.read_text())["images"][0]["detections"], ended.output
    assert ended.imported == ["numba"]
