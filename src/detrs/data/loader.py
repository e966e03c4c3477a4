"""Batches for training and evaluation, independent of how the work is divided.

The order of an epoch is a function of (seed, epoch), the augmentation of an image one of (seed, epoch, position in that
order), and the padded size one of the whole global batch. So the pixels do not depend on workers, processes,
micro-batches or resuming, and no global random state is used. Evaluation batches contain images of one size, without
padding, as in prediction.
"""

import logging
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from detrs.config.data import DataConfig, without_strong_augmentation
from detrs.data import transforms
from detrs.data.collate import collate, size_of
from detrs.data.composition import Composition, Part, compose, composed, single
from detrs.data.findings import MAX_DEFECTS
from detrs.data.preprocessing import FixedSize, resized_size
from detrs.data.protocol import check_sample
from detrs.data.sample import Dataset, Sample
from detrs.data.shared_batch import PREFETCHED, Buffers, SharedBatch
from detrs.errors import UserError, counted, printable
from detrs.structures import Batch

logger = logging.getLogger("detrs")

WORKER_TIMEOUT_S = 120
"""Timeout in seconds for one batch."""
MAX_REPLACEMENTS = 8
"""Images that are tried in place of one that cannot be read."""
SHARED_MEMORY_SIGNS = ("Bus error", "shared memory", "/torch_", "ancdata", "Too many open files")
"""Parts of the errors raised when /dev/shm is full or too many files are open."""


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Optimizer steps of one epoch: the incomplete last batch is dropped, but there is at least one step.

    The dropped images differ from epoch to epoch. With fewer images than ``batch_size``, images repeat in the batch.
    """
    return max(1, num_images // batch_size)


def training_batches(
    dataset: Dataset,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    first_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    pin_memory: bool = False,
    is_strong: bool = True,
    max_objects: int | None = None,
    skipped: set[int] | None = None,
) -> Iterator[tuple[Batch, ...]]:
    """One epoch: for each optimizer step the ``accumulate`` micro-batches of process ``rank``.

    Args:
        dataset: training images.
        config: augmentation, size and the *global* batch size, a multiple of ``world_size * accumulate``.
        seed: random seed.
        epoch: counts from 0.
        first_step: first step of the epoch; above 0 when a run is resumed.
        workers: loader processes; 0: load in this process.
        rank: this process among ``world_size``.
        world_size: number of training processes.
        accumulate: micro-batches per optimizer step.
        pin_memory: use page-locked memory, for copies to a GPU.
        is_strong: whether this epoch has the augmentations that end at ``config.strong_until``.
        max_objects: limit of the objects of a mosaic or mixup, of which those with the largest boxes are kept.
        skipped: receives the positions of the images that this process could not read.

    Raises:
        UserError: while iterating: this process cannot read more than 1 % of the images; see ``check_skipped`` for all
            processes. Up to 1 % are replaced by other images, with a warning.
    """
    assert config.keep_empty or not dataset.num_empty, "images without objects are dropped by open_dataset"
    assert config.batch_size % (world_size * accumulate) == 0, "checked by engine.compatibility.check_divisible"
    config = config if is_strong else without_strong_augmentation(config)
    plans = _TrainingPlans(dataset, config, seed, epoch, first_step, rank, world_size, accumulate, max_objects)
    batches = _load(plans, workers, pin_memory, skipped)
    return zip(*[batches] * accumulate, strict=True)


def check_skipped(skipped: Collection[int], dataset: Dataset, problem: str | None = None) -> None:
    """Check the number of images that could not be read in an epoch.

    Args:
        skipped: their positions, of all processes.
        dataset: all images.
        problem: a sentence about the last of them.

    Raises:
        UserError: they are more than 1 %.
    """
    if len(skipped) > MAX_DEFECTS * len(dataset):
        problem = problem or f"{counted(len(skipped), 'image')} of this epoch had to be skipped, see the warnings."
        raise UserError(f"{problem} So more than {MAX_DEFECTS:.0%} of the {len(dataset)} images cannot be read.")


def evaluation_batches(
    dataset: Dataset,
    resize_to: tuple[int, int] | None,
    batch_size: int,
    *,
    pad: bool = False,
    fixed: FixedSize | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Every image exactly once over all processes, resized to ``resize_to``, in batches of equal size without padding.

    Process ``rank`` gets every ``world_size``-th batch, so that the batches do not depend on the number of processes.

    Args:
        dataset: images and their sizes.
        resize_to: (short, long) in pixels; ``None``: images keep their size.
        batch_size: largest number of images in a batch.
        pad: ignore sizes: batches are consecutive images, padded to the largest, as in the authors' evaluation.
        fixed: used instead of ``resize_to``, for exported files with static size.
        workers: loader processes; 0: load in this process.
        rank: this process among ``world_size``.
        world_size: number of processes.
        pin_memory: use page-locked memory, for copies to a GPU.

    Yields:
        Batches in the order of their first images; within a batch, images are in the order of the dataset.

    Raises:
        UserError: while iterating: an image cannot be read.
    """
    return _load(_EvaluationPlans(dataset, resize_to, batch_size, pad, fixed, rank, world_size), workers, pin_memory)


