"""The explorer in headless Chromium: it shows what the JSON contains."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from made_up import FULL, Json, Size, explanation, restored, stored
from PIL import Image

from detrs.visualization.explorer import explorer_page

READY_SECONDS = 2.0
"""Time until the first drawing that a user sees; the test allows ten times as much on a busy machine."""
EVIL = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'><!--"


class Opened(NamedTuple):
    """A page in the browser with its payload."""

    page: Any
    payload: Json

    def summary(self) -> str:
        return self.page.inner_text("#summary")

    def click(self, x: float, y: float, **options: Any) -> None:
        """Click a pixel of the image."""
        box = self.page.locator("#canvas").bounding_box()
        frame = self.page.evaluate("(({x, y, scale, unit}) => ({x, y, scale, unit}))(explorer.frame)")
        place = [(frame[axis] + frame["scale"] * value) / frame["unit"] for axis, value in (("x", x), ("y", y))]
        self.page.mouse.click(box["x"] + place[0], box["y"] + place[1], **options)

    def choose(self, name: str, value: object) -> None:
        self.page.click(f'[data-choice="{name}"] [data-value="{value}"]')

    def pressed(self, name: str) -> str:
        return self.page.inner_text(f'[data-choice="{name}"] [aria-pressed="true"]')

    def marks(self, expression: str) -> Any:
        return self.page.evaluate(f"explorer.marks.{expression}")

    def pixel(self, x: float, y: float) -> list[int]:
        """Color on the canvas at a pixel of the image."""
        return self.page.evaluate(
            """([x, y]) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
                const f = explorer.frame;
                const at = [Math.round(f.x + x * f.scale), Math.round(f.y + y * f.scale), 1, 1];
                done([...document.getElementById("canvas").getContext("2d").getImageData(...at).data.slice(0, 3)]);
            })))""",
            [x, y],
        )


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Open a payload: ``show(payload, fragment="query=3", **options of the browser)``."""
    troubles: list[str] = []
    contexts = []

    def show(payload: Json, fragment: str = "", **options: Any) -> Opened:
        path = tmp_path / f"page-{len(contexts)}.html"
        path.write_text(explorer_page(payload), encoding="utf-8")
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1200, "height": 800}, "reduced_motion": "reduce"} | options)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        own = (path.as_uri(), "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or troubles.append(request.url))
        page.goto(f"{path.as_uri()}#{fragment}")
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return Opened(page, payload)

    yield show
    for context in contexts:
        context.close()
    assert troubles == []


def test_the_page_is_one_file_with_a_policy_that_allows_nothing_else() -> None:
    page = explorer_page(explanation())
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", page)
    assert "default-src 'none'" in page and "script-src 'sha256-" in page and "{{" not in page


def test_a_full_size_payload_opens_quickly(show: Callable[..., Opened]) -> None:
    opened = show(explanation(FULL), "mode=decoder-sampling&detection=0")
    milliseconds = float(opened.page.get_attribute("html", "data-ready"))
    print(f"drawn after {milliseconds:.0f} ms")
    assert milliseconds < 10 * 1000 * READY_SECONDS
    assert opened.marks("points.all.length") == 8 * 4 * 4


def test_three_detections_are_shown_as_in_the_json(show: Callable[..., Opened]) -> None:
    payload = explanation()
    opened = show(payload)
    assert [each.strip() for each in opened.page.locator("#list .name").all_inner_texts()] == [
        each["name"] for each in payload["detections"]
    ]
    for index in (2, 0, 1):
        expected = payload["detections"][index]
        opened.page.click(f'#list [data-detection="{index}"]')
        title = opened.page.inner_text("#detail h2")
        assert expected["name"] in title and f"{expected['score']:.3f}" in title
        assert f"query {expected['query']}" in title
        rows = [row.split("\t") for row in opened.page.inner_text("#detail tbody").splitlines()]
        for layer, row in zip(payload["layers"], rows, strict=True):
            query = expected["query"]
            assert row[1].strip() == payload["classes"][int(restored(layer["labels"])[query])]
            assert row[2] == f"{restored(layer['scores'])[query]:.3f}"
            assert row[3] == f"{restored(layer['detection_scores'])[index]:.3f}"
        runners = [each["name"] for each in expected["runners_up"]]
        assert opened.page.locator("#detail .runners .name").all_inner_texts() == runners
        (drawn,) = opened.marks("boxes.filter((box) => box.role === 'selected').map((box) => box.corners)")
        np.testing.assert_allclose(drawn, expected["box_xyxy"], rtol=1e-5)


def test_a_detection_of_another_class_than_the_best_of_its_query_has_its_own_box(show: Callable[..., Opened]) -> None:
    payload = explanation()
    own = payload["detections"][1]
    query = own["query"]
    label = (int(restored(payload["layers"][-1]["labels"])[query]) + 1) % len(payload["classes"])
    own |= {"label": label, "name": payload["classes"][label], "box_xyxy": [3.0, 5.0, 90.0, 77.0], "score": 0.25}
    opened = show(payload)
    opened.page.click('#list [data-detection="1"]')
    (drawn,) = opened.marks("boxes.filter((box) => box.role === 'selected').map((box) => [box.text, ...box.corners])")
    assert drawn == [f"{own['name']} 0.25", 3, 5, 90, 77]


def test_a_click_on_the_image_selects_the_smallest_box_then_the_one_below(show: Callable[..., Opened]) -> None:
    payload = explanation()
    outer, inner = payload["detections"][:2]
    outer["box_xyxy"], inner["box_xyxy"] = [20, 30, 190, 140], [60, 50, 120, 90]
    for each in payload["detections"][2:]:
        each["box_xyxy"] = [195, 1, 205, 10]
    opened = show(payload)
    current = "#list [aria-current='true']"
    for expected in ("1", "0", "1"):
        opened.click(80, 70)
        assert opened.page.get_attribute(current, "data-detection") == expected
    opened.click(2, 147)
    assert opened.page.locator(current).count() == 0 and "Select one" in opened.summary()


def test_sampling_points_of_the_decoder(show: Callable[..., Opened]) -> None:
    payload = explanation()
    opened = show(payload, "detection=1")
    opened.choose("mode", "decoder-sampling")
    opened.choose("layer", 1)
    (view,) = [view for view in payload["views"] if view["stage"] == "decoder" and view["layer"] == 1]
    query = payload["detections"][1]["query"]
    locations, weights = (restored(view[name])[query] for name in ("locations", "weights"))
    points = opened.marks("points.all")
    size = payload["image"]["width"], payload["image"]["height"]
    np.testing.assert_allclose(
        [[each["x"], each["y"]] for each in points], locations.reshape(-1, 2) * size, rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose([each["weight"] for each in points], weights.ravel(), rtol=1e-5, atol=1e-7)
    assert [(each["head"], each["level"]) for each in points] == [index[:2] for index in np.ndindex(weights.shape)]
    opened.choose("head", 2)
    opened.choose("level", 0)
    assert opened.marks("points.all.filter((each) => !each.hidden).length") == weights.shape[2]
    total, best = weights[2, 0].sum(), weights[2, 0].max()
    found = re.findall(r"([\d.]+)%", opened.summary())
    assert [float(each) for each in found] == pytest.approx([100 * total, 100 * best], rel=0.05)
    heaviest = max(points, key=lambda each: each["weight"])
    opened.choose("head", "null")
    opened.choose("level", "null")
    opened.choose("color", "level")
    inside = 0 < heaviest["x"] < size[0] and 0 < heaviest["y"] < size[1]
    assert inside and opened.pixel(heaviest["x"] + 0.5, heaviest["y"] + 0.5) == _rgb(heaviest["level"])


def _rgb(level: int) -> list[int]:
    """The first colors of levels in drawing.js."""
    color = ("ffd166", "06d6a0", "4cc9f0")[level]
    return [int(color[i : i + 2], 16) for i in (0, 2, 4)]


@pytest.mark.parametrize("kind", ["sampling", "attention"])
def test_a_pixel_shows_the_self_attention_of_its_token(kind: str, show: Callable[..., Opened]) -> None:
    payload = explanation(views=kind)
    opened = show(payload, f"mode=encoder-{kind}")
    (height, width), (column, row) = Size().grid, (5, 1)
    opened.click((column + 0.7) / width * payload["image"]["width"], (row + 0.2) / height * payload["image"]["height"])
    assert f"Token ({column}, {row})" in opened.summary()
    last = [view for view in payload["views"] if view["stage"] == "encoder"][-1]
    token = row * width + column
    if kind == "sampling":
        expected = restored(last["weights"])[token].ravel()
        np.testing.assert_allclose(opened.marks("points.all.map((each) => each.weight)"), expected, atol=1e-7)
    else:
        maps = restored(last["weights"])[token] * restored(last["maximum"])[token][:, None, None]
        values = opened.marks("heat && Array.from(explorer.marks.heat.values)")
        np.testing.assert_allclose(values, maps.mean(0).ravel(), rtol=1e-4, atol=1e-7)
        opened.choose("head", 3)
        values = opened.marks("heat && Array.from(explorer.marks.heat.values)")
        np.testing.assert_allclose(values, maps[3].ravel(), rtol=1e-4, atol=1e-7)
        assert f"{100 * maps[3].max():.2g}%" in opened.summary()
    before = opened.summary()
    opened.page.keyboard.press("Shift+ArrowRight")
    assert f"Token ({column + 1}, {row})" in opened.summary() != before


def test_regions_and_their_responses(show: Callable[..., Opened]) -> None:
    payload = explanation(views="region")
    opened = show(payload, "mode=decoder-region&detection=2&entry=1")
    view, query = payload["views"][1], payload["detections"][2]["query"]
    expected = restored(view["responses"])[query] * restored(view["maximum"])[query]
    np.testing.assert_allclose(
        opened.marks("heat && Array.from(explorer.marks.heat.values)"), expected.ravel(), rtol=1e-4
    )
    cx, cy, w, h = restored(view["boxes"])[query] * np.tile([payload["image"]["width"], payload["image"]["height"]], 2)
    np.testing.assert_allclose(
        opened.marks("heat.corners"), [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], rtol=1e-5
    )


def test_points_of_a_backbone(show: Callable[..., Opened]) -> None:
    payload = explanation(views="points")
    opened = show(payload, "mode=backbone-points&entry=0&head=1")
    expected = restored(payload["views"][0]["points"])[1].reshape(-1, 2)
    drawn = opened.marks("arrows.all.filter((each) => !each.hidden).map(({x, y}) => [x, y])")
    size = payload["image"]["width"], payload["image"]["height"]
    np.testing.assert_allclose(drawn, expected * size, rtol=1e-4, atol=1e-3)


def test_gradients(show: Callable[..., Opened]) -> None:
    payload = explanation()
    opened = show(payload, "mode=gradients&detection=1&entry=2")
    expected = 0.5 * restored(payload["gradients"][1]["y"])
    np.testing.assert_allclose(
        opened.marks("heat && Array.from(explorer.marks.heat.values)"), expected.ravel(), atol=1e-6
    )
    assert "center y of detection 2" in opened.summary() and "0.5" in opened.summary()
    opened.page.click('#list [data-detection="3"]')
    assert "gradients of the best 2 detections" in opened.summary()


def test_queries_are_searched_by_number_and_class(show: Callable[..., Opened]) -> None:
    payload = explanation()
    opened = show(payload)
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("17")
    assert opened.page.locator("#list [data-query]").count() == 1
    opened.page.click('#list [data-query="17"]')
    assert "query 17, no detection" in opened.page.inner_text("#detail")
    assert opened.page.locator("#detail tbody tr").count() == len(payload["layers"])
    last = payload["layers"][-1]
    labels, scores = restored(last["labels"]), restored(last["scores"])
    opened.page.fill("#search", "Dog")
    dogs = sorted(np.flatnonzero(labels == 1), key=lambda query: -scores[query])
    assert [int(each.get_attribute("data-query")) for each in opened.page.locator("#list [data-query]").all()] == dogs
    opened.page.fill("#search", "detected")
    assert opened.page.locator("#list [data-query]").count() == len(payload["detections"])
    opened.page.fill("#search", "no such class")
    assert "No query matches" in opened.page.inner_text("#list")


def test_keys(show: Callable[..., Opened]) -> None:
    opened = show(explanation())
    page = opened.page
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#list [aria-current='true']", "data-detection") == "1"
    page.keyboard.press("ArrowLeft")
    assert "after layer 2 of 3" in opened.summary()
    page.keyboard.press("[")
    assert opened.pressed("mode") == "Gradients"
    page.keyboard.press("]")
    page.keyboard.press("]")
    assert opened.pressed("mode") == "Encoder sampling"
    for key, name, expected in (
        ("h", "head", "1"),
        ("h", "head", "2"),
        ("H", "head", "1"),
        ("L", "level", "3"),
        ("c", "color", "head"),
    ):
        page.keyboard.press(key)
        assert opened.pressed(name) == expected
    page.keyboard.press("?")
    assert page.is_visible("#keys") and "previous, next layer" in page.inner_text("#keys")
    page.keyboard.press("h")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys") and opened.pressed("head") == "1"
    page.keyboard.press("Escape")
    assert "Click a pixel" in opened.summary()


def test_a_link_restores_the_view(show: Callable[..., Opened]) -> None:
    payload = explanation()
    opened = show(payload, "detection=2")
    opened.choose("mode", "decoder-sampling")
    opened.choose("layer", 0)
    opened.choose("head", 3)
    opened.page.mouse.move(400, 400)
    opened.page.mouse.wheel(0, -600)
    for _ in range(100):  # the address follows after a moment
        fragment = opened.page.evaluate("location.hash.slice(1)")
        if "zoom=" in fragment:
            break
        opened.page.wait_for_timeout(50)
    assert "head=3" in fragment and "zoom=" in fragment
    again = show(payload, fragment)
    assert again.summary() == opened.summary() and again.pressed("head") == "4"
    same = "(({x, y, scale}) => [x, y, scale])(explorer.frame)"
    assert again.page.evaluate(same) == pytest.approx(opened.page.evaluate(same), rel=0.01, abs=2)
    broken = show(
        payload, "mode=none&entry=99&head=-1&query=4.5&pixel=7,a&zoom=NaN&detection=&constructor=1&center=2,2"
    )
    assert broken.pressed("mode") == "Boxes" and broken.pressed("layer") == "3"


def test_light_and_dark(show: Callable[..., Opened]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(243, 245, 248)", "rgb(16, 19, 23)"
    opened = show(explanation(), color_scheme="dark")
    assert opened.page.evaluate(background) == dark
    opened.page.click("#theme")
    assert opened.page.evaluate(background) == light
    other = show(explanation(), color_scheme="light")
    assert other.page.evaluate(background) == light
    other.page.keyboard.press("d")
    assert other.page.evaluate(background) == dark


def test_touch(show: Callable[..., Opened]) -> None:
    payload = explanation()
    opened = show(payload, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator("#canvas").bounding_box()
    frame = page.evaluate("(({x, y, scale, unit}) => ({x, y, scale, unit}))(explorer.frame)")
    left, top, *_ = payload["detections"][0]["box_xyxy"]
    x, y = ((frame[axis] + frame["scale"] * value) / frame["unit"] for axis, value in (("x", left + 2), ("y", top + 2)))
    page.touchscreen.tap(box["x"] + x, box["y"] + y)
    assert page.locator("#list [aria-current='true']").count() == 1
    fingers = page.context.new_cdp_session(page)
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def touch(kind: str, *offsets: float) -> None:
        points = [{"x": middle[0] + offset, "y": middle[1], "id": i} for i, offset in enumerate(offsets)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", -30, 30)
    for spread in (45, 60, 90):
        touch("touchMove", -spread, spread)
    touch("touchEnd")
    assert page.evaluate("explorer.state.zoom") == pytest.approx(3, rel=0.1)
    touch("touchStart", -80, 80)
    for spread in (70, 60, 40):
        touch("touchMove", -spread, spread)
    touch("touchEnd")
    assert page.evaluate("explorer.state.zoom") == pytest.approx(1.5, rel=0.1)


def test_texts_from_outside_do_no_harm(show: Callable[..., Opened]) -> None:
    payload = explanation(
        Size(classes=(EVIL, "猫 & <b>", "\u2028")), source=f"folder/{EVIL.replace('/', '|')}\udcff.png"
    )
    opened = show(payload, "detection=0")
    assert opened.page.evaluate("window.harmed") is None
    assert opened.page.locator("#list .name").first.inner_text() == EVIL.strip()
    opened.page.click("#tab-queries")
    assert opened.page.evaluate("window.harmed") is None
    assert json.loads(opened.page.text_content("#payload"))["classes"][1] == "猫 & <b>"


@pytest.mark.parametrize("kind", ["sampling", "attention", "region", "points"])
def test_without_detections(kind: str, show: Callable[..., Opened]) -> None:
    payload = explanation(Size(detections=0), views=kind)
    opened = show(payload)
    assert "No detection reaches the threshold 0.5" in opened.page.inner_text("#list")
    for mode in opened.page.evaluate("explorer.explanation.modes.map((mode) => mode.key)"):
        opened.choose("mode", mode)
    opened.page.click("#tab-queries")
    opened.page.click('#list [data-query="5"]')
    assert "query 5, no detection" in opened.page.inner_text("#detail")


def test_queries_that_are_not_stored_are_named(show: Callable[..., Opened]) -> None:
    payload = explanation(views="attention")
    for view in payload["views"]:
        if view["stage"] == "decoder":
            view["queries"] = [3, 0]
            for name in ("weights", "maximum"):
                array = restored(view[name])[[3, 0]]
                view[name] = stored(array)
    opened = show(payload, "mode=decoder-attention&query=9")
    assert "Query 9 is not stored in this view: the file has the 2 best of 23 queries." in opened.summary()
    opened = show(payload, "mode=decoder-attention&query=0")
    expected = (
        restored(payload["views"][-1]["weights"])[1] * restored(payload["views"][-1]["maximum"])[1][:, None, None]
    )
    np.testing.assert_allclose(
        opened.marks("heat && Array.from(explorer.marks.heat.values)"), expected.mean(0).ravel(), rtol=1e-4, atol=1e-7
    )


def test_the_view_is_saved_as_png(show: Callable[..., Opened], tmp_path: Path) -> None:
    opened = show(explanation(), "mode=decoder-sampling&detection=0&head=1", accept_downloads=True)
    with opened.page.expect_download() as download:
        opened.page.keyboard.press("p")
    assert download.value.suggested_filename == "image-decoder-sampling-layer3-head2-query0.png"
    download.value.save_as(tmp_path / "view.png")
    with Image.open(tmp_path / "view.png") as image:
        assert image.width >= 1600 and len(image.convert("RGB").getcolors(maxcolors=10**7)) > 1000


def test_views_are_grouped_by_layer_and_named_where_a_layer_has_two(show: Callable[..., Opened]) -> None:
    payload = explanation(views="points")
    for view, (stage, block) in zip(payload["views"], ((2, 1), (2, 3), (3, 1)), strict=True):
        view |= {"layer": block, "name": f"backbone.stages.{stage}.attns.{block}"}
    opened = show(payload, "mode=backbone-points")
    assert opened.pressed("mode") == "Backbone sampling"
    assert opened.page.inner_text('[data-choice="layer"] .buttons').split() == ["2.1", "2.3", "3.1"]
    payload["views"] += [view | {"name": f"other.{view['layer']}"} for view in payload["views"]]
    opened = show(payload)
    assert {*opened.page.evaluate("explorer.explanation.modes.map((mode) => mode.label)")} == {
        *("Boxes", "Gradients", "Backbone sampling: backbone.stages.*.attns.*", "Backbone sampling: other.*")
    }


def test_the_opacity_slider_can_be_dragged(show: Callable[..., Opened]) -> None:
    opened = show(explanation(views="attention"), "mode=decoder-attention&detection=0")
    box = opened.page.locator("#opacity").bounding_box()
    y = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + 0.85 * box["width"], y)
    opened.page.mouse.down()
    for part in (0.7, 0.5, 0.3):
        opened.page.mouse.move(box["x"] + part * box["width"], y)
    opened.page.mouse.up()
    assert opened.page.evaluate("explorer.state.opacity") == pytest.approx(0.3, abs=0.11)


def test_an_animation_ends_at_the_marks_of_the_layer(show: Callable[..., Opened]) -> None:
    payload, fragment = explanation(), "mode=decoder-sampling&detection=1"
    moving, still = (show(payload, fragment, reduced_motion=each) for each in ("no-preference", "reduce"))
    for opened in (moving, still):
        opened.page.keyboard.press("ArrowLeft")
    canvas = "document.getElementById('canvas').toDataURL()"
    for _ in range(100):
        opened.page.wait_for_timeout(50)
        if moving.page.evaluate(canvas) == still.page.evaluate(canvas):
            break
    assert moving.page.evaluate(canvas) == still.page.evaluate(canvas)
    assert moving.pressed("layer") == "2"
