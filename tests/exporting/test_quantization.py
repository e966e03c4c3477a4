import logging

import numpy as np
from onnx import TensorProto
from test_half import RANDOM, example, run

from detrs.exporting.quantization import to_int8


def test_products_have_int8_weights_and_the_tail_does_not() -> None:
    model = example()
    changed = to_int8(model)
    types = {each.name: each.data_type for each in changed.graph.initializer if each.dims}
    assert {name for name, kind in types.items() if kind == TensorProto.INT8} == {"w3_quantized", "w3_zero_point"}
    assert types["w1"] == types["w2"] == types["offsets"] == TensorProto.FLOAT and "w3" not in types
    assert [each.dims for each in changed.graph.initializer if each.name == "w3_scale"] == [[8]]  # one per channel
    x = RANDOM.standard_normal((2, 3, 8, 8)).astype(np.float32)
    differences = [np.abs(a - b).max() for a, b in zip(run(example(), x), run(changed, x), strict=True)]
    assert all(1e-3 < difference < 0.1 for difference in differences)


def test_nothing_is_logged_and_the_root_logger_is_as_before(caplog, monkeypatch) -> None:
    logger = logging.getLogger()
    with caplog.at_level(logging.DEBUG):
        to_int8(example())
    assert not caplog.records
    monkeypatch.setattr(logger, "handlers", [])
    before = logger.level, list(logger.filters)
    to_int8(example())
    assert logger.handlers == [] and (logger.level, list(logger.filters)) == before
