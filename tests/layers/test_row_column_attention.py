"""Row-column decoupled attention: the authors' numbers, the formula in a loop, sizes of intermediate results."""

from pathlib import Path
from typing import Any

import goldens
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrs.checkpoints.foreign import official_anchor_detr
from detrs.layers.initialization import XAVIER
from detrs.layers.row_column_attention import RowColumnAttention, RowColumnCrossAttention, mean_of_all, mean_of_valid
from detrs.structures import Pyramid, Queries


@pytest.fixture
def golden(shared: Path) -> dict[str, Any]:
    return goldens.golden(shared, "anchor.rcda")


@torch.no_grad()
def test_golden_values_of_the_official_module(golden: dict[str, Any]) -> None:
    """With its parameters by their names in the authors' code, as they are read from published weights."""
    attention = RowColumnAttention(32, 4, 0.0, XAVIER, mean_of_all).eval()
    ours, theirs = "encoder.layers.0.attention.attention.", "transformer.encoder_layers.0.self_attn."
    table, state = official_anchor_detr.renaming(1), attention.state_dict(prefix=ours)
    names = {name.removeprefix(theirs): tensor.shape for name, tensor in table.write(state).items()}
    assert sorted(names) == golden["params"]
    values = {theirs + name: value for name, value in goldens.parameters(names).items()}
    read = table.read(values, {name: tuple(tensor.shape) for name, tensor in state.items()}, "the golden file")
    attention.load_state_dict({name.removeprefix(ours): tensor for name, tensor in read.items()})
    queries = [goldens.inputs(k, 2, 5, 32) for k in (1000, 1001)]
    maps = [goldens.inputs(k, 2, 4, 6, 32) for k in (1002, 1003, 1004)]
    padding = torch.ones(2, 4, 6, dtype=torch.bool)
    padding[0] = False
    padding[1, :3, :4] = False
    goldens.check(attention(*queries, *maps, padding).transpose(0, 1), golden["out_LNE"])