class _Plan(NamedTuple):
    """One batch to be loaded, as numbers."""

    items: list[Composition]
    size: tuple[int, int]
    """(height, width) to pad to."""


@runtime_checkable
class _Plans(Protocol):
    dataset: Dataset
    max_objects: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> _Plan: ...


class _TrainingPlans:
    """The batches of one epoch for one process, each planned when it is requested."""

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        seed: int,
        epoch: int,
        first_step: int,
        rank: int,
        world_size: int,
        accumulate: int,
        max_objects: int | None,
    ) -> None:
        self.dataset, self.config, self.seed, self.epoch = dataset, config, seed, epoch
        self.max_objects = max_objects
        self.first_step, self.rank, self.world_size, self.accumulate = first_step, rank, world_size, accumulate
        self.order = np.random.default_rng((seed, epoch)).permutation(len(dataset))

    def __len__(self) -> int:
        return max(0, steps_per_epoch(len(self.dataset), self.config.batch_size) - self.first_step) * self.accumulate

    def __getitem__(self, number: int) -> _Plan:
        step, micro_batch = divmod(number, self.accumulate)
        batch_size = self.config.batch_size
        first = (self.first_step + step) * batch_size
        share = batch_size // (self.world_size * self.accumulate)
        start = (micro_batch * self.world_size + self.rank) * share
        together = self.config.padded_together or batch_size
        begin = start // together * together  # of the first group that has a part in this micro-batch
        end = min(-(-(start + share) // together) * together, batch_size)
        items = [self._item(first + position) for position in range(begin, end)]
        return _Plan(items[start - begin : start - begin + share], _common_size(items))

    def _item(self, position: int) -> Composition:
        index = int(self.order[position % len(self.order)])
        seed = (self.seed, self.epoch, position + 1)  # 0 is the seed of the order
        return compose(self.config, index, len(self.dataset), self.dataset.size_of, seed)


class _EvaluationPlans:
    """The evaluation batches of one process: images of one resized size, or consecutive images with ``pad``."""

    max_objects: int | None = None

    def __init__(
        self,
        dataset: Dataset,
        resize_to: tuple[int, int] | None,
        batch_size: int,
        pad: bool,
        fixed: FixedSize | None,
        rank: int,
        world_size: int,
    ) -> None:
        self.dataset = dataset
        groups: dict[tuple[int, int] | None, list[Composition]] = {}
        for index in range(len(dataset)):
            original = dataset.size_of(index)
            size = resized_size(original, resize_to, fixed) if resize_to else original
            groups.setdefault(None if pad else size, []).append(
                single(index, transforms.Plan(transforms.UPRIGHT, None, size))
            )
        batches = [
            group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
        ]
        self.batches = sorted(batches, key=lambda items: items[0].parts[0].number)[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> _Plan:
        return _Plan(self.batches[number], _common_size(self.batches[number]))


def _common_size(items: list[Composition]) -> tuple[int, int]:
    return max(item.size[0] for item in items), max(item.size[1] for item in items)


class _Loading(torch.utils.data.Dataset[Any]):
    """Loads planned batches, in a worker or in this process."""

    def __init__(self, plans: _Plans) -> None:
        self.plans = plans
        self.buffers = Buffers()
        """Of this process, if it is a worker."""

    def __getitem__(self, number: int) -> tuple[Batch | SharedBatch | UserError, dict[int, str]]:
        """A batch or the error to raise, and the errors of the images that were replaced, by position in the dataset.

        Errors are raised in ``_load``: torch would wrap a worker's exception into its traceback.
        """
        dataset, plan = self.plans.dataset, self.plans[number]
        samples: list[Sample] = []
        failed: dict[int, str] = {}
        for item in plan.items:
            sources: list[Sample] = []
            for part in item.sources:
                try:
                    sources.append(self._sample(part))
                except UserError as error:
                    failed[part.number] = str(error)
                    replaced = self._replacement(part) if isinstance(self.plans, _TrainingPlans) else None
                    if replaced is None:
                        return error, {}
                    sources.append(replaced)
                except Exception as error:
                    error.add_note(f"while loading {dataset.path_of(part.number)}")
                    raise
            samples.append(composed(item, sources, self.plans.max_objects))
        if get_worker_info() is None:
            return collate(samples, plan.size), failed
        batch = collate(samples, plan.size, self.buffers.take)
        return SharedBatch.of(batch, [size_of(sample) for sample in samples]), failed

    def _sample(self, part: Part) -> Sample:
        sample = self.plans.dataset[part.number]
        check_sample(sample, self.plans.dataset, part.number)
        return transforms.apply(part.plan, sample)

    def _replacement(self, part: Part) -> Sample | None:
        """The next readable image of the dataset, resized to the planned size; ``None`` if several in a row fail.

        The batch keeps its size and its shape, and the choice does not depend on workers, processes or micro-batches.
        """
        for offset in range(1, MAX_REPLACEMENTS + 1):
            number = (part.number + offset) % len(self.plans.dataset)
            try:
                return self._sample(Part(number, part.plan._replace(crop=None)))
            except UserError:
                continue
        return None


def worker_failure(error: Exception) -> str:
    """A sentence about loader processes that died, hang or cannot transfer their batches; empty for other errors.

    PyTorch raises such an error wherever the main process is when a worker dies, so this is also used outside of the
    loader.
    """
    text = str(error)
    if any(sign in text for sign in SHARED_MEMORY_SIGNS):
        return (
            f"The loader processes cannot transfer their batches ({text.splitlines()[0].rstrip('.')}): out of shared "
            "memory or file descriptors. Enlarge /dev/shm (docker run --shm-size 8g) or use fewer --workers, or 0."
        )
    if text.startswith("DataLoader timed out"):
        return (
            f"A loader process returned no batch for {WORKER_TIMEOUT_S} s: the process or the disk hangs, or /dev/shm "
            "is full. Try --workers 0."
        )
    if text.startswith("DataLoader worker (pid"):
        return (
            f"A loader process died ({text.splitlines()[0].rstrip('.')}), usually out of memory: use fewer "
            "--workers, smaller batches or images, or --workers 0."
        )
    return ""


def _unchanged(batch: Any) -> Any:
    return batch


def _load(plans: _Plans, workers: int, pin_memory: bool, skipped: set[int] | None = None) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        _Loading(plans),
        batch_size=None,
        sampler=range(len(plans)),
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        collate_fn=_unchanged,
        timeout=WORKER_TIMEOUT_S if workers else 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else torch draws a seed from the global generator, and a resumed run differs
    )
    batches = iter(loader)
    skipped = set() if skipped is None else skipped
    try:
        for number in range(len(plans)):
            try:
                batch, failed = next(batches)
            except (RuntimeError, OSError) as error:  # a worker that died, hangs or raised
                numbers = [part.number for item in plans[number].items for part in item.sources]
                paths = ", ".join(map(plans.dataset.path_of, numbers))
                reason = worker_failure(error)
                if reason:
                    raise UserError(f"{reason} It failed while loading these images: {printable(paths)}.") from error
                error.add_note(f"while waiting for these images: {paths}")
                raise
            if isinstance(batch, SharedBatch):
                batch = batch.batch()
            if isinstance(batch, UserError):
                raise UserError(str(batch))  # a new one: raising a local variable makes a cycle with this frame ...
            for index, problem in failed.items():
                skipped.add(index)
                logger.warning("skipped in training (%d images of this epoch): %s", len(skipped), problem)
                check_skipped(skipped, plans.dataset, problem)
            yield batch
    finally:
        del batches  # ... and workers whose iterator is left to the garbage collector take 5 s each to end
