import random
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from detrs.errors import UserError
from detrs.structures import Classes, Detections
from detrs.visualization import fonts
from detrs.visualization.draw import (
    OKABE_ITO,
    Annotation,
    Color,
    Rectangle,
    Style,
    _name_patches,
    _place,
    _shorten,
    class_color,
    contrast,
    draw_boxes,
    draw_detections,
    grid,
    text_color,
)

NAMES = ("cell", "platelet", "white cell")


def plain(height: int, width: int, color: Color = (10, 20, 30)) -> Tensor:
    return torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, height, width)


def pixels(drawn: Image.Image) -> np.ndarray:
    assert drawn.mode == "RGB"
    return np.asarray(drawn)  # (H, W, 3)


def is_color(drawn: Image.Image, color: Color) -> np.ndarray:
    return (pixels(drawn) == color).all(axis=2)  # (H, W)


def draw(image: Tensor, boxes: list[list[float]], labels: list[int], scores: list[float] | None = None, **options):
    return draw_boxes(
        image,
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.long),
        NAMES,
        None if scores is None else torch.tensor(scores),
        **options,
    )


class TestBoxes:
    def test_the_line_runs_along_the_inside(self) -> None:
        """x is to the right, y downwards, the last pixel is x2 - 1; nothing else changes but for the name above."""
        image = plain(397, 499)
        drawn = draw(image, [[101.0, 211.0, 311.0, 307.0]], [1])
        box = is_color(drawn, class_color(1))
        assert box[211:307, 101].all() and box[211:307, 310].all()
        assert box[211, 101:311].all() and box[306, 101:311].all()
        untouched = is_color(drawn, (10, 20, 30))
        assert untouched[220:298, 110:302].all()  # inside
        assert untouched[307:].all() and untouched[211:, :101].all() and untouched[211:, 311:].all()
        assert untouched[:180].all()

    def test_tv_tensors_are_accepted(self) -> None:
        """The loader's subclasses of Tensor."""
        image = tv_tensors.Image(plain(397, 499))
        boxes = tv_tensors.BoundingBoxes([[101.0, 211.0, 311.0, 307.0]], format="XYXY", canvas_size=(397, 499))
        assert draw_boxes(image, boxes, torch.tensor([1]), NAMES) == draw(plain(397, 499), boxes.tolist(), [1])

    def test_the_image_is_not_changed(self) -> None:
        image = torch.randint(0, 256, (3, 397, 499), dtype=torch.uint8)
        before = image.clone()
        drawn = draw(image, [[3.0, 50.0, 70.0, 90.0]], [0])
        assert torch.equal(image, before)
        drawn = torch.from_numpy(pixels(drawn).copy()).permute(2, 0, 1)
        assert torch.equal(drawn[:, 120:], image[:, 120:])

    def test_without_boxes_the_image_is_returned(self) -> None:
        image = torch.randint(0, 256, (3, 397, 499), dtype=torch.uint8)
        assert torch.equal(torch.from_numpy(pixels(draw(image, [], [])).copy()).permute(2, 0, 1), image)
        assert draw(image, [], [], []).size == (499, 397)

    def test_boxes_outside_or_not_finite_are_skipped(self) -> None:
        image, nan, inf = plain(397, 499), float("nan"), float("inf")
        outside = [[-50.0, 5, -1, 9], [499, 5, 600, 9], [5, -9, 9, -1], [5, 397, 9, 500], [9, 9, 5, 12], [9, 9, 12, 5]]
        wild = [[nan, 5, 9, 9], [5, 5, inf, 9], [-inf, 5, 9, 9]]
        drawn = draw(image, outside + wild, [0] * 9, [0.5] * 9)
        assert is_color(drawn, (10, 20, 30)).all()

    def test_boxes_are_clipped_to_the_image(self) -> None:
        drawn = draw(plain(397, 499), [[-1e30, 300.0, 1e30, 1e30]], [0])
        line = is_color(drawn, class_color(0))
        assert line[300].all() and line[396].all() and line[300:, 0].all() and line[300:, 498].all()

    def test_the_highest_score_is_on_top(self) -> None:
        same = [[100.0, 100.0, 300.0, 200.0]] * 3
        for best in range(3):
            scores = [0.3] * 3
            scores[best] = 0.9
            drawn = draw(plain(397, 499), same, [0, 1, 2], scores)
            assert is_color(drawn, class_color(best))[140:160, 100].all()

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (700, 1), (17, 23), (401, 2003)])
    def test_any_boxes_on_any_size(self, height: int, width: int) -> None:
        generator = torch.Generator().manual_seed(height)
        starts = torch.rand(40, 2, generator=generator) * torch.tensor([width, height]) * 1.4 - 0.2 * height
        sizes = torch.rand(40, 2, generator=generator) ** 4 * 2 * max(height, width)
        sizes[:5] = 0
        boxes = torch.cat([starts, starts + sizes], dim=1)
        names = ("", "x" * 300, "two\nlines\r\n", "血小板", "\u202e\u0300é\x00")
        drawn = draw_boxes(plain(height, width), boxes, torch.arange(40) % 5, names, torch.rand(40), min_size=0)
        assert drawn.size == (width, height)

    def test_small_images_are_enlarged_by_an_integer_factor(self) -> None:
        assert draw(plain(53, 97), [], []).size == (4 * 97, 4 * 53)
        assert draw(plain(383, 97), [], []).size == (2 * 97, 2 * 383)
        assert draw(plain(384, 97), [], []).size == (97, 384)
        assert draw(plain(53, 97), [], [], min_size=0).size == (97, 53)
        drawn = draw(plain(53, 97), [[20.0, 31.0, 60.0, 47.0]], [1])
        line = is_color(drawn, class_color(1))
        assert line[4 * 31 : 4 * 47, 80].all() and line[4 * 47 - 1, 80:240].all()
        assert not line[4 * 47 :].any()


class TestNames:
    def test_scale_with_the_image(self) -> None:
        heights = []
        for factor in (1, 2, 4):
            box = [50.0 * factor, 100.0 * factor, 450.0 * factor, 390.0 * factor]
            drawn = draw(plain(400 * factor, 500 * factor), [box], [0])
            column = is_color(drawn, class_color(0))[: 100 * factor, 50 * factor]
            heights.append(int(column.sum()))
        assert heights[0] >= 12
        assert heights[1] == pytest.approx(2 * heights[0], rel=0.15)
        assert heights[2] == pytest.approx(4 * heights[0], rel=0.15)

    def test_shrink_among_small_objects(self) -> None:
        def area(boxes: list[list[float]]) -> int:
            return int(is_color(draw(plain(800, 1200), boxes, [0] * len(boxes)), class_color(0))[:100].sum())

        large = [[100.0, 100.0, 700.0, 700.0]]
        small = [[300.0 + 40 * i, 300.0, 315.0 + 40 * i, 320.0] for i in range(9)]
        assert area(large) > 2 * area([[100.0, 100.0, 118.0, 118.0], *small]) > 0

    @pytest.mark.parametrize("box", [[0, 0, 60, 40], [470, 0, 499, 40], [0, 380, 60, 397], [480, 385, 499, 397]])
    def test_lie_inside_the_image(self, box: list[float]) -> None:
        """The whole patch is visible: as many pixels of it (and of its letters) as for a box in the middle."""

        def patch(box: list[float]) -> int:
            with_name = is_color(draw(plain(397, 499), [box], [2]), (10, 20, 30))
            names = ("", "", "")
            bare = draw_boxes(plain(397, 499), torch.tensor([box]).float(), torch.tensor([2]), names)
            return int((~with_name & is_color(bare, (10, 20, 30))).sum())

        text = fonts.font("", round(0.025 * (397 * 499) ** 0.5)).getlength("white cell")
        assert patch(box) > 0.6 * text * 10

    def test_cover_no_other_name_if_there_is_room(self) -> None:
        draw_ = random.Random(0)
        for _ in range(300):
            image_size = (draw_.randrange(60, 500), draw_.randrange(40, 500))
            size = (draw_.uniform(10, 50), draw_.uniform(8, 20))
            left, top = draw_.uniform(0, image_size[0] - 1), draw_.uniform(0, image_size[1] - 1)
            box = Rectangle(left, top, draw_.uniform(left, image_size[0]), draw_.uniform(top, image_size[1]))
            first, covered = _place(box, size, image_size, np.empty((0, 4)))
            assert covered == 0
            assert min(first.left, first.top) >= 0
            assert first.right <= image_size[0] + 1e-9 and first.bottom <= image_size[1] + 1e-9
            second, covered = _place(box, size, image_size, np.array([first]))
            assert covered == pytest.approx(second.overlap(np.array([first])))
            if box.bottom - box.top > 2 * size[1]:
                assert covered == 0  # the other edge of the box is free

    def test_do_not_cover_a_crowd(self) -> None:
        """Of 600 small boxes side by side few are named, but every class is."""
        starts = [(200 + 14 * (i % 30), 200 + 14 * (i // 30)) for i in range(600)]
        boxes = [[float(x), float(y), x + 12.0, y + 12.0] for x, y in starts]
        drawn = draw(plain(600, 800), boxes, [0] * 300 + [1] + [0] * 299)
        free = is_color(drawn, (10, 20, 30))
        assert np.mean([free[y + 3 : y + 9, x + 3 : x + 9] for x, y in starts]) > 0.8
        assert is_color(drawn, class_color(1)).sum() > 4 * 12 + 200  # more than its outline

    def test_are_truncated_to_the_width(self) -> None:
        font = fonts.font("", 20)
        assert _shorten("cell", "", 20, 1000) == "cell" and _shorten("cell", "0.91", 20, 1000) == "cell 0.91"
        short = _shorten("a very long name of a class", "", 20, 120)
        assert short.startswith("a very") and short.endswith("…") and font.getlength(short) <= 120
        short = _shorten("a very long name of a class", "0.91", 20, 160)
        assert short.startswith("a very") and short.endswith("… 0.91") and font.getlength(short) <= 160
        assert _shorten("cell", "", 20, 3) == "" and _shorten("", "0.91", 20, 100) == "0.91"

    def test_have_contrast_and_colours_differ(self) -> None:
        assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
        assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)  # known to just fail 4.5
        colors = [class_color(label) for label in range(1203)]  # as many as LVIS has
        assert len(set(colors)) == 1203
        assert min(contrast(text_color(color), color) for color in colors) >= 4.5

    def test_first_colours_are_distinct_for_colour_blind_people(self) -> None:
        """Machado, Oliveira and Fernandes (2009), severity 1; distance in CIELAB, where about 2 can just be seen."""
        protanopia = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
        deuteranopia = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
        for view in (protanopia, deuteranopia):
            seen = [lab(np.clip(np.array(view) @ linear(color), 0, 1)) for color in OKABE_ITO]
            assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15

    def test_never_cover_each_other(self) -> None:
        """200 objects of one class: every name is legible, inside the image, and on its patch completely."""
        generator = torch.Generator().manual_seed(0)
        starts = torch.rand(200, 2, generator=generator) * torch.tensor([1200, 800])
        ends = starts + 10 + 30 * torch.rand(200, 2, generator=generator)
        boxes = [
            Annotation(Rectangle(*map(float, box)), "Ångström gq", f"{i / 200:.2f}", class_color(i))
            for i, box in enumerate(torch.cat([starts, ends], dim=1))
        ]
        patches = _name_patches(boxes, 14, 3, (1240, 840))
        assert 40 < len(patches) < 200
        for one, other in combinations([patch.rectangle for patch in patches], 2):
            assert one.overlap(np.array([other])) == 0
        for patch in patches:
            left, top, right, bottom = patch.rectangle
            assert left >= 0 and top >= 0 and right <= 1240 and bottom <= 840
            x0, y0, x1, y1 = fonts.font(patch.name, 14).getbbox(patch.name)
            assert x0 >= 0 and y0 >= 0 and x1 <= right - left - 3 and y1 <= bottom - top

    def test_a_long_name_keeps_its_score(self) -> None:
        box = Annotation(Rectangle(10, 50, 40, 80), "a name that goes on " * 9, "0.91", class_color(0))
        (patch,) = _name_patches([box], 14, 3, (500, 400))
        assert patch.name.startswith("a name that") and patch.name.endswith("… 0.91")
        assert patch.rectangle.right - patch.rectangle.left <= 0.4 * 500


class TestStyle:
    BOXES: ClassVar[list[list[float]]] = [[20.0, 50.0, 200.0, 180.0], [250.0, 60.0, 480.0, 390.0]]

    def test_labels_can_be_hidden(self) -> None:
        drawn = draw(plain(397, 499), self.BOXES, [0, 1], [0.9, 0.8], style=Style(show_labels=False))
        untouched = is_color(drawn, (10, 20, 30))
        assert untouched[:50].all() and untouched[180:, :250].all()
        assert is_color(drawn, class_color(0))[50, 20:200].all()

    @pytest.mark.parametrize("width", [1, 2, 9])
    def test_line_width(self, width: int) -> None:
        drawn = draw(plain(397, 499), self.BOXES, [0, 1], style=Style(line_width=width, show_labels=False))
        assert is_color(drawn, class_color(0))[120, 20:40].tolist() == [True] * width + [False] * (20 - width)

    def test_one_color_per_object(self) -> None:
        style = Style(color_by="instance", show_labels=False)
        drawn = draw(plain(397, 499), self.BOXES, [2, 2], [0.7, 0.9], style=style)
        assert is_color(drawn, class_color(0))[60, 250:480].all(), "the best has the first color"
        assert is_color(drawn, class_color(1))[50, 20:200].all()
        assert not is_color(drawn, class_color(2)).any()

    @pytest.mark.parametrize("values", [{"line_width": 0}, {"line_width": 1.5}, {"color_by": "x"}])
    def test_bad_values_are_named(self, values: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=next(iter(values))):
            Style(**values)


def linear(color: Color) -> np.ndarray:
    c = np.array(color) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ rgb / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_detections_below_the_threshold_are_not_drawn() -> None:
    image = plain(397, 499)
    boxes = [[10.0, 50, 90, 99], [200, 100, 300, 300], [320, 100, 420, 390]]
    found = Detections(
        boxes_xyxy=torch.tensor(boxes),
        scores=torch.tensor([0.9, 0.5, 0.4]),
        labels=torch.tensor([2, 0, 1]),
        classes=Classes(NAMES, (1, 2, 3)),
        image_size=(397, 499),
    )
    assert draw_detections(image, found) == draw(image, boxes[:2], [2, 0], [0.9, 0.5])
    assert draw_detections(image, found, 0.95) == draw(image, [], [])


class TestGrid:
    @pytest.mark.parametrize("number", [1, 2, 5, 16])
    def test_every_image_is_visible(self, number: int) -> None:
        sizes = [(150, 100), (320, 240), (49, 106), (600, 147)]
        images = [Image.new("RGB", sizes[i % 4], class_color(i)) for i in range(number)]
        sheet = grid(images)
        assert max(sheet.size) <= 2400 * 1.1
        for i in range(number):
            assert is_color(sheet, class_color(i)).sum() > 1000

    def test_row_by_row(self) -> None:
        images = [Image.new("RGB", (60, 40), class_color(i)) for i in range(3)]
        wide = pixels(grid(images, columns=3))
        assert [tuple(wide[25, x]) for x in (30, 95, 160)] == [class_color(i) for i in range(3)]
        tall = pixels(grid(images, columns=1))
        assert [tuple(tall[y, 30]) for y in (20, 65, 110)] == [class_color(i) for i in range(3)]

    def test_one_size_keeps_every_pixel(self) -> None:
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (53, 97, 3), dtype=np.uint8))
        sheet = pixels(grid([noise]))
        assert (sheet[2:55, 2:99] == pixels(noise)).all()

    def test_captions_enlarge_the_grid(self) -> None:
        images = [Image.new("RGB", (97, 53), class_color(i)) for i in range(4)]
        bare, named = grid(images), grid(images, captions=["a.jpg", "b.jpg", "c\n.jpg", "d" * 200])
        assert bare.width == named.width and bare.height < named.height
        assert is_color(named, (0, 0, 0)).any() and not is_color(bare, (0, 0, 0)).any()


def test_real_images(shared: Path) -> None:
    """A crowded aerial photograph: few and small names keep it legible."""
    path = sorted((shared / "data" / "aerial_cars" / "images").iterdir())[0]
    with Image.open(path) as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    height, width = image.shape[1:]
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(300, 2, generator=generator) * torch.tensor([width, height])
    drawn = draw_boxes(image, torch.cat([starts, starts + 15], dim=1), torch.zeros(300, dtype=torch.long), ("car",))
    assert drawn.size == (width, height)
    assert (pixels(drawn) == image.permute(1, 2, 0).numpy()).all(axis=2).mean() > 0.6
