"""The same pixels for any number of workers, processes and micro-batches, and after a resume."""

import gc
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from detrs.data import DigitsDataset, FolderDataset, Sample, loader
from detrs.data.loader import evaluation_batches, steps_per_epoch, training_batches
from detrs.data.preprocessing import FixedSize
from detrs.data.transforms import DataConfig
from detrs.errors import UserError
from detrs.structures import Batch

CONFIG = DataConfig(resize_to=(67, 97), augment="crop", batch_size=8)
N = 37


@pytest.fixture(scope="module")
def dataset() -> DigitsDataset:
    return DigitsDataset("train", N)


def steps(dataset: Any, config: DataConfig = CONFIG, **options: Any) -> list[tuple[Batch, ...]]:
    return list(training_batches(dataset, config, **{"seed": 3, "epoch": 0} | options))


def equal(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.padding, second.padding)
        and len(first.targets) == len(second.targets)
        and all(
            torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels) and a[2:] == b[2:]
            for a, b in zip(first.targets, second.targets, strict=True)
        )
    )


def all_equal(first: list[tuple[Batch, ...]], second: list[tuple[Batch, ...]]) -> bool:
    return len(first) == len(second) and all(
        len(a) == len(b) and all(map(equal, a, b)) for a, b in zip(first, second, strict=True)
    )


def joined(parts: Iterable[Batch]) -> Batch:
    """Batches of one padded size as one."""
    parts = list(parts)
    return Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.padding for part in parts]),
        tuple(target for part in parts for target in part.targets),
    )


def image_ids(batches: Iterable[Batch]) -> list[int]:
    return [target.image_id for batch in batches for target in batch.targets]


