import io
import zipfile

import pytest

from detrs.magic import kind_of


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"", "an empty file"),
        (b" \n\t", "an empty file"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\xef\xbb\xbf\n <!DOCTYPE HTML>", "a web page, probably from a failed download"),
        (b"<?xml version='1.0'?>", "an XML or HTML file"),
        (b'{"model": 1}', "a JSON file"),
        (b"\x80\x02}q\x00.", "a Python pickle (.pth, .pt or .pkl)"),
        (b"\x00\x00\x00\x1cftypheic", "an HEIC image"),
        (b"\x00\x00\x00\x1cftypmp42", "a video"),
        (b"abc", None),
        (b"\x80abc", None),
        (b"ftypheic", None),  # only at byte 4
    ],
)
def test_kind_of(start: bytes, kind: str | None) -> None:
    assert kind_of(start) == kind


def test_a_zip_archive() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")
    assert "ZIP" in str(kind_of(stream.getvalue()))
