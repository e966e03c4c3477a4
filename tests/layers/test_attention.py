import pytest
import torch

from detrs.layers.attention import GlobalCrossAttention, GlobalSelfAttention, MultiHeadAttention, SelfAttention
from detrs.layers.initialization import XAVIER
from detrs.structures import Pyramid, Queries

SIZES = (16, 2, 0.0, XAVIER)


def memory() -> Pyramid:
    """An image of 7 tokens, and one whose last 3 are padding."""
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    tokens, position = torch.randn(2, 2, 7, 16)
    sizes = torch.tensor([[1, 7], [1, 4]])
    return Pyramid(tokens, position, torch.rand(2, 7, 2), padding, ((1, 7),), torch.ones(2, 1, 2), sizes)


@torch.no_grad()
def test_equals_multihead_attention_of_pytorch() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(*SIZES), torch.nn.MultiheadAttention(16, 2, batch_first=True)
    projections = ours.query_proj, ours.key_proj, ours.value_proj
    theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
    theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in projections]))
    theirs.out_proj.load_state_dict(ours.output_proj.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    padding = memory().padding
    expected, _ = theirs(query, key, value, key_padding_mask=padding)
    torch.testing.assert_close(ours(query, key, value, ~padding[:, None, None]), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("image", [0, 1])
@torch.no_grad()
def test_results_are_those_without_padding(image: int) -> None:
    torch.manual_seed(0)
    both, size = memory(), (7, 4)[image]
    one = slice(image, image + 1)
    alone = Pyramid(
        both.tokens[one, :size], both.position[one, :size], both.reference_points[one, :size],
        both.padding[one, :size], ((1, size),), both.valid_ratio[one], both.image_sizes[one],
    )  # fmt: skip
    self_attention, cross_attention = GlobalSelfAttention(*SIZES), GlobalCrossAttention(*SIZES)
    queries = Queries(torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.zeros(2, 5, 0))
    own = Queries(queries.content[one], queries.position[one], queries.reference[one])
    torch.testing.assert_close(self_attention(both)[one, :size], self_attention(alone), atol=1e-6, rtol=1e-5)
    together = cross_attention(queries, both)[one]
    torch.testing.assert_close(together, cross_attention(own, alone), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_values_are_contents_without_positions() -> None:
    """Equal contents have equal outputs at any position; different contents do not."""
    torch.manual_seed(0)
    attention, position = SelfAttention(*SIZES), torch.randn(1, 5, 16)
    same = torch.randn(1, 1, 16).expand(1, 5, 16)
    output = attention(Queries(same, position, torch.zeros(1, 5, 0)))
    torch.testing.assert_close(output, output[:, :1].expand_as(output), atol=1e-6, rtol=1e-5)
    other = attention(Queries(torch.randn(1, 5, 16), position, torch.zeros(1, 5, 0)))
    assert (other - other[:, :1]).abs().max() > 1e-3