@pytest.mark.parametrize("together", [1, 2, 3, 4])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (1, 4), (2, 4), (4, 2), (8, 1)])
def test_images_that_are_padded_together(
    dataset: DigitsDataset, together: int, world_size: int, accumulate: int
) -> None:
    """Every image gets the size of the largest one among its group and its micro-batch, whoever loads it."""
    config = replace(CONFIG, padded_together=together)
    sizes = [size_of(batch, 0) for (batch,) in steps(dataset, CONFIG, world_size=8, rank=0, accumulate=1)]
    assert len(set(sizes)) > 1, "images of one size show nothing"
    whole = steps(dataset, CONFIG)[0][0]
    own = [size_of(whole, image) for image in range(8)]
    share = 8 // (world_size * accumulate)
    for rank in range(world_size):
        first = steps(dataset, config, world_size=world_size, rank=rank, accumulate=accumulate)[0]
        for micro_batch, part in enumerate(first):
            start = (micro_batch * world_size + rank) * share
            groups = {image // together for image in range(start, start + share)}
            group = [own[image] for image in range(8) if image // together in groups]
            assert tuple(part.images.shape[-2:]) == tuple(map(max, zip(*group, strict=True)))
            for image in range(share):
                h, w = own[start + image]
                assert size_of(part, image) == (h, w)
                assert torch.equal(part.images[image, :, :h, :w], whole.images[start + image, :, :h, :w])


def size_of(batch: Batch, image: int) -> tuple[int, int]:
    """(height, width) of what is no padding."""
    there = ~batch.padding[image]
    return int(there[:, 0].sum()), int(there[0].sum())


def test_steps_per_epoch(dataset: DigitsDataset) -> None:
    assert [steps_per_epoch(n, 8) for n in (1, 7, 8, 15, 16, 37)] == [1, 1, 1, 1, 2, 4]
    assert len(steps(dataset)) == 4


def test_workers_change_nothing(dataset: DigitsDataset) -> None:
    here = steps(dataset)
    assert all_equal(here, steps(dataset, workers=2))
    here = [(batch,) for batch in evaluation_batches(dataset, (67, 97), 5)]
    assert all_equal(here, [(batch,) for batch in evaluation_batches(dataset, (67, 97), 5, workers=2)])


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 4), (2, 2), (4, 2)])
def test_processes_and_micro_batches_share_the_global_batch(
    dataset: DigitsDataset, world_size: int, accumulate: int
) -> None:
    whole = steps(dataset)
    ranks = [steps(dataset, rank=r, world_size=world_size, accumulate=accumulate) for r in range(world_size)]
    assert all(len(step) == accumulate for rank in ranks for step in rank)
    for step, (batch,) in enumerate(whole):
        parts = [ranks[r][step][micro] for micro in range(accumulate) for r in range(world_size)]
        assert {len(part.targets) for part in parts} == {8 // (world_size * accumulate)}
        assert equal(joined(parts), batch)


@pytest.mark.parametrize("first_step", [1, 3, 4, 9])
def test_a_resumed_epoch_continues(dataset: DigitsDataset, first_step: int) -> None:
    options: dict[str, Any] = {"accumulate": 2, "epoch": 5}
    assert all_equal(steps(dataset, **options)[first_step:], steps(dataset, first_step=first_step, **options))


def test_epochs_and_seeds_differ_and_repeat(dataset: DigitsDataset) -> None:
    runs = [image_ids(b for (b,) in steps(dataset, seed=s, epoch=e)) for s, e in ((3, 0), (3, 1), (4, 0), (4, 1))]
    assert len({tuple(ids) for ids in runs}) == 4
    for ids in runs:
        assert len(set(ids)) == len(ids) == 32 and set(ids) <= set(range(1, N + 1))
    assert all_equal(steps(dataset, seed=4, epoch=1), steps(dataset, seed=4, epoch=1))
    assert len(steps(dataset, seed=2**63 - 1)) == 4


def test_every_position_has_its_own_augmentation(dataset: DigitsDataset) -> None:
    """The same image, repeated to fill the batch, is augmented differently."""
    (batch,) = steps(DigitsDataset("train", 1))[0]
    assert image_ids([batch]) == [1] * 8
    distinct = {image.numpy().tobytes() for image in batch.images}
    assert len(distinct) >= 7


def test_no_image_is_always_skipped(dataset: DigitsDataset) -> None:
    seen = {id_ for epoch in range(6) for id_ in image_ids(b for (b,) in steps(dataset, epoch=epoch))}
    assert seen == set(range(1, N + 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_left_alone(dataset: DigitsDataset, workers: int) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    batches = training_batches(dataset, CONFIG, seed=0, epoch=0, workers=workers)
    next(batches)
    list(evaluation_batches(dataset, (67, 97), 20, workers=workers))
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # type: ignore[index]
    torch.manual_seed(2)
    assert equal(next(training_batches(dataset, CONFIG, seed=0, epoch=0))[0], steps(dataset, seed=0)[0][0])


def test_a_batch_that_cannot_be_divided(dataset: DigitsDataset) -> None:
    """Training rejects it earlier with a message: tests/engine/test_compatibility.py."""
    with pytest.raises(AssertionError, match="check_divisible"):
        training_batches(dataset, CONFIG, seed=0, epoch=0, world_size=3)


@pytest.mark.parametrize("world_size", [1, 2, 3, 10])
def test_evaluation_sees_every_image_once(dataset: DigitsDataset, world_size: int) -> None:
    ranks = [list(evaluation_batches(dataset, (67, 97), 5, rank=r, world_size=world_size)) for r in range(world_size)]
    assert sorted(image_ids(batch for rank in ranks for batch in rank)) == list(range(1, N + 1))
    single = list(evaluation_batches(dataset, (67, 97), 5))
    assert image_ids(single) == list(range(1, N + 1))
    for r, rank in enumerate(ranks):  # batches do not depend on the number of processes
        assert all_equal([(b,) for b in rank], [(b,) for b in single[r::world_size]])


def test_evaluation_only_resizes(dataset: DigitsDataset) -> None:
    batch = next(evaluation_batches(dataset, (64, 999), 3))
    assert batch.images.shape == (3, 3, 64, 80) and not batch.padding.any()
    for index, target in enumerate(batch.targets):
        sample = dataset[index]
        centre = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2 / torch.tensor([160, 128])
        torch.testing.assert_close(target.boxes[:, :2], centre.as_subclass(torch.Tensor))
        assert target.original_size == (128, 160)


class Shapes(DigitsDataset):
    """Every second image is narrower, every fifth is lower."""

    def size_of(self, index: int) -> tuple[int, int]:
        height, width = super().size_of(index)
        return height - 16 * (index % 5 == 4), width - 56 * (index % 2)

    def __getitem__(self, index: int) -> Sample:
        sample, (height, width) = super().__getitem__(index), self.size_of(index)
        image = tv_tensors.Image(sample.image[:, :height, :width])
        return sample._replace(image=image, original_size=(height, width))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 40])
def test_evaluation_batches_have_one_size_and_no_padding(batch_size: int) -> None:
    batches = list(evaluation_batches(Shapes("val", N), (67, 97), batch_size))
    assert not any(batch.padding.any() for batch in batches)
    assert sorted(image_ids(batches)) == list(range(1, N + 1))
    sizes = [tuple(batch.images.shape[2:]) for batch in batches]
    assert len(set(sizes)) == 4
    for size in set(sizes):  # in the order of the dataset, and only the last one is incomplete
        group = [batch for batch, other in zip(batches, sizes, strict=True) if other == size]
        assert image_ids(group) == sorted(image_ids(group))
        assert all(len(batch.targets) == batch_size for batch in group[:-1])
    firsts = [batch.targets[0].image_id for batch in batches]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("world_size", [2, 3, 10])
def test_evaluation_batches_do_not_depend_on_the_number_of_processes(world_size: int) -> None:
    dataset = Shapes("val", N)
    single = list(evaluation_batches(dataset, (67, 97), 5))
    for rank in range(world_size):
        own = list(evaluation_batches(dataset, (67, 97), 5, rank=rank, world_size=world_size))
        assert all_equal([(b,) for b in own], [(b,) for b in single[rank::world_size]])


def test_evaluation_batches_of_a_fixed_size() -> None:
    """The size replaces ``resize_to``: all images have it, or those of equal aspect ratio share a batch."""
    dataset = Shapes("val", N)
    distorted = list(evaluation_batches(dataset, (67, 97), N, fixed=FixedSize(72, 88, keep_ratio=False)))
    assert [batch.images.shape for batch in distorted] == [(N, 3, 72, 88)]
    kept = list(evaluation_batches(dataset, (67, 97), N, fixed=FixedSize(72, 88, keep_ratio=True)))
    sizes = {tuple(batch.images.shape[2:]) for batch in kept}
    assert sizes == {(70, 88), (72, 58), (62, 88), (72, 67)} and not any(batch.padding.any() for batch in kept)
    assert sorted(image_ids(kept)) == list(range(1, N + 1))
    [padded] = evaluation_batches(dataset, (67, 97), N, pad=True, fixed=FixedSize(72, 88, keep_ratio=True))
    assert padded.images.shape == (N, 3, 72, 88)
    assert {tuple((~each).sum(axis).max().item() for axis in (0, 1)) for each in padded.padding} == sizes


def test_evaluation_batches_with_the_padding_of_the_authors() -> None:
    """Consecutive images, padded to the largest."""
    batches = list(evaluation_batches(Shapes("val", N), (67, 97), 5, pad=True))
    assert image_ids(batches) == list(range(1, N + 1))
    assert [len(batch.targets) for batch in batches] == [5] * 7 + [2]
    assert all(batch.padding.any() for batch in batches)
    whole, first = batches[0], size_of(batches[0], 0)
    assert tuple(whole.images.shape[2:]) == tuple(map(max, zip(*(size_of(whole, i) for i in range(5)), strict=True)))
    assert first == (67, 83)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_in_one_sentence(folder: Any, workers: int) -> None:
    dataset: FolderDataset = folder.open()
    (folder.images / "photo 1.png").write_bytes(b"<html>")
    with pytest.raises(UserError) as caught:
        steps(dataset, replace(CONFIG, batch_size=1), workers=workers)
    assert not multiprocessing.active_children()  # workers ended with the loop, not with the garbage collection
    assert "photo 1.png is a web page" in str(caught.value) and "\n" not in str(caught.value)


class Broken(DigitsDataset):
    """Fails or hangs at one image."""

    hang = False

    def __getitem__(self, index: int) -> Sample:
        if index == 3:
            time.sleep(60 * self.hang)
            raise RuntimeError("no such luck")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_any_other_error_carries_the_name_too(workers: int) -> None:
    with pytest.raises(RuntimeError, match="no such luck") as caught:
        list(evaluation_batches(Broken("val", 6), (67, 97), 2, workers=workers))
    assert any("val_00004.png" in note for note in caught.value.__notes__)


def test_a_worker_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "WORKER_TIMEOUT_S", 1)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # before a worker is killed
    monkeypatch.setattr(Broken, "hang", True)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"no batch for 1 s: .*--workers 0.*val_00004\.png") as caught:
        list(evaluation_batches(Broken("val", 6), (67, 97), 2, workers=1))
    assert time.perf_counter() - start < 60
    del caught
    gc.collect()  # the worker ends here, not in a later test


