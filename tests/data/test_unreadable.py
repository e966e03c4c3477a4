"""Images that are found to be unreadable only during training: few are skipped, many are an error."""

import logging
from typing import Any

import pytest
import torch

from detrs.data import DigitsDataset, Sample
from detrs.data.loader import check_skipped, evaluation_batches, training_batches
from detrs.data.transforms import DataConfig
from detrs.errors import UserError
from detrs.structures import Batch

CONFIG = DataConfig(resize_to=(67, 97), augment="crop", batch_size=20)
N = 200


class Damaged(DigitsDataset):
    """The images at some positions cannot be read."""

    def __init__(self, *positions: int) -> None:
        super().__init__("train", N)
        self.positions = positions

    def __getitem__(self, index: int) -> Sample:
        if index in self.positions:
            raise UserError(f"{self.path_of(index)} may be damaged.")
        return super().__getitem__(index)


def epoch(dataset: DigitsDataset, **options: Any) -> list[Batch]:
    batches = training_batches(dataset, CONFIG, **{"seed": 3, "epoch": 0} | options)
    return [batch for parts in batches for batch in parts]


@pytest.mark.parametrize("workers", [0, 2])
def test_few_unreadable_images_are_replaced_and_counted(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = epoch(DigitsDataset("train", N))
    with caplog.at_level(logging.WARNING, logger="detrs"):
        found = epoch(Damaged(17, 18), workers=workers)
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2 and messages[1].startswith("skipped in training (2 images of this epoch): ")
    assert {"train_00018.png", "train_00019.png"} == {message.split()[-4] for message in messages}
    for batch, expected in zip(found, whole, strict=True):
        assert batch.images.shape == expected.images.shape and torch.equal(batch.padding, expected.padding)
        for image, other, target, old in zip(
            batch.images, expected.images, batch.targets, expected.targets, strict=True
        ):
            if old.image_id in (18, 19):
                assert target.image_id == 20  # the next one that can be read
            else:
                assert torch.equal(image, other) and target.image_id == old.image_id


def test_replacements_do_not_depend_on_micro_batches() -> None:
    whole, parts = epoch(Damaged(17, 18)), epoch(Damaged(17, 18), accumulate=20)
    first, second = ([image for batch in batches for image in batch.images] for batches in (whole, parts))
    assert len(first) == N and all(map(torch.equal, first, second))


def test_more_than_one_percent_is_an_error() -> None:
    with pytest.raises(UserError, match=r"\.png may be damaged\. So more than 1% of the 200 images cannot be read"):
        epoch(Damaged(17, 90, 130))


def test_one_percent_is_that_of_all_processes() -> None:
    dataset, skipped = Damaged(17, 90, 130), (set[int](), set[int]())
    for rank in (0, 1):
        epoch(dataset, rank=rank, world_size=2, skipped=skipped[rank])
    assert skipped[0] | skipped[1] == {17, 90, 130} and max(map(len, skipped)) == 2
    check_skipped({17, 90}, dataset)
    with pytest.raises(UserError, match=r"3 images of this epoch .* more than 1% of the 200 images cannot be read"):
        check_skipped(skipped[0] | skipped[1], dataset)


def test_many_unreadable_images_in_a_row_are_an_error() -> None:
    with pytest.raises(UserError, match=r"\.png may be damaged\."):
        epoch(Damaged(*range(17, 27)))


def test_evaluation_skips_nothing_silently() -> None:
    with pytest.raises(UserError, match=r"train_00018\.png may be damaged"):
        list(evaluation_batches(Damaged(17), (67, 97), 8))
