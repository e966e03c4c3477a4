"""float16, on small graphs."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from detrs.exporting.half import to_float16

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def node(kind: str, inputs: Sequence[str], output: str, module: str = "model.layer", **attributes) -> onnx.NodeProto:
    """A node with the exporter's metadata."""
    made = helper.make_node(kind, list(inputs), [output], name=output, **attributes)
    scopes, path = [""], ""
    for part in module.split("."):
        path = f"{path}.{part}".lstrip(".")
        scopes.append(path)
    entry = made.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(scopes)
    return made


def model(nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], outputs: Sequence[str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(name, FLOAT, ["batch", "channels", "rows", "columns"]) for name in outputs],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w1": RANDOM.standard_normal((4, 3, 3, 3)) / 5,
    "w2": RANDOM.standard_normal((4, 4, 1, 1)) / 2,
    "bias": RANDOM.standard_normal(8) / 3,
    "w3": RANDOM.standard_normal((8, 8)) / 3,
    "offsets": RANDOM.standard_normal((8, 8)) / 3,
}
NODES = (
    ("Conv", ("x", "w1"), "conv1", "model.backbone", {"pads": [1, 1, 1, 1]}),
    ("Relu", ("conv1",), "relu", "model.backbone", {}),
    ("Conv", ("relu", "w2"), "conv2", "model.backbone", {}),
    ("Add", ("conv2", "relu"), "sum", "model.backbone", {}),
    ("MatMul", ("sum", "w3"), "product", "model.decoder.layers.0.feedforward", {}),
    ("Add", ("product", "bias"), "biased", "model.decoder.layers.0.feedforward", {}),
    ("Softmax", ("biased",), "softmax", "model.decoder.layers.0", {}),
    ("MatMul", ("biased", "offsets"), "locations", "model.decoder.layers.0.sampling_offsets", {}),
    ("Add", ("locations", "softmax"), "y", "model.decoder.layers.0", {}),
)


def example() -> onnx.ModelProto:
    return model([node(*each, **attributes) for *each, attributes in NODES], WEIGHTS, ["y", "biased"])


def test_products_and_what_connects_them_are_in_float16_and_the_tail_is_not() -> None:
    changed = example()
    to_float16(changed)
    types = {each.name: each.data_type for each in changed.graph.initializer}
    assert types == {
        "w1_float16": HALF,
        "w2_float16": HALF,
        "w3_float16": HALF,
        "bias_float16": HALF,
        "offsets": FLOAT,
    }
    casts = {each.input[0]: each.output[0] for each in changed.graph.node if each.op_type == "Cast"}
    # one at the input, one where the values leave float16; none between convolutions
    assert casts == {"x": "x_float16", "biased_float16": "biased"}
    x = RANDOM.standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, after = run(example(), x), run(changed, x)
    differences = [np.abs(a - b).max() for a, b in zip(before, after, strict=True)]
    assert all(1e-5 < difference < 1e-2 for difference in differences)
    # the tail computes in float32 from the float16 value
    logits = after[1]
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    expected = logits @ WEIGHTS["offsets"].astype(np.float32) + softmax / softmax.sum(-1, keepdims=True)
    assert np.abs(after[0] - expected).max() < 2e-6


def test_weights_beyond_the_range_of_float16_are_limited() -> None:
    changed = model([node("Conv", ("x", "w"), "y")], {"w": np.full((1, 3, 1, 1), -1e6)}, ["y"])
    to_float16(changed)
    assert numpy_helper.to_array(changed.graph.initializer[0]).max() == -65504


def test_a_weight_that_the_tail_also_uses_exists_in_both_types() -> None:
    changed = model(
        [node("MatMul", ("x", "w"), "a"), node("MatMul", ("a", "w"), "y", "model.decoder.heads.0")],
        {"w": RANDOM.standard_normal((8, 8))},
        ["y"],
    )
    to_float16(changed)
    assert {each.name for each in changed.graph.initializer} == {"w", "w_float16"}
    run(changed, RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32))


def test_values_that_a_branch_uses_remain_available_in_float32() -> None:
    def branch(factor: str) -> onnx.GraphProto:
        inner = helper.make_node("Mul", ["product", factor], [f"{factor}_out"], name=f"{factor}_mul")
        return helper.make_graph([inner], factor, [], [helper.make_tensor_value_info(f"{factor}_out", FLOAT, None)])

    nodes = [
        node("MatMul", ("x", "w"), "product"),
        node("Constant", (), "condition", value=numpy_helper.from_array(np.array(True))),
        node("If", ("condition",), "y", then_branch=branch("one"), else_branch=branch("two")),
    ]
    weights = {"w": RANDOM.standard_normal((8, 8)), "one": np.ones(8), "two": np.full(8, 2.0)}
    x = RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32)
    changed = model(nodes, weights, ["y"])
    expected = run(model(nodes, weights, ["y"]), x)[0]
    to_float16(changed)
    assert {each.name for each in changed.graph.initializer} == {"w_float16", "one", "two"}
    assert 0 < np.abs(run(changed, x)[0] - expected).max() < 2e-2
