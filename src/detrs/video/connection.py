"""An open video: its frames decoded one by one, upright, in RGB, with their times.

Frames that the decoder reports as damaged are skipped. Damage that it does not detect remains visible, as in JPEG.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from detrs.errors import UserError
from detrs.files import open_regular
from detrs.magic import is_video, kind_of
from detrs.video.sources import StreamSource

if TYPE_CHECKING:
    from av import VideoFrame

MAX_PIXELS = 100_000_000
"""Of a frame; as for images."""
TIMEOUT_SECONDS = 10.0
"""Without data, when a URL is opened and between two packets."""
FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,ogg,mpegts,mpeg,mpegvideo,m4v,mjpeg,h264,hevc,ivf,dv,nut"
)
"""Formats of FFmpeg that are opened: rarely used ones are the usual attacks, and playlists open further files."""
URL_FORMATS = f"{FILE_FORMATS},hls,mpjpeg,rtsp,rtp,sdp,live_flv"
PROTOCOLS = "rtsp,rtsps,rtp,srtp,rtmp,rtmps,rtmpt,udp,tcp,tls,srt,http,https,httpproxy,crypto"
"""Protocols that a stream may use; a playlist from the network cannot name a file."""
UNTIMED_FORMATS = ("mpjpeg", "mjpeg", "h264", "hevc", "m4v", "mpegvideo")
"""Formats without times, such as the images that network cameras send over HTTP."""
CODECS = (
    *("h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "libaom-av1", "mjpeg", "rawvideo"),
    *("mpeg4", "mpeg2video", "mpeg1video", "h263", "flv", "theora", "msmpeg4", "msmpeg4v2", "wmv1", "wmv2", "wmv3"),
    *("vc1", "dvvideo", "prores", "dnxhd", "ffv1", "huffyuv"),
)
"""Decoders that are used, of those in FFmpeg."""
BT709 = 1
"""ITU-T H.273: color primaries, transfer characteristics and matrix coefficients of BT.709."""
MAX_HELD = 64
"""Frames that a decoder may hold back: those it reorders, and one for each thread."""
USUAL_RATE = 25
"""Frames per second of a video that contains neither times nor a rate."""


class BrokenOffError(UserError):
    """The rest of a video from a server cannot be read."""


class Frame(NamedTuple):
    """A decoded frame."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB, upright."""
    frame_index: int
    """Number of the frame in the video, from 0; frames that are skipped count."""
    time_seconds: float
    """Since the start of the video."""


