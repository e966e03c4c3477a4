"""Frames of a video in batches: all of a file, the newest of a live source."""

from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice

from detrs.errors import UserError
from detrs.lists import in_lists
from detrs.video.connection import Connection, Frame
from detrs.video.live import LiveReader
from detrs.video.sources import StreamSource


def check_frame_arguments(stride: int, max_frames: int | None, reconnect: int) -> None:
    """Check arguments of ``frame_batches``.

    Raises:
        UserError: one of them is out of range.
    """
    for name, value, smallest in (("stride", stride, 1), ("max_frames", max_frames, 1), ("reconnect", reconnect, 0)):
        if value is not None and value < smallest:
            raise UserError(f"{name} is {value}, but must be at least {smallest}.")


def frame_batches(
    source: StreamSource,
    *,
    batch_size: int,
    stride: int,
    max_frames: int | None,
    reconnect: int,
    damaged: Callable[[str, UserError], object],
) -> Generator[list[Frame], None, None]:
    """Frames ``0, stride, 2 * stride, ...`` of a video, in lists of at most ``batch_size``, which bounds the memory.

    A list of a live source contains the frames that arrived in the meantime, at least one, and not those that were
    dropped because there were more.

    Args:
        source: the video.
        batch_size: largest number of frames in a list.
        stride: step between two frames.
        max_frames: number of frames after which reading ends; ``None``: all.
        reconnect: attempts to open a live source again after it broke off or ended.
        damaged: called with the name of the source and an error, for each of these frames that is damaged, and if a
            live source broke off.

    Raises:
        UserError: the video cannot be opened, or has no frame that can be decoded.
    """
    connection = Connection(source)
    if connection.is_live:
        yield from _live(connection, batch_size, stride, max_frames, reconnect, damaged)
        return
    with closing(connection):
        frames = islice(connection.frames(stride, lambda _, error: damaged(source.name, error)), max_frames)
        yield from in_lists(frames, batch_size)


def _live(
    connection: Connection,
    batch_size: int,
    stride: int,
    max_frames: int | None,
    reconnect: int,
    damaged: Callable[[str, UserError], object],
) -> Generator[list[Frame], None, None]:
    left = max_frames
    with closing(LiveReader(connection, stride=stride, capacity=batch_size, reconnect=reconnect)) as reader:
        for frames, errors in reader:
            for error in errors:
                damaged(connection.source.name, error)
            batch = frames[:left]
            if batch:
                yield batch
            if left is not None:
                left -= len(batch)
                if left <= 0:
                    return
