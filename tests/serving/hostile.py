"""Requests that a server must answer with 4xx and one sentence: ``CASES``. ``exchange`` sends one as raw bytes.

The cases depend on the limits of the server (``Limits``), so that
tests can lower them.
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hostile_files import FILES, jpeg, jpeg_bomb, real_png_bomb, zip_bomb

Requests = Iterator[bytes]
"""The bytes of one request, in parts; a part may be sent after the server has answered."""


class Limits(NamedTuple):
    """Of the server."""

    max_bytes: int
    """Of a body."""
    max_images: int
    """Of a request."""
    max_pixels: int
    """Of an image."""


class Case(NamedTuple):
    name: str
    request: Callable[[Limits], Requests]
    waits: bool = False
    """The client stops in the middle of its request and keeps the connection: the answer is that of a timeout."""
    closes: bool = False
    """The client closes its side in the middle of its request: the server may close the connection without an
    answer."""


def head(method: str, path: str, *headers: str, length: int | None = None) -> bytes:
    """A request line with headers."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(path: str, body: bytes, *headers: str) -> bytes:
    return head("POST", path, *headers, length=len(body)) + body


BOUNDARY = "hostile"
MULTIPART = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
JSON = "Content-Type: application/json"
URL_ENCODED = "Content-Type: application/x-www-form-urlencoded"


