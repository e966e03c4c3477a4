"""Pictures in, detections out: a detector together with everything it needs to look at a picture."""

import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from detrs.classification import Classification, classification_of
from detrs.data.collate import normalize
from detrs.data.images import decode_image
from detrs.data.transforms import resize
from detrs.engine.detector_file import load_detector
from detrs.engine.runtime import pick_device
from detrs.errors import UserError
from detrs.postprocess import detections
from detrs.structures import Batch, Classes, Detections

Source = str | Path | bytes | Image.Image | NDArray[Any] | Tensor
"""A file, folder, glob pattern or URL; the bytes of a file; a Pillow image; an array (H, W, 3); a tensor (3, H, W)."""
OnError = Literal["raise", "skip"] | Callable[[str, UserError], object]
"""``raise``; ``skip``: log a warning and go on; or a function of (source, error) that collects and returns."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""What counts as a picture in folders and globs; a file named by itself may be called anything."""
MAX_DOWNLOAD_BYTES = 100_000_000
DOWNLOAD_TIMEOUT_SECONDS = 30

logger = logging.getLogger("detrs")


class Found(NamedTuple):
    """A picture and what was found in it."""

    image: UInt8[Tensor, "3 H W"]
    """As decoded: RGB, upright."""
    detections: Detections


class Predictor:
    """Finds objects in pictures; owns decoding, resizing and normalisation, which are those of training.

    Args:
        detector: takes normalised images (B, 3, H, W) and padding (B, H, W); moved to ``device``, in evaluation mode.
        classes: names and ids of its classes.
        classification: what its logits mean.
        image_size: (short, long) in pixels.
        mean: of each colour channel, on [0, 1].
        std: likewise.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        max_detections: per image, the best ones.

    Raises:
        UserError: there is no such device.
    """

    def __init__(
        self,
        detector: nn.Module,
        classes: Classes,
        classification: Classification,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        device: str = "auto",
        max_detections: int = 100,
    ) -> None:
        self.device = pick_device(device)
        self.detector = detector.to(self.device).eval()
        self.classes = classes
        self.classification = classification
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.max_detections = max_detections

    @classmethod
    def load(cls, checkpoint: str | Path, device: str = "auto") -> Self:
        """The predictor that a ``best.safetensors`` holds.

        Raises:
            UserError: the file is no such checkpoint, or there is no such device.
        """
        detector, experiment, classes, meta = load_detector(Path(checkpoint))
        preprocessing = meta["preprocessing"]
        short, long = preprocessing["image_size"]
        return cls(
            detector,
            classes,
            classification_of(experiment.model.classification),
            (short, long),
            preprocessing["mean"],
            preprocessing["std"],
            device,
            experiment.evaluation.max_detections,
        )

    def __call__(
        self,
        sources: Source | Iterable[Source],
        *,
        threshold: float = 0.5,
        batch_size: int = 8,
        allow_urls: bool = False,
        on_error: OnError = "raise",
    ) -> list[Detections]:
        """``predict_iter``, all at once and without the pictures.

        Raises:
            UserError: as ``predict_iter``.
        """
        found = self.predict_iter(
            sources, threshold=threshold, batch_size=batch_size, allow_urls=allow_urls, on_error=on_error
        )
        return [detections for _, detections in found]

    def predict_iter(
        self,
        sources: Source | Iterable[Source],
        *,
        threshold: float = 0.5,
        batch_size: int = 8,
        allow_urls: bool = False,
        on_error: OnError = "raise",
    ) -> Iterator[Found]:
        """Look at pictures, some at a time, in the order given.

        Args:
            sources: one source, or any iterable of them; it may be endless. A folder stands for the pictures directly
                in it, a glob for those it matches (``**`` for sub-folders), both sorted and without hidden files.
            threshold: smallest score of a detection, in [0, 1].
            batch_size: pictures to read at a time. Those of one size go through the detector together, without padding:
                what is found in a picture does not depend on its neighbours.
            allow_urls: fetch ``http://`` and ``https://`` sources.
            on_error: what to do about a source that cannot be read.

        Yields:
            A picture and its detections, in pixels of that picture; ``detections.source`` says where it came from.

        Raises:
            UserError: an argument is out of range; or, with ``on_error="raise"``, a source cannot be read.
        """
        check_threshold(threshold)
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, but must be 1 or above.")
        readable = _decoded(sources, allow_urls, _handler(on_error))
        return self._batches(readable, threshold, batch_size)  # not a generator itself: arguments are checked at once

    def _batches(self, readable: Iterator[tuple[str, Tensor]], threshold: float, batch_size: int) -> Iterator[Found]:
        waiting: list[tuple[str, Tensor]] = []
        for item in readable:
            waiting.append(item)
            if len(waiting) == batch_size:
                yield from self._predict(waiting, threshold)
                waiting = []
        if waiting:
            yield from self._predict(waiting, threshold)

    @torch.no_grad()  # not inference_mode, whose tensors refuse to be changed in place later on
    def _predict(self, items: list[tuple[str, Tensor]], threshold: float) -> list[Found]:
        """What is in some pictures; those of one size go through the detector together."""
        groups: dict[torch.Size, list[int]] = {}
        resized = [resize(image, None, self.image_size)[0] for _, image in items]
        for index, image in enumerate(resized):
            groups.setdefault(image.shape, []).append(index)
        found: dict[int, Found] = {}
        for group in groups.values():
            batch = normalize(_batch([resized[index] for index in group]).to(self.device), self.mean, self.std)
            detected = detections(
                self.detector(batch.images, batch.padding).last,
                [(items[index][1].shape[1], items[index][1].shape[2]) for index in group],
                self.classes,
                self.classification,
                max_detections=self.max_detections,
                sources=[items[index][0] for index in group],
            )
            found |= {
                i: Found(items[i][1], each.clipped().filter(threshold)) for i, each in zip(group, detected, strict=True)
            }
        return [found[index] for index in range(len(items))]


