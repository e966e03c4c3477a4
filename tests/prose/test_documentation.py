"""Run each ``detrs`` command and each Python block of the documentation, in order, in one folder."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import timm
from made_video import make_frames, write_video
from safetensors.torch import save_file

from detrs import cli
from detrs.data import digits

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/data.md",
    "docs/checking.md",
    "docs/training.md",
    "docs/options.md",
    "docs/accuracy.md",
    "docs/logging.md",
    "docs/notebooks.md",
    "docs/weights.md",
    "docs/finetuning.md",
    "docs/coming_from.md",
    "docs/operator.md",
    "docs/integrations.md",
    "docs/results.md",
    "docs/how-to/yolo.md",
    "docs/how-to/preset.md",
    "docs/how-to/small-objects.md",
    "docs/how-to/memory.md",
    "docs/how-to/slow-machine.md",
    "docs/how-to/several-gpus.md",
    "docs/report.md",
    "docs/how-to/threshold.md",
    "docs/predict.md",
    "docs/how-to/large-images.md",
    "docs/explain.md",
    "docs/video.md",
    "docs/how-to/deploy.md",
    "docs/reference/configuration.md",
    "docs/models/dat.md",
    "docs/models/dino.md",
)
"""Pages with commands or Python, in reading order."""

SHORT = {
    "train": "--epochs 1 --batch-size 2 --image-size 64 96 --data.augment crop --quiet",
    "demo": "--minutes 0.02 --output runs/demo --quiet",
    "benchmark accuracy": "--minutes 0.05 --seeds 1 --batch-size 2 --image-size 64 96 "
    "--backbone mobilenetv2_100.safetensors",
}
"""Arguments that shorten a documented command to seconds."""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    text = (REPOSITORY / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The ``detrs`` commands on a page, without launchers.

    A launcher starts processes that each import PyTorch, which takes a minute on two cores. Its command is run here in
    one process; ``tests/engine/test_distributed.py`` runs two. The arguments of the launchers are only compared.
    """
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    found = [re.search(r"(?:^|uv run |-m )detrs (\S.*)$", line) for line in lines]
    launchers = [
        line[: match.start(1)].split() for line, match in zip(lines, found, strict=True) if match and "-m " in line
    ]
    assert all(
        words in (["torchrun", "--nproc-per-node", "4", "-m", "detrs"], ["accelerate", "launch", "-m", "detrs"])
        for words in launchers
    )
    return [match[1] for match in found if match]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documentation mentions, also the first run, so that pages may be run in any
    order; four training images per dataset."""
    root = tmp_path_factory.mktemp("prose")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "NUM_IMAGES", {"train": 4, "val": 2})
        for name in ("my-data", "coco"):
            digits.export_coco(root / name)
    (root / "images").mkdir()
    for path in (root / "my-data" / "images").glob("val*"):
        shutil.copy(path, root / "images" / path.with_suffix(".jpg").name)  # decoded by content, not by name
    write_video(root / "video.mp4", make_frames(4, (96, 128)))
    save_file(timm.create_model("mobilenetv2_100").state_dict(), root / "mobilenetv2_100.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert cli.main(shortened("train deformable-detr-small --data my-data --output runs/first")) == 0
    return root


def shortened(command: str) -> list[str]:
    """The arguments of a command, shortened to seconds and independent of the network."""
    words = shlex.split(command)
    if "--resume" not in words:
        words += SHORT.get(words[0], SHORT.get(" ".join(words[:2]), "")).split()
    if words[0] == "train" and "--backbone" not in words and "--resume" not in words:
        words += ["--model.backbone.weights", "none", "--model.backbone.name", "test_resnet"]
    return words


def test_every_page_with_commands_is_listed() -> None:
    """Apart from those of the course, which ``test_course.py`` runs."""
    docs = REPOSITORY / "docs"
    pages = [REPOSITORY / "README.md", *(path for path in docs.rglob("*.md") if path.parent != docs / "learn")]
    assert {str(page.relative_to(REPOSITORY)) for page in pages if blocks(str(page), "(?:bash|python)")} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_shows_runs(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 8, "val": 2})
    shown = commands(page)
    assert shown or blocks(page, "python")
    for command in shown:
        words = shortened(command)
        if "--output" in words and "--resume" not in words:  # another page may have written there
            shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
        code = cli.main(words)
        assert code == 0, f"detrs {command}: {capsys.readouterr().err}"
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})


def markdown() -> list[Path]:
    own = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
    return [*(REPOSITORY / name for name in own), *(REPOSITORY / "docs").rglob("*.md")]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", markdown(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs" / "models").glob("*.md")), ids=lambda page: page.stem)
def test_names_in_the_pages_of_detectors_exist(page: Path) -> None:
    """Second column of "From equations to code": paths, and names that the source contains."""
    source = "\n".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.py"))
    section = page.read_text().partition("## From equations to code")[2].partition("\n## ")[0]
    names = [
        name
        for row in re.findall(r"^\|.*\|(.*)\|$", section, flags=re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    ]
    assert len(names) > 5
    for name in names:
        if "/" in name or name.endswith(".py"):
            assert (REPOSITORY / "src" / "detrs" / name).exists(), name
        else:
            assert all(re.search(rf"\b{part}\b", source) for part in re.split(r"[.=]", name)), name


def test_releases_have_each_heading_once() -> None:
    for release in re.split(r"^## ", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.+)$", release, flags=re.MULTILINE)
        assert len(headings) == len(set(headings)) and "Numerics" in headings
