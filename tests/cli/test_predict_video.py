"""``detrs predict`` on videos: lines, annotated copies, mixed sources, interruptions, damage."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_video import decoded, make_frames, write_video
from PIL import Image

from detrs.checkpoints.detector import load_detector
from detrs.cli.predict_sources import split_sources
from detrs.predictor import Predictor
from detrs.video.connection import BrokenOffError, Connection
from detrs.visualization import draw

SIZE = (54, 86)
WORDS = ("--device", "cpu", "--output", "out", "--threshold", 0.001)


@pytest.fixture(autouse=True)
def media(plain: None, data: Path) -> Path:
    """A folder with an image, two videos of 10 frames, and a text."""
    folder = Path("media")
    (folder / "deeper").mkdir(parents=True)
    write_video(folder / "a.mp4", make_frames(10, SIZE))
    write_video(folder / "deeper" / "b.avi", make_frames(10, SIZE), codec="mjpeg")
    (folder / "b.png").write_bytes((data / "images" / "val-0.png").read_bytes())
    (folder / "notes.txt").write_text("neither")
    (folder / ".a.mp4").write_bytes(b"what a Mac leaves behind")
    return folder


def lines(name: str) -> list[dict[str, Any]]:
    content = Path("out", name).read_text()
    assert content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


def test_lines_and_an_annotated_video(detrs: Callable, checkpoint: Path) -> None:
    done = detrs("predict", checkpoint, "media/a.mp4", *WORDS, "--stride", 3, "--batch-size", 3, "--json")
    assert done.code == 0 and "a.mp4" in done.err
    predictor = Predictor.load(checkpoint, "cpu")
    expected = list(predictor.predict_video("media/a.mp4", threshold=0.001, stride=3, batch_size=3))
    assert lines("a.jsonl") == [frame.to_json() for frame in expected]
    assert [line["frame"] for line in lines("a.jsonl")] == [0, 3, 6, 9]
    detections = sum(len(line["detections"]) for line in lines("a.jsonl"))
    entry = {
        "source": "media/a.mp4",
        "frames": "a.jsonl",
        "annotated_video": "a.mp4",
        "num_frames": 4,
        "num_detections": detections,
        "damaged_frames": 0,
        "dropped_frames": 0,
        "complete": True,
    }
    predictions = json.loads(Path("out/predictions.json").read_text())
    assert predictions["videos"] == [entry] and predictions["images"] == predictions["skipped"] == []
    counts = {key: done.json[key] for key in ("num_images", "num_videos", "num_frames", "num_detections")}
    assert (
        counts == {"num_images": 0, "num_videos": 1, "num_frames": 4, "num_detections": detections} and detections > 0
    )
    annotated = decoded(Path("out/a.mp4"))
    assert [time for _, time in annotated] == pytest.approx([0, 0.12, 0.24, 0.36])
    for (image, _), frame in zip(annotated, expected, strict=True):
        drawn = draw.draw_detections(frame.image, frame.detections, 0.001, min_size=0)
        assert image.size == (86, 54)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(drawn)).mean() < 12  # 4:2:0, compressed


def test_images_and_videos_in_one_command(detrs: Callable, checkpoint: Path) -> None:
    done = detrs("predict", checkpoint, "media", "media/deeper/*", *WORDS, "--max-frames", 2)
    assert done.code == 0, done.err
    predictions = json.loads(Path("out/predictions.json").read_text())
    assert [image["source"] for image in predictions["images"]] == ["media/b.png"]
    assert [video["source"] for video in predictions["videos"]] == ["media/a.mp4", "media/deeper/b.avi"]
    names = {"predictions.json", "b.jpg", "a.jsonl", "a.mp4", "b.jsonl", "b.mp4"}
    assert {path.name for path in Path("out").iterdir()} == names
    assert "in 1 image and 2 videos (4 frames): out/predictions.json" in done.out
    assert "2 frames: " in done.out


def test_without_annotated_videos(detrs: Callable, checkpoint: Path) -> None:
    words = ("--no-video", "--max-frames", 1, *WORDS)
    assert detrs("predict", checkpoint, "media/a.mp4", "media/a.mp4", *words).code == 0
    assert {path.name for path in Path("out").iterdir()} == {"predictions.json", "a.jsonl", "a-2.jsonl"}
    assert json.loads(Path("out/predictions.json").read_text())["videos"][1]["annotated_video"] is None


def test_videos_without_a_known_suffix_are_recognized(media: Path) -> None:
    (media / "a.mp4").rename("film")
    (media / "deeper" / "b.avi").rename("b.jpg")
    (media / "b.png").rename("c.mp4x")
    assert split_sources(["film", "b.jpg", "c.mp4x"], False) == (["c.mp4x"], ["film", "b.jpg"])


@pytest.mark.parametrize(
    ("source", "images", "videos"),
    [
        ("media", ["media"], ["media/a.mp4"]),
        ("media/deeper", [], ["media/deeper/b.avi"]),
        ("media/**/*", ["media/**/*"], ["media/a.mp4", "media/deeper/b.avi"]),
        ("media/*.mp4", [], ["media/a.mp4"]),
        ("media/*.txt", ["media/*.txt"], []),
        ("media/.a.mp4", [], ["media/.a.mp4"]),
        ("nowhere.mp4", [], ["nowhere.mp4"]),
        ("nowhere.png", ["nowhere.png"], []),
        ("", [""], []),
        ("0", [], ["0"]),
        ("/dev/video7", [], ["/dev/video7"]),
        ("rtsp://host/a.png", [], ["rtsp://host/a.png"]),
        ("https://host/a.png?x=a.mp4", ["https://host/a.png?x=a.mp4"], []),
        ("https://host/a.MP4?x=a.png", [], ["https://host/a.MP4?x=a.png"]),
        ("https://host/live.m3u8", [], ["https://host/live.m3u8"]),
        ("ftp://host/a.mp4", [], ["ftp://host/a.mp4"]),
        ("images/**.jpg", ["images/**.jpg"], []),
        ("x" * 300, ["x" * 300], []),
    ],
)
def test_what_is_a_video(source: str, images: list[str], videos: list[str]) -> None:
    assert split_sources([source], False) == (images, videos)


@pytest.mark.parametrize("url", ["http://camera:abc/stream", "http://camera/my stream"])
def test_a_url_that_is_not_valid(detrs: Callable, checkpoint: Path, url: str) -> None:
    assert split_sources([url], True) == ([url], [])
    done = detrs("predict", checkpoint, url, "--allow-urls", *WORDS)
    assert done.code == 2 and f"{url} could not be downloaded" in done.message and "Traceback" not in done.err


def test_every_source_that_names_nothing_usable_gets_one_sentence(detrs: Callable, checkpoint: Path) -> None:
    Path("text.mp4").write_text("a text")
    Path("folder.mp4").mkdir()
    secret = "rtsp://admin:hunter2@host/live?token=abc"
    sources = ("text.mp4", "nowhere.mkv", "7654321", secret, "ftp://host/a.mp4", "folder.mp4")
    done = detrs("predict", checkpoint, *sources, "media/b.png", *WORDS)
    skipped = json.loads(Path("out/predictions.json").read_text())["skipped"]
    reasons = {each["source"]: each["reason"] for each in skipped}
    assert done.code == 2 and "Traceback" not in done.err and "5 more failed" in done.message
    for source, reason in {
        "text.mp4": "text.mp4 is not a readable video.",
        "nowhere.mkv": "nowhere.mkv does not exist. Expected a video file",
        "7654321": "There is no camera /dev/video7654321.",
        "rtsp://***@host/live?token=***": "--allow-urls on the command line",
        "ftp://host/a.mp4": "has an unknown protocol",
        "folder.mp4": "The folder 'folder.mp4' has no images",
    }.items():
        assert reason in reasons.pop(source)
    assert not reasons and "hunter2" not in done.err + done.out + Path("out/predictions.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stride", 0), "stride is 0, but must be at least 1."),
        (("--max-frames", -1), "max_frames is -1, but must be at least 1."),
        (("--reconnect", -1), "reconnect is -1, but must be at least 0."),
        (("--batch-size", 0), "batch_size is 0, but must be at least 1."),
    ],
)
def test_bad_arguments(detrs: Callable, checkpoint: Path, words: tuple[str, int], message: str) -> None:
    done = detrs("predict", checkpoint, "media/a.mp4", *words, "--device", "cpu", "--output", "out")
    assert done.code == 2 and done.message == message and not Path("out").exists()


def test_a_video_that_cannot_be_opened_leaves_the_folder_free(detrs: Callable, checkpoint: Path) -> None:
    Path("text.mp4").write_text("a text")
    done = detrs("predict", checkpoint, "text.mp4", *WORDS)
    assert done.code == 2 and done.message.startswith("text.mp4 is not a readable video.")
    assert not list(Path("out").iterdir())


def test_damaged_frames_are_skipped_and_counted(detrs: Callable, checkpoint: Path) -> None:
    content = bytearray(Path("media/deeper/b.avi").read_bytes())
    starts = [index for index in range(len(content)) if content[index : index + 3] == b"\xff\xd8\xff"]
    for number in (3, 6):
        middle, end = (starts[number] + starts[number + 1]) // 2, starts[number + 1] - 50
        content[middle:end] = bytes(end - middle)
    Path("media/deeper/b.avi").write_bytes(content)
    done = detrs("predict", checkpoint, "media/deeper/b.avi", *WORDS)
    assert done.code == 2 and done.message == "media/deeper/b.avi: frame 3 is damaged, and 1 more."
    assert [line["frame"] for line in lines("b.jsonl")] == [0, 1, 2, 4, 5, 7, 8, 9]
    predictions = json.loads(Path("out/predictions.json").read_text())
    (video,) = predictions["videos"]
    assert (video["num_frames"], video["damaged_frames"], video["dropped_frames"]) == (8, 2, 0) and video["complete"]
    assert [each["source"] for each in predictions["skipped"]] == ["media/deeper/b.avi"]
    assert len(decoded(Path("out/b.mp4"))) == 8


def test_an_interruption_leaves_a_video_and_complete_lines(
    detrs: Callable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Image.Image:
        drawn.append(1)
        if len(drawn) > 6:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = draw.draw_detections
    monkeypatch.setattr(draw, "draw_detections", interrupted)
    assert detrs("predict", checkpoint, "media/a.mp4", *WORDS, "--batch-size", 4).code == 130
    assert [line["frame"] for line in lines("a.jsonl")] == list(range(7))
    assert len(decoded(Path("out/a.mp4"))) == 6
    (video,) = json.loads(Path("out/predictions.json").read_text())["videos"]
    assert video["num_frames"] == 7 and not video["complete"]


def test_ctrl_c_ends_a_camera(checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own; the camera is a test pattern of FFmpeg, which has no end."""
    code = """
import sys
from detrs import cli
from detrs.ops import use
from detrs.video import connection, sources
source = sources.StreamSource(
    name="0", location="testsrc=size=64x48:rate=20,realtime", kind="camera", input_format="lavfi"
)
sources._camera = lambda _: source
connection.CODECS = (*connection.CODECS, "wrapped_avframe")
with use("reference"):
    sys.exit(cli.main(sys.argv[1:]))
"""
    words = ["predict", str(checkpoint), "0", "--device", "cpu", "--output", "out", "--batch-size", "1"]
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    path = tmp_path / "out" / "camera-0.jsonl"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 5):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130 and stderr.splitlines()[-1] == "error: interrupted"
    found = lines("camera-0.jsonl")
    frames = [line["frame"] for line in found]
    assert len(found) >= 5 and frames == sorted(set(frames)) and found[0]["source"] == "0"
    (video,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["videos"]
    assert video["num_frames"] == len(found) and not video["complete"]
    assert video["dropped_frames"] == frames[-1] + 1 - len(found)
    times = [time for _, time in decoded(tmp_path / "out" / "camera-0.mp4")]
    expected = [line["time_seconds"] - found[0]["time_seconds"] for line in found]
    assert times == pytest.approx(expected[: len(times)], abs=1e-3)
    assert len(found) - 1 <= len(times) <= len(found)


def test_a_video_on_a_server_that_breaks_off(
    detrs: Callable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames are kept, and the next video is predicted."""
    frames = Connection.frames

    def broken(connection: Connection, *arguments: Any) -> Any:
        for frame in frames(connection, *arguments):
            if connection.source.name == "media/a.mp4" and frame.frame_index == 3:
                raise BrokenOffError("media/a.mp4 broke off: no data for 10 seconds.")
            yield frame

    monkeypatch.setattr(Connection, "frames", broken)
    done = detrs("predict", checkpoint, "media/a.mp4", "media/deeper/b.avi", "--no-video", *WORDS)
    assert done.code == 2 and "media/a.mp4 broke off: no data for 10 seconds." in done.err
    assert [line["frame"] for line in lines("a.jsonl")] == [0, 1, 2]
    videos = json.loads(Path("out/predictions.json").read_text())["videos"]
    assert [(each["num_frames"], each["complete"]) for each in videos] == [(3, False), (10, True)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk(detrs: Callable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The annotated video is given up, the lines are not; without lines there is no result."""
    real = Path.with_name
    full = {"a.mp4"}

    def with_name(path: Path, name: str) -> Path:
        found = real(path, name)
        if name in full and not os.path.lexists(found):
            found.symlink_to("/dev/full")
        return found

    monkeypatch.setattr(Path, "with_name", with_name)
    monkeypatch.setattr("detrs.cli.predict_streams.free_stem", lambda folder, stem: folder / stem)
    done = detrs("predict", checkpoint, "media/a.mp4", *WORDS)
    assert done.code == 2 and done.message == "Cannot write 'out/a.mp4': No space left on device."
    assert len(lines("a.jsonl")) == 10 and not os.path.lexists("out/a.mp4")
    assert json.loads(Path("out/predictions.json").read_text())["videos"][0]["annotated_video"] is None


def test_lines_are_whole(tmp_path: Path) -> None:
    from detrs.cli.predict_streams import JsonLines
    from detrs.errors import UserError

    file = JsonLines(tmp_path / "a.jsonl")
    file.write({"frame": 0})

    class Full:
        """A file on a disk with space for seven bytes."""

        def __init__(self, real: Any) -> None:
            self.real, self.calls = real, 0

        def write(self, content: bytes) -> int:
            self.calls += 1
            if self.calls > 1:
                raise OSError(28, "No space left on device")
            return int(self.real.write(content[:7]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    file._file = Full(file._file)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"a\.jsonl': No space left on device"):
        file.write({"frame": 1})
    file.close()
    assert (tmp_path / "a.jsonl").read_text() == '{"frame": 0}\n'


def test_the_table_names_sources(detrs: Callable, checkpoint: Path) -> None:
    threshold = 1.0 if load_detector(checkpoint).threshold is None else 0.99
    done = detrs("predict", checkpoint, "media/a.mp4", "--device", "cpu", "--output", "out", "--threshold", threshold)
    assert done.code == 0 and "0 detections in 1 video (10 frames)" in done.out
    assert "No detection reaches the threshold" in done.out and "10 frames: -" in done.out


@pytest.mark.parametrize(
    ("kind", "is_video"),
    [("video/mp4", True), ("multipart/x-mixed-replace; boundary=x", True), ("image/jpeg", False), ("text/html", False)],
)
def test_the_type_that_the_server_returns_decides_what_a_url_without_a_suffix_is(kind: str, is_video: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/stream?camera=1"
        try:
            assert split_sources([url], True) == (([], [url]) if is_video else ([url], []))
            assert split_sources([url], False) == ([url], [])  # not asked
        finally:
            server.shutdown()
            thread.join()
