"""Regions, responses and proposals are those of the forward pass: recomputed from hooks and in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from explained import photograph, shared_tiny, tiny
from torch import Tensor, nn
from torchvision.ops import box_iou

from detrs.boxes import cxcywh_to_xyxy
from detrs.checkpoints.detector import TrainedDetector
from detrs.explanation.explain import explain
from detrs.explanation.recording import Call, Selection
from detrs.explanation.regions import dynamic_filter_view
from detrs.explanation.trace import duplicates_of
from detrs.explanation.views import Explanation, RegionView
from detrs.structures import Pyramid, Queries

THRESHOLD = 0.1


def dynamic_detector(interaction: str) -> TrainedDetector:
    return tiny("dynamic-detr-tiny", interaction=interaction)


def region_views(explanation: Explanation) -> list[RegionView]:
    return [view for view in explanation.views if isinstance(view, RegionView)]


@pytest.mark.parametrize("which", ["sparse", "depthwise", "shared", "bottleneck"])
def test_boxes_and_responses_are_those_of_the_forward_pass(which: str) -> None:
    """The layer behind the filters receives the responses, and the layer before them the boxes."""
    detector = shared_tiny("sparse-rcnn-tiny") if which == "sparse" else dynamic_detector(which)
    module: Any = detector.module
    references: list[Tensor] = []
    features: dict[nn.Module, list[Tensor]] = {}
    handles = []
    for layer in module.decoder.layers:
        handles.append(layer.register_forward_pre_hook(lambda _, args: references.append(args[0].reference)))
        filters = layer.cross_attention
        received = features.setdefault(filters, [])
        if which == "shared":  # normalized and averaged before the linear layer
            handles.append(filters.norm.register_forward_hook(lambda _m, _a, y, to=received: to.append(y.relu())))
        else:
            handles.append(
                filters.output_proj.register_forward_pre_hook(lambda _m, args, to=received: to.append(*args))
            )
    (explanation,) = explain(detector, photograph(), threshold=THRESHOLD, device="cpu")
    for handle in handles:
        handle.remove()
    views = region_views(explanation)
    assert [view.layer for view in views] == list(range(len(module.decoder.layers))) and len(views) == 3
    for view, reference, received, trace in zip(views, references, features.values(), explanation.trace, strict=True):
        assert view.stage == "decoder" and view.responses is not None and view.objectness is None
        torch.testing.assert_close(view.boxes, reference[0, view.queries], atol=1e-6, rtol=0)
        torch.testing.assert_close(view.boxes, trace.reference[view.queries], atol=0, rtol=0)
        filtered = received[0][0].unflatten(-1, (49, -1)) if received[0].dim() == 3 else received[0][0]  # (Q, 49, C)
        expected = np.sqrt(np.square(filtered.numpy()).sum(2)).reshape(-1, 7, 7)
        np.testing.assert_allclose(view.responses.numpy(), expected[view.queries], atol=1e-5, rtol=1e-6)
        assert view.responses.std() > 0.01
    assert not any(torch.equal(views[0].boxes, view.boxes) for view in views[1:])


@torch.no_grad()
def test_responses_are_row_by_row() -> None:
    """In a box of the whole image, features are equal in the upper half, and so are the responses."""
    detector = shared_tiny("sparse-rcnn-tiny")
    module: Any = detector.module
    interaction, dim = module.decoder.layers[0].cross_attention, module.queries.embedding.weight.shape[1] - 4
    shapes = tuple((88 // stride, 136 // stride) for stride in interaction.pooling.strides)
    maps = [torch.randn(1, dim, *shape) for shape in shapes]
    for each in maps:
        each[:, :, : each.shape[2] // 2 + 1] = 1.0
    tokens = torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1)
    padding, ratio = torch.zeros(tokens.shape[:2], dtype=torch.bool), torch.ones(1, len(shapes), 2)
    memory = Pyramid(tokens, tokens[..., :0], tokens[..., :2], padding, shapes, ratio, torch.tensor([[88, 136]]))
    queries = Queries(torch.randn(1, 5, dim), torch.zeros(1, 5, 0), torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(1, 5, 4))
    call = Call(interaction, "decoder.layers.0.cross_attention", (queries, memory), None)
    responses = dynamic_filter_view(call, Selection(torch.arange(5), 1)).responses
    assert responses is not None and responses.shape == (5, 7, 7)
    assert responses[:, :3].flatten(1).std(1).max() < 1e-5 < 1e-2 < responses[:, 4:].flatten(1).std(1).min()


@pytest.fixture(scope="module")
def proposals() -> tuple[TrainedDetector, Explanation, Any, Any]:
    """Detector, explanation, and the outputs of the proposal network and of the whole model."""
    detector = tiny("faster-rcnn-tiny", num_proposals=150)
    module: Any = detector.module
    outputs: list[Any] = []
    handles = [each.register_forward_hook(lambda _m, _a, y: outputs.append(y)) for each in (module.rpn, module)]
    (explanation,) = explain(detector, photograph(), threshold=THRESHOLD, device="cpu")
    for handle in handles:
        handle.remove()
    return detector, explanation, *outputs[:2]


def decoded(deltas: Tensor, boxes_xyxy: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Boxes of Faster R-CNN's code, in numpy's arithmetic: clipped to the image of 97 x 131 pixels."""
    delta, box = deltas.double().numpy() / np.array(weights), boxes_xyxy.double().numpy()
    size = box[:, 2:] - box[:, :2]
    center = box[:, :2] + size / 2 + delta[:, :2] * size
    half = np.exp(np.minimum(delta[:, 2:], np.log(1000 / 16))) * size / 2
    limits = np.array([131, 97, 131, 97])
    return torch.from_numpy(np.clip(np.concatenate([center - half, center + half], 1), 0, limits))