def setting(height: int, width: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Arguments of the forward pass: 2 images, 3 heads of 4 channels, 7 queries; the second image is padded."""
    torch.manual_seed(seed)
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    padding[1, height - 2 :] = True
    padding[1, :, width - 3 :] = True
    return *torch.randn(2, 2, 7, 12), *torch.randn(3, 2, height, width, 12), padding


@pytest.mark.parametrize("size", [(5, 11), (11, 5), (7, 7)])
@pytest.mark.parametrize("key_mean", [mean_of_all, mean_of_valid])
@torch.no_grad()
def test_weight_of_a_cell_is_that_of_its_column_times_that_of_its_row(size: tuple[int, int], key_mean: Any) -> None:
    """In a loop over images, heads and queries, with one weight for each cell."""
    attention = RowColumnAttention(12, 3, 0.0, XAVIER, key_mean).eval()
    *arguments, padding = setting(*size)
    projections = ("query_x_proj", "query_y_proj", "key_x_proj", "key_y_proj", "value_proj")
    pairs = zip(projections, arguments, strict=True)
    query_x, query_y, key_x, key_y, value = (attention.get_submodule(name)(x) for name, x in pairs)
    result = torch.zeros(2, 7, 12)
    for image in range(2):
        rows, columns = (~padding[image, :, 0]).nonzero()[:, 0], (~padding[image, 0]).nonzero()[:, 0]
        averaged_rows = rows if key_mean is mean_of_valid else torch.arange(size[0])
        averaged_columns = columns if key_mean is mean_of_valid else torch.arange(size[1])
        for head in range(3):
            own = slice(4 * head, 4 * head + 4)
            of_columns = key_x[image, averaged_rows][:, columns, own].mean(0)
            of_rows = key_y[image][rows][:, averaged_columns, own].mean(1)
            for query in range(7):
                along_x = (of_columns @ query_x[image, query, own] / 2).softmax(0)
                along_y = (of_rows @ query_y[image, query, own] / 2).softmax(0)
                weights = along_y[:, None] * along_x  # of every cell
                attended = value[image, rows][:, columns, own]
                result[image, query, own] = (weights[..., None] * attended).sum((0, 1))
    found = attention(*arguments, padding)
    torch.testing.assert_close(found, attention.output_proj(result), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("key_mean", [mean_of_all, mean_of_valid])
@torch.no_grad()
def test_padding_has_an_influence_through_the_means_of_keys_only(key_mean: Any) -> None:
    """The authors' mean includes padding: its keys have an influence, its values do not."""
    attention = RowColumnAttention(12, 3, 0.0, XAVIER, key_mean).eval()
    query_x, query_y, key_x, key_y, value, padding = setting(5, 11)

    def disturbed(tensor: Tensor) -> Tensor:
        return tensor.masked_fill(padding[..., None], 1e2)

    expected = attention(query_x, query_y, key_x, key_y, value, padding)
    assert torch.equal(attention(query_x, query_y, key_x, key_y, disturbed(value), padding), expected)
    for keys in ((disturbed(key_x), key_y), (key_x, disturbed(key_y))):
        change = (attention(query_x, query_y, *keys, value, padding) - expected).abs().amax((1, 2))
        assert change[0] == 0
        assert (change[1] > 0.01) == (key_mean is mean_of_all)


@pytest.mark.parametrize("size", [(1, 11), (11, 1)])
@torch.no_grad()
def test_dropout_applies_to_columns_and_to_rows(size: tuple[int, int]) -> None:
    """On a map of one row or column: where its only weight is dropped, the output is zero; otherwise it is not."""
    torch.manual_seed(0)
    attention = RowColumnAttention(12, 3, 0.5, XAVIER, mean_of_all)
    attention.output_proj = torch.nn.Identity()
    given = (*torch.randn(2, 50, 7, 12), *torch.randn(3, 50, *size, 12), torch.zeros(50, *size, dtype=torch.bool))
    output = attention(*given).unflatten(2, (3, 4))
    nothing = (output == 0).all(-1)
    assert 0.4 < nothing.float().mean() < 0.6
    kept = attention.eval()(*given).unflatten(2, (3, 4))
    assert (kept - output / 2).abs().amax(-1)[~nothing].median() > 0.05


def test_an_exported_program_accepts_landscape_and_portrait() -> None:
    attention = RowColumnAttention(12, 3, 0.0, XAVIER, mean_of_all).eval()
    sides = {1: torch.export.Dim("height", max=64), 2: torch.export.Dim("width", max=64)}
    shapes = (None, None, *[sides] * 4)
    exported = torch.export.export(attention, setting(5, 11), dynamic_shapes=shapes).module()
    for size in ((5, 11), (11, 5), (7, 7)):
        given = setting(*size, seed=1)
        torch.testing.assert_close(exported(*given), attention(*given), atol=1e-6, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operator returns within the context."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        held = [t.untyped_storage().nbytes() // t.element_size() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.elements = max([self.elements, *held])
        return result


@pytest.mark.parametrize("size", [(13, 29), (29, 13)])
def test_no_tensor_has_an_entry_for_each_cell_and_query(size: tuple[int, int]) -> None:
    """Forward and backward; the largest has ``Q * min(H, W) * C`` elements. On the meta device: only shapes matter."""
    height, width = size
    queries, dim, heads = 4001, 64, 8
    with torch.device("meta"):
        tokens = torch.empty(1, height * width, dim, requires_grad=True)
        padding = torch.zeros(1, height * width, dtype=torch.bool)
        image_sizes = torch.zeros(1, 2, dtype=torch.long)
        points, ratio = tokens[..., :2], torch.ones(1, 1, 2)
        memory = Pyramid(tokens, tokens.repeat(1, 1, 2), points, padding, (size,), ratio, image_sizes)
        object_queries = Queries(
            torch.empty(1, queries, dim), torch.empty(1, queries, 3 * dim), torch.empty(1, queries, 2)
        )
        attention = RowColumnCrossAttention(dim, heads, 0.0, XAVIER, mean_of_all)
        with Largest() as largest:
            attention(object_queries, memory).sum().backward()
    assert largest.elements == queries * min(size) * dim < queries * height * width * heads
