import pytest
import torch
from torch import nn

from detrs.boxes import offset_from_box
from detrs.classification import Focal, Softmax
from detrs.layers.heads import DetectionHead, box_mlp, class_layer, zero_box_layer
from detrs.layers.initialization import ExactLinear
from detrs.structures import Pyramid, Queries


def inputs() -> tuple[Queries, Pyramid]:
    padding, sizes = torch.zeros(2, 15, dtype=torch.bool), torch.tensor([[24, 40], [24, 40]])
    tokens = torch.randn(2, 15, 6)
    memory = Pyramid(tokens, tokens, torch.rand(2, 15, 2), padding, ((3, 5),), torch.ones(2, 1, 2), sizes)
    return Queries(torch.randn(2, 7, 6), torch.randn(2, 7, 6), torch.rand(2, 7, 4)), memory


def test_prediction_is_that_of_the_injected_parts() -> None:
    queries, memory = inputs()
    norm, classes, box = nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(6, 4)
    nn.init.normal_(norm.weight)
    prediction = DetectionHead(classes, box, offset_from_box, norm)(queries, memory)
    content = norm(queries.content)
    assert torch.equal(prediction.logits, classes(content))
    assert torch.equal(prediction.boxes, offset_from_box(box(content), queries.reference))
    assert torch.equal(DetectionHead(classes, box, offset_from_box)(queries, memory).logits, classes(queries.content))


@pytest.mark.parametrize(("classification", "rows"), [(Focal(), 5), (Softmax(), 6)])
def test_class_layer_has_the_logits_of_the_classification(classification: Focal | Softmax, rows: int) -> None:
    assert class_layer(6, 5, classification)(torch.randn(2, 7, 6)).shape == (2, 7, rows)


def test_boxes_start_at_their_reference() -> None:
    queries, memory = inputs()
    head = DetectionHead(nn.Linear(6, 5), box_mlp(zero_box_layer(6)), offset_from_box)
    torch.testing.assert_close(head(queries, memory).boxes, queries.reference)
    with_bias = DetectionHead(nn.Linear(6, 5), box_mlp(zero_box_layer(6, size_bias=-2.0)), offset_from_box)
    assert (with_bias(queries, memory).boxes < queries.reference)[..., 2:].all()


def test_output_layer_of_the_box_mlp_is_injected() -> None:
    last = ExactLinear(6, 4)
    layers = box_mlp(last)
    assert layers[-1] is last and [type(layer) for layer in layers[:-1]] == [nn.Linear, nn.ReLU] * 2
