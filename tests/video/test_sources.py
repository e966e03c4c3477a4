"""Names of videos: files, cameras and URLs; everything else gets one sentence."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from detrs.errors import UserError
from detrs.video.sources import StreamSource, is_camera, is_video_file, parse_source, redacted


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://admin:se@cret@10.0.0.7:554/live", "rtsp://***@10.0.0.7:554/live"),
        ("rtsp://10.0.0.7/user=admin&password=abc&channel=1", "rtsp://10.0.0.7/user=admin&password=***&channel=1"),
        ("https://host/a.m3u8?Token=abc#x", "https://host/a.m3u8?Token=***#x"),
        ("https://host/a@b.mp4", "https://host/a@b.mp4"),
        ("rtsp://host", "rtsp://host"),
    ],
)
def test_urls_are_shown_without_passwords(url: str, name: str) -> None:
    assert redacted(url) == name
    found = parse_source(url, True)
    assert (found.name, found.location, found.kind) == (name, url, "url")


def test_a_number_is_a_camera_unless_a_file_has_this_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_camera("0") and is_camera(0) and is_camera("12") and is_camera("/dev/video0") and is_camera(Path("7"))
    assert not any(map(is_camera, ("", "a0", "-1", "/dev/video", "/dev/videox", True, 1.0, None, "²", b"0")))
    Path("12").touch()
    assert not is_camera("12") and is_camera(12)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert parse_source("0", False) == StreamSource(name="0", location="0", kind="camera", input_format="avfoundation")


def test_video_files_have_a_suffix_or_the_bytes_of_a_video() -> None:
    starts = {
        "a": b"\0\0\0\x20ftypisom",
        "b": b"RIFF\0\0\0\0AVI LIST",
        "c": b"\x1aE\xdf\xa3",
        "d": (b"G" + bytes(187)) * 3,
        "e.MP4": b"not looked at",
    }
    others = {"f": b"\xff\xd8\xff", "g": b"G", "h": b"RIFF\0\0\0\0WEBPVP8 ", "i": b"", "j": b"\0\0\0\x20ftypavif"}
    for name, start in (starts | others).items():
        Path(name).write_bytes(start)
        assert is_video_file(Path(name)) == (name in starts), name
    assert not is_video_file(Path("missing")) and is_video_file(Path("missing.mkv"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.mp4", "nowhere.mp4 does not exist. Expected a video file"),
        (".", ". is a folder. Expected a video file"),
        ("pipe", "pipe is not a regular file. Expected"),
        ("", "got an empty string."),
        (None, "got an object of type 'NoneType'."),
        (True, "got an object of type 'bool'."),
        (b"abc", "got an object of type 'bytes'."),
        ("x" * 300 + ".mp4", "cannot be opened: File name too long."),
        ("~nobody-of-this-name/a.mp4", "is not a valid path: Could not determine home directory."),
        ("a\0.mp4", "is not a valid path: embedded null byte."),
        ("ftp://host/a.mp4", "ftp://host/a.mp4 has an unknown protocol. Expected one of rtsp, "),
        ("file:///etc/passwd", "file:///etc/passwd has an unknown protocol."),
        ("rtsp://u:secret@host/live", r"rtsp://\*\*\*@host/live is a URL, and URLs are disabled by default"),
    ],
)
def test_bad_sources(source: Any, message: str) -> None:
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=message) as caught:
        parse_source(source, False)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["rtsp://", "rtsp:///path", "http://[::1/a.mp4"])
def test_urls_without_a_host(url: str) -> None:
    with pytest.raises(UserError, match="is not a valid URL: it has no host."):
        parse_source(url, True)


def test_cameras_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match=r"^There is no camera /dev/video977. Cameras of this machine: "):
        parse_source("977", False)
    for zeros in ("000", "0" * 5000):
        with pytest.raises(UserError, match=r"^There is no camera /dev/video977."):
            parse_source(f"{zeros}977", False)
    with pytest.raises(UserError, match=r"^There is no camera /dev/video1{5000}."):
        parse_source("1" * 5000, False)
    with pytest.raises(UserError, match=r"^There is no camera /dev/video978."):
        parse_source(Path("/dev/video978"), False)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="can be opened on Linux and macOS only"):
        parse_source(0, False)
