"""``POST /explain`` returns the page of ``detrs explain``; the page shows it for a real detector."""

import base64
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
from explained import shared_tiny
from hostile import file, images_json, post, post_form
from PIL import Image
from raw_client import Address, exchange
from running import running
from test_page import DROP

from detrs.errors import UserError
from detrs.explanation.explain import explain
from detrs.predictor import Predictor
from detrs.serving import ServerSettings, create_app
from detrs.serving.explaining import unexplainable
from detrs.visualization.explorer import explorer_page

TOKEN = "a-secret"


def image(size: tuple[int, int] = (131, 97)) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(shared_tiny("deformable-detr-tiny"), "cpu")


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[Address]:
    explain(predictor, image())  # compiles the operator, without a deadline
    with running(create_app(predictor, ServerSettings(threshold=0.2, timeout_seconds=120))) as address:
        yield address


def payload(page: str) -> Any:
    return json.loads(re.search(r'id="payload">(.*?)</script>', page)[1])  # type: ignore[index]


def test_the_page_is_that_of_detrs_explain(server: Address, predictor: Predictor) -> None:
    reply = exchange(server, [post_form(file(image(), "a.png"), path="/explain?threshold=0.4")], timeout=120)
    (expected,) = explain(predictor, image(), threshold=0.4)
    assert len(expected.detections) > 0
    assert reply.status == 200 and reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.body.decode() == explorer_page({**expected.to_json(), "source": "a.png"})


def test_the_threshold_is_that_of_the_server(server: Address) -> None:
    body = json.dumps({"image": base64.b64encode(image()).decode()}).encode()
    reply = exchange(server, [post("/explain", body, "Content-Type: application/json")], timeout=120)
    assert payload(reply.body.decode())["threshold"] == 0.2


def test_a_model_without_layers_gets_one_sentence(predictor: Predictor) -> None:
    class Exported(type(predictor.detector.module)):  # type: ignore[misc]
        """Stands for any model that has no tracer."""

    module = Exported.__new__(Exported)
    module.__dict__.update(predictor.detector.module.__dict__)
    other = Predictor(replace(predictor.detector, module=module), "cpu")
    with running(create_app(other)) as server:
        reply = exchange(server, [post_form(file(image()), path="/explain")], timeout=120)
        page = exchange(server, [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], timeout=120).body.decode()
    assert reply.status == 422 and reply.sentence == unexplainable(module)
    assert "start detrs serve with the checkpoint" in reply.sentence and json.dumps(reply.sentence) in page
    assert unexplainable(predictor.detector.module) is None


@pytest.mark.parametrize("place", ["detect", "explanation"])
@pytest.mark.parametrize(
    ("problem", "status", "sentence"),
    [
        (torch.OutOfMemoryError("GPU"), 503, "The model ran out of memory. Send a smaller image, or retry later."),
        (UserError("The image must have 64 x 64 pixels."), 422, "The image must have 64 x 64 pixels."),
    ],
)
def test_failures_of_the_model(
    server: Address, predictor: Predictor, monkeypatch: pytest.MonkeyPatch,
    place: str, problem: Exception, status: int, sentence: str,
) -> None:  # fmt: skip
    def fail(*arguments: object) -> None:
        raise problem

    target: Any = predictor.detector.module if place == "detect" else sys.modules[explain.__module__]
    monkeypatch.setattr(target, place, fail)
    reply = exchange(server, [post_form(file(image()), path="/explain")], timeout=120)
    assert (reply.status, reply.sentence) == (status, sentence)
    assert ("retry-after" in reply.headers) == (status == 503)


def test_a_damaged_image_is_that_of_the_client(server: Address) -> None:
    reply = exchange(server, [post_form(file(image()[:90]), path="/explain")], timeout=120)
    assert reply.status == 400 and "may be damaged" in reply.sentence


def test_the_page_with_a_real_detector(server: Address, browser: Any) -> None:
    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server[1]}/")
        page.wait_for_selector("html[data-ready]")
        files = [[f"{i}.png", base64.b64encode(image((131 + i, 97))).decode()] for i in range(3)]
        page.evaluate(DROP, [[*files, ["no.png", base64.b64encode(b"GIF89a").decode()]], "drop"])
        page.wait_for_selector("#image-list li:nth-child(4)")
        page.wait_for_selector("#images[aria-busy=false]", timeout=60_000)
        reply = exchange(server, [images_json(image())], timeout=120)
        expected = json.loads(reply.body)["images"][0]["detections"]
        shown = [
            [cell.strip() for cell in row.locator("td").all_inner_texts()] for row in page.locator("#rows tr").all()
        ]
        assert shown == [
            [each["name"], f"{each['score']:.3f}", ", ".join(f"{round(value)}" for value in each["box_xyxy"])]
            for each in expected
        ]
        page.click("#rows tr:nth-child(2)")
        explorer = page.wait_for_selector("#explanation iframe", timeout=60_000).content_frame()
        explorer.wait_for_selector("html[data-ready]", timeout=60_000)
        assert f"detection 2 of {len(expected)}, " in explorer.inner_text("#detail h2")
        page.click("#explanation-close")
        page.click("#image-list button:has-text('no.png')")
        assert page.inner_text("#failure") == "The image is a GIF image. Expected a JPEG, PNG, WEBP or BMP image."


def test_a_detection_is_selected_by_its_class_and_box(predictor: Predictor, browser: Any, tmp_path: Path) -> None:
    """Its index may be another one in the precision of the server."""
    (found,) = explain(predictor, image(), threshold=0.2)
    path = tmp_path / "page.html"
    path.write_text(explorer_page(found.to_json()), encoding="utf-8")
    detections = found.to_json()["detections"]
    with browser.new_context() as context:
        page = context.new_page()

        def selected(name: str, box: list[float]) -> Any:
            wanted = urlencode({"name": name, "box": ",".join(map(str, box))})
            page.goto("about:blank")
            page.goto(f"{path.as_uri()}#{wanted}")
            return page.evaluate("explorer.state.detection")

        for index, each in enumerate(detections[:5]):
            assert selected(each["name"], [value + 0.01 for value in each["box_xyxy"]]) == index
        first = detections[0]
        assert selected("another class", first["box_xyxy"]) is None
        assert selected(first["name"], [-300, -300, -200, -200]) is None
        assert selected(first["name"], [1, 2]) is None


def test_the_page_asks_for_the_token(predictor: Predictor, browser: Any) -> None:
    settings = ServerSettings(threshold=0.2, token=TOKEN)
    with running(create_app(predictor, settings)) as server, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server[1]}/")
        page.wait_for_selector("html[data-ready]")
        page.evaluate(DROP, [[["a.png", base64.b64encode(image()).decode()]], "drop"])
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#authorization-status:has-text('does not accept')")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#images[aria-busy=false]")
        assert page.locator("#rows tr").count() > 0 and TOKEN not in page.content()
