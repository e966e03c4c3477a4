"""The images in the body of a request: files of a form, one image by itself, or base64 in JSON."""

import base64
import binascii
import json
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from detrs.errors import did_you_mean, printable
from detrs.isolation import only_errors_logged
from detrs.serving.problems import RequestProblem

MAX_NAME = 255
"""Characters of a file name in the answer."""
KEYS = ("image", "images")
BASE64_START = ";base64,"
"""Of the content of a ``data:`` URL."""

EXPECTED = (
    "Send images as files of a form (multipart/form-data), one image as the body (for example image/jpeg), or base64 "
    'in JSON, as {"images": ["..."]} (application/json)'
)


class Upload(NamedTuple):
    """An image file that a client sent."""

    content: bytes
    name: str | None
    """Name of the file without folders; it is only returned, never opened."""


def uploads(content_type: str, body: bytes, max_images: int) -> list[Upload]:
    """The images in a body.

    Args:
        content_type: the header of this name; empty if there is none.
        body: the complete body.
        max_images: largest number of images.

    Raises:
        RequestProblem: the body is not of the type that the header states, or has no image or too many.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = _of_form(content_type, body, max_images)
    elif kind == "application/json":
        found = _of_json(body, max_images)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        found = [Upload(body, None)]
    else:
        came = f"'{printable(kind[:80])}'" if kind else "none"
        raise RequestProblem(415, f"The content type is {came}. {EXPECTED}.")
    if not found:
        raise RequestProblem(400, f"The request has no image. {EXPECTED}.")
    return found


def too_many(max_images: int) -> RequestProblem:
    """The answer to a request with more images than ``max_images``."""
    return RequestProblem(413, f"The request has more than {max_images} images. Send them in several requests.")


def _of_form(content_type: str, body: bytes, max_images: int) -> list[Upload]:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary or len(boundary) > 70:  # RFC 2046, 5.1.1
        raise RequestProblem(400, "The content type multipart/form-data needs a boundary of 1 to 70 characters.")
    form = _Form(max_images)
    parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
    try:
        with only_errors_logged("python_multipart.multipart"):  # each invalid form would be a warning
            parser.write(body)
            parser.finalize()
    except FormParserError as error:
        raise RequestProblem(400, f"The form is not valid multipart/form-data: {printable(error)}.") from None
    if not form.is_complete:
        raise RequestProblem(400, "The form is incomplete: its last boundary is missing.")
    return form.files


class _Form:
    """Receives the parts of a form, and rejects it as soon as it has more than it may."""

    def __init__(self, max_images: int) -> None:
        self.files: list[Upload] = []
        self.is_complete = False
        self._max_images = max_images
        self._field, self._value, self._disposition = b"", b"", b""
        self._content = bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        if len(self.files) == self._max_images:
            raise too_many(self._max_images)
        self._disposition = b""
        self._content = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            name = printable(options.get(b"name", b"").decode("utf-8", "replace")[:MAX_NAME])
            raise RequestProblem(
                400,
                f"The field '{name}' of the form is not a file. Images need a file name, and parameters belong into "
                "the address, as in /predict?threshold=0.5.",
            )
        self.files.append(Upload(bytes(self._content), file_name(options[b"filename"].decode("utf-8", "replace"))))

    def _complete(self) -> None:
        self.is_complete = True


def file_name(text: str) -> str | None:
    """The last component of a path as a client sent it, shortened to ``MAX_NAME``; ``None`` if there is none.

    >>> file_name("C:\\\\images\\\\a.jpg"), file_name("../../etc/passwd"), file_name("/")
    ('a.jpg', 'passwd', None)
    """
    name = PurePosixPath(PureWindowsPath(text).name).name
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name[:MAX_NAME]) or None


def _of_json(body: bytes, max_images: int) -> list[Upload]:
    if sum(map(body.count, (b",", b"[", b"{", b":"))) > 8 * max_images + 64:  # base64 has none of them
        raise RequestProblem(413, "The JSON object has too many values. " + _json_form(max_images))
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = printable(error) if isinstance(error, json.JSONDecodeError) else "it cannot be decoded"
        raise RequestProblem(400, f"The body is not valid JSON: {reason}.") from None
    if not isinstance(values, dict):
        raise RequestProblem(400, f"The JSON value is not an object. {_json_form(max_images)}")
    unknown = [key[:80] for key in values if key not in KEYS]  # the hint takes seconds for keys of megabytes
    if unknown:
        hint = did_you_mean(unknown[0], KEYS)
        raise RequestProblem(400, f"Unknown key '{printable(unknown[0])}'.{hint} {_json_form(max_images)}")
    if len(values) != 1:
        raise RequestProblem(400, f"The JSON object has {len(values)} of the keys. {_json_form(max_images)}")
    texts = [values["image"]] if "image" in values else values["images"]
    if not isinstance(texts, list):
        raise RequestProblem(400, f"The value of images is not a list. {_json_form(max_images)}")
    if len(texts) > max_images:
        raise too_many(max_images)
    return [Upload(_of_base64(text, number), None) for number, text in enumerate(texts, 1)]


def _json_form(max_images: int) -> str:
    return f'Expected {{"image": "..."}} or {{"images": ["...", ...]}} with 1 to {max_images} images in base64.'


def _of_base64(text: Any, number: int) -> bytes:
    if not isinstance(text, str):
        raise RequestProblem(400, f"Image {number} is not a string. Expected the bytes of an image file in base64.")
    if text[:100].partition(":")[0].lower() in ("http", "https", "file", "ftp"):
        raise RequestProblem(400, f"Image {number} is an address, and nothing is downloaded. Send the image in base64.")
    if text.startswith("data:"):
        head, found, text = text.partition(BASE64_START)
        if not found or len(head) > MAX_NAME:
            raise RequestProblem(400, f"Image {number} is a data URL without '{BASE64_START}'.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestProblem(400, f"Image {number} is not valid base64 (RFC 4648, section 4, with padding).") from None
