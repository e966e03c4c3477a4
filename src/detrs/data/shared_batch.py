"""Transfers batches from loader processes to the main process through shared memory.

New shared memory is slow: the system clears every page and maps it twice, which takes longer than decoding. So a loader
process writes its batches to a few buffers in turn, and the main process copies each batch out of its buffer. Padding
is made in the main process from the sizes. Boxes and labels are pickled as NumPy arrays, since each tensor would need a
file descriptor.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detrs.data.collate import padding_of
from detrs.structures import Batch, Target

PREFETCHED = 2
"""Batches that a loader process has finished or works on, beside the one that the main process copies."""


class Buffers:
    """Shared memory of one loader process: ``PREFETCHED + 1`` buffers, used in turn.

    A batch is requested only after all but the last ``PREFETCHED`` batches of this process were copied by the main
    process, so the buffer that comes next is free.
    """

    def __init__(self) -> None:
        self.storages: list[torch.UntypedStorage] = []
        self.next = 0

    def take(self, num_bytes: int) -> Tensor:
        """The next buffer: (num_bytes) uint8 with any content."""
        if len(self.storages) <= PREFETCHED:
            self.storages.append(torch.UntypedStorage._new_shared(num_bytes))
        elif self.storages[self.next].nbytes() < num_bytes:
            self.storages[self.next] = torch.UntypedStorage._new_shared(num_bytes)
        storage = self.storages[self.next]
        self.next = (self.next + 1) % (PREFETCHED + 1)
        return torch.empty(0, dtype=torch.uint8).set_(storage)[:num_bytes]


@dataclass(frozen=True)
class SharedBatch:
    """A batch whose images are in a shared buffer: valid until the next batch is requested."""

    images: Tensor
    """(B, 3, H, W) uint8 in a shared buffer."""
    sizes: list[tuple[int, int]]
    """(height, width) of each un-padded image."""
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    ids_and_sizes: list[tuple[int, tuple[int, int]]]
    """Image id and original size of each image."""

    @classmethod
    def of(cls, batch: Batch, sizes: list[tuple[int, int]]) -> "SharedBatch":
        targets = batch.targets
        return cls(
            batch.images,
            sizes,
            [target.boxes.numpy() for target in targets],
            [target.labels.numpy() for target in targets],
            [(target.image_id, target.original_size) for target in targets],
        )

    def batch(self) -> Batch:
        """The batch in memory of its own."""
        return self._with_images(self.images.clone())

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory. Called in the thread of the ``DataLoader`` that does this."""
        batch = self._with_images(self.images.pin_memory())
        targets = (t._replace(boxes=t.boxes.pin_memory(), labels=t.labels.pin_memory()) for t in batch.targets)
        return Batch(batch.images, batch.padding.pin_memory(), tuple(targets))

    def _with_images(self, images: Tensor) -> Batch:
        targets = [
            Target(torch.from_numpy(boxes), torch.from_numpy(labels), *id_and_size)
            for boxes, labels, id_and_size in zip(self.boxes, self.labels, self.ids_and_sizes, strict=True)
        ]
        return Batch(images, padding_of(self.sizes, (images.shape[2], images.shape[3])), tuple(targets))