def part(content: bytes, disposition: str, *headers: str) -> bytes:
    lines = [f"--{BOUNDARY}", f"Content-Disposition: form-data; {disposition}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def file(content: bytes, name: str = "image.jpg") -> bytes:
    """A file of a form, whatever its content is."""
    return part(content, f'name="files"; filename="{name}"', "Content-Type: image/jpeg")


def post_form(*parts: bytes, path: str = "/predict") -> bytes:
    return post(path, form(*parts), MULTIPART)


def with_threshold(value: str) -> bytes:
    return post_form(file(jpeg()), path=f"/predict?threshold={value}")


def images_json(*images: bytes) -> bytes:
    return post("/predict", json.dumps({"images": [base64.b64encode(each).decode() for each in images]}).encode(), JSON)


def once(build: Callable[[Limits], bytes]) -> Callable[[Limits], Requests]:
    """A request as one part."""

    def request(limits: Limits) -> Requests:
        yield build(limits)

    return request


def fixed(name: str, request: Callable[[], bytes]) -> Case:
    return Case(name, once(lambda _: request()))


JSON_BODIES: dict[str, Callable[[], bytes]] = {
    "json-that-is-cut": lambda: b'{"images": ["',
    "json-nested-100000-times": lambda: b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "json-number-of-100000-digits": lambda: b'{"images": [' + b"9" * 100_000 + b"]}",
    "json-list": lambda: b"[1, 2, 3]",
    "json-null": lambda: b"null",
    "json-without-images": lambda: b'{"files": []}',
    "json-no-images": lambda: b'{"images": []}',
    "json-image-is-a-number": lambda: b'{"images": [5]}',
    "json-image-is-null": lambda: b'{"images": [null]}',
    "json-in-utf-16": lambda: '{"images": []}'.encode("utf-16"),
    "json-invalid-utf-8": lambda: b'{"images": ["\xff\xfe"]}',
    "base64-invalid": lambda: b'{"images": ["!!!not base64!!!"]}',
    "base64-cut": lambda: json.dumps({"images": [base64.b64encode(jpeg()).decode()[:-3]]}).encode(),
    "base64-of-a-zip": lambda: json.dumps({"images": [base64.b64encode(zip_bomb()).decode()]}).encode(),
    "base64-of-nothing": lambda: b'{"images": [""]}',
    "url-of-metadata-service": lambda: b'{"images": ["http://169.254.169.254/latest/meta-data/"]}',
    "url-of-own-server": lambda: b'{"images": ["http://127.0.0.1/health"]}',
    "url-of-a-file": lambda: b'{"images": ["file:///etc/passwd"]}',
    "path-of-a-file": lambda: b'{"images": ["/etc/passwd"]}',
    "data-uri-of-svg": lambda: b'{"images": ["data:image/svg+xml,<svg/>"]}',
    "json-empty": lambda: b"",
}

PATHS = {
    "path-parent": "/../../../../etc/passwd",
    "path-parent-encoded": "/page/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "path-dots-encoded": "/page/%2e%2e/%2e%2e/__init__.py",
    "path-dots-encoded-twice": "/page/%252e%252e%252f__init__.py",
    "path-backslashes": "/page/..\\..\\__init__.py",
    "path-null": "/page/page.css%00.html",
    "path-absolute": "//etc/passwd",
    "path-of-source": "/page/__init__.py",
    "path-invalid-utf-8": "/page/%ff%fe",
    "path-of-100000-letters": "/" + "a" * 100_000,
    "uri-of-another-server": "http://169.254.169.254/latest/meta-data/",
}

THRESHOLDS = ("nan", "inf", "-0.1", "1.01", "abc", "", "1e999", "0.5&threshold=nan", "%00")


def _endless_chunks(limits: Limits) -> Requests:
    yield head("POST", "/predict", MULTIPART, "Transfer-Encoding: chunked")
    yield from _chunks(file(b"")[:-2])
    for _ in range(4 * limits.max_bytes // 65536 + 2):
        yield from _chunks(bytes(65536))


def _chunks(content: bytes) -> Requests:
    yield f"{len(content):x}\r\n".encode() + content + b"\r\n"


def _half_sent(limits: Limits) -> Requests:
    whole = post_form(file(jpeg(600, 400)))
    yield whole[: len(whole) // 2]


def _longer_than_it_states(limits: Limits) -> Requests:
    body = form(file(jpeg()))
    yield head("POST", "/predict", MULTIPART, length=100) + body


def _many_headers(limits: Limits) -> Requests:
    yield b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    for i in range(20):
        yield b"".join(f"X-{i}-{j}: {'a' * 90}\r\n".encode() for j in range(500))
    yield b"\r\n"


def _too_large(limits: Limits) -> Requests:
    yield head("POST", "/predict", MULTIPART, length=limits.max_bytes + 10_000)
    yield file(b"")[:-2]
    for _ in range(limits.max_bytes // 65536 + 1):
        yield bytes(65536)


PROTOCOL = (
    fixed("content-length-of-10-gigabytes", lambda: head("POST", "/predict", MULTIPART, length=10**10)),
    fixed("content-length-of-30-digits", lambda: head("POST", "/predict", MULTIPART, length=10**29)),
    fixed("content-length-negative", lambda: head("POST", "/predict", MULTIPART, length=-1)),
    fixed("content-length-is-text", lambda: head("POST", "/predict", MULTIPART, "Content-Length: many")),
    fixed("content-length-twice", lambda: head("POST", "/predict", JSON, "Content-Length: 2", length=5) + b"[]   "),
    fixed(
        "content-length-and-chunked",
        lambda: head("POST", "/predict", JSON, "Transfer-Encoding: chunked", length=4) + b"0\r\n\r\nGET /x HTTP/1.1",
    ),
    fixed("encoding-unknown", lambda: head("POST", "/predict", JSON, "Transfer-Encoding: gzip, identity")),
    fixed(
        "chunk-of-2-to-the-68-bytes",
        lambda: head("POST", "/predict", JSON, "Transfer-Encoding: chunked") + b"FFFFFFFFFFFFFFFFF\r\n[]",
    ),
    fixed(
        "chunk-size-is-text", lambda: head("POST", "/predict", JSON, "Transfer-Encoding: chunked") + b"size\r\n[]\r\n"
    ),
    Case("chunked-without-end", _endless_chunks),
    Case("body-above-the-limit", _too_large),
    Case("body-longer-than-it-states", _longer_than_it_states),
    Case("half-a-body-then-silence", _half_sent, waits=True),
    Case("half-a-body-then-closed", _half_sent, closes=True),
    Case("half-a-header-then-silence", once(lambda _: b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"), waits=True),
    Case("length-without-body", once(lambda _: head("POST", "/predict", MULTIPART, length=500)), waits=True),
    Case("many-headers", _many_headers),
    fixed("header-of-1-megabyte", lambda: head("GET", "/health", f"X-Long: {'a' * 10**6}")),
    fixed("request-line-is-binary", lambda: bytes(range(256)) * 4),
    fixed("tls-hello", lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506) + b"\r\n\r\n"),
    fixed("http-2-preface", lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    fixed("http-without-version", lambda: b"GET /health\r\n\r\n"),
    fixed("header-without-name", lambda: head("GET", "/health", ": value")),
    fixed("header-with-null", lambda: head("GET", "/health", "X-Null: a\0b")),
    fixed("method-unknown", lambda: head("BREW", "/predict", length=0)),
    fixed("method-delete", lambda: head("DELETE", "/predict", length=0)),
    fixed("method-trace", lambda: head("TRACE", "/", length=0)),
    fixed("get-of-predict", lambda: head("GET", "/predict")),
    fixed("host-of-another-server", lambda: b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
    fixed(
        "request-from-the-page-of-another-server",
        lambda: post("/predict", form(file(jpeg())), MULTIPART, "Origin: http://evil.example"),
    ),
    fixed("origin-invalid", lambda: post("/predict", form(file(jpeg())), MULTIPART, "Origin: http://[")),
)

BODIES = (
    fixed("body-of-text", lambda: post("/predict", b"hello", "Content-Type: text/plain")),
    fixed("body-of-xml", lambda: post("/predict", FILES["xml-entities"](), "Content-Type: application/xml")),
    fixed("body-of-a-url", lambda: post("/predict", b"url=file:///etc/passwd", URL_ENCODED)),
    fixed("body-without-type", lambda: post("/predict", b"hello")),
    fixed("body-missing", lambda: head("POST", "/predict", length=0)),
    fixed("body-of-gzip", lambda: post("/predict", gzip.compress(bytes(10**7)), JSON, "Content-Encoding: gzip")),
    fixed("form-without-boundary", lambda: post("/predict", form(), "Content-Type: multipart/form-data")),
    fixed("form-with-another-boundary", lambda: post("/predict", form(), f"{MULTIPART}-other")),
    fixed("form-with-a-boundary-of-20000-letters", lambda: post("/predict", form(), f"{MULTIPART}{'b' * 20_000}")),
    fixed("form-without-parts", lambda: post_form()),
    fixed("form-that-is-cut", lambda: post("/predict", form(file(jpeg()))[:-20], MULTIPART)),
    fixed("form-without-a-file", lambda: post_form(part(b"a.jpg", 'name="files"'))),
    fixed("form-of-2000-fields", lambda: post_form(*[part(b"", f'name="f{i}"') for i in range(2000)])),
    fixed("form-of-1000-empty-files", lambda: post_form(*[file(b"")] * 1000)),
    fixed("form-with-a-huge-part-header", lambda: post_form(part(b"", 'name="files"', f"X-Long: {'a' * 50_000}"))),
    fixed(
        "form-part-without-disposition", lambda: post("/predict", b"--hostile\r\n\r\nx\r\n--hostile--\r\n", MULTIPART)
    ),
    fixed("file-name-parent", lambda: post_form(file(b"x", "../../../../etc/passwd"))),
    fixed("file-name-absolute", lambda: post_form(file(b"x", "/etc/passwd"))),
    fixed("file-name-with-script", lambda: post_form(file(b"x", "<script>alert(1)</script>.jpg"))),
    fixed("file-name-with-line-break", lambda: post_form(file(b"x", "a.jpg%0d%0aSet-Cookie: x=1"))),
    fixed("file-name-of-10000-letters", lambda: post_form(file(b"x", "a" * 10_000))),
    fixed("explain-without-file", lambda: post_form(path="/explain")),
    fixed("explain-a-zip", lambda: post_form(file(zip_bomb()), path="/explain")),
    fixed("explain-a-bomb", lambda: post_form(file(jpeg_bomb()), path="/explain")),
    fixed("explain-two-images", lambda: post_form(file(jpeg()), file(jpeg()), path="/explain")),
    fixed("explain-a-url", lambda: post("/explain", b'{"image": "http://169.254.169.254/"}', JSON)),
    fixed("explain-with-threshold-nan", lambda: post_form(file(jpeg()), path="/explain?threshold=nan")),
)

OVER_LIMITS = (
    Case("png-bomb", once(lambda limits: post_form(file(real_png_bomb(8 * limits.max_pixels))))),
    Case("png-slightly-too-large", once(lambda limits: post_form(file(real_png_bomb(limits.max_pixels + 100_000))))),
    Case("too-many-images", once(lambda limits: post_form(*[file(jpeg(8, 8))] * (limits.max_images + 1)))),
    Case("too-many-images-in-json", once(lambda limits: images_json(*[jpeg(8, 8)] * (limits.max_images + 1)))),
    fixed("one-bad-image-of-two", lambda: post_form(file(jpeg()), file(b"GIF89a", "b.jpg"))),
)

CASES: tuple[Case, ...] = (
    *(fixed(name, lambda content=content: post_form(file(content()))) for name, content in FILES.items()),
    *OVER_LIMITS,
    *(fixed(name, lambda body=body: post("/predict", body(), JSON)) for name, body in JSON_BODIES.items()),
    *(fixed(name, lambda path=path: head("GET", path)) for name, path in PATHS.items()),
    *(fixed(f"threshold-{value}", lambda value=value: with_threshold(value)) for value in THRESHOLDS),
    *BODIES,
    *PROTOCOL,
)
"""Each gets 4xx and one sentence."""
