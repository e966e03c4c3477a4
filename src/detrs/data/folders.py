"""Image files in folders, by their suffix, and a count of images in formats that are not supported."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    *(".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
)
"""Image files in folders and globs; a single file may have any name."""
UNSUPPORTED_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".gif", ".svg", ".ico", ".psd", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".exr", ".hdr", ".fits", ".dcm", ".pcx", ".jpg_large"),
    *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
"""Images in formats that are not supported; they are reported, unlike other files."""


class Found(NamedTuple):
    images: list[Path]
    """Supported images, sorted."""
    unsupported: list[Path]
    """Images in other formats, sorted."""

    def skipped(self) -> str:
        """``"3 images in unsupported formats (2 x .heic, 1 x .gif), such as 'a.heic'"``, or an empty string."""
        if not self.unsupported:
            return ""
        counts = Counter(path.suffix.lower() for path in self.unsupported).most_common()
        listed = ", ".join(f"{count} x {suffix}" for suffix, count in counts)
        number = len(self.unsupported)
        plural = "image in an unsupported format" if number == 1 else "images in unsupported formats"
        return f"{number} {plural} ({listed}), such as '{self.unsupported[0].name}'"


def find_images(paths: Iterable[Path], given: Path) -> Found:
    """The image files among ``paths``; hidden ones only if ``given`` names them."""
    found = Found([], [])
    for path in sorted(paths):
        suffix = path.suffix.lower()
        hidden = any(part.startswith(".") and part not in given.parts for part in path.parts)
        if suffix in (*IMAGE_SUFFIXES, *UNSUPPORTED_SUFFIXES) and not hidden and path.is_file():
            (found.images if suffix in IMAGE_SUFFIXES else found.unsupported).append(path)
    return found
