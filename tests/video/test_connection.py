"""Frames: times, orientation, colors, damage, and files that contain no video."""

import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made_video import decoded, make_frames, write_video
from PIL import Image

from detrs.errors import UserError
from detrs.video import connection
from detrs.video.connection import Clock, Connection, Frame
from detrs.video.sources import parse_source

SIZE = (46, 78)


def read(path: Path | str, stride: int = 1) -> tuple[list[Frame], list[int]]:
    """The frames, and the indices of damaged ones."""
    damaged: list[int] = []
    opened = Connection(parse_source(path, False))
    try:
        return list(opened.frames(stride, lambda index, _: damaged.append(index))), damaged
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.avi", "mjpeg"), ("a.ts", "libx264"), ("a", "mpeg4")],
)
def test_formats(tmp_path: Path, name: str, codec: str) -> None:
    """Also without a suffix, since the content counts."""
    path = tmp_path / name
    write_video(tmp_path / (name if "." in name else "b.mov"), make_frames(30, SIZE), codec=codec)
    if "." not in name:
        (tmp_path / "b.mov").rename(path)
    frames, damaged = read(path)
    expected = decoded(path)
    assert not damaged and [frame.frame_index for frame in frames] == list(range(30)) and len(expected) == 30
    start = expected[0][1]  # that of transport streams is not 0
    for frame, (image, time) in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.pixels, np.asarray(image))
        assert frame.time_seconds == pytest.approx(time - start)


def test_a_variable_frame_rate_and_stride(tmp_path: Path) -> None:
    times = np.cumsum([0, *np.random.default_rng(0).uniform(0.01, 0.4, 19)]).round(3)
    path = write_video(tmp_path / "a.mkv", make_frames(20, SIZE), times=times)
    frames, _ = read(path, stride=3)
    assert [frame.frame_index for frame in frames] == list(range(0, 20, 3))
    assert [frame.time_seconds for frame in frames] == pytest.approx(times[::3].tolist())


