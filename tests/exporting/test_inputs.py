import pytest
import torch

from detrs.data.digits import DigitsDataset
from detrs.exporting.inputs import MADE, InputShapes, gate_inputs

SHAPES = InputShapes(resize_to=(128, 191), min_size=65)


def test_sizes_range_from_the_smallest_to_the_largest_in_both_orientations() -> None:
    inputs = list(gate_inputs(SHAPES))
    sizes = {tuple(each.batch.images.shape[2:]) for each in inputs}
    assert len(inputs) >= 20 and len(sizes) >= 15
    assert {(65, 65), (128, 191), (191, 128)} <= sizes
    assert all(min(size) >= 65 and max(size) <= 191 for size in sizes)
    assert sum(height % 2 + width % 2 for height, width in sizes) > len(sizes)  # most are odd
    assert {len(each.batch.images) for each in inputs} == {1, 3}
    assert not any(each.batch.padding.any() for each in inputs)


def test_images_differ_from_each_other_and_never_between_runs() -> None:
    before = torch.random.get_rng_state()
    first, second = ([each.batch.images for each in gate_inputs(SHAPES)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    images = [image for batch in first for image in batch]
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    assert all(image.dtype == torch.uint8 for image in images)


@pytest.mark.parametrize("make", MADE[1:], ids=lambda make: make.__name__)
def test_made_images_use_the_range_of_pixels(make) -> None:
    image = torch.cat([make(torch.Generator().manual_seed(seed)) for seed in range(9)])
    assert image.min() < 50 and image.max() > 205 and image.shape[0] == 27


def test_a_static_size_is_the_only_one() -> None:
    shapes = InputShapes(resize_to=(128, 191), static=(97, 131))
    inputs = list(gate_inputs(shapes))
    assert {tuple(each.batch.images.shape[2:]) for each in inputs} == {(97, 131)} and len(inputs) >= 20


def test_batches_are_padded_only_where_the_file_takes_padding() -> None:
    padded = [each for each in gate_inputs(InputShapes(resize_to=(128, 191), padding=True)) if each.is_padded]
    assert len(padded) >= 2
    for each in padded:
        assert not each.batch.images[each.batch.padding[:, None].expand_as(each.batch.images)].any()
        for (height, width), padding in zip(each.sizes, each.batch.padding, strict=True):
            assert (~padding).sum() == height * width and not padding[:height, :width].any()


def test_two_thirds_of_the_images_are_real_and_some_keep_the_size_of_evaluation() -> None:
    class Counted(DigitsDataset):
        used: list[int] = []  # noqa: RUF012

        def __getitem__(self, index):
            self.used.append(index)
            return super().__getitem__(index)

    inputs = list(gate_inputs(InputShapes(resize_to=(128, 191)), Counted("val", 50)))
    total = sum(len(each.batch.images) for each in inputs)
    assert len(Counted.used) >= total * 0.6 and len(set(Counted.used)) == len(Counted.used)
    assert sum(each.sizes == [(128, 160)] for each in inputs) >= 2  # digits are 128 x 160


def test_the_smallest_size_can_be_a_single_pixel() -> None:
    sizes = {
        tuple(each.batch.images.shape[2:])
        for dataset in (None, DigitsDataset("val", 40))
        for each in gate_inputs(InputShapes(resize_to=(128, 191), min_size=1, padding=True), dataset)
    }
    assert {(1, 1), (128, 191)} <= sizes
