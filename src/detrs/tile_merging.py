"""Detections of the tiles of one image to detections of the image.

Two detections from different views (tiles, or the whole image) are of the same object if they have the same class and
if what both views contain of both boxes is the same, with an IoU of at least ``SAME_IOU``. Detections of the same view
are not compared here: non-maximum suppression does that.

1. A box that an inner border of its tile cuts is dropped if another tile contains it and what is around it: that tile
   contains more of the object.
2. Cut boxes of the same object in different tiles that remain are the parts of an object that no tile contains. They
   are united: the smallest box around them, with the highest score.
3. Of detections of the same object in different views, the one with the highest score remains; the scores of cut boxes
   count half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detrs.structures import Detections
from detrs.tiling import Window, whole

SAME_IOU = 0.5
"""IoU from which detections of different views are of the same object."""
CUT_WEIGHT = 0.5
"""Of the score of a cut box beside others; parts whose scores differ by a larger factor are not united."""
BORDER = 0.01
"""A box is cut by a border of its tile if it is nearer to it than this part of the tile's side ..."""
BORDER_OF_BOX = 0.05
"""... or than this part of its own side: the error of a box grows with its size."""
CHUNK = 256
"""Rows of a matrix of pairs that are computed at a time."""


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Detections of several views in pixels of the image."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, "N"]
    labels: Int[Tensor, "N"]
    windows: Float[Tensor, "N 4"]
    """The view of each; of united boxes the smallest window around their tiles."""
    cut: Bool[Tensor, "N 4"]
    """Whether the left, top, right and bottom side is at a border of the view that is inside of the image."""
    views: Bool[Tensor, "N V"]
    """The views that it is from."""

    @classmethod
    def of(
        cls,
        boxes: Float[Tensor, "N 4"],
        scores: Float[Tensor, "N"],
        labels: Int[Tensor, "N"],
        windows: Float[Tensor, "N 4"],
        views: Bool[Tensor, "N V"],
        image_size: tuple[int, int],
    ) -> "_Boxes":
        near = distances(boxes, windows) <= border_margins(boxes, windows)
        return cls(boxes, scores, labels, windows, near & inner_borders(windows, image_size), views)

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, index: Tensor) -> "_Boxes":
        return _Boxes(*(column[index] for column in self._columns()))

    def with_others(self, others: "_Boxes") -> "_Boxes":
        return _Boxes(*(torch.cat(pair) for pair in zip(self._columns(), others._columns(), strict=True)))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.boxes, self.scores, self.labels, self.windows, self.cut, self.views


def merge(views: Sequence[Window], found: Sequence[Detections], image_size: tuple[int, int]) -> Detections:
    """The detections of an image from those of its views; those of a single view are returned as they are.

    Args:
        views: at least one; as by ``Tiling.views``.
        found: the detections in each view, in pixels of the view.
        image_size: (height, width) of the image in pixels.
    """
    if len(views) == 1:
        return found[0]
    everything = _gathered(views, found, image_size)
    whole_image = torch.tensor([view == whole(image_size) for view in views])
    tiles = torch.tensor(views, dtype=torch.float64)[~whole_image]
    remaining = everything.rows(~_seen_better(everything, tiles, image_size))
    candidates = _united(remaining, image_size)
    kept = candidates.rows(_best(candidates))
    order = kept.scores.argsort(descending=True, stable=True)
    boxes = kept.boxes[order].to(found[0].boxes_xyxy.dtype)
    return Detections(boxes, kept.scores[order], kept.labels[order], found[0].classes, image_size, found[0].source)


def _gathered(views: Sequence[Window], found: Sequence[Detections], image_size: tuple[int, int]) -> _Boxes:
    counts = torch.tensor([len(each) for each in found])
    number = torch.arange(len(views)).repeat_interleave(counts)  # (N,) the view of each detection
    windows = torch.tensor(views, dtype=torch.float64)[number]
    boxes = torch.cat([each.boxes_xyxy for each in found]).double() + windows[:, :2].repeat(1, 2)
    scores, labels = torch.cat([each.scores for each in found]), torch.cat([each.labels for each in found])
    is_from = torch.zeros(len(number), len(views), dtype=torch.bool)  # of int64, as by ``one_hot``, it takes gigabytes
    is_from[torch.arange(len(number)), number] = True
    return _Boxes.of(boxes, scores, labels, windows, is_from, image_size)


def _seen_better(found: _Boxes, tiles: Float[Tensor, "T 4"], image_size: tuple[int, int]) -> Bool[Tensor, "N"]:
    """Cut boxes that another tile contains at twice the distance from its borders at which boxes are cut.

    Twice, so that an object is not dropped in both tiles because its two boxes differ a little.
    """
    better = found.cut.any(1)
    for rows in better.nonzero()[:, 0].split(CHUNK):
        boxes, windows = found.boxes[rows, None], tiles[None]  # (n, 1, 4), (1, T, 4)
        enough = distances(boxes, windows) > 2 * border_margins(boxes, windows)
        inside = enough | ~inner_borders(windows, image_size)
        better[rows] = inside.all(2).any(1)  # its own tile is none of them: a cut box is near its border
    return better


