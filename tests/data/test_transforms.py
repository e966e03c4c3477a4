"""Sizes to the pixel, boxes that stay on their objects, and the facts of the official recipe."""

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detrs.data.preprocessing import FixedSize, Preprocessing, resized, resized_size
from detrs.data.sample import Sample
from detrs.data.transforms import UPRIGHT, DataConfig, Orientation, Plan, apply, plan

OFFICIAL = DataConfig(augment="official")
ORIENTATIONS = [Orientation(*flags) for flags in product((False, True), repeat=3)]


def sample(height: int, width: int, boxes: list[list[int]]) -> Sample:
    """A dark image with a bright rectangle in each box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, y1:y2, x1:x2] = 255
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(
        tv_tensors.Image(image),
        tv_tensors.BoundingBoxes(tensor, format="XYXY", canvas_size=(height, width)),
        torch.arange(len(boxes)),
        1,
        (height, width),
        "",
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),
        ((427, 640), (800, 1199)),
        ((375, 500), (800, 1066)),
        ((360, 640), (750, 1333)),
        ((612, 612), (800, 800)),
        ((343, 200), (1332, 777)),
        ((640, 480), (1066, 800)),
        ((800, 801), (800, 801)),  # right already
        ((800, 1333), (800, 1333)),
        ((10, 30000), (1, 1333)),  # the official rule gives (0, 1333)
        ((3000, 1), (1333, 1)),
        ((1, 1), (800, 800)),
        ((200, 533), (500, 1332)),  # 500.1875 rounded, then truncated
    ],
)
def test_resized_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(size, (800, 1333)) == expected


@pytest.mark.parametrize(
    ("size", "distorted", "padded"),
    [
        ((480, 640), (320, 512), (320, 427)),  # 426.67
        ((200, 640), (320, 512), (160, 512)),
        ((640, 1024), (320, 512), (320, 512)),
        ((10, 16), (320, 512), (320, 512)),
        ((4000, 1), (320, 512), (320, 1)),  # rounded to 0, which no image has
        ((1, 4000), (320, 512), (1, 512)),
    ],
)
def test_sizes_of_images_of_a_fixed_size(
    size: tuple[int, int], distorted: tuple[int, int], padded: tuple[int, int]
) -> None:
    for keep_ratio, expected in ((False, distorted), (True, padded)):
        fixed = FixedSize(320, 512, keep_ratio)
        assert resized_size(size, (800, 1333), fixed) == expected
        preprocessing = Preprocessing(resize_to=(800, 1333), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fixed=fixed)
        assert preprocessing.size_of(size) == expected
        if max(size) < 1000:
            assert preprocessing.resize(torch.zeros(3, *size, dtype=torch.uint8)).shape == (3, *expected)


def test_an_image_of_a_fixed_size_keeps_its_aspect_ratio_to_the_pixel() -> None:
    random = np.random.default_rng(0)
    for height, width in np.exp(random.uniform(0, np.log(30000), (3000, 2))).astype(int).tolist():
        high, wide = resized_size((height, width), (800, 1333), FixedSize(160, 224, keep_ratio=True))
        assert 1 <= high <= 160 and 1 <= wide <= 224 and (high == 160 or wide == 224)
        scale = min(160 / height, 224 / width)
        assert abs(high - max(1, height * scale)) <= 0.5 and abs(wide - max(1, width * scale)) <= 0.5


def test_resized_size_never_vanishes_nor_explodes() -> None:
    random = np.random.default_rng(0)
    for size in np.exp(random.uniform(0, np.log(30000), (3000, 2))).astype(int).tolist():
        height, width = resized_size((size[0], size[1]), (320, 448))
        assert min(height, width) >= 1
        if max(size) / min(size) < 100:
            assert max(height, width) <= 448 * 1.15
            assert min(height, width) == 320 or max(height, width) == pytest.approx(448, rel=0.15)
            assert (height < width) == (size[0] < size[1]) or height == width or size[0] == size[1]


def test_resize_is_pillow_bilinear() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (61, 89, 3), dtype=np.uint8)
    for resize_to in ((29, 99), (113, 300)):
        preprocessing = Preprocessing(resize_to=resize_to, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        ours = preprocessing.resize(torch.from_numpy(pixels).permute(2, 0, 1))
        height, width = resized_size((61, 89), resize_to)
        theirs = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        assert ours.shape == (3, height, width) and ours.dtype == torch.uint8
        assert np.abs(ours.permute(1, 2, 0).numpy() - theirs).max() <= 1


def test_resize_moves_boxes_with_the_image() -> None:
    before = sample(60, 100, [[10, 6, 30, 54]])
    after = apply(Plan(UPRIGHT, None, resized_size((60, 100), (30, 999))), before)
    assert after.image.shape == (3, 30, 50)
    torch.testing.assert_close(after.boxes.as_subclass(torch.Tensor), torch.tensor([[5.0, 3, 15, 27]]))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("crop", [None, ((101, 149), (7, 23, 61, 89)), ((313, 463), (0, 40, 200, 300))])
@pytest.mark.parametrize("layout", ["planar", "channels last"])
def test_apply_is_the_transforms_of_torchvision_to_the_bit(orientation: Orientation, crop: Any, layout: str) -> None:
    random = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (3, 211, 307), dtype=torch.uint8, generator=random)
    corners = torch.rand(9, 2, 2, generator=random).sort(dim=1).values.flatten(1) * torch.tensor([307.0, 211] * 2)
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(211, 307))
    if layout == "channels last":
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    before = Sample(tv_tensors.Image(image), boxes, torch.arange(9), 1, (211, 307), "")
    after = apply(Plan(orientation, crop, orientation.of_size((97, 131))), before)
    labels = before.labels
    if crop is not None:
        image, boxes = (F.crop(F.resize(each, list(crop[0])), *crop[1]) for each in (image, boxes))
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, labels = tv_tensors.wrap(boxes[keep], like=boxes), labels[keep]
        assert 0 < len(boxes) < 9
    image, boxes = F.resize(image, [97, 131]), F.resize(boxes, [97, 131])
    if orientation.transpose:  # torchvision has none, and rounds rotated boxes
        image = image.transpose(-2, -1)
        boxes = tv_tensors.BoundingBoxes(boxes[:, [1, 0, 3, 2]], format="XYXY", canvas_size=(131, 97))
    if orientation.horizontal_flip:
        image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
    if orientation.vertical_flip:
        image, boxes = F.vertical_flip(image), F.vertical_flip(boxes)
    assert torch.equal(after.image, image) and torch.equal(after.boxes, boxes) and torch.equal(after.labels, labels)
    assert after.boxes.canvas_size == orientation.of_size((97, 131)) and after.boxes.dtype == torch.float32


def test_the_default_dtype_of_the_program_does_not_matter() -> None:
    """Neither read nor set: other threads would compute in it."""
    made = [apply(Plan(Orientation(True), ((50, 70), (3, 4, 40, 60)), (31, 43)), sample(97, 61, [[5, 5, 40, 60]]))]
    torch.set_default_dtype(torch.float64)
    try:
        before = sample(97, 61, [[5, 5, 40, 60]])
        made.append(apply(Plan(Orientation(True), ((50, 70), (3, 4, 40, 60)), (31, 43)), before))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(made[0].boxes, made[1].boxes) and made[1].boxes.dtype == torch.float32


@pytest.mark.parametrize("size", [(61, 89), (29, 43), (113, 165)])
def test_a_resized_image_is_channels_last_and_does_not_depend_on_the_layout(size: tuple[int, int]) -> None:
    """Also a window of an image, whose rows are not adjacent."""
    pixels = torch.randint(0, 256, (71, 97, 3), dtype=torch.uint8)
    window = pixels[5:66, 4:93].permute(2, 0, 1)  # (3, 61, 89)
    for image in (window, window.contiguous(), window.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        after = resized(image, size)
        assert after.permute(1, 2, 0).is_contiguous() and torch.equal(after, resized(window.clone(), size))
    assert after.shape == (3, *size)


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "official"])
@pytest.mark.parametrize("size", [(331, 467), (541, 223)])
@pytest.mark.parametrize("turned", [False, True])
def test_boxes_stay_on_their_objects(augment: Any, size: tuple[int, int], turned: bool) -> None:
    """Inside a transformed box it is bright, and nothing bright lies outside of all boxes."""
    config = DataConfig(augment=augment, resize_to=(211, 307), vertical_flip=turned, rotate90=turned)
    before = sample(*size, [[20, 31, 131, 97], [150, 140, 190, 311], [3, 180, 60, 240]])
    seen = Counter[int]()
    for seed in range(3 if augment == "official" else 25):
        after = apply(plan(config, size, np.random.default_rng(seed)), before)
        assert after.image.dtype == torch.uint8
        height, width = after.image.shape[1:]
        assert after.boxes.canvas_size == (height, width)
        outside = torch.ones(height, width, dtype=torch.bool)
        assert len(after.boxes) == len(after.labels)
        for (x1, y1, x2, y2), label in zip(after.boxes.tolist(), after.labels.tolist(), strict=True):
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            seen[label] += 1
            inside = after.image[0, round(y1 + 2) : round(y2 - 2), round(x1 + 2) : round(x2 - 2)]
            assert not inside.numel() or inside.float().mean() > 250
            outside[max(0, round(y1 - 3)) : round(y2 + 3), max(0, round(x1 - 3)) : round(x2 + 3)] = False
        assert not outside.any() or after.image[0][outside].max() < 60
    assert set(seen) == {0, 1, 2}
    if augment == "crop":
        assert min(seen.values()) < 25  # some were cut off


def test_a_box_that_is_cut_away_leaves_with_its_label() -> None:
    before = sample(50, 70, [[0, 0, 10, 10], [30, 20, 60, 45], [25, 5, 41, 19]])
    after = apply(Plan(UPRIGHT, ((50, 70), (15, 20, 30, 50)), (30, 50)), before)
    assert after.labels.tolist() == [1, 2]
    assert after.boxes.tolist() == [[10, 5, 40, 30], [5, 0, 21, 4]]
    touching = apply(Plan(UPRIGHT, ((50, 70), (0, 41, 19, 20)), (19, 20)), before)  # the third ends where it starts
    assert touching.labels.tolist() == [] and touching.boxes.shape == (0, 4)


def test_boxes_outside_of_the_image_are_clipped_or_dropped() -> None:
    """Those of a dataset of the user, for example."""
    before = sample(50, 70, [[-9, -9, 10, 10], [60, 40, 90, 60], [71, 5, 80, 19]])
    after = apply(Plan(Orientation(vertical_flip=True), None, (50, 70)), before)
    assert after.labels.tolist() == [0, 1] and after.boxes.tolist() == [[0, 40, 10, 50], [60, 0, 70, 10]]


def test_rounding_moves_no_box_out_of_the_image() -> None:
    """The right side of a box that ends where the image does, scaled in float32."""
    width = next(width for width in range(50, 99) if torch.tensor(float(width)) * torch.tensor(97 / width) > 97)
    after = apply(Plan(Orientation(True), None, (40, 97)), sample(40, width, [[3, 4, width, 20]]))
    assert after.boxes[0, 0] == 0


def test_the_sample_itself_stays_as_it_is() -> None:
    before = sample(97, 61, [[5, 5, 40, 60]])
    image, boxes = before.image.clone(), before.boxes.clone()
    for seed in range(20):
        apply(plan(DataConfig(resize_to=(64, 96)), (97, 61), np.random.default_rng(seed)), before)
    assert torch.equal(image, before.image) and torch.equal(boxes, before.boxes)


def test_without_augmentation_only_the_size_changes() -> None:
    config = DataConfig(augment="none", resize_to=(100, 150))
    for seed in range(5):
        assert plan(config, (480, 640), np.random.default_rng(seed)) == Plan(UPRIGHT, None, (100, 133))


@pytest.mark.parametrize("augment", ["flip", "crop", "official"])
def test_without_mirror_only_the_flip_is_left_out(augment: Any) -> None:
    mirrored, straight = DataConfig(augment=augment), DataConfig(augment=augment, mirror=False)
    flips = 0
    for seed in range(50):
        one, other = (plan(config, (480, 640), np.random.default_rng(seed)) for config in (mirrored, straight))
        assert other.orientation == UPRIGHT and one._replace(orientation=UPRIGHT) == other
        flips += one.orientation.horizontal_flip
    assert flips > 10


def orientations(size: tuple[int, int] = (480, 640), **settings: Any) -> Counter[Orientation]:
    """How often each orientation is drawn, of 800; it decides the size."""
    config, found = DataConfig(resize_to=(96, 200), **{"augment": "none"} | settings), Counter[Orientation]()
    for seed in range(800):
        drawn = plan(config, size, np.random.default_rng(seed))
        found[drawn.orientation] += 1
        if drawn.crop is None and config.augment == "none":
            assert drawn.size == drawn.orientation.of_size(resized_size(size, (96, 200)))
    return found


def test_orientations_are_equally_frequent() -> None:
    """A rotation is not a reflection: without flips, there are four orientations."""
    upright, vertical = UPRIGHT, Orientation(vertical_flip=True)
    assert orientations() == {upright: 800}
    rotations = {upright, Orientation(False, True, True), Orientation(True, True), Orientation(True, False, True)}
    for settings, expected in (
        ({"vertical_flip": True}, {upright, vertical}),
        ({"vertical_flip": True, "augment": "flip"}, {upright, vertical, Orientation(True), Orientation(True, True)}),
        ({"rotate90": True}, rotations),
        ({"rotate90": True, "augment": "crop", "mirror": False}, rotations),
        ({"rotate90": True, "augment": "flip"}, set(ORIENTATIONS)),
        ({"rotate90": True, "vertical_flip": True}, set(ORIENTATIONS)),
    ):
        found = orientations(**settings)  # type: ignore[arg-type]
        assert set(found) == expected
        share = 1 / len(expected)
        assert all(abs(number - 800 * share) < 5 * (800 * share * (1 - share)) ** 0.5 for number in found.values())


def test_rotations_are_those_of_numpy() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    before = sample(5, 7, [[1, 2, 5, 3]])._replace(image=tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
    boxes = ([[1, 2, 5, 3]], [[2, 2, 3, 6]], [[2, 2, 6, 3]], [[2, 1, 3, 5]])
    rotations = (UPRIGHT, Orientation(False, True, True), Orientation(True, True), Orientation(True, False, True))
    for turns, (orientation, expected) in enumerate(zip(rotations, boxes, strict=True)):
        after = apply(Plan(orientation, None, orientation.of_size((5, 7))), before)
        assert np.array_equal(after.image.permute(1, 2, 0).numpy(), np.rot90(pixels, turns))
        assert after.boxes.tolist() == expected


def test_flip_has_no_crop_and_eleven_sizes() -> None:
    config = DataConfig(augment="flip", resize_to=(200, 999), min_scale=0.5)
    plans = [plan(config, (30, 40), np.random.default_rng(seed)) for seed in range(600)]
    assert all(p.crop is None for p in plans)
    assert {p.size[0] for p in plans} == set(range(100, 201, 10))


def uniform(counts: Counter[int], values: list[int]) -> bool:
    """All of ``values`` and nothing else, equally often (within five standard deviations)."""
    expected = sum(counts.values()) / len(values)
    return set(counts) == set(values) and all(abs(counts[v] - expected) < 5 * expected**0.5 for v in values)


def test_the_official_recipe() -> None:
    """Flip 1/2; short side 480..800 by 32, long at most 1333; crop 1/2 from 400/500/600, sides 384..min(side, 600)."""
    size = (427, 640)
    n = 3000
    plans = [plan(OFFICIAL, size, np.random.default_rng((7, seed))) for seed in range(n)]
    sigma = (n / 4) ** 0.5
    assert abs(sum(p.orientation.horizontal_flip for p in plans) - n / 2) < 5 * sigma
    crops = [p.crop for p in plans if p.crop is not None]
    assert abs(len(crops) - n / 2) < 5 * sigma
    assert abs(sum(p.orientation.horizontal_flip for p in plans if p.crop) - n / 4) < 5 * sigma  # independent
    whole = [p for p in plans if p.crop is None]
    sizes = [resized_size(size, (short, 1333)) for short in range(480, 801, 32)]
    assert uniform(Counter(sizes.index(p.size) for p in whole), list(range(11)))
    befores = [(400, 599), (500, 749), (600, 899)]
    assert uniform(Counter(befores.index(before) for before, _ in crops), [0, 1, 2])
    for p in plans:
        if p.crop is not None:
            (height, width), (top, left, h, w) = p.crop
            assert 384 <= h <= min(height, 600) and 384 <= w <= min(width, 600)
            assert 0 <= top <= height - h and 0 <= left <= width - w
            assert p.size in {resized_size((h, w), (short, 1333)) for short in range(480, 801, 32)}
    for before, low, high in (((400, 599), 384, 400), ((600, 899), 384, 600)):  # heights
        heights = [h for b, (_, _, h, _) in crops if b == before]
        assert min(heights) <= low + 2 and max(heights) >= high - 2
        assert np.mean(heights) == pytest.approx((low + high) / 2, rel=0.03)
    lefts = np.array([left / (width - w) for (_, width), (_, left, _, w) in crops if width > w])
    tops = np.array([top / (height - h) for (height, _), (top, _, h, _) in crops if height - h > 50])
    for positions in (lefts, tops):
        assert positions.min() < 0.02 and positions.max() > 0.98 and abs(positions.mean() - 0.5) < 0.03
    widths, heights = (np.array([window[k] for b, window in crops if b == (600, 899)]) for k in (3, 2))
    assert abs(np.corrcoef(widths, heights)[0, 1]) < 0.1  # drawn separately


def test_crop_is_the_official_recipe_at_its_own_size() -> None:
    same = DataConfig(augment="crop", resize_to=(800, 1333), min_scale=0.6)
    quarter = replace(same, resize_to=(200, 333))
    for seed in range(50):
        official = plan(OFFICIAL, (480, 640), np.random.default_rng(seed))
        assert plan(same, (480, 640), np.random.default_rng(seed)) == official
        small = plan(quarter, (480, 640), np.random.default_rng(seed))
        assert small.orientation == official.orientation and (small.crop is None) == (official.crop is None)
        if small.crop is not None:
            assert min(small.crop[0]) in (100, 125, 150) and all(96 <= side <= 150 for side in small.crop[1][2:])


def test_a_plan_depends_on_its_stream_and_the_size_only() -> None:
    np.random.seed(0)
    state = torch.get_rng_state()
    first = [plan(OFFICIAL, (480, 640), np.random.default_rng(seed)) for seed in range(20)]
    assert torch.equal(state, torch.get_rng_state())
    np.random.seed(1)
    torch.manual_seed(1)
    assert first == [plan(OFFICIAL, (480, 640), np.random.default_rng(seed)) for seed in range(20)]


@pytest.mark.parametrize("size", [(10, 30000), (30000, 10), (3000, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_extreme_shapes(size: tuple[int, int], augment: str) -> None:
    before = sample(*size, [[0, 0, size[1], size[0]]])
    for seed in range(4):
        config = DataConfig(augment=augment, resize_to=(64, 96))  # type: ignore[arg-type]
        drawn = plan(config, size, np.random.default_rng(seed))
        assert drawn.crop is None or np.prod(drawn.crop[0]) < 16 * 64**2 * 2
        after = apply(drawn, before)
        assert min(after.image.shape[1:]) >= 1 and after.image.shape[1:].numel() < 200 * 200
        assert len(after.boxes) == len(after.labels)


def test_an_image_without_boxes() -> None:
    for seed in range(10):
        after = apply(plan(DataConfig(resize_to=(64, 96)), (70, 50), np.random.default_rng(seed)), sample(70, 50, []))
        assert after.boxes.shape == (0, 4) and after.labels.shape == (0,)
