"""DETR and Conditional DETR against ``transformers``, with random weights in all of their parameters.

Theirs are built without auxiliary losses, which would feed the final norm back into the next layer; every layer is
compared by hand. Their classification loss has weight 1 in the total also where it is focal: terms are compared.
"""

from typing import Any

import pytest
import torch
import transformers
from theirs import (
    CLASSES,
    LAYERS,
    OUR_WIDTHS,
    TARGETS,
    WIDTHS,
    TheirBackbone,
    channels,
    close,
    key_map,
    padded_images,
    randomize,
    resnet,
    their_labels,
)
from torch import Tensor

from detrs import postprocess
from detrs.backbones.timm import BackboneConfig
from detrs.boxes import inverse_sigmoid
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.layers.neck import ChannelMapper, plain_projection
from detrs.models import build
from detrs.models.conditional_detr import ConditionalDETRConfig
from detrs.models.detector import Detector
from detrs.models.detr import DETRConfig
from detrs.structures import Classes, Totals

C5 = (5,)
KINDS: dict[str, Any] = {
    "DETR": (
        DETRConfig, transformers.DetrConfig, transformers.DetrForObjectDetection, transformers.DetrImageProcessor,
    ),
    "Conditional DETR": (
        ConditionalDETRConfig, transformers.ConditionalDetrConfig, transformers.ConditionalDetrForObjectDetection,
        transformers.ConditionalDetrImageProcessor,
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", KINDS)


def fresh(name: str, seed: int) -> tuple[Detector, Any, dict[str, str]]:
    """Our detector, theirs with other weights but the same backbone, and their names of tensors to ours."""
    torch.manual_seed(seed)
    our_config, their_config, their_class, _ = KINDS[name]
    config = their_config(backbone_config=resnet(C5), use_timm_backbone=False, auxiliary_loss=False, **WIDTHS)
    theirs = their_class(config).eval()
    model = our_config(backbone=BackboneConfig(name="test_resnet", stages=C5), **OUR_WIDTHS)
    ours = build(model).eval()
    ours.neck.mapper = ChannelMapper(channels(C5), OUR_WIDTHS["dim"], 1, plain_projection)
    randomize(theirs)
    randomize(ours)
    ours.backbone = TheirBackbone(theirs.model.backbone.model)
    return ours, theirs, key_map(model, ours, theirs)


def pair(name: str, seed: int = 0) -> tuple[Detector, Any]:
    """Our detector and theirs with their weights."""
    ours, theirs, names = fresh(name, seed)
    tensors = theirs.state_dict()
    missing, unexpected = ours.load_state_dict({names[key]: tensors[key] for key in names}, strict=False)
    assert not unexpected
    aliases = ("backbone.", "decoder.heads.1.", "decoder.heads.2.", "decoder.layers.2.transform.")
    assert all(key.startswith(aliases) for key in missing)
    return ours, theirs


def every_layer(theirs: Any, images: Tensor, padding: Tensor, name: str) -> tuple[list[tuple[Tensor, Tensor]], Any]:
    """Logits and boxes of each of their decoder layers, and the output of their model."""
    contents: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda module, inputs, output: contents.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in theirs.model.decoder.layers
    ]
    output = theirs(images, (~padding).long())
    for hook in hooks:
        hook.remove()
    layers = []
    for content in contents:
        content = theirs.model.decoder.layernorm(content)
        raw = theirs.bbox_predictor(content)
        if name == "Conditional DETR":
            point = theirs.model.decoder.ref_point_head(theirs.model.query_position_embeddings.weight).sigmoid()
            raw = torch.cat([raw[..., :2] + inverse_sigmoid(point), raw[..., 2:]], dim=-1)
        layers.append((theirs.class_labels_classifier(content), raw.sigmoid()))
    return layers, output


@EVERY
@torch.no_grad()
def test_every_layer_agrees(name: str) -> None:
    ours, theirs = pair(name)
    images, padding = padded_images()
    expected, output = every_layer(theirs, images, padding, name)
    predictions = ours(images, padding)
    assert len(predictions.layers) == len(expected) == LAYERS
    for layer, (logits, boxes) in zip(predictions.layers, expected, strict=True):
        close(f"{name}, logits", layer.logits, logits, atol=1e-5, rtol=1e-4)
        close(f"{name}, boxes", layer.boxes, boxes, atol=1e-6)
    close(f"{name}, logits", predictions.last.logits, output.logits, atol=1e-5, rtol=1e-4)
    close(f"{name}, boxes", predictions.last.boxes, output.pred_boxes, atol=1e-6)


@EVERY
@torch.no_grad()
def test_encoder_memory_agrees_on_valid_tokens(name: str) -> None:
    ours, theirs = pair(name)
    images, padding = padded_images()
    pyramid = ours.neck(ours.backbone(images), padding)
    memory, valid = ours.encoder(pyramid).tokens, ~pyramid.padding
    expected = theirs(images, (~padding).long()).encoder_last_hidden_state
    close(f"{name}, memory", memory[valid], expected[valid], atol=1e-5, rtol=1e-4)


@EVERY
@torch.no_grad()
def test_theirs_with_our_weights_agrees(name: str) -> None:
    """The other direction of the map of names; every one of our parameters has a name of theirs."""
    ours, theirs, names = fresh(name, seed=2)
    mine = ours.state_dict()
    missing, unexpected = theirs.load_state_dict({key: mine[names[key]] for key in names}, strict=False)
    assert not unexpected and all("backbone" in key for key in missing)
    assert all(torch.equal(theirs.state_dict()[key], mine[names[key]]) for key in names)
    unnamed = {key for key, _ in ours.named_parameters()} - set(names.values())  # each once, without aliases
    assert all(key.startswith("backbone.") for key in unnamed)
    images, padding = padded_images()
    output, prediction = theirs(images, (~padding).long()), ours(images, padding).last
    close(f"{name}, logits", prediction.logits, output.logits, atol=1e-5, rtol=1e-4)
    close(f"{name}, boxes", prediction.boxes, output.pred_boxes, atol=1e-6)


@EVERY
def test_gradients_agree(name: str) -> None:
    """In float64: in float32, rounding alone can be 4e-2 of a tensor's largest gradient."""
    ours, theirs, names = *(model.double() for model in pair(name)), fresh(name, 0)[2]
    images, padding = padded_images()
    prediction, output = ours(images.double(), padding).last, theirs(images.double(), (~padding).long())
    torch.manual_seed(2)
    slopes = torch.randn_like(prediction.logits), torch.randn_like(prediction.boxes)
    torch.autograd.backward(tuple(prediction), slopes)
    torch.autograd.backward((output.logits, output.pred_boxes), slopes)
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    top = max(parameter.grad.abs().max() for key, parameter in other.items() if key in names)
    for key, our_name in names.items():
        found, expected = mine[our_name].grad, other[key].grad
        scale = expected.abs().max().clamp(min=1e-6 * top)  # some are zero by design
        close(f"{name}, gradients (relative, float64)", found / scale, expected / scale, atol=1e-5)


@EVERY
@torch.no_grad()
def test_loss_terms_agree(name: str) -> None:
    ours, theirs = pair(name)
    images, padding = torch.randn(2, 3, 97, 131), torch.zeros(2, 97, 131, dtype=torch.bool)
    layers, _ = every_layer(theirs, images, padding, name)
    logits, boxes = (torch.stack(each) for each in zip(*layers, strict=True))
    theirs.config.auxiliary_loss = True  # for the loss only
    expected = theirs.loss_function(logits[-1], their_labels(), images.device, boxes[-1], theirs.config, logits, boxes)[
        1
    ]
    assert ours.classification.weight == theirs.config.class_cost == (1 if name == "DETR" else 2)
    criterion = SetCriterion(CriterionConfig(), ours.classification)
    terms = criterion(ours(images, padding), TARGETS, Totals.of(TARGETS)).terms
    for their_name, our_name in (("loss_ce", "class"), ("loss_bbox", "box"), ("loss_giou", "giou")):
        for suffix in ("", *(f"_{k}" for k in range(LAYERS - 1))):
            other = expected[their_name + suffix]
            close(f"{name}, loss terms", terms[our_name + suffix], other, atol=1e-5, rtol=1e-4)


@EVERY
@torch.no_grad()
def test_postprocessing_agrees(name: str) -> None:
    ours, theirs = pair(name)
    images, padding = padded_images()
    for classes_head in (ours.decoder.heads[0].classes, theirs.class_labels_classifier):
        classes_head.bias[-1] += 3  # for most queries "no object" is the most likely; results are the best other class
    sizes = [(326, 458), (386, 298)]
    arguments = {} if name == "DETR" else {"top_k": 20}
    expected = KINDS[name][3]().post_process_object_detection(
        theirs(images, (~padding).long()), threshold=-1, target_sizes=torch.tensor(sizes), **arguments
    )
    classes = Classes(tuple("abcde"), tuple(range(1, CLASSES + 1)))
    found = postprocess.detections(ours.detect(images, padding, max_detections=20), sizes, classes)
    for mine, other in zip(found, expected, strict=True):
        order = other["scores"].argsort(descending=True)  # DETR's come in the order of the queries
        assert mine.labels.tolist() == other["labels"][order].tolist()
        torch.testing.assert_close(mine.scores, other["scores"][order])
        torch.testing.assert_close(mine.boxes_xyxy, other["boxes"][order], atol=1e-3, rtol=0)
