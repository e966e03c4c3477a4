import pytest
import torch
from torch import Tensor, nn

from detrs.layers.chunks import CHUNK, by_chunks
from detrs.layers.deformable_attention import DeformableSelfAttention
from detrs.layers.encoder import EncoderLayer
from detrs.layers.feedforward import FeedForward
from detrs.layers.initialization import XAVIER
from detrs.layers.neck import centers
from detrs.structures import Pyramid


class Product(nn.Module):
    """A function of tokens of two widths, which records how many tokens it has received."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.counts: list[int] = []

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.counts.append(x.shape[0] * x.shape[1])
        return self.linear(x) * y


@pytest.mark.parametrize(
    ("batch", "tokens", "counts"),
    [(1, 10, [10]), (1, 23, [10, 10, 3]), (3, 7, [9, 9, 3]), (1, 20, [10, 10]), (11, 2, [11, 11])],
)
def test_chunks_are_small_and_the_result_is_that_of_all_tokens(batch: int, tokens: int, counts: list[int]) -> None:
    function, x, y = Product().double(), torch.randn(batch, tokens, 6).double(), torch.randn(batch, tokens, 3).double()
    with torch.no_grad():
        found, expected = by_chunks(function, x, y, chunk=10), function.linear(x) * y
    torch.testing.assert_close(found, expected)
    assert function.counts == counts


def test_all_tokens_at_once_where_gradients_are_computed_and_in_exported_programs() -> None:
    function, x, y = Product(), torch.randn(2, 23, 6), torch.randn(2, 23, 3)
    by_chunks(function, x, y, chunk=10).sum().backward()
    assert function.counts == [46]

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return by_chunks(torch.sin, x, chunk=10)

    with torch.no_grad():
        count = torch.export.Dim("count", min=2, max=4096)
        program = torch.export.export(Module(), (x,), dynamic_shapes=({1: count},), strict=False)
        longer = torch.randn(2, 99, 6)
        assert torch.equal(program.module()(longer), longer.sin())


def test_encoder_layers_compute_large_maps_in_chunks() -> None:
    shapes = ((41, 53), (7, 11))
    tokens = sum(h * w for h, w in shapes)
    assert CHUNK < 2 * tokens < 3 * CHUNK
    torch.manual_seed(0)
    layer = EncoderLayer(DeformableSelfAttention(32, 2, 2, 2), FeedForward(32, 48, 0.1, XAVIER), 32, 0.1).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    padding = torch.zeros(2, tokens, dtype=torch.bool)
    padding[1, -100:] = True
    points = centers(shapes, torch.tensor([[[53.0, 41.0], [11.0, 7.0]]] * 2))
    ratio, sizes = torch.ones(2, 2, 2), torch.tensor([[328, 424]] * 2)
    content, position = torch.randn(2, tokens, 32), torch.randn(2, tokens, 32)
    memory = Pyramid(content, position, points, padding, shapes, ratio, sizes)
    seen: dict[str, list[int]] = {}
    for name in ("feedforward", "attention.attention.sampling_offsets", "attention.attention.value_proj"):
        counts = seen.setdefault(name, [])
        layer.get_submodule(name).register_forward_hook(lambda _, args, __, n=counts: n.append(args[0][..., 0].numel()))
    expected = layer(memory).tokens.detach()  # gradients are computed
    with torch.no_grad():
        found = layer(memory).tokens
    torch.testing.assert_close(found, expected)
    chunks = [CHUNK, CHUNK, 2 * tokens - 2 * CHUNK]
    assert seen == {
        "feedforward": [2 * tokens, *chunks],
        "attention.attention.sampling_offsets": [2 * tokens, *chunks],
        "attention.attention.value_proj": [2 * tokens, 2 * tokens],
    }