@torch.no_grad()
def test_detections_come_from_their_proposals(proposals: tuple[TrainedDetector, Explanation, Any, Any]) -> None:
    _, explanation, anchors, found = proposals
    count, detections = len(explanation.detections), explanation.detections
    assert count > 10 and len(explanation.trace) == 1
    queries, labels = torch.tensor(explanation.queries), detections.labels
    boxes = decoded(found.deltas[0, queries, labels + 1], found.proposals[0, queries], (10, 10, 5, 5))
    torch.testing.assert_close(detections.boxes_xyxy.double(), boxes, atol=1e-3, rtol=0)
    scores = found.logits[0].double().softmax(1)[:, 1:]
    torch.testing.assert_close(detections.scores.double(), scores[queries, labels], atol=1e-6, rtol=0)
    torch.testing.assert_close(explanation.trace[0].scores.double(), scores, atol=1e-6, rtol=0)
    (view,) = region_views(explanation)
    assert view.responses is None and view.objectness is not None
    size = torch.tensor([131, 97, 131, 97])
    boxes = cxcywh_to_xyxy(view.boxes) * size
    torch.testing.assert_close(boxes, found.proposals[0, view.queries], atol=1e-4, rtol=0)
    torch.testing.assert_close(view.boxes, explanation.trace[0].reference[view.queries])
    best = scores.argmax(1)
    refined = decoded(found.deltas[0, torch.arange(len(best)), best + 1], found.proposals[0], (10, 10, 5, 5))
    trace = cxcywh_to_xyxy(explanation.trace[0].boxes) * size
    torch.testing.assert_close(trace.double(), refined, atol=1e-3, rtol=0)
    # the objectness of a proposal is that of the anchor whose box it is
    all_boxes = decoded(anchors.deltas[0], anchors.anchors, (1, 1, 1, 1))
    nearest = (all_boxes[None] - boxes[:, None].double()).abs().amax(2)
    assert (nearest.amin(1) < 1e-3).all()
    expected = 1 / (1 + np.exp(-anchors.logits[0].double().numpy()[nearest.argmin(1)]))
    np.testing.assert_allclose(view.objectness.numpy(), expected, atol=1e-6)


@torch.no_grad()
def test_duplicates_are_the_boxes_that_suppression_removes(
    proposals: tuple[TrainedDetector, Explanation, Any, Any],
) -> None:
    """Greedy suppression in numpy, class by class."""
    detector, explanation, _, found = proposals
    module: Any = detector.module
    probabilities = found.logits[0].double().softmax(1).numpy()[:, 1:]
    candidates = module.candidates(found, torch.tensor([[131.0, 97.0, 131.0, 97.0]]))
    proposed, classes = candidates.proposals[0], candidates.labels[0]
    assert len(proposed) == probabilities.size
    expected: dict[tuple[int, int], list[tuple[int, float]]] = {}
    own_boxes = {}
    for label in range(probabilities.shape[1]):
        scores = probabilities[:, label]
        boxes = decoded(found.deltas[0, :, label + 1], found.proposals[0], (10, 10, 5, 5))
        own_boxes[label] = boxes
        left = proposed[classes == label].tolist()  # best first; proposals of several levels can be equal
        assert (np.diff(scores[left]) < 1e-6).all()
        left = [i for i in left if scores[i] > module.config.min_score]
        while left:
            best, *left = left
            iou = box_iou(boxes[[best]], boxes[left])[0].tolist() if left else []
            removed = [(i, overlap) for i, overlap in zip(left, iou, strict=True) if overlap > 0.5]
            expected[best, label] = removed
            left = [i for i in left if i not in dict(removed)]
    assert module.config.nms_iou == 0.5 and explanation.suppressed is not None
    answers = list(zip(explanation.queries, explanation.detections.labels.tolist(), strict=True))
    for index, answer in enumerate(answers):
        removed = explanation.suppressed[index]
        wanted = dict(expected[answer])
        assert {each.query for each in removed} == set(wanted) and len(removed) == len(wanted)
        assert [each.iou for each in removed] == pytest.approx([wanted[each.query] for each in removed], abs=1e-4)
        assert [each.score for each in removed] == sorted((each.score for each in removed), reverse=True)
        scores = [probabilities[each.query, answer[1]] for each in removed]
        assert [each.score for each in removed] == pytest.approx(scores, abs=1e-6)
        assert all(each.label == answer[1] for each in removed)
        for each in removed:  # the box of this class, not that of the best class of its proposal
            x1, y1, x2, y2 = (float(side) for side in own_boxes[answer[1]][each.query])
            corners = np.clip([x1 / 131, y1 / 97, x2 / 131, y2 / 97], 0, 1)
            centers = [*(corners[:2] + corners[2:]) / 2, *corners[2:] - corners[:2]]
            assert each.box == pytest.approx(centers, abs=1e-5)
        assert duplicates_of(explanation, index) == removed
        assert len(explanation.to_json()["detections"][index]["duplicates"]) == len(removed)
    assert sum(map(len, explanation.suppressed)) > 10


def test_json_of_regions_has_responses_and_objectness(
    proposals: tuple[TrainedDetector, Explanation, Any, Any],
) -> None:
    (view,) = [each for each in proposals[1].to_json()["views"] if each["kind"] == "region"]
    assert view["objectness"]["shape"] == [len(view["queries"])] and "responses" not in view
