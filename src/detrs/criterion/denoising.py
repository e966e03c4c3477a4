"""Queries made from objects with noise, whose objects are known, for training (DN-DETR, 4.2; DINO, 3.2).

Each image has slots: copy c of its object j is slot ``c * m + j``, where m is the largest number of objects of an image
of the batch. Slots without an object are padding. Copies form groups that do not attend to each other: one copy each,
or (contrastive) a positive and a negative copy.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detrs.boxes import SMALLEST_SIDE, cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from detrs.config.criterion import ContrastiveDenoising, GroupDenoising
from detrs.structures import Queries, Target

Kind = GroupDenoising | ContrastiveDenoising
OfBoxes = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Boxes (B, S, 4) to content and position of queries."""
Uniform = Callable[..., Tensor]
"""Sizes to numbers in [0, 1), like ``torch.rand``."""


class Answers(NamedTuple):
    """What the predictions of slots are compared with."""

    slots: int
    """Number of slots of each image; they precede the other queries."""
    image: Int[Tensor, "R"]
    """Image of each row of the classification loss."""
    slot: Int[Tensor, "R"]
    """Its slot."""
    row: Int[Tensor, "P"]
    """The rows that are to find an object."""
    target: Int[Tensor, "P"]
    """The objects, as indices of the image's targets."""
    groups: int
    """Times that each object is counted: what the losses are divided by."""


class Layout(NamedTuple):
    """Where objects are in slots; a function of their number in each image alone."""

    copies: int
    width: int
    """m, the slots of one copy."""
    groups: int
    image: Int[Tensor, "N"]
    """Image of each object of the batch."""
    object: Int[Tensor, "N"]
    """Its position in the slots of its image, below m."""

    def slots(self) -> Int[Tensor, "C N"]:
        """Slot of each copy of each object."""
        return torch.arange(self.copies)[:, None] * self.width + self.object


def num_groups(config: Kind, width: int) -> int:
    """Groups for images with up to ``width`` objects."""
    if isinstance(config, ContrastiveDenoising):
        return max(config.pairs // max(width, 1), 1)
    return config.groups


def layout(counts: Sequence[int], config: Kind) -> Layout:
    """Slots for images with ``counts`` objects."""
    width = max(counts)
    groups = num_groups(config, width) if width else 1
    copies = groups * (2 if isinstance(config, ContrastiveDenoising) else 1)
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    positions = [torch.arange(count) for count in counts]
    return Layout(copies, width, groups, image, torch.cat(positions))


def noised_labels(
    labels: Int[Tensor, "C N"], num_classes: int, probability: float, uniform: Uniform
) -> Int[Tensor, "C N"]:
    """Labels, each replaced by a random one, which may be the same, with ``probability``."""
    replaced = uniform(labels.numel()) < probability
    random = (uniform(int(replaced.sum())) * num_classes).long()
    result = labels.flatten().clone()
    result[replaced.to(labels.device)] = random.to(labels.device)
    return result.view_as(labels)


def shifted_boxes(boxes: Float[Tensor, "C N 4"], noise: float, uniform: Uniform) -> Float[Tensor, "C N 4"]:
    """Boxes with moved centers and changed sides (DN-DETR, 4.2), clamped to [0, 1] as numbers."""
    change = 2 * uniform(boxes.shape[0] * boxes.shape[1], 4).view(boxes.shape).to(boxes) - 1
    size = boxes[..., 2:]
    return (boxes + noise * change * torch.cat([size / 2, size], dim=-1)).clamp(0, 1)


def contrasting_boxes(boxes: Float[Tensor, "C N 4"], noise: float, uniform: Uniform) -> Float[Tensor, "C N 4"]:
    """Boxes with moved corners (DINO, 3.2): by up to half a side in even copies, by half a side to one in odd ones.

    Corners are clamped to the image. Sides of odd copies can be negative.
    """
    rows = boxes.shape[0] * boxes.shape[1]
    sign = (uniform(rows, 4) * 2).floor().view(boxes.shape).to(boxes) * 2 - 1
    distance = uniform(rows, 4).view(boxes.shape).to(boxes)
    distance[1::2] += 1
    half = (boxes[..., 2:] / 2).repeat(1, 1, 2)
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + noise * sign * distance * half).clamp(0, 1))


def visible(
    layout: Layout, num_queries: int, group_size: int, hidden: Bool[Tensor, "B S"] | None
) -> Bool[Tensor, "*broadcast Q Q"]:
    """The attention mask: slots attend to their group and to all matched queries, which attend to each other only.

    Args:
        layout: of the slots.
        num_queries: number of matched queries.
        group_size: copies in a group.
        hidden: slots that no query attends to; then one mask (B, 1, Q, Q) per image.
    """
    group = torch.arange(layout.copies).div(group_size, rounding_mode="floor").repeat_interleave(layout.width)
    group = torch.cat([group, torch.full((num_queries,), -1)])
    mask = (group == -1) | (group[:, None] == group)
    if hidden is None:
        return mask
    return mask & ~F.pad(hidden, (0, num_queries))[:, None, None, :]


