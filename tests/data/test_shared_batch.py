"""Batches of loader processes are transferred unchanged, whatever the processes write to their buffers meanwhile."""

import pickle
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from detrs.config.data import DataConfig
from detrs.data import DigitsDataset
from detrs.data.collate import collate, size_of
from detrs.data.loader import training_batches
from detrs.data.shared_batch import PREFETCHED, Buffers, SharedBatch
from detrs.structures import Batch

CONFIG = DataConfig(resize_to=(67, 97), augment="crop", batch_size=2)


def equal(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.padding, second.padding)
        and all(
            torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels) and a[2:] == b[2:]
            for a, b in zip(first.targets, second.targets, strict=True)
        )
    )


def test_buffers_are_used_in_turn_and_grow() -> None:
    buffers = Buffers()
    first = [buffers.take(100 + number) for number in range(PREFETCHED + 1)]
    addresses = [each.data_ptr() for each in first]
    assert len(set(addresses)) == PREFETCHED + 1 and all(each.is_shared() for each in first)
    assert [len(each) for each in first] == [100, 101, 102]
    smaller = buffers.take(7)
    assert smaller.data_ptr() == addresses[0] and len(smaller) == 7
    larger = buffers.take(10**6)
    assert larger.data_ptr() != addresses[1] and len(larger) == 10**6 and larger.is_shared()
    assert buffers.take(1).data_ptr() == addresses[2] and buffers.take(1).data_ptr() == addresses[0]


def plain_and_shared() -> tuple[Batch, SharedBatch]:
    """The batch has images of two sizes, and one without objects."""
    dataset = DigitsDataset("train", 3)
    narrow, first = dataset[1], dataset[0]
    samples = [first, narrow._replace(image=narrow.image[:, :, :70]), dataset[2]]
    samples[2] = samples[2]._replace(boxes=samples[2].boxes[:0], labels=samples[2].labels[:0])
    batch = collate(samples)
    return batch, SharedBatch.of(collate(samples, memory=Buffers().take), [size_of(sample) for sample in samples])


@pytest.mark.parametrize("pinned", [False, True])
def test_a_shared_batch_is_the_batch(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, shared = plain_and_shared()
    copied: list[torch.Tensor] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:  # without a GPU it does nothing
        copied.append(tensor.clone())
        return copied[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    copy = shared.pin_memory() if pinned else shared.batch()
    assert equal(copy, batch) and batch.padding.any() and not batch.padding.all()
    shared.images.fill_(7)  # the loader process writes its next batch
    assert equal(copy, batch) and copy.images.is_contiguous(memory_format=torch.channels_last)
    if pinned:
        tensors = [copy.images, copy.padding, *(part for target in copy.targets for part in target[:2])]
        assert all(any(tensor is each for each in copied) for tensor in tensors)


def test_boxes_are_pickled_without_tensors() -> None:
    """Each tensor would need a file descriptor, and the padding as much memory as a third of the images."""
    _, shared = plain_and_shared()
    assert len(pickle.dumps(replace(shared, images=torch.empty(0)))) < 2000
    assert not any(isinstance(part, torch.Tensor) for part in (*shared.boxes, *shared.labels))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slow_main_process_gets_every_batch_unchanged(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader processes run ahead as far as they may before each batch is copied."""
    dataset = DigitsDataset("train", 24)
    expected = list(training_batches(dataset, CONFIG, seed=1, epoch=0))
    real = SharedBatch.batch

    def late(shared: SharedBatch) -> Batch:
        time.sleep(0.1)
        return real(shared)

    monkeypatch.setattr(SharedBatch, "batch", late)
    found: list[Any] = list(training_batches(dataset, CONFIG, seed=1, epoch=0, workers=workers))
    assert len(found) == len(expected) == 12
    assert all(equal(a, b) for (a,), (b,) in zip(found, expected, strict=True))
