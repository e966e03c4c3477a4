"""Rectangles on an image that is divided into tiles are found once, complete and where they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_detector import CLASSES, CUT, WHOLE, RectangleFinder, finder, painted

from detrs.structures import Detections
from detrs.tile_merging import merge
from detrs.tiling import Tiling, Window, whole

Rectangle = tuple[int, tuple[int, int, int, int]]


def found_by(
    rectangles: list[Rectangle], size: tuple[int, int], *, tile: int = 128, overlap: float = 0.25, whole: bool = False
) -> Detections:
    """Tiles are not resized, so boxes are exact."""
    tiling = Tiling(size=tile, overlap=overlap, whole_image=whole)
    return finder(tile).detect_images([painted(size, rectangles)], device="cpu", tiling=tiling)[0]


def expect(found: Detections, rectangles: list[Rectangle], atol: float = 1e-3) -> None:
    rows = [
        (label, *(round(value, 3) for value in box))
        for label, box in zip(found.labels.tolist(), found.boxes_xyxy.tolist(), strict=True)
    ]
    expected = sorted((label, *map(float, box)) for label, box in rectangles)
    assert len(rows) == len(expected), (sorted(rows), expected)
    np.testing.assert_allclose(sorted(rows), expected, atol=atol)


def scattered(size: tuple[int, int], sides: tuple[int, int], count: int, seed: int) -> list[Rectangle]:
    """Rectangles that do not touch each other."""
    random = np.random.default_rng(seed)
    taken = np.zeros(size, dtype=bool)
    rectangles: list[Rectangle] = []
    while len(rectangles) < count:
        height, width = random.integers(sides[0], sides[1], size=2, endpoint=True)
        top, left = random.integers(1, size[0] - height), random.integers(1, size[1] - width)
        around = taken[max(top - 2, 0) : top + height + 2, max(left - 2, 0) : left + width + 2]
        if not around.any():
            around[:] = True
            box = (int(left), int(top), int(left + width), int(top + height))
            rectangles.append((int(random.integers(3)), box))
    return rectangles


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_objects_smaller_than_the_overlap_are_found_once(seed: int, overlap: float) -> None:
    size = (389, 613)
    rectangles = scattered(size, (5, 26), 60, seed)
    expect(found_by(rectangles, size, overlap=overlap), rectangles)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_objects_of_any_size_are_found_once(seed: int, overlap: float) -> None:
    """No tile contains those that are larger than the overlap: their parts are united."""
    size = (389, 613)
    rectangles = scattered(size, (20, 260), 7, seed)
    expect(found_by(rectangles, size, overlap=overlap), rectangles)


def test_an_object_that_covers_many_tiles_is_one() -> None:
    size = (500, 700)
    for box in ((10, 15, 690, 480), (10, 200, 690, 215), (300, 10, 310, 490)):
        expect(found_by([(1, box)], size), [(1, box)])


def test_the_tile_that_contains_the_object_determines_the_box_and_the_score() -> None:
    size = (128, 224)  # tiles at x = 0 and 96
    windows = Tiling(size=128, overlap=0.25, whole_image=False).views(size)
    assert [window.left for window in windows] == [0, 96]
    found = found_by([(0, (110, 40, 150, 60))], size)  # cut by the border at 128, where its score is higher
    expect(found, [(0, (110, 40, 150, 60))])
    assert found.scores.tolist() == [WHOLE]
    united = found_by([(0, (60, 40, 170, 60))], size)  # no tile contains it
    expect(united, [(0, (60, 40, 170, 60))])
    assert united.scores.tolist() == [CUT]


def test_neighbors_on_both_sides_of_a_border_remain_two() -> None:
    size = (128, 256)
    for overlap in (0.0, 0.25):
        gap = 1 if overlap else 3  # without overlap, boxes nearer to the border are taken for parts of one object
        rectangles = [(0, (90, 40, 128 - gap, 60)), (0, (128 + gap, 40, 170, 60))]  # side by side
        expect(found_by(rectangles, size, overlap=overlap), rectangles)
        rectangles = [(0, (60, 40, 170, 60)), (0, (60, 62, 170, 82)), (1, (60, 84, 170, 100))]  # one above the other
        expect(found_by(rectangles, size, overlap=overlap), rectangles)


def test_classes_are_not_mixed() -> None:
    rectangles = [(0, (60, 40, 170, 60)), (1, (60, 40, 170, 60))]  # yellow: both
    expect(found_by(rectangles, (128, 224)), rectangles)


def test_objects_larger_than_a_tile_are_found_in_the_whole_image() -> None:
    """Its parts inside of the tiles are not found here, as if a detector did not recognize them."""
    size, tile = (512, 768), 128
    large, small = (0, (90, 64, 690, 448)), (2, (20, 20, 32, 29))
    image = painted(size, [large, small])
    module = RectangleFinder(border_score=0.25)
    tiling = Tiling(size=tile, overlap=0.25)
    (found,) = finder(tile, module).detect_images([image], device="cpu", tiling=tiling)
    expect(found, [large, small], atol=768 / tile)  # the whole image is resized
    assert found.scores.tolist() == [WHOLE, WHOLE]
    assert found.boxes_xyxy[found.labels == 2].tolist() == [[20, 20, 32, 29]]


@pytest.mark.parametrize("tile", [224, 300])
def test_an_image_that_fits_one_tile_is_predicted_as_without_tiles(tile: int) -> None:
    image = painted((131, 224), scattered((131, 224), (5, 40), 9, seed=1))
    detector = finder(97)
    (plain,) = detector.detect_images([image], ["a.png"], device="cpu")
    (tiled,) = detector.detect_images([image], ["a.png"], device="cpu", tiling=Tiling(size=tile))
    for name in ("boxes_xyxy", "scores", "labels"):
        assert torch.equal(getattr(plain, name), getattr(tiled, name))
    assert plain.source == tiled.source == "a.png" and len(plain) > 5


def test_nothing_depends_on_the_batch_or_on_other_images() -> None:
    sizes = ((200, 300), (131, 257), (200, 300), (90, 97))
    images = [painted(size, scattered(size, (5, 40), 8, seed)) for seed, size in enumerate(sizes)]
    tiling = Tiling(size=97)
    detector = finder(97)
    alone = [detector.detect_images([image], device="cpu", tiling=tiling, batch_size=1)[0] for image in images]
    for batch_size in (2, 3, 100):
        module = RectangleFinder()
        found = replace(detector, module=module).detect_images(
            images, [f"{i}.png" for i in range(4)], device="cpu", tiling=tiling, batch_size=batch_size
        )
        assert max(shape[0] for shape in module.batches) <= batch_size
        assert [each.source for each in found] == [f"{i}.png" for i in range(4)]
        assert [each.image_size for each in found] == list(sizes)
        for first, second in zip(alone, found, strict=True):
            assert torch.equal(first.boxes_xyxy, second.boxes_xyxy) and torch.equal(first.scores, second.scores)
    assert len({shape[1:] for shape in module.batches}) == 4  # tiles of two shapes, and whole images of two


LEFT, RIGHT, IMAGE = Window(0, 0, 100, 100), Window(80, 0, 180, 100), (100, 180)


def detections(window: Window, rows: list[tuple[float, int, tuple[float, float, float, float]]]) -> Detections:
    """Detections of a window from rows of (score, label, box in pixels of the image)."""
    boxes = torch.tensor([box for _, _, box in rows], dtype=torch.float32).view(-1, 4)
    boxes -= torch.tensor([window.left, window.top] * 2)
    scores, labels = torch.tensor([score for score, _, _ in rows]), torch.tensor([label for _, label, _ in rows])
    return Detections(boxes, scores, labels.long(), CLASSES, window.size)


def merged(*rows: list[tuple[float, int, tuple[float, float, float, float]]]) -> list[tuple[float, list[float]]]:
    """(score, box) of detections in the tiles LEFT and RIGHT and, if there are three lists, in the whole image."""
    views = [LEFT, RIGHT, whole(IMAGE)][: len(rows)]
    found = merge(views, [detections(view, own) for view, own in zip(views, rows, strict=True)], IMAGE)
    assert found.image_size == IMAGE
    return [(round(score, 3), box) for score, box in zip(found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)]


def test_several_detections_of_one_view_remain() -> None:
    twice = [(0.9, 0, (10, 10, 50, 50)), (0.8, 0, (11, 10, 50, 50))]
    assert merged(twice, []) == [(0.9, [10, 10, 50, 50]), (0.8, [11, 10, 50, 50])]


def test_the_better_of_two_views_remains() -> None:
    assert merged([(0.7, 0, (85, 10, 95, 50))], [(0.9, 0, (86, 10, 95, 51))]) == [(0.9, [86, 10, 95, 51])]
    assert merged([(0.7, 0, (5, 10, 50, 50))], [], [(0.6, 0, (5, 11, 50, 50))]) == [(0.7, [5, 10, 50, 50])]


def test_a_cut_box_is_dropped_where_another_tile_contains_more() -> None:
    """Also if nothing is found there: that tile contains all that the other one does."""
    assert merged([(0.9, 0, (90, 10, 100, 50))], []) == []
    assert merged([(0.9, 0, (79, 10, 100, 50))], []) == [(0.9, [79, 10, 100, 50])]  # and here it does not


def test_jitter_does_not_drop_an_object_in_both_tiles() -> None:
    """An object that nearly fills the overlap is cut in both tiles, or in none."""
    for left in np.arange(79.0, 84.0, 0.5):
        for right in np.arange(96.0, 101.0, 0.5):
            for shift in (-0.75, 0.0, 0.75):
                first = (left, 10, min(right, 100), 50)
                second = (max(left + shift, 80), 10, right + shift, 50)
                assert len(merged([(0.9, 0, first)], [(0.8, 0, second)])) == 1, (first, second)


def test_a_part_is_not_united_with_one_of_much_lower_score() -> None:
    good, poor = (0.9, 0, (40, 10, 100, 50)), (0.05, 0, (80, 10, 175, 50))
    assert merged([good], [poor]) == [(0.9, [40, 10, 100, 50])]
    assert merged([good], [poor, (0.6, 0, (80, 11, 130, 50))])[0] == (0.9, [40, 10, 130, 50])


def test_the_whole_image_replaces_parts_unless_its_score_is_much_lower() -> None:
    part = (0.9, 0, (40, 10, 100, 50))
    assert merged([part], [], [(0.6, 0, (41, 10, 140, 50))]) == [(0.6, [41, 10, 140, 50])]
    assert merged([part], [], [(0.02, 0, (41, 10, 140, 50))]) == [(0.9, [40, 10, 100, 50])]


def test_no_detections() -> None:
    assert merged([], [], []) == merged([], []) == []


def test_each_part_is_united_with_one_of_another_tile() -> None:
    parts = [(0.9, 0, (40, 10, 100, 50)), (0.85, 0, (42, 10, 100, 50))]  # two detections of one tile
    assert merged(parts, [(0.8, 0, (80, 10, 140, 50))]) == [(0.9, [40, 10, 140, 50]), (0.85, [42, 10, 100, 50])]


def test_a_large_box_is_cut_if_it_ends_a_little_before_the_border() -> None:
    assert merged([(0.9, 0, (40, 10, 97.5, 50))], [(0.8, 0, (80, 10, 140, 50))]) == [(0.9, [40, 10, 140, 50])]