class Denoiser(nn.Module):
    """Adds slots to queries; its parameters, the embeddings of labels, are only used in training.

    Args:
        config: kind and amount of noise.
        num_classes: K.
        channels: of a label's embedding. If contents have one more, it is the indicator: 1 in slots.
        of_boxes: content and position of queries that start at given boxes; labels are added to the content.
        with_unknown: have a row for "unknown", as the authors do in any case, although nothing uses it here.
    """

    def __init__(
        self, config: Kind, num_classes: int, channels: int, of_boxes: OfBoxes, with_unknown: bool = True
    ) -> None:
        super().__init__()
        self.of_boxes = of_boxes
        self.config = config
        self.num_classes = num_classes
        self.labels = nn.Embedding(num_classes + with_unknown, channels)

    def forward(
        self, targets: tuple[Target, ...], queries: Queries, uniform: Uniform = torch.rand
    ) -> tuple[Queries, Answers]:
        """Slots, then ``queries``.

        Args:
            targets: objects of each image.
            queries: with reference boxes, whose position embeddings are computed by layers.
            uniform: draws random numbers on the CPU.
        """
        config = self.config
        kept = [chosen(len(target.labels), config.max_objects, uniform) for target in targets]
        plan = layout([len(index) for index in kept], config)
        is_contrastive = isinstance(config, ContrastiveDenoising)
        pairs = [(each, index.to(each.labels.device)) for each, index in zip(targets, kept, strict=True)]
        labels = torch.cat([target.labels[index] for target, index in pairs])
        boxes = torch.cat([target.boxes[index] for target, index in pairs])
        labels = noised_labels(labels.repeat(plan.copies, 1), self.num_classes, config.label_noise, uniform)
        move = contrasting_boxes if is_contrastive else shifted_boxes
        boxes = move(boxes.float().repeat(plan.copies, 1, 1), config.box_noise, uniform)

        slots, device = plan.slots(), queries.content.device
        image = plan.image.expand_as(slots)
        where = image.to(device), slots.to(device)
        count = plan.copies * plan.width
        content, reference = queries.content, queries.reference
        embedded = self.labels(labels).to(content.dtype)
        embedded = F.pad(embedded, (0, content.shape[2] - embedded.shape[2]), value=1.0)
        new_reference = reference.new_full((len(targets), count, 4), 0.5).index_put(where, boxes.to(reference.dtype))
        new_reference = inverse_sigmoid(new_reference, SMALLEST_SIDE).sigmoid()  # sides can be zero or negative
        new_content, new_position = self.of_boxes(new_reference.detach())
        labelled = content.new_zeros(len(targets), count, content.shape[2]).index_put(where, embedded)
        new_content = new_content.to(content.dtype) + labelled

        is_used = torch.zeros(len(targets), count, dtype=torch.bool).index_put((image, slots), torch.tensor(True))
        hidden = ~is_used if config.hide_padding else None
        mask = visible(plan, content.shape[1], 2 if is_contrastive else 1, hidden)
        extended = Queries(
            torch.cat([new_content, content], dim=1),
            torch.cat([new_position.to(queries.position.dtype), queries.position], dim=1),
            torch.cat([new_reference, reference], dim=1),
            mask.to(device),
        )
        found = answers(plan, kept, is_used, config)
        on_device = {name: getattr(found, name).to(device) for name in ("image", "slot", "row", "target")}
        return extended, found._replace(**on_device)


def chosen(count: int, limit: int | None, uniform: Uniform) -> Int[Tensor, "_"]:
    """Indices of the objects to denoise: all, or ``limit`` random ones."""
    if limit is None or count <= limit:
        return torch.arange(count)
    return uniform(count).argsort()[:limit].sort().values


def answers(plan: Layout, kept: Sequence[Int[Tensor, "_"]], is_used: Bool[Tensor, "B S"], config: Kind) -> Answers:
    """Rows of the loss: of DN-DETR the slots with an object, of DINO those of negatives too, and those of padding."""
    is_contrastive = isinstance(config, ContrastiveDenoising)
    in_loss = torch.ones_like(is_used) if is_contrastive and not config.hide_padding else is_used
    image, slot = in_loss.nonzero().unbind(1)
    number = torch.full(is_used.shape, -1).index_put((image, slot), torch.arange(len(image)))
    positive = plan.slots()[:: 2 if is_contrastive else 1]  # (G, N)
    row = number[plan.image.expand_as(positive), positive].flatten()
    target = torch.cat([*kept]).expand_as(positive).flatten()
    return Answers(plan.copies * plan.width, image, slot, row, target, plan.groups)
