"""float16 weights and products in an ONNX graph, with the tail of the detector in float32.

Convolutions and products with weights are computed in float16, and so is what connects two of them. Everything else
remains float32, as in autocast: heads, boxes, reference points, sampling locations, softmax, normalization, and the
residual stream. A box is a number in [0, 1] of the image, and float16 has steps of 1 / 2048 there: half a pixel in an
image of 1024.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from detrs.exporting.tail import in_tail

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators with weights."""
CONNECTIONS = (
    "Add",
    "AveragePool",
    "Concat",
    "Flatten",
    "Gelu",
    "Identity",
    "MaxPool",
    "Mul",
    "Relu",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that are computed in float16 if all of their inputs are."""
SUFFIX = "_float16"


def to_float16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A model whose products with weights are in float16. Inputs and outputs of the model keep their types.

    Args:
        model: in float32, with the exporter's metadata of each node, which has its module; changed in place.
    """
    from onnx import TensorProto, numpy_helper, shape_inference

    graph = model.graph
    inferred = shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    floats |= weights.keys()
    changed = _changed(graph, floats, weights.keys())
    made = {name for node in changed.values() for name in node.output if name in floats}
    kept = set(_used(graph, changed)) | {value.name for value in graph.output}  # as float32

    nodes: list[onnx.NodeProto] = []
    halves = set(made)

    def half(name: str) -> str:
        """The name of the value in float16, which is added if necessary."""
        if name not in halves:
            halves.add(name)
            if name in weights:
                values = numpy_helper.to_array(weights[name])
                limit = float(np.finfo(np.float16).max)
                halved = numpy_helper.from_array(values.clip(-limit, limit).astype(np.float16), name + SUFFIX)
                graph.initializer.append(halved)
            else:
                nodes.append(_cast(name, name + SUFFIX, TensorProto.FLOAT16))
        return name + SUFFIX

    for index, node in enumerate(graph.node):
        if index not in changed:
            nodes.append(node)
            continue
        inputs = [half(name) if name in floats else name for name in node.input]
        outputs = list(node.output)
        node.ClearField("input")
        node.input.extend(inputs)
        node.ClearField("output")
        node.output.extend([name + SUFFIX if name in made else name for name in outputs])
        nodes.append(node)
        nodes.extend(_cast(name + SUFFIX, name, TensorProto.FLOAT) for name in outputs if name in made & kept)
    unused = [tensor for tensor in graph.initializer if tensor.name in weights and tensor.name not in kept]
    for tensor in unused:
        graph.initializer.remove(tensor)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # of float32
    return model


def _changed(graph: "onnx.GraphProto", floats: set[str], weights: Collection[str]) -> "dict[int, onnx.NodeProto]":
    """The nodes that are computed in float16, by their position."""
    made: set[str] = set()
    changed = {}
    for index, node in enumerate(graph.node):
        if in_tail(node) or any(True for _ in _subgraphs(node)):
            continue
        own = [name for name in node.input if name in floats]
        constant = [name for name in own if name in weights]
        is_product = node.op_type in PRODUCTS and bool(constant)
        is_connection = node.op_type in CONNECTIONS and any(name in made for name in own)
        if is_product or (is_connection and all(name in made or name in constant for name in own)):
            changed[index] = node
            made.update(name for name in node.output if name in floats)
    return changed


def _used(graph: "onnx.GraphProto", changed: "dict[int, onnx.NodeProto]") -> Iterator[str]:
    """Names that nodes in float32 use, also within the bodies of loops and branches."""
    for index, node in enumerate(graph.node):
        if index not in changed:
            yield from node.input
            for body in _subgraphs(node):
                yield from _used(body, {})
                yield from (value.name for value in body.output)


def _subgraphs(node: "onnx.NodeProto") -> "Iterator[onnx.GraphProto]":
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _cast(source: str, target: str, kind: int) -> "onnx.NodeProto":
    from onnx import helper

    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)