class Deadly(DigitsDataset):
    """What the system does to a process that needs too much memory."""

    def __getitem__(self, index: int) -> Sample:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_reported() -> None:
    with pytest.raises(UserError, match=r"loader process died .*out of memory.*--workers 0.*val_0000\d\.png") as caught:
        list(evaluation_batches(Deadly("val", 6), (67, 97), 2, workers=1))
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...", "--shm-size"),
        ("unable to write to file </torch_7_8_9>: No space left on device (28)", "--shm-size"),
        ("received 0 items of ancdata", "file descriptors"),
        ("no such luck", ""),
    ],
)
def test_what_to_do_about_shared_memory(text: str, hint: str) -> None:
    assert hint in loader.worker_failure(RuntimeError(text)) and bool(hint) == bool(
        loader.worker_failure(RuntimeError(text))
    )


def test_a_dataset_is_pickled_without_its_images(folder: Any, dataset: DigitsDataset) -> None:
    coco: FolderDataset = folder.open()
    first = coco[0]
    for original, limit in ((coco, 20_000), (dataset, 20_000)):
        data = pickle.dumps(original)
        assert len(data) < limit
        copy = pickle.loads(data)
        assert torch.equal(copy[0].image, original[0].image) and torch.equal(copy[0].boxes, original[0].boxes)
    assert first.image.nbytes + dataset[0].image.nbytes > 50_000


def test_real_images(shared: Path) -> None:
    from detrs.data import open_dataset

    config = replace(CONFIG, resize_to=(160, 224), batch_size=6)
    dataset = open_dataset(str(shared / "data" / "bccd"), "train")
    (batch,) = next(training_batches(dataset, config, seed=0, epoch=0))
    assert batch.images.shape[0] == 6 and max(batch.images.shape[2:]) <= 224
    assert sum(len(target.labels) for target in batch.targets) > 20
    for target in batch.targets:
        centre, size = target.boxes[:, :2], target.boxes[:, 2:]
        assert (size > 0).all() and (centre - size / 2 > -1e-6).all() and (centre + size / 2 < 1 + 1e-6).all()
