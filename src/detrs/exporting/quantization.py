"""int8 weights in an ONNX graph, by the quantizer of ONNX Runtime."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from detrs.exporting.tail import in_tail

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("MatMul", "Gemm")
"""Operators whose weights are quantized. Activations are quantized when the file runs, with the range of each tensor.
Convolutions remain in float32: their int8 kernels are slower than those of float32 on CPUs without VNNI, and the
backbone loses the most accuracy."""


def to_int8(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A model whose products with weights are in int8, one scale for each output channel; the tail is in float32.

    Args:
        model: in float32, with the exporter's metadata of each node, which has its module.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    excluded = [node.name for node in model.graph.node if node.op_type in PRODUCTS and in_tail(node)]
    with tempfile.TemporaryDirectory(prefix="detrs-") as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_exclude=excluded,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Discards the quantizer's advice to prepare the model, which the exporter has done.

    It is logged by the root logger, which would get a handler from that if it has none.
    """
    logger, handler = logging.getLogger(), logging.NullHandler()
    logger.addHandler(handler)
    logger.addFilter(_is_not_of_quantizer)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_of_quantizer)
        logger.removeHandler(handler)


def _is_not_of_quantizer(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname
