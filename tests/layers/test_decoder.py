import torch
from torch import Tensor, nn

from detrs.layers.decoder import Decoder, keep, refine
from detrs.structures import Prediction, Pyramid, Queries


class AddOne(nn.Module):
    """A layer that adds 1 to the contents."""

    def forward(self, queries: Queries, memory: Pyramid) -> Queries:
        return queries.with_content(queries.content + 1)


class MeanHead(nn.Module):
    """A head whose logits are the mean of each image's maps plus the contents; records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[Queries, Pyramid]] = []

    def forward(self, queries: Queries, memory: Pyramid) -> Prediction:
        self.inputs.append((queries, memory))
        logits = queries.content + memory.maps()[0].mean((2, 3))[:, None]
        return Prediction(logits, queries.content[..., :4].sigmoid())


def inputs() -> tuple[Queries, Pyramid]:
    padding, sizes = torch.zeros(2, 15, dtype=torch.bool), torch.tensor([[24, 40], [24, 40]])
    tokens = torch.randn(2, 15, 6)
    memory = Pyramid(tokens, tokens, torch.rand(2, 15, 2), padding, ((3, 5),), torch.ones(2, 1, 2), sizes)
    return Queries(torch.randn(2, 7, 6), torch.randn(2, 7, 6), torch.rand(2, 7, 4)), memory


def run(next_reference: object) -> tuple[Queries, Pyramid, MeanHead, tuple[Prediction, ...], Queries]:
    queries, memory = inputs()
    head = MeanHead()
    predictions, final = Decoder([AddOne(), AddOne(), AddOne()], [head] * 3, next_reference)(queries, memory)
    return queries, memory, head, predictions, final


def test_returns_one_prediction_per_layer_and_the_final_queries() -> None:
    queries, memory, _, predictions, final = run(keep)
    assert len(predictions) == 3
    assert torch.equal(final.content, queries.content + 1 + 1 + 1)
    assert final.reference is queries.reference and final.position is queries.position
    mean: Tensor = memory.tokens.mean(1, keepdim=True)
    for index, prediction in enumerate(predictions):
        torch.testing.assert_close(prediction.logits, queries.content + index + 1 + mean)


def test_heads_receive_the_queries_of_their_layer_and_the_memory() -> None:
    queries, memory, head, _, final = run(keep)
    assert all(received is memory for _, received in head.inputs)
    torch.testing.assert_close(torch.stack([q.content for q, _ in head.inputs])[:, 0, 0, 0] - queries.content[0, 0, 0],
                               torch.tensor([1.0, 2.0, 3.0]))  # fmt: skip
    assert head.inputs[-1][0].content is final.content


def test_refinement_continues_with_the_predicted_boxes() -> None:
    """Also in the final queries, from which a second decoder or a mask head can continue."""
    queries, _, head, predictions, final = run(refine)
    assert head.inputs[0][0].reference is queries.reference
    assert torch.equal(head.inputs[1][0].reference, predictions[0].boxes)
    assert torch.equal(final.reference, predictions[-1].boxes) and not final.reference.requires_grad
