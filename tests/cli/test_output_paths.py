"""Output paths that cannot be used are an error of one sentence at every command."""

from collections.abc import Callable
from pathlib import Path

import pytest

LONG = "x" * 300
COMMANDS = {
    f"predict CHECKPOINT DATA/images/val-0.png --output {LONG}": "Cannot create the output folder '{}': File name",
    f"explain CHECKPOINT DATA/images/val-0.png --output {LONG}": "Cannot create the output folder '{}': File name",
    f"train deformable-detr-tiny --data DATA --output {LONG}": "Cannot read the output folder '{}': File name",
    f"train --resume {LONG}": "Cannot read the output folder '{}': File name",
    f"train --resume {LONG}.safetensors": "There is no run to resume in '.'",
    f"evaluate CHECKPOINT --results {LONG}": "--results: cannot write '{}': File name",
    f"evaluate CHECKPOINT --report {LONG}": "--report: cannot create the folder '{}': File name",
    f"check DATA --output {LONG}.html": "--output: cannot write '{}.html': File name",
    f"convert CHECKPOINT {LONG} --to detrs": "Cannot write to '{}/best.safetensors': File name",
    f"convert CHECKPOINT {LONG}.safetensors --to detrs": "Cannot write to '{}.safetensors': File name",
    f"convert CHECKPOINT {LONG} --to transformers": "Cannot read the folder '{}': File name",
    f"convert DATA {LONG} --to yolo": "{}': File name",
    f"push CHECKPOINT owner/name --dry-run {LONG}": "Cannot read the folder '{}': File name",
    f"export CHECKPOINT --format torch --output {LONG}.pt2": "Cannot write the output '{}.pt2': File name",
    "push CHECKPOINT owner/name --dry-run ~nobodyhere/x": "'~nobodyhere/x' is not a valid path",
    "export CHECKPOINT --format torch --output ~nobodyhere/x.pt2": "'~nobodyhere/x.pt2' is not a valid path",
}
"""Command -> part of its error message, in which {} is the long name."""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.replace(LONG, "LONG"))
def test_names_that_are_not_valid(detrs: Callable, checkpoint: Path, data: Path, tmp_path: Path, command: str) -> None:
    words = command.replace("CHECKPOINT", str(checkpoint)).replace("DATA", str(data)).split()
    outcome = detrs(*words)
    assert outcome.code == 2 and COMMANDS[command].format(LONG) in outcome.message, outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "predict CHECKPOINT DATA/images/val-0.png --output locked",
        "explain CHECKPOINT DATA/images/val-0.png --output locked",
        "train deformable-detr-tiny --data DATA --output locked",
        "convert DATA locked --to yolo",
    ],
)
def test_a_folder_that_may_not_be_read(
    detrs: Callable, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    iterdir = Path.iterdir

    def fail(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    Path("locked").mkdir()
    monkeypatch.setattr(Path, "iterdir", fail)
    words = command.replace("CHECKPOINT", str(checkpoint)).replace("DATA", str(data)).split()
    outcome = detrs(*words)
    assert outcome.code == 2 and outcome.message.startswith("Cannot read the output folder '")
    assert outcome.message.endswith("locked': Permission denied.")
