"""Copies of images, within and across splits: exact ones by content, similar ones by a small signature."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

from detrs.data.fingerprint import hash_files
from detrs.data.images import NUM_READERS, decode_image
from detrs.errors import UserError

SIGNATURE_SIDE = 16
"""Side in pixels of the gray thumbnail that is the signature of an image."""
MIN_CORRELATION = 0.98
"""Correlation of two signatures from which images are similar. Copies that were resized or saved with another quality
are above 0.99."""
MIN_CONTRAST = 2.0
"""Standard deviation of a signature, in gray levels of 255, below which an image is too uniform to be compared."""
BLOCK = 2048
"""Images that are compared with all others at a time."""


def exact_copies(paths: Sequence[Path]) -> list[list[int]]:
    """Groups of equal files, as sorted positions in ``paths``. A file that occurs twice in ``paths`` is a copy.

    Only files with the same length and the same ends are read completely.
    """
    candidates = _groups(hash_files(paths))
    return [
        sorted(group[i] for i in same)
        for group in candidates
        for same in _groups([_digest(paths[position]) for position in group])
    ]


def similar_images(paths: Sequence[Path]) -> list[tuple[int, int, float]]:
    """Pairs of images with nearly the same content, with the correlation of their signatures, most similar first.

    The signature is a gray thumbnail of 16 x 16 pixels without its mean and contrast. It finds copies that were
    resized, recompressed, brightened or converted to another format, and consecutive frames of a video, but not crops
    and flipped or rotated copies. All images are decoded; unreadable ones are skipped.

    Returns:
        (first, second, correlation) with positions in ``paths``, first < second.
    """
    with ThreadPoolExecutor(NUM_READERS) as readers:
        found = list(readers.map(signature, paths))
    rows = np.array([row for row, each in enumerate(found) if each is not None], dtype=np.int64)
    if len(rows) < 2:
        return []
    signatures = np.stack([each for each in found if each is not None])  # (N, 256)
    pairs = []
    for start in range(0, len(rows), BLOCK):
        correlations = signatures[start : start + BLOCK] @ signatures[start:].T
        first, second = np.nonzero(np.triu(correlations, 1) >= MIN_CORRELATION)
        values = correlations[first, second]
        pairs += [
            (int(a), int(b), float(value))
            for a, b, value in zip(rows[start + first], rows[start + second], values, strict=True)
        ]
    return sorted(pairs, key=lambda pair: -pair[2])


def signature(path: Path) -> NDArray[np.float32] | None:
    """(256,) gray thumbnail of an image with mean 0 and norm 1; ``None`` if it is unreadable or uniform."""
    try:
        image = decode_image(path)  # (3, H, W)
    except UserError:
        return None
    small = functional.resize_image(
        functional.rgb_to_grayscale_image(image), [SIGNATURE_SIDE, SIGNATURE_SIDE], antialias=True
    )
    values: NDArray[Any] = small.numpy().astype(np.float32).ravel()
    if values.std() < MIN_CONTRAST:
        return None
    values -= values.mean()
    return np.asarray(values / np.linalg.norm(values), dtype=np.float32)


def _groups(keys: Sequence[bytes]) -> list[list[int]]:
    """Positions of equal keys, for keys that occur several times. Empty keys are unknown."""
    positions: dict[bytes, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        if key:
            positions[key].append(position)
    return [group for group in positions.values() if len(group) > 1]


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""
