"""Holds out a part of a dataset for validation.

The division depends only on the fraction, the content of the image files and the classes in each image. Order of files
and annotations, names, folders, the machine and the random seed have no influence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def held_out(
    fraction: float, contents: Sequence[bytes], image: NDArray[Any], label: NDArray[Any], names: Sequence[str]
) -> NDArray[np.bool_]:
    """Selects the images for validation: every class has about the same fraction of its images there.

    Iterative stratification for images with several classes (Sechidis et al., 2011): the class with the fewest images
    left is divided first, each image goes to the part that lacks more images of this class. Images without objects
    are divided like a class. A class with at least two images has at least one in each part if the other classes of
    its images allow it; the image of a class with a single image is a training image. Images with equal content are in
    the same part.

    Args:
        fraction: Fraction of the images, in (0, 1).
        contents: A hash of each image file; N images.
        image: (M,) image of each object, 0 to N - 1.
        label: (M,) class of each object, an index of ``names``.
        names: Name of each class.

    Returns:
        (N,) whether each image is held out. All False if no image can be.
    """
    keys, group = np.unique(np.array([content.hex() for content in contents]), return_inverse=True)  # (G,), (N,)
    sizes = np.bincount(group, minlength=len(keys))  # (G,) equal images
    order = np.empty(len(names), dtype=np.int64)
    order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))  # not the order of the ids
    pairs = np.unique(np.stack([group[image], order[label]], axis=1).reshape(-1, 2), axis=0)  # (P, 2) group, class
    empty = np.setdiff1d(np.arange(len(keys)), pairs[:, 0])
    pairs = np.concatenate([pairs, np.stack([empty, np.full_like(empty, len(names))], axis=1)])
    return _divide(fraction, sizes, pairs, len(names) + 1)[group]


def _divide(fraction: float, sizes: NDArray[Any], pairs: NDArray[Any], num_classes: int) -> NDArray[np.bool_]:
    """(G,) whether each group of equal images is held out; ``pairs`` (P, 2) are its classes."""
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    classes = np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, len(sizes))))  # of each group
    by_class = pairs[np.argsort(pairs[:, 1], kind="stable")]
    groups = np.split(by_class[:, 0], np.searchsorted(by_class[:, 1], np.arange(1, num_classes)))  # of each class
    total = np.bincount(pairs[:, 1], minlength=num_classes).astype(np.float64)  # (K,)
    target = np.where(total > 1, np.clip(fraction * total, 1, np.maximum(total - 1, 1)), 0)
    missing = np.stack([total - target, target])  # (2, K) groups that training and validation still lack
    images = np.array([(1 - fraction) * sizes.sum(), fraction * sizes.sum()])  # (2,) likewise, of all classes
    left = total.copy()
    part = np.full(len(sizes), -1)
    while (left > 0).any():
        rarest = int(np.argmin(np.where(left > 0, left, np.inf)))
        for one in groups[rarest]:
            if part[one] < 0:
                lacking, of_all = missing[:, rarest], images
                held = lacking[1] > lacking[0] or (lacking[1] == lacking[0] and of_all[1] > of_all[0])
                part[one] = int(held)
                missing[part[one], classes[one]] -= 1
                images[part[one]] -= sizes[one]
                left[classes[one]] -= 1
    _move_missing(part, classes, groups, total)
    return part == 1


def _move_missing(part: NDArray[Any], classes: list[NDArray[Any]], groups: list[NDArray[Any]], total: Any) -> None:
    """Moves an image of every class that one part lacks, unless the other part would lack a class then."""
    counts = np.zeros((2, len(groups)), dtype=np.int64)  # (2, K)
    for one, own in enumerate(classes):
        counts[part[one], own] += 1
    for lacking in (0, 1):  # training first
        for class_ in np.flatnonzero((counts[lacking] == 0) & (total > 1)):
            if counts[lacking, class_]:  # moved with an earlier class
                continue
            movable = (one for one in groups[class_] if (counts[1 - lacking, classes[one]] > 1).all())
            for one in movable:
                part[one] = lacking
                counts[lacking, classes[one]] += 1
                counts[1 - lacking, classes[one]] -= 1
                break
