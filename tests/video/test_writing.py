"""Annotated videos: times, sizes, colors, files that play although the process was killed, full disks."""

import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from made_video import decoded
from PIL import Image

from detrs.errors import UserError
from detrs.video import writing
from detrs.video.connection import Connection
from detrs.video.sources import parse_source
from detrs.video.writing import VideoWriter

COLORS = ((200, 30, 10), (20, 180, 40), (15, 25, 220), (128, 128, 128))


def stripes(width: int, height: int) -> Image.Image:
    """An image with a vertical stripe of each color."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for index, color in enumerate(COLORS):
        pixels[:, index * width // 4 : (index + 1) * width // 4] = color
    return Image.fromarray(pixels)


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_times_sizes_and_colors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str) -> None:
    monkeypatch.setattr(writing, "ENCODERS", ("no-such-encoder", encoder))
    times = np.cumsum([0, *np.random.default_rng(0).uniform(0.01, 0.3, 19)]).tolist()
    path = tmp_path / "a 100%.mp4"
    with VideoWriter(path) as writer:
        for time in times:
            writer.write(stripes(151, 97), time)
    frames = decoded(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == {"libx264": "h264"}.get(encoder, encoder)
        assert stream.codec_context.pix_fmt == "yuv420p" and container.format.name.startswith("mov,mp4")
        assert float(stream.duration * stream.time_base) == pytest.approx(2 * times[-1] - times[-2], abs=1e-4)
    assert [time for _, time in frames] == pytest.approx(times, abs=2e-5)
    connection = Connection(parse_source(path, False))
    (first,) = islice(connection.frames(1, print), 1)
    connection.close()
    np.testing.assert_array_equal(first.pixels, np.asarray(frames[0][0]))
    for image, _ in frames:
        assert image.size == (152, 98)  # even
        pixels = np.asarray(image).astype(int)
        for index, color in enumerate(COLORS):
            assert np.abs(pixels[:, 152 * index // 4 + 15] - color).max() <= 6
        assert np.abs(pixels[-1, -1] - COLORS[-1]).max() <= 6  # the pixel that was added


def test_the_size_is_that_of_the_first_image(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(stripes(80, 60), 0)
        writer.write(stripes(120, 40), 0.04)
        writer.write(stripes(80, 60), 0.08)
    images = [np.asarray(image) for image, _ in decoded(tmp_path / "a.mp4")]
    assert [image.shape for image in images] == [(60, 80, 3)] * 3
    assert images[1][:10].max() < 30 and images[1][30].max() > 150  # scaled to 80 x 27, with black bars


def test_one_image_and_none(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "one.mp4") as writer:
        writer.write(stripes(80, 60), 0)
    assert len(decoded(tmp_path / "one.mp4")) == 1
    with VideoWriter(tmp_path / "none.mp4"):
        pass
    assert not (tmp_path / "none.mp4").exists()


def test_times_that_do_not_increase(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for time in (0, 0.04, 0.04, 0.03, 0.2):
            writer.write(stripes(80, 60), time)
    times = [time for _, time in decoded(tmp_path / "a.mp4")]
    assert len(times) == 5 and times == sorted(set(times)) and times[-1] == pytest.approx(0.2, abs=1e-4)


def test_a_killed_process_leaves_a_video(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from PIL import Image
from detrs.video.writing import VideoWriter
writer = VideoWriter(pathlib.Path({str(tmp_path / "a.mp4")!r}))
for index in range(250):
    writer.write(Image.new("RGB", (64, 48), (index, 0, 0)), index / 25)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    frames = decoded(tmp_path / "a.mp4")
    assert 100 < len(frames) < 250
    assert [time for _, time in frames] == pytest.approx([index / 25 for index in range(len(frames))], abs=1e-4)


def test_an_open_video_plays_and_a_closed_one_is_an_ordinary_file(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4")
    for index in range(200):
        writer.write(stripes(80, 60), index / 10)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "open.mp4")
    writer.close()
    writer.close()  # once more changes nothing
    assert 60 <= len(decoded(tmp_path / "open.mp4")) < 200 == len(decoded(tmp_path / "a.mp4"))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].frames == 200  # in the index, which a fragmented file lacks
    with av.open(str(tmp_path / "open.mp4")) as container:
        assert container.streams.video[0].frames < 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("/dev/full")
    writer = VideoWriter(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"Cannot write '.*a\.mp4': No space left on device\."):
        for index in range(100):
            writer.write(stripes(80, 60), index / 25)
    writer.discard()
    assert not (tmp_path / "a.mp4").is_symlink()


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "nowhere" / "a.mp4")
    writer.write(stripes(80, 60), 0)
    with pytest.raises(UserError, match=r"Cannot write '.*a\.mp4': No such file or directory\."):
        writer.close()
