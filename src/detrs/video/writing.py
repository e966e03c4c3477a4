"""Annotated videos: MP4 with H.264, or with MPEG-4 where FFmpeg has no encoder for H.264."""

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image, ImageOps

from detrs.errors import UserError
from detrs.video.connection import BT709, USUAL_RATE, import_av

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first one that FFmpeg contains is used. ``mpeg4`` is in all of its builds."""
TIME_BASE = {"mpeg4": Fraction(1, 60_000)}
"""Unit of timestamps in seconds; MPEG-4 stores its denominator in 16 bits."""
FINE_TIME_BASE = Fraction(1, 90_000)
"""Exact for milliseconds and for all usual frame rates except 24000/1001, which it rounds by at most 6 microseconds."""
KEY_FRAME_INTERVAL = 60
BITS_PER_PIXEL = 0.2
"""Of encoders without a setting for constant quality."""
LIMITED_RANGE = 1


class VideoWriter:
    """Writes images with their times as a video.

    The file can be played at any moment, also if the process is killed: until it is closed it is a fragmented MP4,
    which ends with the last complete fragment, and then an ordinary one. Without images no file is created.

    Args:
        path: an .mp4 file, which is overwritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._av = import_av()
        self._container: Any = None
        self._stream: Any = None
        self._time_base = FINE_TIME_BASE
        self._durations: dict[int, int] = {}
        self._waiting: tuple[Image.Image, float] | None = None
        self._last_pts = -1
        self._period = 1 / USUAL_RATE
        self._size = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def write(self, image: Image.Image, time_seconds: float) -> None:
        """Add an image. Its duration is known when the next one follows, so it is kept until then.

        Args:
            image: RGB. The first one determines the size of the video; others are scaled to fit. Odd sides are extended
                by one pixel, since encoders need even ones.
            time_seconds: later than that of the image before.

        Raises:
            UserError: the file cannot be written, for example because the disk is full.
        """
        if self._waiting is not None:
            self._period = max(time_seconds - self._waiting[1], float(self._time_base))
            self._encode_waiting()
        self._waiting = image, time_seconds

    def close(self) -> None:
        """Write the last image and complete the file.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            if self._waiting is not None:
                self._encode_waiting()
            if self._stream is not None:
                self._mux(None)
        finally:
            self._waiting = self._stream = None
            container, self._container = self._container, None
            if container is not None:
                self._checked(container.close)

    def discard(self) -> None:
        """Remove the file, after an error."""
        with suppress(UserError):
            self.close()
        self.path.unlink(missing_ok=True)

    def _encode_waiting(self) -> None:
        assert self._waiting is not None
        (image, time), self._waiting = self._waiting, None
        if self._container is None:
            self._open(image)
        pixels = np.asarray(image.convert("RGB") if image.size == self._size else ImageOps.pad(image, self._size))
        height, width = pixels.shape[:2]
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="itu709")
        frame.pts = self._last_pts = max(round(time / self._time_base), self._last_pts + 1)
        frame.time_base = self._time_base
        self._durations[frame.pts] = max(round(self._period / self._time_base), 1)
        self._mux(frame)

    def _open(self, image: Image.Image) -> None:
        name = next(name for name in ENCODERS if self._has(name))
        self._time_base, self._size = TIME_BASE.get(name, FINE_TIME_BASE), image.size
        options = {"movflags": "hybrid_fragmented+default_base_moof", "flush_packets": "1"}
        self._container = self._checked(lambda: self._av.open(f"file:{self.path}", "w", format="mp4", options=options))
        rate = Fraction(1 / self._period).limit_denominator(1001)
        self._stream = stream = self._container.add_stream(name, rate=rate)
        stream.width, stream.height = (side + side % 2 for side in image.size)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base, context.gop_size, context.max_b_frames = self._time_base, KEY_FRAME_INTERVAL, 0
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        if name == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast", "bf": "0"}
        else:
            stream.bit_rate = int(BITS_PER_PIXEL * stream.width * stream.height * rate)

    def _has(self, name: str) -> bool:
        try:
            self._av.Codec(name, "w")
        except ValueError:  # UnknownCodecError is one
            return False
        return True

    def _mux(self, frame: Any) -> None:
        """Encode a frame, or with ``None`` the rest, and write what the encoder returns.

        After an error nothing more is encoded: FFmpeg does not support it.
        """

        def encode() -> None:
            for packet in self._stream.encode(frame):
                packet.duration = self._durations.pop(packet.pts, 0)
                self._container.mux(packet)

        self._checked(encode)

    def _checked(self, call: Any) -> Any:
        try:
            return call()
        except self._av.FFmpegError as error:
            self._waiting = self._stream = None
            raise UserError(f"Cannot write '{self.path}': {error.strerror}.") from error