ONE = 1 << 16
MATRICES = {  # (a, b, c, d) of the track header -> how the stored image becomes the displayed one
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # Pillow rotates counterclockwise
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_frames_are_upright(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """As cameras of phones store them: rotated, with a matrix in the track header."""
    path = write_video(tmp_path / "a.mp4", make_frames(2, SIZE))
    stored = decoded(path)[0][0]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2
    assert struct.unpack(">9i", content[start : start + 36]) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    a, b, c, d = (each * ONE for each in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    transpose = MATRICES[matrix]
    expected = stored if transpose is None else stored.transpose(transpose)
    np.testing.assert_array_equal(read(path)[0][0].pixels, np.asarray(expected))


def test_damaged_frames_are_reported_and_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", make_frames(40, SIZE), bf="0", g="10")
    sound = [frame.pixels for frame in read(path)[0]]
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    position, size = packets[17]
    content[position + 4 : position + size] = bytes(size - 4)
    path.write_bytes(content)
    frames, damaged = read(path)
    assert damaged == [17]
    assert [frame.frame_index for frame in frames] == [index for index in range(40) if index != 17]
    assert [frame.time_seconds for frame in frames] == pytest.approx([index / 25 for index in range(40) if index != 17])
    for frame in frames:  # from the next key frame on as before
        if not 17 <= frame.frame_index < 20:
            np.testing.assert_array_equal(frame.pixels, sound[frame.frame_index])
    assert read(path, stride=5)[1] == []  # it is not one of these


def test_a_truncated_video_keeps_its_first_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", make_frames(30, SIZE), codec="mjpeg")
    whole, _ = read(path)
    cut = path.stat().st_size // 2
    with av.open(str(path)) as container:  # sizes depend on the threads of the encoder
        ends = [packet.pos + 8 + packet.size for packet in container.demux(video=0) if packet.size]  # after a header
    path.write_bytes(path.read_bytes()[:cut])
    frames, damaged = read(path)
    assert 1 < len(frames) < 25 and len(frames) == sum(end <= cut for end in ends) and damaged == [len(frames)]
    assert all((one.pixels == other.pixels).all() for one, other in zip(frames, whole, strict=False))


def test_files_without_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", make_frames(9, SIZE))
    contents = {
        "text.mp4": (b"a text", "is not a readable video. Expected a video: MP4, MOV, MKV, WebM, AVI, MPEG."),
        "page.mp4": (b"<!DOCTYPE html><html>", "is a web page, probably from a failed download. Expected a video"),
        "empty.mp4": (b"", "is an empty file. Expected a video"),
        "cut.mp4": ((tmp_path / "whole.mp4").read_bytes()[:300], "is truncated or damaged. Expected a video"),
        "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n", "is not a readable video. Expected a video"),
        "concat.mp4": (b"ffconcat version 1.0\nfile whole.mp4\n", "is not a readable video. Expected a video"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} {message}"):
            read(tmp_path / name)


def test_a_file_with_sound_only(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
    with pytest.raises(UserError, match=r"a\.mov has no video, only other streams such as audio\."):
        read(tmp_path / "a.mov")
    with wave.open(str(tmp_path / "b.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
    with pytest.raises(UserError, match=r"b\.wav is not a readable video"):
        read(tmp_path / "b.wav")


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", make_frames(2, SIZE))
    with monkeypatch.context() as patch:
        patch.setattr(connection, "MAX_PIXELS", 1000)
        with pytest.raises(UserError, match=r"a\.mp4 has frames of more than 1,000 pixels"):
            read(path)
    monkeypatch.setattr(connection, "CODECS", ("mjpeg",))
    with pytest.raises(UserError, match=r"a\.mp4 uses the codec h264, which is not supported\. Convert it to H\.264\."):
        read(path)


def test_names_are_not_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would read two files of the first name, and a descriptor of the second."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", make_frames(3, SIZE))
    for name in ("concat:a.mp4|a.mp4", "pipe:0", "a%d.mp4", "caf\udce9.mp4", "-"):
        Path(name).write_bytes((tmp_path / "a.mp4").read_bytes())
        assert len(read(name)[0]) == 3


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", make_frames(2, SIZE))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"^Videos and cameras need PyAV: pip install 'detrs\[stream\]'"):
        read(path)


def test_times_always_increase() -> None:
    clock, base = Clock(start=1.0, period=0.5), Fraction(1, 10)
    times = [clock(pts, base) for pts in (10, 12, None, 30, 10, 11, 11, 40)]
    assert times == pytest.approx([0.0, 0.2, 0.7, 2.0, 2.5, 2.6, 3.1, 6.0])


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    frames, path = make_frames(8, SIZE), tmp_path / "x"
    contents = [
        write_video(tmp_path / name, frames, codec=codec).read_bytes()
        for name, codec in (("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.avi", "mjpeg"), ("a.ts", "libx264"))
    ]
    outcomes = {"read": 0, "damaged": 0, "refused": 0}
    for number in range(120):
        random = np.random.default_rng(number)
        content = np.frombuffer(contents[number % 4], np.uint8).copy()
        start = int(random.integers(len(content)))
        if number % 3 == 0:
            content = content[:start]
        elif number % 3 == 1:
            content[random.integers(len(content), size=10)] = random.integers(256, size=10)
        else:
            content = np.delete(content, slice(start, start + 100))
        path.write_bytes(content.tobytes())
        try:
            outcomes["damaged" if read(path)[1] else "read"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert all(count > 10 for count in outcomes.values()), outcomes


def test_frames_that_are_decoded_in_part_are_damaged(tmp_path: Path) -> None:
    """FFmpeg conceals the damage and marks the frame."""
    path = write_video(tmp_path / "a.avi", make_frames(12, SIZE), codec="mpeg4", b="2M", g="1")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    position, size = packets[5]
    middle = position + 8 + size // 2  # after the header of the chunk
    content[middle : middle + size // 4] = bytes(size // 4)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        marked = [index for index, frame in enumerate(container.decode(video=0)) if frame.is_corrupt]
    frames, damaged = read(path)
    assert damaged == marked == [5] and [frame.frame_index for frame in frames] == [0, 1, 2, 3, 4, *range(6, 12)]
