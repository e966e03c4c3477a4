"""RTSP: a camera with a password, played by a server of these tests from packets that FFmpeg made."""

import base64
import socket
import socketserver
import threading
from collections.abc import Iterator

import av
import numpy as np
import pytest
from made_video import make_frames

from detrs.errors import UserError
from detrs.video import live
from detrs.video.connection import Frame
from detrs.video.reading import frame_batches
from detrs.video.sources import parse_source

SIZE = (48, 64)
NUM_FRAMES = 20
SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/90000\r\na=control:track\r\n"
)


def rtp_packets(frames: list[np.ndarray]) -> list[bytes]:
    """Frames as MPEG-4 in packets of RTP, which FFmpeg sends to a socket."""
    packets = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        receiver.settimeout(0.2)
        with av.open(f"rtp://127.0.0.1:{receiver.getsockname()[1]}", "w", format="rtp") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width = SIZE
            stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
            for index, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        while True:
            try:
                packet = receiver.recv(1 << 16)
            except TimeoutError:
                return packets
            if packet[1] & 127 == 96:  # not those of RTCP
                packets.append(packet)


class Camera(socketserver.ThreadingTCPServer):
    """RFC 2326, as far as a client needs it: the packets are interleaved with the answers."""

    daemon_threads, allow_reuse_address = True, True
    password = base64.b64encode(b"admin:hunter2").decode()

    def __init__(self, packets: list[bytes], num_connections: int) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.packets, self.left = packets, num_connections


class Session(socketserver.StreamRequestHandler):
    server: Camera

    def handle(self) -> None:
        while line := self.rfile.readline().decode().strip():
            method, headers = line.split()[0], {}
            while header := self.rfile.readline().decode().strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            status, answer, body = "200 OK", f"CSeq: {headers['cseq']}\r\nSession: 1\r\n", ""
            if headers.get("authorization") != f"Basic {self.server.password}":
                status, answer = "401 Unauthorized", answer + 'WWW-Authenticate: Basic realm="camera"\r\n'
            elif method == "DESCRIBE":
                if not self.server.left:
                    return
                self.server.left -= 1
                body, answer = SDP, f"{answer}Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n"
            elif method == "SETUP":
                assert "RTP/AVP/TCP" in headers["transport"]  # preferred to UDP, which loses packets
                answer += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            self.wfile.write(f"RTSP/1.0 {status}\r\n{answer}\r\n{body}".encode())
            if method == "PLAY":
                for packet in self.server.packets:
                    self.wfile.write(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                return


@pytest.fixture(scope="module")
def packets() -> list[bytes]:
    return rtp_packets(make_frames(NUM_FRAMES, SIZE))


@pytest.fixture
def camera(packets: list[bytes], request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a camera that accepts a number of connections."""
    with Camera(packets, request.param) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}/live"
        server.shutdown()
        thread.join()


def read(url: str, reconnect: int) -> tuple[list[Frame], list[str]]:
    errors: list[str] = []
    batches = frame_batches(
        parse_source(url, True),
        batch_size=100,
        stride=1,
        max_frames=None,
        reconnect=reconnect,
        damaged=lambda name, error: errors.append(f"{name}: {error}"),
    )
    return [frame for batch in batches for frame in batch], errors


@pytest.mark.parametrize("camera", [1], indirect=True)
def test_frames_of_a_camera(camera: str) -> None:
    frames, errors = read(f"rtsp://admin:hunter2@{camera}", reconnect=0)
    assert not errors and [frame.frame_index for frame in frames] == list(range(len(frames)))
    assert len(frames) >= NUM_FRAMES - 1
    assert np.diff([frame.time_seconds for frame in frames]) == pytest.approx(1 / 25, abs=1e-3)
    for frame, pixels in zip(frames, make_frames(NUM_FRAMES, SIZE), strict=False):
        assert np.abs(frame.pixels.astype(int) - pixels).mean() < 25


@pytest.mark.parametrize("camera", [2], indirect=True)
def test_a_camera_that_comes_back(camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_DELAY_SECONDS", 0.01)
    frames, _ = read(f"rtsp://admin:hunter2@{camera}", reconnect=1)
    assert [frame.frame_index for frame in frames] == list(range(len(frames)))
    assert len(frames) >= 2 * (NUM_FRAMES - 1)
    times = [frame.time_seconds for frame in frames]
    assert times == sorted(set(times))


@pytest.mark.parametrize("camera", [1], indirect=True)
def test_a_wrong_password_is_not_shown(camera: str) -> None:
    with pytest.raises(UserError, match=r"^rtsp://\*\*\*@127.* cannot be opened: .*401") as caught:
        read(f"rtsp://admin:hunter3@{camera}", reconnect=0)
    assert "hunter" not in str(caught.value)
