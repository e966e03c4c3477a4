import pytest
import torch
from torch import Tensor

from detrs.checkpoints.foreign.renaming import LISTED, Pack, Rename, Renaming, qkv
from detrs.errors import UserError

TABLE = Renaming(
    [
        Rename("stem.{rest}", "backbone.{rest}"),
        Rename("enc.{i}.lin.{rest}", "encoder.layers.{i}.expand.{rest}", spellings=("enc.{i}.fc.lin.{rest}",)),
        Pack("enc.{i}.in_proj_{rest}", qkv("encoder.layers.{i}.attention")),
        Rename(("head.{rest}", "copy.{rest}"), ("heads.0.{rest}", "heads.1.{rest}")),
    ],
    ignored=("mean.{rest}",),
)


def ours() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {
        "backbone.conv.weight": torch.randn(3, 2, 1, 1),
        "encoder.layers.11.expand.weight": torch.randn(5, 3),
        "heads.0.weight": torch.randn(2, 3),
    }
    for letter in ("query", "key", "value"):
        tensors[f"encoder.layers.11.attention.{letter}_proj.weight"] = torch.randn(3, 3)
        tensors[f"encoder.layers.11.attention.{letter}_proj.bias"] = torch.randn(3)
    return tensors | {"heads.1.weight": tensors["heads.0.weight"]}


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in ours().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_both_directions_are_bit_exact() -> None:
    theirs = TABLE.write(ours())
    assert set(theirs) == {
        "stem.conv.weight", "enc.11.lin.weight", "enc.11.in_proj_weight", "enc.11.in_proj_bias", "head.weight",
        "copy.weight",
    }  # fmt: skip
    assert equal(TABLE.read(theirs, shapes(), "x"), ours())
    assert equal(TABLE.write(TABLE.read(theirs, shapes(), "x")), theirs)


def test_packed_rows_are_queries_keys_values() -> None:
    theirs, mine = TABLE.write(ours()), ours()
    rows = [mine[f"encoder.layers.11.attention.{letter}_proj.weight"] for letter in ("query", "key", "value")]
    assert torch.equal(theirs["enc.11.in_proj_weight"], torch.cat(rows))


@pytest.mark.parametrize("kept", ["head.weight", "copy.weight"])
def test_one_of_several_names_is_enough(kept: str) -> None:
    theirs = TABLE.write(ours())
    shared = [theirs.pop(name) for name in ("head.weight", "copy.weight")]
    assert equal(TABLE.read({**theirs, kept: shared[0]}, shapes(), "x"), ours())


def test_other_spellings_are_read() -> None:
    theirs = TABLE.write(ours())
    theirs["enc.11.fc.lin.weight"] = theirs.pop("enc.11.lin.weight")
    assert equal(TABLE.read(theirs, shapes(), "x"), ours())


def test_counters_and_ignored_names_are_skipped() -> None:
    nothing = torch.zeros(())
    theirs = TABLE.write({**ours(), "backbone.bn.num_batches_tracked": nothing})
    assert not any(name.endswith("num_batches_tracked") for name in theirs)
    extra = {
        "stem.bn.num_batches_tracked": nothing,
        "total_ops": nothing,
        "enc.total_params": nothing,
        "mean.x": nothing,
    }
    assert equal(TABLE.read({**theirs, **extra}, shapes(), "x"), ours())


def test_differences_are_listed_with_their_names() -> None:
    theirs = TABLE.write(ours())
    del theirs["stem.conv.weight"]
    theirs["enc.11.in_proj_bias"] = torch.zeros(6)
    theirs |= {f"extra.{i}": torch.zeros(1) for i in range(LISTED + 2)}
    with pytest.raises(UserError) as raised:
        TABLE.read(theirs, shapes(), "w.pth")
    message = str(raised.value)
    assert "'w.pth'" in message
    assert "1 missing: stem.conv.weight;" in message
    assert "1 of another shape: enc.11.in_proj_bias (6,), expected (9,)" in message
    assert "7 unknown: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more;" in message


def test_copies_with_different_values_are_rejected() -> None:
    theirs = TABLE.write(ours())
    theirs["copy.weight"] = theirs["copy.weight"] + 1
    with pytest.raises(UserError, match="head.weight, copy.weight"):
        TABLE.read(theirs, shapes(), "x")
    mine = ours()
    mine["heads.1.weight"] = mine["heads.1.weight"] + 1
    with pytest.raises(UserError, match="heads.0.weight, heads.1.weight"):
        TABLE.write(mine)


def test_tensors_on_the_meta_device_are_compared_by_shape() -> None:
    with torch.device("meta"):
        theirs = {name: torch.empty(tensor.shape) for name, tensor in TABLE.write(ours()).items()}
    assert set(TABLE.read(theirs, shapes(), "x")) == set(ours())


def test_a_model_without_a_rule_is_an_error_of_the_table() -> None:
    with pytest.raises(LookupError, match="decoder.weight"):
        TABLE.links(["decoder.weight"])


def test_placeholders_are_numbers_except_the_rest() -> None:
    assert TABLE.links(["encoder.layers.11.expand.a.b"])[0].written == ("enc.11.lin.a.b",)
    with pytest.raises(LookupError):
        TABLE.links(["encoder.layers.x.expand.weight"])
