"""The content of a batch and of a normalised batch, padding included."""

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detrs.data.collate import collate
from detrs.data.preprocessing import Preprocessing
from detrs.data.sample import Sample

SIZES = ((31, 47), (53, 29), (37, 41))


def samples() -> list[Sample]:
    torch.manual_seed(0)
    made = []
    for number, (height, width) in enumerate(SIZES):
        corners = torch.rand(number, 2, 2).sort(dim=1).values.flatten(1) * torch.tensor([width, height] * 2)
        made.append(
            Sample(
                tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8)),
                tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
                torch.arange(number) + 3,
                100 + number,
                (2 * height, 2 * width),
                "",
            )
        )
    return made


def test_images_are_at_the_top_left_and_the_rest_is_padding() -> None:
    batch = collate(samples())
    assert batch.images.shape == (3, 3, 53, 47) and batch.images.dtype == torch.uint8
    for sample, (height, width), image, padding in zip(samples(), SIZES, batch.images, batch.padding, strict=True):
        assert torch.equal(image[:, :height, :width], sample.image)
        assert not padding[:height, :width].any()
        assert padding.sum() == 53 * 47 - height * width
        assert image[:, padding].sum() == 0


def test_images_are_channels_last() -> None:
    """As the resized images that are copied in, and as the convolutions of most backbones."""
    for size in (None, (64, 96)):
        images = collate(samples(), size).images
        assert images.permute(0, 2, 3, 1).is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def test_boxes_are_relative_to_their_own_image() -> None:
    for sample, (height, width), target in zip(samples(), SIZES, collate(samples()).targets, strict=True):
        assert target.boxes.shape == (len(sample.labels), 4) and target.boxes.dtype == torch.float32
        centre, size = target.boxes[:, :2], target.boxes[:, 2:]
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=1) * torch.tensor([width, height] * 2)
        torch.testing.assert_close(corners, sample.boxes.as_subclass(torch.Tensor))
        assert torch.equal(target.labels, sample.labels)
        assert (target.image_id, target.original_size) == (sample.image_id, sample.original_size)
        assert type(target.boxes) is torch.Tensor


def test_padded_size_can_be_given() -> None:
    batch = collate(samples(), (64, 96))
    assert batch.images.shape == (3, 3, 64, 96) and batch.padding.shape == (3, 64, 96)
    assert torch.equal(batch.images[:, :, :53, :47], collate(samples()).images)


def test_labels_are_not_a_view_of_the_data_set() -> None:
    every_label = torch.arange(1000)
    sample = samples()[2]._replace(labels=every_label[5:7])
    assert collate([sample]).targets[0].labels.untyped_storage().nbytes() == 16


def test_normalize() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = collate(samples())
    images = Preprocessing(resize_to=(32, 64), mean=mean, std=std).normalize(batch).images
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
    for sample, (height, width), image, padding in zip(samples(), SIZES, images, batch.padding, strict=True):
        expected = F.normalize(sample.image.as_subclass(torch.Tensor).float() / 255, list(mean), list(std))
        torch.testing.assert_close(image[:, :height, :width], expected, rtol=1e-5, atol=1e-6)
        assert (image[:, padding] == 0).all()
    assert batch.images.dtype == torch.uint8  # unchanged


def test_normalize_does_not_depend_on_the_layout() -> None:
    preprocessing = Preprocessing(resize_to=(32, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batch = collate(samples())
    planar = batch._replace(images=batch.images.contiguous())
    images = preprocessing.normalize(batch).images
    assert torch.equal(preprocessing.normalize(planar).images, images)
    for each in (batch.images, planar.images):
        same = preprocessing.normalize_planar(each, batch.padding)
        torch.testing.assert_close(same, images, rtol=1e-6, atol=1e-6)


def test_normalize_leaves_the_batch_as_it_is() -> None:
    """Also one that is float32 already."""
    preprocessing = Preprocessing(resize_to=(32, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batch = collate(samples())
    as_float = batch._replace(images=batch.images.float())
    assert torch.equal(preprocessing.normalize(as_float).images, preprocessing.normalize(batch).images)
    assert torch.equal(as_float.images, batch.images.float())
