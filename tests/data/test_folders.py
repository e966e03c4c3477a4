"""Every supported image in a folder is found, and unsupported ones are counted."""

from pathlib import Path

from PIL import Image

from detrs.data.folders import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES, find_images
from detrs.data.images import FORMATS


def test_images_of_all_suffixes_are_found(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "b.jfif",
        "c.JPE",
        "d.jpe",
        "e.JPEG",
        "f.tif",
        "g.heic",
        "h.HEIC",
        "i.gif",
        "j.txt",
        "k",
        ".l.jpg",
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    found = find_images(tmp_path.iterdir(), tmp_path)
    assert [path.name for path in found.images] == names[:6]
    assert found.skipped() == "3 images in unsupported formats (2 x .heic, 1 x .gif), such as 'g.heic'"
    assert find_images([tmp_path / "a.jpg"], tmp_path).skipped() == ""


def test_all_suffixes_that_pillow_registers_for_our_formats_are_known() -> None:
    ours = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
    assert ours <= set(IMAGE_SUFFIXES) and not set(IMAGE_SUFFIXES) & set(UNSUPPORTED_SUFFIXES)
