"""The page of ``detrs serve`` in headless Chromium, with a server whose answers are written here."""

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from made_up import explanation
from opened_page import DROP, Opened
from PIL import Image

from detrs.serving.page import PageSettings, page_files, page_headers
from detrs.structures import Classes
from detrs.visualization.explorer import explorer_page

EVIL = "<img src=x onerror='window.harmed = 1'></script><script>window.harmed = 1</script>"
CLASSES = Classes(("cat", "dog", EVIL), (1, 2, 3))
SETTINGS = PageSettings(
    checkpoint="best.safetensors",
    detector="DeformableDETR",
    classes=CLASSES,
    threshold=0.375,
    max_bytes=20_000,
    formats=("JPEG", "PNG"),
    needs_token=False,
    unexplainable=None,
)
ORANGE = "#e69f00"
"""Of the first class."""
Answer = tuple[int, dict[str, str], bytes]


def png(size: tuple[int, int] = (60, 40), color: str = "#203040") -> bytes:
    """An image of (width, height) in one color."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def found(name: str, *detections: tuple[str, float, list[float]], size: tuple[int, int] = (40, 60)) -> Answer:
    """The answer for an image of (height, width)."""
    entries = [
        {"box_xyxy": box, "score": score, "name": label, "category_id": CLASSES.names.index(label) + 1}
        for label, score, box in detections
    ]
    image = {"source": name, "image_size": list(size), "detections": entries}
    return 200, {"Content-Type": "application/json"}, json.dumps({"images": [image]}).encode()


def error(status: int, sentence: str, **headers: str) -> Answer:
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return status, headers, json.dumps({"error": sentence}).encode()


CAT = ("cat", 0.9, [10.0, 5.0, 30.0, 25.0])
DOG = ("dog", 0.5, [5.0, 2.0, 50.0, 38.0])
FAINT = ("cat", 0.2, [40.0, 20.0, 58.0, 39.0])


@pytest.fixture
def serve(browser: Any) -> Iterator[Callable[..., Opened]]:
    """``serve({name: answer or list of answers}, explain=answer, settings=..., **options of the browser)``."""
    troubles: list[str] = []
    stops: list[Callable[[], object]] = []

    def serve(
        answers: dict[str, Any], explain: Answer | None = None, settings: PageSettings = SETTINGS, **options: Any
    ) -> Opened:
        requests: list[tuple[str, str]] = []
        files = page_files(settings)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                file = files[self.path]
                self.answer((200, {"Content-Type": file.media_type, **page_headers()}, file.content))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                field, name = re.search(rb'name="(\w+)"; filename="([^"]*)"', body).groups()  # type: ignore[union-attr]
                requests.append((self.path, name.decode()))
                assert field == (b"file" if self.path.startswith("/explain") else b"files")
                answer = explain if self.path.startswith("/explain") else answers[name.decode()]
                answer = answer.pop(0) if isinstance(answer, list) else answer
                assert answer is not None
                self.answer(answer)

            def answer(self, answer: Answer) -> None:
                status, headers, body = answer
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}} | options)
        stops.extend([context.close, server.shutdown, thread.join, server.server_close])
        page, own = context.new_page(), f"http://127.0.0.1:{server.server_port}/"

        def log(message: Any) -> None:
            expected = ("status of", "ERR_FAILED", "Blocked autofocusing", "willReadFrequently")
            if not any(each in message.text for each in expected):
                troubles.append(f"console: {message.text}")

        page.on("filechooser", lambda _: None)  # from now on, Chromium opens no window to choose files
        page.on("console", log)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda each: each.url.startswith((own, "data:", "blob:")) or troubles.append(each.url))
        page.goto(own)
        page.wait_for_selector("html[data-ready]", timeout=30_000)
        return Opened(page, requests)

    yield serve
    for stop in stops:
        stop()
    assert troubles == []


def test_the_files_of_the_page_name_nothing_outside_and_have_a_strict_policy() -> None:
    files, policy = page_files(SETTINGS), page_headers()["Content-Security-Policy"]
    for path, file in files.items():
        content = file.content.decode()
        content = content.partition('id="settings"')[0]
        assert not re.search(r"""https?://(?!www\.w3\.org/2000/svg)|@import|url\(|\son\w+=|style=""", content), path
        for name in re.findall(r"""(?:src|href)="(?!data:)([^"]+)"|from "\./([^"]+)";""", content):
            assert f"/page/{name[1]}" in files or f"/{name[0]}" in files, name
    assert "unsafe" not in policy and "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert EVIL not in files["/"].content.decode() and "{{" not in files["/"].content.decode()


def test_a_dropped_image_shows_its_detections(serve: Callable[..., Opened]) -> None:
    opened = serve({"a.png": found("a.png", CAT, DOG, FAINT)})
    assert opened.page.is_visible("#empty") and opened.page.is_disabled("#save-json")
    opened.give(("a.png", png()))
    assert opened.requests == [("/predict?threshold=0", "a.png")]
    assert opened.rows() == [["cat", "0.900", "10, 5, 30, 25"], ["dog", "0.500", "5, 2, 50, 38"]]
    assert opened.page.inner_text("#summary") == "a.png, 60 × 40: 2 detections with score 0.375 or more"
    assert opened.page.inner_text("#image-list .state") == "2 detections"
    opened.page.click("#labels")
    assert opened.color(30, 15) == ORANGE  # the right side of the cat
    assert opened.color(20, 15) == "#203040"
    assert opened.color(58, 30) == "#203040"  # below the threshold


def test_a_dropped_folder_gives_the_images_of_the_accepted_formats(
    serve: Callable[..., Opened], tmp_path: Path
) -> None:
    names = ["a.bmp", "b.JPG", "sub/c.png", "sub/d.webp"]
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in (*names, ".hidden.png", "e.gif", "notes.txt"):
        (tmp_path / "images" / name).write_bytes(png())
    answers = {name.rpartition("/")[2]: found(name, CAT) for name in names}
    opened = serve(answers, settings=SETTINGS._replace(formats=("JPEG", "PNG", "WEBP", "BMP")))
    opened.drop(tmp_path / "images", num_images=4)
    assert opened.page.locator("#image-list .name").all_inner_texts() == list(answers)


def test_several_images_and_one_that_the_server_does_not_accept(serve: Callable[..., Opened]) -> None:
    sentence = "The image is a GIF image. Expected a JPEG, PNG or WEBP image."
    opened = serve({"a.png": found("a.png", CAT), "b.jpg": error(415, sentence), "c.png": found("c.png", DOG)})
    opened.give(("a.png", png()), ("b.jpg", b"GIF89a"), ("c.png", png((50, 90))))
    assert opened.page.locator("#image-list .name").all_inner_texts() == ["a.png", "b.jpg", "c.png"]
    assert opened.page.locator("#image-list .state").all_inner_texts() == ["1 detection", "not accepted", "1 detection"]
    assert sorted(name for _, name in opened.requests) == ["a.png", "b.jpg", "c.png"]
    opened.page.click("#image-list button:has-text('b.jpg')")
    assert opened.page.inner_text("#failure") == sentence and opened.rows() == []
    assert not opened.page.is_visible("#canvas")
    opened.page.keyboard.press("ArrowRight")
    assert opened.rows()[0][0] == "dog" and not opened.page.is_visible("#failure")
    opened.page.keyboard.press("Delete")
    assert opened.page.locator("#image-list .name").all_inner_texts() == ["a.png", "b.jpg"]
    opened.page.click("#clear")
    assert opened.page.is_visible("#empty") and opened.rows() == []


def test_an_image_is_upright_as_for_the_server(serve: Callable[..., Opened]) -> None:
    image, exif = Image.new("RGB", (80, 40), "#ff0000"), Image.Exif()
    image.paste("#0000ff", (40, 0, 80, 40))
    exif[0x0112] = 6  # shown after a turn to the right: red is at the top
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif, quality=95)
    opened = serve({"a.jpg": found("a.jpg", CAT, size=(80, 40))})
    opened.give(("a.jpg", stream.getvalue()))
    assert opened.color(5, 70).startswith("#0000f") and opened.color(35, 30).startswith("#fe0")


def test_pasted_and_chosen_images(serve: Callable[..., Opened]) -> None:
    opened = serve({"image.png": found("image.png", CAT), "b.png": found("b.png", DOG)})
    opened.give(("image.png", png()), how="paste")
    assert opened.rows()[0][0] == "cat"
    with opened.page.expect_file_chooser() as chooser:
        opened.page.keyboard.press("o")
    assert chooser.value.is_multiple()
    chooser.value.set_files({"name": "b.png", "mimeType": "image/png", "buffer": png()})
    opened.page.wait_for_selector("#rows :text('dog')")


def test_the_threshold_and_the_classes_filter_without_a_request(serve: Callable[..., Opened]) -> None:
    opened = serve({"a.png": found("a.png", CAT, DOG, FAINT)})
    opened.give(("a.png", png()))
    classes = opened.page.locator("#classes button")
    assert [each.replace("\n", " ") for each in classes.all_inner_texts()] == ["cat 1", "dog 1"]
    opened.page.fill("#threshold", "0.1")
    assert [row[1] for row in opened.rows()] == ["0.900", "0.500", "0.200"]
    assert opened.page.inner_text("#threshold-value") == "0.10"
    classes.first.click()
    assert [row[0] for row in opened.rows()] == ["dog"] and classes.first.get_attribute("aria-pressed") == "false"
    opened.page.keyboard.press("Space")  # the button keeps the focus
    assert len(opened.rows()) == 3
    opened.page.fill("#threshold", "0.95")
    assert opened.rows() == []
    assert opened.page.inner_text("#panel-note") == "No detection is shown. The highest score is 0.900 (cat)."
    opened.page.focus("#choose")
    opened.page.keyboard.press("-")
    assert [row[1] for row in opened.rows()] == ["0.900"]
    assert len(opened.requests) == 1


def test_a_busy_server_is_asked_again(serve: Callable[..., Opened]) -> None:
    busy = error(503, "The queue is full.", Retry_After="0.05")
    opened = serve({"a.png": [busy, error(429, "Too many.", Retry_After="0.05"), found("a.png", CAT)]})
    opened.give(("a.png", png()))
    assert opened.rows()[0][0] == "cat" and len(opened.requests) == 3


def test_failures_are_one_sentence(serve: Callable[..., Opened]) -> None:
    opened = serve({"a.png": (500, {"Content-Type": "text/html"}, b"<h1>Proxy</h1>"), "b.png": found("b.png", CAT)})
    opened.give(("a.png", png()), ("large.png", b"x" * 31_000))
    assert opened.page.inner_text("#failure") == "The server answered with status 500."
    opened.page.keyboard.press("ArrowRight")
    expected = "large.png has 0.0310 MB, but at most 0.0200 MB are accepted."
    assert opened.page.inner_text("#failure") == expected
    opened.page.route("**/predict*", lambda route: route.abort())
    opened.page.evaluate(DROP, [[["b.png", base64.b64encode(png()).decode()]], "drop"])
    opened.page.wait_for_selector("#failure:has-text('did not answer')")
    assert len(opened.requests) == 1


def test_the_json_has_what_is_shown(serve: Callable[..., Opened]) -> None:
    opened = serve({"a.png": found("a.png", CAT, DOG, FAINT), "b.png": error(415, "No image.")}, accept_downloads=True)
    opened.give(("a.png", png()), ("b.png", b""))
    opened.page.click("#classes button:has-text('dog')")
    with opened.page.expect_download() as download:
        opened.page.click("#save-json")
    assert download.value.suggested_filename == "detections.json"
    saved = json.loads(download.value.path().read_text())
    (image,) = json.loads(found("a.png", CAT)[2])["images"]
    assert saved == {
        "checkpoint": "best.safetensors",
        "threshold": 0.375,
        "hidden_classes": ["dog"],
        "images": [image],
        "skipped": [{"source": "b.png", "error": "No image."}],
    }
    with opened.page.expect_download() as download:
        opened.page.keyboard.press("p")
    assert download.value.suggested_filename == "a-detections.png"
    with Image.open(download.value.path()) as drawn:
        assert drawn.size == (60, 40) and "#{:02x}{:02x}{:02x}".format(*drawn.getpixel((30, 23))[:3]) == ORANGE


def test_a_click_on_a_detection_opens_its_explanation(serve: Callable[..., Opened]) -> None:
    payload = explanation()
    for each, (name, _, box) in zip(payload["detections"], (DOG, CAT), strict=False):  # another order, as in bf16
        each |= {"name": name, "box_xyxy": [value + 1 for value in box]}
    page = explorer_page(payload).encode()
    opened = serve({"a.png": found("a.png", CAT, DOG, FAINT)}, explain=(200, {"Content-Type": "text/html"}, page))
    opened.give(("a.png", png()))
    opened.page.mouse.move(*opened.at(8, 4))
    assert opened.page.inner_text("#rows [aria-current] td") == "dog"
    opened.page.mouse.click(*opened.at(20, 15))  # the cat before the dog
    explorer = opened.page.wait_for_selector("#explanation iframe").content_frame()
    explorer.wait_for_selector("html[data-ready]", timeout=30_000)
    assert opened.page.inner_text("#explanation-title") == "cat 0.900 in a.png"
    assert explorer.inner_text("#detail h2").splitlines()[-1].startswith("detection 2 of ")
    assert opened.requests[-1][0] == "/explain?threshold=0.375"
    assert explorer.evaluate("window.origin") == "null"  # it cannot reach the page and its server
    opened.page.keyboard.press("?")
    assert explorer.is_visible("#keys")
    opened.page.click("#explanation-close")
    opened.page.wait_for_selector("iframe", state="detached")  # by the event "close", which follows the click
    opened.page.focus("#choose")
    for key in ("ArrowDown", "ArrowDown", "e"):
        opened.page.keyboard.press(key)
    assert "dog" in opened.page.inner_text("#explanation-title")
    explorer = opened.page.wait_for_selector("#explanation iframe").content_frame()
    explorer.wait_for_selector("html[data-ready]", timeout=30_000)
    assert explorer.inner_text("#detail h2").splitlines()[-1].startswith("detection 1 of ")


def test_an_exported_file_has_no_explanation(serve: Callable[..., Opened]) -> None:
    sentence = "Explanations need the layers of the model."
    opened = serve({"a.png": found("a.png", CAT)}, settings=SETTINGS._replace(unexplainable=sentence))
    opened.give(("a.png", png()))
    opened.page.click("#rows tr")
    assert opened.page.inner_text("#explanation-status") == sentence
    opened.page.keyboard.press("Escape")
    assert not opened.page.is_visible("#explanation") and len(opened.requests) == 1


def test_an_explanation_that_fails_is_one_sentence(serve: Callable[..., Opened]) -> None:
    opened = serve({"a.png": found("a.png", CAT)}, explain=error(413, "Too large to explain."))
    opened.give(("a.png", png()))
    opened.page.click("#rows tr")
    opened.page.wait_for_selector("#explanation-status:has-text('Too large to explain.')")


def test_texts_from_outside_do_no_harm(serve: Callable[..., Opened]) -> None:
    name = "<img src=x onerror='window.harmed = 1'>.png"
    opened = serve({name: found(name, (EVIL, 0.9, [1, 1, 9, 9]))}, settings=SETTINGS._replace(checkpoint=EVIL))
    opened.give((name, png()))
    assert opened.rows()[0][0] == EVIL and opened.page.inner_text("h1") == EVIL
    assert opened.page.evaluate("window.harmed") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme: str, serve: Callable[..., Opened]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    colors = {"light": "rgb(243, 245, 248)", "dark": "rgb(16, 19, 23)"}
    opened = serve({}, color_scheme=scheme)
    assert opened.page.evaluate(background) == colors[scheme]
    opened.page.keyboard.press("d")
    assert opened.page.evaluate(background) == colors[{"light": "dark", "dark": "light"}[scheme]]


def test_a_narrow_window(serve: Callable[..., Opened]) -> None:
    page = error(413, "Too large to explain.")
    opened = serve(
        {"a.png": found("a.png", CAT, DOG)}, explain=page, viewport={"width": 390, "height": 844}, has_touch=True
    )
    opened.give(("a.png", png()))
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    opened.page.touchscreen.tap(*opened.at(20, 15))
    assert opened.page.is_visible("#explanation")


def test_the_camera(serve: Callable[..., Opened]) -> None:
    opened = serve({"camera-1.jpg": found("camera-1.jpg", CAT)})
    opened.page.evaluate(
        """() => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 40 });
            canvas.getContext("2d").fillRect(0, 0, 60, 40);
            window.stream = canvas.captureStream(30);
            setInterval(() => canvas.getContext("2d").fillRect(0, 0, 60, 40), 30);
            navigator.mediaDevices.getUserMedia = async () => window.stream;
        }"""
    )
    opened.page.click("#camera")
    opened.page.click("#shot-take:enabled")
    opened.page.wait_for_selector("#rows :text('cat')")
    assert not opened.page.is_visible("#shot")
    assert opened.page.evaluate("window.stream.getTracks().map((track) => track.readyState)") == ["ended"]
