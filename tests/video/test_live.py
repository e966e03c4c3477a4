"""Live sources: a slow reader gets the newest frames, and a connection that breaks is opened again."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from made_video import make_frames
from PIL import Image

from detrs.errors import UserError
from detrs.video import connection, live
from detrs.video.connection import Connection, Frame
from detrs.video.reading import frame_batches
from detrs.video.sources import StreamSource, parse_source


@pytest.fixture(autouse=True)
def with_frames_of_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of ``camera`` are not encoded."""
    monkeypatch.setattr(connection, "CODECS", (*connection.CODECS, "wrapped_avframe"))


def camera(description: str) -> StreamSource:
    """A source of FFmpeg that is read as a camera is: frames in real time, without a file."""
    return StreamSource(name="0", location=f"{description},realtime", kind="camera", input_format="lavfi")


def read(
    source: StreamSource,
    *,
    batch_size: int = 4,
    stride: int = 1,
    max_frames: int | None = None,
    reconnect: int = 0,
    pause: float = 0.0,
) -> tuple[list[list[Frame]], list[str]]:
    """The batches, read with a pause after each, and the errors."""
    errors: list[str] = []
    batches = frame_batches(
        source,
        batch_size=batch_size,
        stride=stride,
        max_frames=max_frames,
        reconnect=reconnect,
        damaged=lambda _, error: errors.append(str(error)),
    )
    found = []
    for batch in batches:
        found.append(batch)
        time.sleep(pause)
    return found, errors


def test_a_slow_reader_gets_the_newest_frames() -> None:
    batches, errors = read(camera("testsrc=size=64x48:rate=50:duration=1.2"), batch_size=3, pause=0.2)
    indices = [frame.frame_index for batch in batches for frame in batch]
    assert not errors and indices == sorted(set(indices)) and max(map(len, batches)) == 3
    assert len(indices) < 40  # of 60
    for batch in batches:
        assert [frame.frame_index for frame in batch] == list(range(batch[0].frame_index, batch[-1].frame_index + 1))
    dropped = [following[0].frame_index - batch[-1].frame_index - 1 for batch, following in pairwise(batches)]
    assert max(dropped) >= 3 and indices[-1] == 59  # a busy machine may delay the source, so not each time
    times = [frame.time_seconds for batch in batches for frame in batch]
    assert times == pytest.approx([index / 50 for index in indices], abs=0.01)


def test_stride_and_max_frames() -> None:
    batches, _ = read(camera("testsrc=size=64x48:rate=100"), stride=5, max_frames=7, batch_size=2)  # endless
    assert [frame.frame_index for batch in batches for frame in batch] == [0, 5, 10, 15, 20, 25, 30]


def test_nothing_runs_after_the_end() -> None:
    batches = frame_batches(
        camera("testsrc=size=64x48:rate=100"), batch_size=2, stride=1, max_frames=None, reconnect=3, damaged=print
    )
    next(batches)
    assert any(thread.name == "detrs-live" for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name == "detrs-live" for thread in threading.enumerate())


def test_a_camera_that_cannot_be_opened() -> None:
    with pytest.raises(UserError, match=r"^0 cannot be opened: "):
        read(StreamSource(name="0", location="nosuchfilter", kind="camera", input_format="lavfi"))
    with pytest.raises(UserError, match="^0 has no frame that can be decoded"):
        read(camera("testsrc=size=64x48:duration=0.001,select=0"))


class Cameras(ThreadingHTTPServer):
    """Network cameras that send JPEG images, as most of them can.

    Args:
        numbers: frames sent to each connection, which then breaks; after these it is refused.
    """

    daemon_threads = True

    def __init__(self, numbers: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.numbers, self.requests = list(numbers), 0
        self.images = []
        for pixels in make_frames(sum(numbers), (48, 64)):
            stream = BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG", quality=95)
            self.images.append(stream.getvalue())
        self.sent = iter(list(self.images))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/video.mjpg"


class Handler(BaseHTTPRequestHandler):
    server: Cameras

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests += 1
        if not self.server.numbers:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for _ in range(self.server.numbers.pop(0)):
            image = next(self.server.sent)
            part = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n".encode()
            self.wfile.write(part + image + b"\r\n")
            time.sleep(0.01)


@pytest.fixture
def cameras(request: pytest.FixtureRequest) -> Iterator[Cameras]:
    with Cameras(request.param) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("cameras", [[8, 5, 9]], indirect=True)
def test_a_connection_that_breaks_is_opened_again(cameras: Cameras, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_DELAY_SECONDS", 0.05)
    start = time.monotonic()
    batches, errors = read(parse_source(cameras.url, True), batch_size=100, reconnect=2)
    frames = [frame for batch in batches for frame in batch]
    assert [frame.frame_index for frame in frames] == list(range(22))
    assert errors == [f"{cameras.url} broke off: Input/output error; 2 attempts to open it again failed."]
    assert cameras.requests == 3 + 2  # the attempts are counted anew after each success
    times = [frame.time_seconds for frame in frames]
    assert times == sorted(set(times)) and times[0] == 0
    assert times[-1] < time.monotonic() - start and times[8] - times[7] > 0.05  # not multiples of 1 / 25
    for frame, content in zip(frames, cameras.images, strict=True):
        with Image.open(BytesIO(content)) as image:
            assert np.abs(frame.pixels.astype(int) - np.asarray(image)).mean() < 8


@pytest.mark.parametrize("cameras", [[3]], indirect=True)
def test_without_reconnection(cameras: Cameras) -> None:
    batches, errors = read(parse_source(cameras.url, True))
    assert sum(map(len, batches)) == 3 and cameras.requests == 1
    assert errors == [f"{cameras.url} broke off: Input/output error."]


@pytest.mark.parametrize("cameras", [[2]], indirect=True)
def test_a_connection_that_is_lost_for_days(cameras: Cameras, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[StreamSource] = []

    def refuse(source: StreamSource) -> Connection:
        attempts.append(source)
        raise UserError("refused")

    monkeypatch.setattr(live, "MAX_DELAY_SECONDS", 0)
    monkeypatch.setattr(live, "Connection", refuse)
    _, errors = read(parse_source(cameras.url, True), reconnect=3000)
    assert len(attempts) == 3000
    assert errors == [f"{cameras.url} broke off: Input/output error; 3,000 attempts to open it again failed."]


@pytest.mark.parametrize("cameras", [[]], indirect=True)
def test_a_server_that_refuses(cameras: Cameras) -> None:
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:\d+/video\.mjpg cannot be opened: .*5XX"):
        read(parse_source(cameras.url, True), reconnect=3)
    assert cameras.requests == 1  # only a stream that was there is opened again
    with pytest.raises(UserError, match=r"^rtsp://\*\*\*@127\.0\.0\.1:1/a cannot be opened: Connection refused\."):
        read(parse_source("rtsp://user:secret@127.0.0.1:1/a", True))
