"""``detrs push``."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from detrs.checkpoints import load_detector


def test_the_files_are_written(detrs: Callable, checkpoint: Path) -> None:
    done = detrs("push", checkpoint, "me/cells", "--license", "mit", "--dry-run", "cells")
    assert done.code == 0 and done.out.strip() == "cells", done.err
    assert load_detector(Path("cells")).classes == load_detector(checkpoint).classes
    assert "license: mit" in Path("cells/README.md").read_text()
    done = detrs("push", checkpoint, "me/cells", "--dry-run", "more", "--json")
    assert done.json == {"folder": "more"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["me/cells", "--dry-run", "."], "exists. Expected a new or an empty folder"),
        (["cells"], "Expected a repository as owner/name"),
        (["me/cells"], "There is no token of the Hugging Face Hub"),
        ([], "Missing argument OWNER/NAME"),
    ],
)
def test_faults_are_one_sentence(
    detrs: Callable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    Path("file").touch()
    done = detrs("push", checkpoint, *words)
    assert done.code == 2 and message in done.message