class Connection:
    """An open video.

    Args:
        source: what to open.

    Raises:
        UserError: it cannot be opened, or contains no video that can be decoded; or PyAV is not installed.
    """

    def __init__(self, source: StreamSource) -> None:
        self.source = source
        self._av = import_av()
        self._errors = self._av.FFmpegError, OSError  # those of the open file, for example of an invalid position, too
        self._file = _open_file(source) if source.kind == "file" else None
        try:
            self._container = self._open()
            self._stream = self._video()
        except BaseException:
            self.close()
            raise
        size = getattr(self._container, "size", 0)  # of a file, also on a server
        self.is_live = source.kind == "camera" or (
            source.kind == "url" and self._container.duration is None and size <= 0
        )
        """Whether frames come as they are recorded and without an end, so that a slow reader has to drop some."""
        self.has_times = self._container.format.name not in UNTIMED_FORMATS
        """Whether the times are those of the source; otherwise they are multiples of an assumed period."""
        if not self.is_live:
            self._stream.thread_type = "AUTO"  # also frame by frame, which would delay live frames
        options = {"max_pixels": str(MAX_PIXELS)}
        if self._stream.codec_context.name == "mjpeg":
            options["err_detect"] = "explode"  # strict: a damaged frame affects no other
        self._stream.codec_context.options = options

    def close(self) -> None:
        """Close the video. Its frames cannot be read any more."""
        for each in (getattr(self, "_container", None), self._file):
            if each is not None:
                each.close()

    def frames(self, stride: int, damaged: Callable[[int, UserError], object]) -> Iterator[Frame]:
        """The frames ``0, stride, 2 * stride, ...``.

        Args:
            stride: step between two frames.
            damaged: called with the index of each of these frames that cannot be decoded, and an error that names it.

        Raises:
            UserError: there is no frame that can be decoded.
            BrokenOffError: the connection broke.
        """
        clock, index, num_decoded = Clock(self._start(), self._period()), 0, 0
        for decoded in self._decoded():
            for frame in decoded or (None,):
                if frame is None or frame.is_corrupt:
                    if index % stride == 0:
                        damaged(index, UserError(f"{self.source.name}: frame {index} is damaged."))
                else:
                    num_decoded += 1
                    time = clock(frame.pts, frame.time_base)
                    if index % stride == 0:
                        yield Frame(upright(frame), index, time)
                index += 1
        if not num_decoded:
            raise UserError(f"{self.source.name} has no frame that can be decoded.")

    def _decoded(self) -> Iterator[list["VideoFrame"] | None]:
        """The frames of one packet after another; ``None`` for a packet that cannot be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._errors as error:
                if self.source.kind == "file":
                    yield None
                    return
                raise BrokenOffError(f"{self.source.name} broke off: {self._reason(error)}.") from error
            if packet is None:
                return
            is_last = packet.size == 0  # which returns the frames that the decoder still holds
            for _ in range(MAX_HELD if is_last else 1):
                try:
                    frames: list[VideoFrame] = packet.decode()
                    yield from [frames] if frames else []
                    break
                except self._errors:
                    yield None

    def _open(self) -> Any:
        source = self.source
        options: dict[str, str] = {"codec_whitelist": ",".join(CODECS)}
        timeout = None
        if source.kind == "file":
            options["format_whitelist"] = FILE_FORMATS
            options["protocol_whitelist"] = "file"
        if source.kind == "url":
            options |= {"format_whitelist": URL_FORMATS, "protocol_whitelist": PROTOCOLS}
            timeout = TIMEOUT_SECONDS
            if source.location.lower().startswith("rtsp"):
                options["rtsp_flags"] = "prefer_tcp"  # over UDP, lost packets damage frames
        try:
            return self._av.open(
                self._file or source.location,
                format=source.input_format,
                options=options,
                timeout=timeout,
                metadata_errors="replace",
            )
        except self._errors as error:
            if self._file is None:
                raise UserError(f"{source.name} cannot be opened: {self._reason(error)}.") from error
            self._file.seek(0)
            start = self._file.read(512)
            what = "truncated or damaged" if is_video(start) else kind_of(start) or "not a readable video"
            raise UserError(f"{source.name} is {what}. Expected a video: MP4, MOV, MKV, WebM, AVI, MPEG.") from error

    def _video(self) -> Any:
        name = self.source.name
        if not self._container.streams.video:
            raise UserError(f"{name} has no video, only other streams such as audio.")
        stream = self._container.streams.video[0]
        context = stream.codec_context
        if context is None or context.name not in CODECS:
            codec = "an unknown codec" if context is None else f"the codec {context.name}"
            raise UserError(f"{name} uses {codec}, which is not supported. Convert it to H.264.")
        if context.width * context.height > MAX_PIXELS:
            raise UserError(f"{name} has frames of more than {MAX_PIXELS:,} pixels.")
        return stream

    def _start(self) -> float:
        """The first time of the file, also of its audio, in seconds."""
        start = self._container.start_time
        return 0.0 if start is None else float(start / self._av.time_base)

    def _period(self) -> float:
        """Seconds from one frame to the next."""
        rate = self._stream.average_rate or self._stream.guessed_rate or USUAL_RATE
        return float(1 / rate)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, self._av.error.ExitError):
            return f"no data for {TIMEOUT_SECONDS:g} seconds"
        return str(getattr(error, "strerror", None) or error).rstrip(".")


class Clock:
    """Times of frames, which always increase.

    Args:
        start: time of the start of the video, in seconds.
        period: seconds from one frame to the next, where the video has no times.
    """

    def __init__(self, start: float, period: float) -> None:
        self._offset, self._period = -start, period
        self._last: float | None = None

    def __call__(self, pts: int | None, time_base: Fraction | None) -> float:
        """The time of the next frame in seconds.

        Args:
            pts: its presentation timestamp, if it has one.
            time_base: the unit of ``pts``, in seconds.
        """
        following = 0.0 if self._last is None else self._last + self._period
        if pts is None or time_base is None:
            time = following
        else:
            time = float(pts * time_base) + self._offset
            if self._last is not None and time <= self._last:  # the timestamps started again
                self._offset += following - time
                time = following
        self._last = time
        return time


def upright(frame: "VideoFrame") -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a frame in RGB, rotated and mirrored as its display matrix specifies."""
    # PyAV before 17 does not use the matrix that the frame specifies
    matrix = "itu709" if frame.colorspace == BT709 else None
    pixels = frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray()
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know all kinds of side data; the rotation alone, in degrees, does not need them
        return np.rot90(pixels, round(frame.rotation / 90))
    if data is None:
        return pixels
    # (x, y) becomes (a x + c y, b x + d y): ISO/IEC 14496-12, 6.2.2; the third column is for perspective
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    if abs(b) > abs(a):
        pixels, x_sign, y_sign = pixels.swapaxes(0, 1), c, b
    else:
        x_sign, y_sign = a, d
    return pixels[:: -1 if y_sign < 0 else 1, :: -1 if x_sign < 0 else 1]


def import_av() -> Any:
    """The module ``av``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError("Videos and cameras need PyAV: pip install 'detrs[stream]'") from error
    return av


def _open_file(source: StreamSource) -> Any:
    # an open file, since FFmpeg would interpret names such as "concat:a.mp4" as protocols
    try:
        return open_regular(Path(source.location))
    except OSError as error:
        raise UserError(f"{source.name} cannot be opened: {error.strerror}.") from error
