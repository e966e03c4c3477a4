"""Videos made by the tests, and their frames decoded without detrs."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def make_frames(number: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Frames (H, W, 3) that all differ: two rectangles that move on noise."""
    height, width = size
    random = np.random.default_rng(0)
    noise = random.integers(60, 190, (height, width, 3), dtype=np.uint8)
    frames = []
    for index in range(number):
        frame = np.roll(noise, index % 11, 1)
        top, left = index * 3 % (height - 17), index * 5 % (width - 23)
        frame[top : top + 17, left : left + 23] = 255
        frame[height - 20 - top // 2 :][:13, (width + left) // 3 :][:, :19] = index % 40
        frames.append(frame)
    return frames


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    rate: Fraction = Fraction(25),
    **options: str,
) -> Path:
    """Encode frames with even sides.

    Args:
        times: in seconds, for a variable frame rate; by default multiples of ``1 / rate``.
        options: of the encoder.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = options
        base = 1 / rate
        if times is not None:
            base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if times is None else round(times[index] / base)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> list[tuple[Image.Image, float]]:
    """The frames of a video, as Pillow images, and their times in seconds."""
    with av.open(str(path)) as container:
        return [(_to_image(frame), float(frame.time)) for frame in container.decode(video=0)]


def _to_image(frame: av.VideoFrame) -> Image.Image:
    matrix = "itu709" if frame.colorspace == 1 else None  # which PyAV before 17 does not use by itself
    return frame.reformat(format="rgb24", src_colorspace=matrix).to_image()
