"""Non-maximum suppression of a batch equals torchvision's of each image, and of each class."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from detrs.ops.suppression import not_suppressed

IOU = 0.4


def boxes_and_scores(images: int = 3, count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(images, count, 2, generator=generator) * 50 - 10
    size = torch.rand(images, count, 2, generator=generator) * 30 + 1
    labels = torch.randint(0, 7, (images, count), generator=generator)
    return torch.cat([corner, corner + size], -1), torch.rand(images, count, generator=generator), labels


def test_each_image_has_the_boxes_of_torchvision() -> None:
    boxes, scores, _ = boxes_and_scores()
    scores = scores * 10 - 5  # logits
    scores[1, 3:9] = -torch.inf
    mask = not_suppressed(boxes, scores, IOU)
    assert 0 < mask.sum() < mask.numel()
    for image in range(3):
        expected = nms(boxes[image], scores[image], IOU)
        assert mask[image].nonzero()[:, 0].tolist() == sorted(expected.tolist())


def test_boxes_of_other_classes_do_not_suppress() -> None:
    boxes, scores, labels = boxes_and_scores()
    mask = not_suppressed(boxes, scores, IOU, labels, 7)
    assert mask.sum() > not_suppressed(boxes, scores, IOU).sum()
    for image in range(3):
        expected = [index for label in range(7) for index in kept(boxes[image], scores[image], labels[image] == label)]
        assert mask[image].nonzero()[:, 0].tolist() == sorted(expected)
        assert sorted(expected) == sorted(batched_nms(boxes[image], scores[image], labels[image], IOU).tolist())


def kept(boxes: Tensor, scores: Tensor, chosen: Tensor) -> list[int]:
    indices = chosen.nonzero()[:, 0]
    found: list[int] = indices[nms(boxes[chosen], scores[chosen], IOU)].tolist()
    return found


def test_the_operator_is_registered_correctly() -> None:
    boxes, scores, labels = boxes_and_scores()
    torch.library.opcheck(torch.ops.detrs.not_suppressed.default, (boxes, scores, labels, 7, IOU))


def test_gradients_pass_the_mask() -> None:
    boxes, scores, _ = boxes_and_scores()
    scores.requires_grad_()
    mask = not_suppressed(boxes, scores, IOU)
    scores.masked_fill(~mask, 0.0).sum().backward()
    torch.testing.assert_close(scores.grad, mask.float())
