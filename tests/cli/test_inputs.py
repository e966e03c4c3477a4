"""Names and files of a command are checked early, with the messages of the functions that read them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detrs import sources
from detrs.cli.inputs import check_dataset, check_only_source, check_run_folder
from detrs.cli.predict_sources import split_sources
from detrs.cli.train import check_data_exists, with_absolute_data
from detrs.config import Experiment
from detrs.config.data import DataConfig
from detrs.data.detect import find_splits
from detrs.errors import UserError
from detrs.video.sources import parse_source


@pytest.mark.parametrize("source", ["nowhere.jpg", "nowhere", "folder/nowhere.png", "~/nowhere.png", "nowhere.mp4"])
@pytest.mark.parametrize("videos", [False, True], ids=["explain", "predict"])
def test_a_missing_file_has_the_message_of_its_reader(source: str, videos: bool) -> None:
    with pytest.raises(UserError) as caught:
        check_only_source([source], videos=videos)
    with pytest.raises(UserError) as read:
        if videos and split_sources([source], allow_urls=False).videos:
            parse_source(source, allow_urls=False)
        else:
            next(iter(sources.decoded(source, False, sources.handler("raise"))))
    assert str(caught.value) == str(read.value)


@pytest.mark.parametrize("source", ["0", "/dev/video7"])
def test_cameras_are_not_images(source: str) -> None:
    check_only_source([source], videos=True)
    with pytest.raises(UserError, match=f"^{source} does not exist. Expected an image file.$"):
        check_only_source([source], videos=False)


@pytest.mark.parametrize("url", ["http://cam:abc/stream", "http://localhost/my image"])
def test_an_invalid_url_has_the_message_of_its_reader(url: str) -> None:
    """Nothing is sent; ``http.client.InvalidURL`` is neither an ``OSError`` nor a ``ValueError``."""
    assert split_sources([url], True) == ([url], [])
    with pytest.raises(UserError, match=r"could not be downloaded: "):
        list(sources.decoded([url], True, sources.handler("raise")))


@pytest.mark.parametrize(
    "given",
    [
        [], [""], ["nowhere-*.jpg"], ["a.jpg/b.jpg"], ["loop"], ["a\0b.jpg"], ["https://example.com/a.jpg"], ["rtsp://camera"],
        ["~nobody-of-this-name/a.jpg"], ["x" * 5000], ["nowhere.jpg", "also-nowhere.jpg"],
    ],
    ids=lambda given: str(given)[:30],
)  # fmt: skip
def test_the_reader_has_the_message_for_other_sources(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").touch()
    (tmp_path / "loop").symlink_to("loop")
    for videos in (False, True):
        check_only_source(given, videos=videos)


@pytest.mark.parametrize("path", [None, "digits", "hf:owner/name", f"hf:owner/{'x' * 5000}"])
def test_datasets_that_are_not_files_are_not_searched(path: str | None) -> None:
    check_dataset(path)


@pytest.mark.parametrize("check", [check_dataset, check_data_exists])
@pytest.mark.parametrize("path", ["locked/data", "x" * 5000, "~/data"])
def test_a_dataset_that_cannot_be_read_has_the_message_of_its_reader(
    check: Callable[[str], None], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    if len(path) < 256:
        monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(UserError, match="cannot be read: (Permission denied|File name too long)") as caught:
        check(path)
    with pytest.raises(UserError) as read:
        find_splits(Path(path).expanduser())
    assert str(caught.value) == str(read.value)


def test_the_path_of_a_dataset_that_cannot_be_read_is_not_made_absolute() -> None:
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        with_absolute_data(Experiment(data=DataConfig(path="x" * 5000)))
    with pytest.raises(UserError, match="There is no data folder '~nobody-of-this-name/x'"):
        with_absolute_data(Experiment(data=DataConfig(path="~nobody-of-this-name/x")))


def test_only_the_first_process_of_a_launcher_checks_the_output(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    check_run_folder(tmp_path, resume=False, environment={"RANK": "1"})
    for environment in ({}, {"RANK": "0"}):
        with pytest.raises(UserError, match="is not empty"):
            check_run_folder(tmp_path, resume=False, environment=environment)
