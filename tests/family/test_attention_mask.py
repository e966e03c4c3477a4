"""``Queries.attention_mask`` in every self-attention of queries."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from detrs.layers.attention import SelfAttention
from detrs.layers.conditional_attention import ConditionalSelfAttention
from detrs.layers.initialization import XAVIER
from detrs.models.anchor_detr import PointSelfAttention
from detrs.models.sparse_rcnn import ContentSelfAttention
from detrs.structures import Queries

DIM, HEADS, QUERIES = 16, 2, 7
FIRST = torch.arange(QUERIES) < 3
"""Queries of the first group."""
EVERY = pytest.mark.parametrize(
    ("make", "positions"),
    [
        (lambda: SelfAttention(DIM, HEADS, 0.0, XAVIER), 1),
        (lambda: ConditionalSelfAttention(DIM, HEADS, 0.0), 1),
        (lambda: PointSelfAttention(DIM, HEADS, 0.0, XAVIER), 3),
        (lambda: ContentSelfAttention(DIM, HEADS, 0.0), 0),
    ],
    ids=["SelfAttention", "ConditionalSelfAttention", "PointSelfAttention", "ContentSelfAttention"],
)


def queries(positions: int) -> Queries:
    """Two images; ``positions`` embeddings of C channels per query."""
    return Queries(torch.randn(2, QUERIES, DIM), torch.randn(2, QUERIES, positions * DIM), torch.rand(2, QUERIES, 2))


def part(whole: Queries, which: torch.Tensor) -> Queries:
    return Queries(whole.content[:, which], whole.position[:, which], whole.reference[:, which])


@EVERY
@torch.no_grad()
def test_groups_attend_to_themselves_only(make: Callable[[], nn.Module], positions: int) -> None:
    torch.manual_seed(0)
    attention, whole = make().eval(), queries(positions)
    grouped = replace(whole, attention_mask=FIRST[:, None] == FIRST)
    output = attention(grouped)
    for which in (FIRST, ~FIRST):
        torch.testing.assert_close(output[:, which], attention(part(whole, which)), atol=1e-6, rtol=1e-5)
        noise = torch.randn_like(whole.content).masked_fill(which[:, None], 0.0)
        disturbed = attention(grouped.with_content(whole.content + noise))
        assert torch.equal(disturbed[:, which], output[:, which])
        assert (disturbed[:, ~which] - output[:, ~which]).abs().max() > 0.1


@EVERY
@torch.no_grad()
def test_rows_of_the_mask_are_queries_and_columns_keys(make: Callable[[], nn.Module], positions: int) -> None:
    """The first group attends to all queries, the second to itself."""
    torch.manual_seed(0)
    attention, whole = make().eval(), queries(positions)
    output = attention(replace(whole, attention_mask=FIRST[:, None] | ~FIRST))
    torch.testing.assert_close(output[:, FIRST], attention(whole)[:, FIRST], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output[:, ~FIRST], attention(part(whole, ~FIRST)), atol=1e-6, rtol=1e-5)


@EVERY
@torch.no_grad()
def test_without_a_mask_all_queries_attend_to_all(make: Callable[[], nn.Module], positions: int) -> None:
    torch.manual_seed(0)
    attention, whole = make().eval(), queries(positions)
    every = replace(whole, attention_mask=torch.ones(QUERIES, QUERIES, dtype=torch.bool))
    torch.testing.assert_close(attention(every), attention(whole), atol=1e-6, rtol=1e-5)
    grouped = attention(replace(whole, attention_mask=FIRST[:, None] == FIRST))
    assert (grouped - attention(whole)).abs().max() > 1e-2
