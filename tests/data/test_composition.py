"""Color jitter, large-scale jitter, mosaic and mixup: objects keep their boxes, pixels are those that were drawn."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detrs.config.data import DataConfig, most_objects, without_strong_augmentation
from detrs.data import SampleDataset, make_sample
from detrs.data.color import Color, adjust_contrast, adjusted, draw_color
from detrs.data.composition import Composition, Part, blended, compose, composed
from detrs.data.loader import training_batches
from detrs.data.transforms import UPRIGHT, Plan, apply, plan
from detrs.errors import UserError
from detrs.presets import PRESETS, preset
from detrs.structures import Batch

CONFIG = DataConfig(resize_to=(67, 97), batch_size=5, large_scale_jitter=(0.5, 1.5), mosaic=0.5, mixup=0.4)
COLORS = ((250, 30, 20), (20, 240, 40), (30, 20, 255), (240, 230, 10))
"""Of the objects of each class, on black."""


def colored(number: int) -> Any:
    """An image of its own size with rectangles, whose colors are those of their classes."""
    height, width = 131 + 10 * number, 173 - 10 * number
    image, random = np.zeros((height, width, 3), np.uint8), np.random.default_rng(number)
    boxes: list[list[int]] = []
    for column in range(3):
        x, y = 5 + column * width // 3, int(random.integers(5, height // 2))
        boxes.append(
            [x, y, x + int(random.integers(20, width // 3 - 8)), y + int(random.integers(20, height // 2 - 8))]
        )
        image[y : boxes[-1][3], x : boxes[-1][2]] = COLORS[(number + column) % 4]
    labels = [(number + column) % 4 for column in range(3)]
    return make_sample(image, boxes_xyxy=boxes, labels=labels, image_id=number)


@pytest.fixture(scope="module")
def dataset() -> SampleDataset:
    return SampleDataset([colored(number) for number in range(7)], names=["red", "green", "blue", "yellow"])


def steps(dataset: Any, config: DataConfig, **options: Any) -> list[tuple[Batch, ...]]:
    return list(training_batches(dataset, config, **{"seed": 3, "epoch": 0} | options))


def all_equal(first: list[tuple[Batch, ...]], second: list[tuple[Batch, ...]]) -> bool:
    """Whether the pixels and objects of batches without accumulation are equal."""
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.padding, b.padding)
        and all(
            torch.equal(one.boxes, other.boxes) and torch.equal(one.labels, other.labels)
            for one, other in zip(a.targets, b.targets, strict=True)
        )
        for (a,), (b,) in zip(first, second, strict=True)
    )


def made(dataset: SampleDataset, config: DataConfig, seed: int) -> tuple[Composition, Any]:
    drawn = compose(config, seed % 7, 7, dataset.size_of, (3, 0, seed))
    return drawn, composed(drawn, [apply(part.plan, dataset[part.number]) for part in drawn.sources])


@pytest.mark.parametrize(
    "settings",
    [
        {"large_scale_jitter": (0.5, 1.5)},
        {"mosaic": 1.0},
        {"large_scale_jitter": (1.3, 2.0), "mosaic": 0.5},
        {"large_scale_jitter": (0.7, 2.0), "mosaic": 0.5, "vertical_flip": True, "rotate90": True},
    ],
)
@pytest.mark.parametrize("augment", ["none", "crop"])
def test_boxes_stay_on_their_objects(dataset: SampleDataset, augment: Any, settings: Any) -> None:
    """Inside a box is the color of its class, and outside of the boxes, with those that were dropped, it is dark."""
    config = DataConfig(augment=augment, resize_to=(167, 241), **settings)
    objects = 0
    for seed in range(40):
        drawn, sample = made(dataset, config, seed)
        height, width = drawn.size
        assert sample.image.shape == (3, height, width) and sample.image.dtype == torch.uint8
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            inside = sample.image[:, round(y1 + 2) : round(y2 - 2), round(x1 + 2) : round(x2 - 2)].float()
            objects += 1
            assert not inside.numel() or (inside.mean((1, 2)) - torch.tensor(COLORS[label])).abs().max() < 12
        every = composed(
            drawn, [apply(part.plan._replace(min_visible=0.0), dataset[part.number]) for part in drawn.sources]
        )
        outside = torch.ones(height, width, dtype=torch.bool)
        for x1, y1, x2, y2 in every.boxes.tolist():
            outside[max(0, round(y1 - 3)) : round(y2 + 3), max(0, round(x1 - 3)) : round(x2 + 3)] = False
        assert not outside.any() or sample.image.amax(0)[outside].max() < 60
    assert objects > 60


def test_a_mosaic_shows_four_images_around_its_center(dataset: SampleDataset) -> None:
    config = DataConfig(augment="none", resize_to=(160, 240), mosaic=1.0)
    numbers = Counter[int]()
    for seed in range(60):
        drawn, sample = made(dataset, config, seed)
        assert drawn.size == plan(config, dataset.size_of(seed % 7), np.random.default_rng(0)).size
        first, right, below, last = drawn.parts
        y, x = first.plan.size
        assert 0.24 * drawn.size[0] < y < 0.76 * drawn.size[0] and 0.24 * drawn.size[1] < x < 0.76 * drawn.size[1]
        assert (right.top, right.left, below.top, below.left, last.top, last.left) == (0, x, y, 0, y, x)
        assert last.plan.size == (drawn.size[0] - y, drawn.size[1] - x) and first.number == seed % 7
        assert sample.image_id == seed % 7
        for part in drawn.parts:
            height, width = part.plan.size
            own = apply(part.plan, dataset[part.number])
            shown = sample.image[:, part.top : part.top + height, part.left : part.left + width]
            assert torch.equal(shown.as_subclass(Tensor), own.image.as_subclass(Tensor))
            assert part.plan.crop is not None and part.plan.orientation == UPRIGHT
            window = part.plan.crop[1][2:]  # of the aspect ratio of its place, up to a pixel
            assert abs(window[0] / height - window[1] / width) < 1 / min(height, width) + 0.02
        numbers.update(part.number for part in drawn.parts[1:])
    assert set(numbers) == set(range(7))


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
@pytest.mark.parametrize("settings", [{}, {"large_scale_jitter": (0.5, 1.5)}, {"mosaic": 0.5, "mixup": 0.5}])
def test_rotated_images_are_not_distorted(augment: Any, settings: Any) -> None:
    """What is used of an image has the aspect ratio of its result before the rotation, up to a pixel."""
    config = DataConfig(augment=augment, resize_to=(400, 700), rotate90=True, **settings)
    rotated = 0
    for seed in range(60):
        drawn = compose(config, 0, 1, lambda number: (900, 1300), (0, 0, seed))
        for part in drawn.sources:
            used = (900, 1300)
            if part.plan.crop is not None:
                (before_height, before_width), (top, left, *window) = part.plan.crop
                used = (window[0], window[1])
                assert abs(before_height / before_width - 900 / 1300) < 0.01
                assert top >= 0 and left >= 0
                assert top + used[0] <= before_height and left + used[1] <= before_width
            height, width = part.plan.orientation.of_size(part.plan.size)
            assert abs(used[0] / used[1] - height / width) < 1.5 * (1 + height / width) / width
            rotated += part.plan.orientation.transpose
    assert rotated > 15


def test_the_boxes_of_a_mosaic_are_moved_to_the_parts() -> None:
    first = make_sample(np.zeros((20, 30, 3), np.uint8), boxes_xyxy=[[1, 2, 11, 12]], labels=[0], image_id=1)
    parts = tuple(Part(0, Plan(UPRIGHT, None, (20, 30)), top, left) for top in (0, 20) for left in (0, 30))
    sample = composed(Composition((40, 60), parts), [first] * 4)
    assert sample.boxes.tolist() == [[1, 2, 11, 12], [31, 2, 41, 12], [1, 22, 11, 32], [31, 22, 41, 32]]


def test_large_scale_jitter_keeps_the_window_or_shrinks(dataset: SampleDataset) -> None:
    config = DataConfig(augment="none", resize_to=(120, 200), large_scale_jitter=(0.5, 1.5))
    usual, size = plan(config, (131, 173), np.random.default_rng(0)).size, (131, 173)
    plans = [compose(config, 0, 1, lambda number: size, (0, 0, seed)).parts[0].plan for seed in range(800)]
    larger = [each for each in plans if each.crop is not None]
    assert abs(len(larger) - 400) < 5 * 200**0.5 and all(each.size == usual for each in larger)
    smaller = [each.size[0] / usual[0] for each in plans if each.crop is None]
    assert 0.49 < min(smaller) < 0.52 and 0.98 < max(smaller) <= 1 and abs(np.mean(smaller) - 0.75) < 0.03
    windows = [each.crop[1] for each in larger if each.crop is not None]
    factors = [size[0] / height for _, _, height, _ in windows]
    assert max(factors) < 1.52 and abs(np.mean(factors) - 1.25) < 0.03
    assert all(0 <= top <= 131 - height and 0 <= left <= 173 - width for top, left, height, width in windows)


def test_a_box_that_lost_three_quarters_of_its_area_is_dropped() -> None:
    before = make_sample(
        np.zeros((50, 70, 3), np.uint8), boxes_xyxy=[[0, 10, 16, 20], [0, 30, 17, 40]], labels=[0, 1], image_id=1
    )
    window = ((50, 70), (0, 12, 50, 58))  # 4 of 16 columns are left, and 5 of 17
    kept = apply(Plan(UPRIGHT, window, (50, 58), 0.25), before)
    assert kept.boxes.tolist() == [[0, 10, 4, 20], [0, 30, 5, 40]]
    assert apply(Plan(UPRIGHT, window, (50, 58), 0.26), before).labels.tolist() == [1]


def test_mixup_has_both_images_and_all_objects(dataset: SampleDataset) -> None:
    config = DataConfig(augment="none", resize_to=(160, 240), mixup=1.0)
    ratios = []
    for seed in range(60):
        drawn, sample = made(dataset, config, seed)
        assert drawn.mixed is not None and len(drawn.parts) == 1
        one, other = (apply(part.plan, dataset[part.number]) for part in drawn.sources)
        expected = (one.image.double() * drawn.ratio + other.image.double() * (128 - drawn.ratio)) / 128
        assert (sample.image.double() - expected).abs().max() <= 0.5
        assert sample.boxes.tolist() == one.boxes.tolist() + other.boxes.tolist()
        assert sample.labels.tolist() == one.labels.tolist() + other.labels.tolist()
        ratios.append(drawn.ratio / 128)
    assert abs(np.mean(ratios) - 0.5) < 0.04 and 0.03 < np.std(ratios) < 0.1  # 0.062
    assert blended(torch.tensor([255], dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8), 77).tolist() == [255]


def test_the_largest_objects_are_kept() -> None:
    boxes = [[0, 0, 4, 4], [0, 0, 9, 9], [0, 0, 5, 5], [1, 1, 6, 6]]
    sample = make_sample(np.zeros((20, 30, 3), np.uint8), boxes_xyxy=boxes, labels=[0, 1, 2, 3], image_id=1)
    drawn = Composition((20, 30), (Part(0, Plan(UPRIGHT, None, (20, 30))),))
    assert composed(drawn, [sample], 4).labels.tolist() == [0, 1, 2, 3]
    assert composed(drawn, [sample], 3).labels.tolist() == [1, 2, 3]
    assert composed(drawn, [sample], 2).labels.tolist() == [1, 2]
    assert composed(drawn, [sample], 2).boxes.tolist() == [boxes[1], boxes[2]]
    assert [most_objects(DataConfig(mosaic=a, mixup=b), 7) for a in (0, 0.1) for b in (0, 0.1)] == [7, 14, 28, 35]


def test_the_limit_of_objects_applies_to_batches(dataset: SampleDataset) -> None:
    config = replace(CONFIG, mosaic=1.0)
    counts = [
        [len(target.labels) for (batch,) in steps(dataset, config, max_objects=limit) for target in batch.targets]
        for limit in (None, 6)
    ]
    assert max(counts[0]) > 6 and [min(count, 6) for count in counts[0]] == counts[1]


def test_color_jitter_is_the_transforms_of_torchvision() -> None:
    image = torch.randint(0, 256, (3, 211, 307), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    color = Color(1.3, 0.7, 1.4, -0.1, (2, 0, 3, 1))
    expected = F.adjust_hue(F.adjust_brightness(F.adjust_saturation(image, 1.4), 1.3), -0.1)
    assert (adjusted(image, color).int() - F.adjust_contrast(expected, 0.7).int()).abs().max() <= 1
    assert torch.equal(adjusted(image, color._replace(contrast=1.0)), expected)


def test_color_jitter_does_not_depend_on_threads() -> None:
    image = torch.randint(0, 256, (1, 811, 1301), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image, before = image.expand(3, -1, -1), torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append([adjusted(image, Color(1.1, 0.5 + k / 20, 0.9, 0.05)) for k in range(3)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_the_strength_is_the_range_of_colors() -> None:
    drawn = [draw_color(0.5, np.random.default_rng(seed)) for seed in range(600)]
    for values in ([c.brightness for c in drawn], [c.contrast for c in drawn], [c.saturation for c in drawn]):
        assert 0.6 <= min(values) < 0.62 and 1.38 < max(values) <= 1.4
    assert 0.095 < max(color.hue for color in drawn) <= 0.1 and -0.1 <= min(color.hue for color in drawn) < -0.095
    assert len({color.order for color in drawn}) == 24


def test_colors_change_no_box_and_no_other_draw(dataset: SampleDataset) -> None:
    for seed in range(20):
        (plain, one), (color, other) = (
            made(dataset, DataConfig(resize_to=(67, 97), color_jitter=strength), seed) for strength in (0.0, 0.7)
        )
        assert plain.color is None and color.color is not None and color._replace(color=None) == plain
        assert torch.equal(one.boxes, other.boxes) and not torch.equal(one.image, other.image)


def test_without_mirror_nothing_is_flipped(dataset: SampleDataset) -> None:
    flips = Counter[bool]()
    for mirror in (True, False):
        for seed in range(60):
            drawn, _ = made(dataset, replace(CONFIG, mirror=mirror), seed)
            flips[mirror] += sum(part.plan.orientation.horizontal_flip for part in drawn.sources)
    assert flips[True] > 30 and flips[False] == 0


@pytest.mark.parametrize("size", [(2, 2), (1, 900), (2000, 3), (7, 11)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    box = [[0, 0, size[1], size[0]]]
    sample = make_sample(np.zeros((*size, 3), np.uint8), boxes_xyxy=box, labels=[0], image_id=1)
    for seed in range(20):
        drawn = compose(replace(CONFIG, mosaic=0.7), 0, 1, lambda number: size, (0, 0, seed))
        after = composed(drawn, [apply(part.plan, sample) for part in drawn.sources])
        assert after.image.shape == (3, *drawn.size) and min(drawn.size) >= 1 and max(drawn.size) <= 1.5 * 97


ALL = replace(CONFIG, color_jitter=0.6)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(dataset: SampleDataset, workers: int) -> None:
    assert all_equal(steps(dataset, ALL, epoch=2), steps(dataset, ALL, epoch=2, workers=workers))


def test_processes_micro_batches_and_a_resume_change_nothing(dataset: SampleDataset) -> None:
    small = replace(ALL, batch_size=2, padded_together=1)
    whole = steps(dataset, small, epoch=1)
    assert len(whole) == 3 and all_equal(whole[1:], steps(dataset, small, epoch=1, first_step=1))
    parts = [steps(dataset, small, epoch=1, world_size=2, rank=rank) for rank in range(2)]
    for step, (batch,) in enumerate(whole):
        for rank in range(2):
            (part,) = parts[rank][step]
            _, height, width = part.images[0].shape
            assert torch.equal(part.images[0], batch.images[rank, :, :height, :width])
            assert torch.equal(part.targets[0].boxes, batch.targets[rank].boxes)


def test_after_strong_until_only_colors_remain(dataset: SampleDataset) -> None:
    color_only = DataConfig(resize_to=(67, 97), batch_size=5, color_jitter=0.6)
    assert all_equal(steps(dataset, ALL, is_strong=False), steps(dataset, color_only))
    assert not all_equal(steps(dataset, ALL), steps(dataset, color_only))
    assert without_strong_augmentation(ALL) == color_only


class Broken(SampleDataset):
    """One of its images cannot be read after it was opened."""

    broken: int | None = None

    def __getitem__(self, index: int) -> Any:
        if index == self.broken:
            raise UserError(f"image {index} is broken.")
        return super().__getitem__(index)


def test_an_unreadable_image_in_a_mosaic_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken([colored(0)._replace(image_id=number) for number in range(120)], names=["r", "g", "b", "y"])
    config = replace(CONFIG, augment="none", mosaic=1.0, large_scale_jitter=None, mixup=0.0)
    intact = steps(broken, config)
    broken.broken = 7
    replaced = steps(broken, config)
    assert "skipped in training (1 images of this epoch): image 7 is broken." in caplog.text
    different = [not torch.equal(a.images, b.images) for (a,), (b,) in zip(intact, replaced, strict=True)]
    assert 0 < sum(different) < 12 and all(
        a.images.shape == b.images.shape for (a,), (b,) in zip(intact, replaced, strict=True)
    )


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_has_them(name: str) -> None:
    data = preset(name).data
    assert (data.color_jitter, data.large_scale_jitter, data.mosaic, data.mixup) == (0, None, 0, 0)
    assert without_strong_augmentation(data) == data


def test_a_composition_of_one_image_is_that_image(dataset: SampleDataset) -> None:
    drawn, sample = made(dataset, DataConfig(resize_to=(67, 97)), 4)
    own = apply(plan(DataConfig(resize_to=(67, 97)), dataset.size_of(4), np.random.default_rng((3, 0, 4))), dataset[4])
    assert len(drawn.sources) == 1 and torch.equal(own.image, sample.image) and torch.equal(own.boxes, sample.boxes)
    assert isinstance(sample.image, tv_tensors.Image) and sample.boxes.canvas_size == drawn.size


def test_contrast_is_relative_to_the_exact_mean() -> None:
    image = torch.tensor([[1, 3, 1, 3]], dtype=torch.uint8).expand(3, 1, 4)
    mean = 1  # torchvision rounds gray values down: 0 and 2
    assert adjust_contrast(image, 3.0)[0].tolist() == [[3 * 1 - 2 * mean, 3 * 3 - 2 * mean] * 2]