def _united(found: _Boxes, image_size: tuple[int, int]) -> _Boxes:
    """The same detections with the parts of objects that no tile contains united, pairs of high score first."""
    parts = found.cut.any(1).nonzero()[:, 0]
    own = found.rows(parts)
    pairs = [(i, j) for i, j in _same(own).tolist() if i < j]
    scores = own.scores.tolist()
    pairs = [pair for pair in pairs if _lower(scores, pair) >= CUT_WEIGHT * _higher(scores, pair)]
    pairs.sort(key=lambda pair: (-_lower(scores, pair), -_higher(scores, pair), pair))
    groups, views = {i: [i] for i in range(len(own))}, own.views.tolist()
    members = {i: {number for number, is_from in enumerate(views[i]) if is_from} for i in groups}
    for i, j in pairs:
        if groups[i] is not groups[j] and not any(members[a] & members[b] for a in groups[i] for b in groups[j]):
            groups[i].extend(groups[j])
            for each in groups[j]:
                groups[each] = groups[i]
    several = [sorted(group) for i, group in groups.items() if len(group) > 1 and i == min(group)]
    if not several:
        return found
    united = [own.rows(torch.tensor(group)) for group in several]
    hulls = _Boxes.of(
        torch.stack([_hull(each.boxes) for each in united]),
        torch.stack([each.scores.max() for each in united]),
        torch.stack([each.labels[0] for each in united]),
        torch.stack([_hull(each.windows) for each in united]),
        torch.stack([each.views.any(0) for each in united]),
        image_size,
    )
    alone = torch.ones(len(found), dtype=torch.bool)
    alone[parts[torch.tensor([i for group in several for i in group])]] = False
    return found.rows(alone).with_others(hulls)


def _best(found: _Boxes) -> Int[Tensor, "M"]:
    """The detections that remain when each object is detected in one view, or united from several."""
    weights = torch.where(found.cut.any(1), CUT_WEIGHT * found.scores, found.scores)
    same: dict[int, list[int]] = {}
    for i, j in _same(found).tolist():
        same.setdefault(i, []).append(j)
    dropped, kept = set[int](), []
    for i in weights.argsort(descending=True, stable=True).tolist():
        if i not in dropped:
            kept.append(i)
            dropped.update(same.get(i, ()))
    return torch.tensor(kept, dtype=torch.long)


def _same(found: _Boxes) -> Int[Tensor, "P 2"]:
    """All ordered pairs of detections of different views that are of the same object.

    A cut box continues behind the border. So windows are extended by the margin of their borders, and boxes that they
    cut with them: even tiles without overlap have a region in common then.
    """
    margins = border_margins(found.boxes, found.windows)
    outward = margins.new_tensor([-1, -1, 1, 1])
    windows = found.windows + outward * margins
    boxes = torch.where(found.cut, windows, found.boxes)
    pairs = [torch.zeros(0, 2, dtype=torch.long)]
    order = boxes[:, 0].argsort(stable=True)  # so that few others are beside a chunk of rows
    order = order[found.labels[order].argsort(stable=True)]
    for of_class in order.split(found.labels[order].unique_consecutive(return_counts=True)[1].tolist()):
        for rows in of_class.split(CHUNK):
            left, right = boxes[rows, 0].min(), boxes[rows, 2].max()
            others = of_class[(boxes[of_class, 0] < right) & (boxes[of_class, 2] > left)]
            low = torch.maximum(windows[rows, None, :2], windows[None, others, :2])  # of what both views contain
            high = torch.minimum(windows[rows, None, 2:], windows[None, others, 2:])
            first = _clipped(boxes[rows, None], low, high)  # (n, m, 2) twice
            second = _clipped(boxes[None, others], low, high)
            overlap = _area(torch.maximum(first[0], second[0]), torch.minimum(first[1], second[1]))
            union = _area(*first) + _area(*second) - overlap
            is_same = (overlap >= SAME_IOU * union) & (overlap > 0)
            is_same &= found.views[rows].float() @ found.views[others].float().T == 0  # no view in common
            i, j = is_same.nonzero().T
            pairs.append(torch.stack([rows[i], others[j]], 1))
    found_pairs = torch.cat(pairs)
    return found_pairs[(found_pairs[:, 0] * len(found) + found_pairs[:, 1]).argsort()]


def _clipped(boxes: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high corners of ``boxes`` within a window; without area outside of it."""
    return torch.maximum(boxes[..., :2], low), torch.minimum(boxes[..., 2:], high)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)


def _hull(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "4"]:
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])


def _lower(scores: Sequence[float], pair: tuple[int, int]) -> float:
    return min(scores[pair[0]], scores[pair[1]])


def _higher(scores: Sequence[float], pair: tuple[int, int]) -> float:
    return max(scores[pair[0]], scores[pair[1]])


def border_margins(boxes_xyxy: Float[Tensor, "... 4"], windows: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Distance in pixels below which a box is at the left, top, right or bottom border of its window."""
    width_height = windows[..., 2:] - windows[..., :2]
    own = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]) * BORDER_OF_BOX
    return (width_height * BORDER).maximum(own).repeat(*[1] * (own.ndim - 1), 2)


def inner_borders(windows: Float[Tensor, "... 4"], image_size: tuple[int, int]) -> Bool[Tensor, "... 4"]:
    """Whether the left, top, right and bottom border of a window is inside of the image, where it cuts objects."""
    height, width = image_size
    return windows != windows.new_tensor([0, 0, width, height])


def distances(boxes_xyxy: Float[Tensor, "... 4"], windows: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Distance of each side of a box from the same side of its window, negative outside of it."""
    return (boxes_xyxy - windows) * boxes_xyxy.new_tensor([1, 1, -1, -1])