def check_threshold(threshold: float) -> None:
    """Refuse what no score can be compared with, percentages for example."""
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold}, but must be in [0, 1].")


def load(checkpoint: str | Path, device: str = "auto") -> Predictor:
    """The predictor that a ``best.safetensors`` holds: ``Predictor.load``."""
    return Predictor.load(checkpoint, device)


def _batch(images: list[Tensor]) -> Batch:
    """Pictures of one size (3, H, W) as a batch without padding or targets."""
    padding = torch.zeros(len(images), *images[0].shape[1:], dtype=torch.bool)  # (B, H, W)
    return Batch(torch.stack(images), padding, ())


def _handler(on_error: OnError) -> Callable[[str, UserError], object]:
    if callable(on_error):
        return on_error
    if on_error not in ("raise", "skip"):
        raise UserError(f"on_error is {on_error!r}, but must be 'raise', 'skip' or a function of (source, error).")
    return _raise if on_error == "raise" else _warn


def _raise(source: str, error: UserError) -> None:
    raise error


def _warn(source: str, error: UserError) -> None:
    logger.warning("skipped: %s", error)


def _decoded(
    sources: Source | Iterable[Source], allow_urls: bool, handle: Callable[[str, UserError], object]
) -> Iterator[tuple[str, Tensor]]:
    """(name, picture) of every source that can be read; the others go to ``handle``."""
    if isinstance(sources, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        sources = [sources]
    for source in sources:
        try:
            pictures = _pictures_of(source)
        except UserError as error:
            handle(str(source), error)
            continue
        for picture in pictures:
            name = str(picture) if isinstance(picture, str | Path) else ""
            try:
                yield name, _fetched(name, allow_urls) if _is_url(picture) else decode_image(picture)
            except UserError as error:
                handle(name, error)


def _pictures_of(source: Source) -> list[Source]:
    """``_expanded``, with what a name can do to the file system in one sentence.

    Raises:
        UserError: there is no picture in it, or it cannot be looked at.
    """
    try:
        return _expanded(source)
    except UserError:
        raise
    except OSError as error:  # a folder that may not be read, a name longer than any file's
        raise UserError(f"'{source!s}' cannot be opened: {error.strerror}.") from error
    except (RuntimeError, ValueError, NotImplementedError) as error:  # ~nobody, "**.jpg"
        hint = "" if "**" not in str(source) else ": '**' must stand alone between slashes, as in 'pictures/**/*.jpg'"
        raise UserError(f"'{source!s}' is no path or pattern: {error}{hint}.") from error


def _expanded(source: Source) -> list[Source]:
    """The pictures that a folder or a glob stands for; anything else is itself.

    Raises:
        UserError: there is no picture in it.
    """
    if not isinstance(source, str | Path) or _is_url(source):
        return [source]
    path = Path(source).expanduser()
    if path.is_dir():
        found: list[Source] = [*_pictures(path.iterdir(), path)]
        if not found:
            within = f"; for those in its sub-folders give '{path}/**/*'" if _pictures(path.rglob("*"), path) else ""
            raise UserError(f"There is no picture ({', '.join(IMAGE_SUFFIXES)}) in the folder '{path}'{within}.")
        return found
    if path.exists() or not any(sign in str(path) for sign in "*?["):
        return [path]
    root = Path(path.anchor)
    found = [*_pictures(root.glob(str(path.relative_to(path.anchor))), path)]
    if not found:
        raise UserError(f"No picture ({', '.join(IMAGE_SUFFIXES)}) matches '{path}'.")
    return found


def _pictures(paths: Iterable[Path], asked: Path) -> list[Path]:
    """The picture files among ``paths``, sorted; hidden ones only where ``asked`` says so."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") and part not in asked.parts for part in path.parts)
        and path.is_file()
    )


def _is_url(source: Source) -> bool:
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _fetched(url: str, allowed: bool) -> Tensor:
    if not allowed:
        raise UserError(
            f"{url} is a URL, and nothing is fetched from the network unless you allow it: pass allow_urls=True "
            "(--allow-urls on the command line), or give a file."
        )
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise UserError(f"{url} could not be fetched: {error}.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url} could not be fetched: {error}.") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise UserError(
            f"{url} is larger than {MAX_DOWNLOAD_BYTES // 10**6} MB: download it yourself and give the file."
        )
    try:
        return decode_image(data)
    except UserError as error:
        raise UserError(f"{url}: {error}") from error
