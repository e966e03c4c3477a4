"""Weights of a trained detector as the start of one with other classes, for every detector."""

from typing import Any

import pytest
import torch
from shrunk import EVERY_MODEL, ONE_OF_EACH, QUERIES, batch, changed, patterns, randomized
from torch import Tensor, nn

from detrs.checkpoints.detector import TrainedDetector, preprocessing_of
from detrs.checkpoints.transfer import Transfer, class_rows, transfer
from detrs.classification import Softmax
from detrs.config import Experiment
from detrs.config.dino import DINOConfig
from detrs.models import ModelConfig, build
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.efficient_detr import EfficientDETRConfig
from detrs.models.faster_rcnn import FasterRCNNConfig
from detrs.structures import Classes

SOURCE = ("person", "N/A 1", "traffic light", "car", "dog")
TARGETS = {
    "equal": (SOURCE[0], "stop sign", *SOURCE[2:]),
    "permuted": ("dog", "car", "person", "traffic light"),
    "some": ("a", "Traffic_Light", "b", "c", "dog", "d", "e"),
    "one": ("car",),
    "none": ("a", "b", "c", "d", "e"),
}


def pairs(names: tuple[str, ...]) -> list[tuple[int, int]]:
    """(row in the target, row in the source) of shared classes."""
    plain = [name.lower().replace("_", " ") for name in names]
    return [(plain.index(name), row) for row, name in enumerate(SOURCE) if name in plain]


def trained(config: ModelConfig) -> TrainedDetector:
    experiment = Experiment(model=config)
    return TrainedDetector(
        module=randomized(config).eval(),
        classes=Classes(SOURCE, tuple(range(5))),
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=0,
        epoch=0,
    )


def transferred(source: TrainedDetector, names: tuple[str, ...], **settings: Any) -> tuple[Any, Any, Transfer]:
    """The model before and after, and what was kept."""
    config = changed(source.experiment.model, num_classes=len(names), **settings)
    torch.manual_seed(7)
    fresh = build(config)
    torch.manual_seed(7)
    model = build(config)
    done = transfer(source, model, config, Classes(names, tuple(range(len(names)))))
    return fresh, model.eval(), done


def heads(model: nn.Module, *, shared: bool = False) -> dict[str, nn.Linear]:
    """Linear layers that predict classes, or the boxes of classes; ``shared``: under all of their names."""
    return {
        name: layer
        for name, layer in model.named_modules(remove_duplicate=not shared)
        if name.endswith(("classes", "head.boxes"))
    }


def tied(model: nn.Module) -> dict[str, str]:
    """Name of each parameter -> its first name."""
    first: dict[int, str] = {}
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in parameters}


def watched(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs of the heads in a forward pass, those of a shared head at its first use."""
    inputs, outputs = {}, {}
    handles = []
    for name, layer in heads(model).items():

        def keep(layer: nn.Module, given: Any, output: Tensor, name: str = name) -> None:
            inputs.setdefault(name, given[0])
            outputs.setdefault(name, output)

        handles.append(layer.register_forward_hook(keep))
    with torch.no_grad():
        model(*batch())
    for handle in handles:
        handle.remove()
    return inputs, outputs


@EVERY_MODEL
def test_weights_of_shared_classes_and_of_everything_else_are_kept(config: ModelConfig) -> None:
    source = trained(config)
    fresh, model, done = transferred(source, TARGETS["some"])
    check_classes(source, fresh, model, done, TARGETS["some"])
    given, rows = source.module.state_dict(), class_rows(config)
    assert rows.keys() == {f"{name}.{kind}" for name in heads(model, shared=True) for kind in ("weight", "bias")}
    for name, tensor in model.state_dict().items():
        if name not in rows:
            assert torch.equal(tensor, given[name]), name
    assert tied(model) == tied(fresh)


@ONE_OF_EACH
@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind != "some"])
def test_other_classes(config: ModelConfig, kind: str) -> None:
    source = trained(config)
    check_classes(source, *transferred(source, TARGETS[kind]), TARGETS[kind])


def check_classes(
    source: TrainedDetector, fresh: nn.Module, model: nn.Module, done: Transfer, names: tuple[str, ...]
) -> None:
    """Inputs of all heads and rows of shared classes are bit-equal to those of the source, and so are the logits, up to
    the rounding of products with another number of rows."""
    config = source.experiment.model
    shared = pairs(names)
    kept = {names[row] for row, _ in shared}
    assert done == Transfer([n for n in names if n in kept], [n for n in names if n not in kept], None)
    first = int(isinstance(config, FasterRCNNConfig))  # background
    (own_inputs, own), (inputs, theirs) = watched(model), watched(source.module)
    assert own.keys() == theirs.keys() and own
    for name, logits in own.items():
        per_class = 4 if name == "head.boxes" else 1
        rows = [(0, 0)] if first else []
        rows += [(first + row, first + other) for row, other in shared]
        if isinstance(getattr(config, "classification", None), Softmax):
            rows.append((len(names), len(SOURCE)))  # "no object"
        if name.startswith("queries.") and isinstance(config, DeformableDETRConfig):
            rows = [(0, 0)]  # "any object"
        before, after, expected = (heads(m)[name] for m in (fresh, model, source.module))
        given = torch.zeros(len(after.weight), dtype=torch.bool)
        for row, other in rows:
            here, there = (slice(per_class * r, per_class * (r + 1)) for r in (row, other))
            assert torch.equal(after.weight[here], expected.weight[there]), name
            assert torch.equal(after.bias[here], expected.bias[there]), name
            if torch.equal(own_inputs[name], inputs[name]):
                torch.testing.assert_close(logits[..., here], theirs[name][..., there], rtol=1e-5, atol=1e-5)
            given[here] = True
        assert torch.equal(after.weight[~given], before.weight[~given]), name
        assert torch.equal(after.bias[~given], before.bias[~given]), name  # the prior of the focal loss
    same = [name for name in own if torch.equal(own_inputs[name], inputs[name])]
    # Efficient DETR and DINO rank tokens by the score of their best class, which can be one of those that differ.
    assert same == list(own) or isinstance(config, EfficientDETRConfig | DINOConfig)


@ONE_OF_EACH
def test_equal_names_copy_every_row(config: ModelConfig) -> None:
    """Also rows of a scorer that mean nothing, and unused classes."""
    source = trained(config)
    given = source.module.state_dict()
    _, model, done = transferred(source, SOURCE)
    assert done == Transfer(list(SOURCE), [], None)
    assert all(torch.equal(tensor, given[name]) for name, tensor in model.state_dict().items())


@ONE_OF_EACH
@pytest.mark.parametrize("times", (2, 3))
def test_another_number_of_queries(config: ModelConfig, times: int) -> None:
    """The first ones are kept."""
    if not hasattr(config, "num_queries"):
        pytest.skip("no object queries")
    count = QUERIES * patterns(config)
    source = trained(changed(config, num_queries=2 * count))
    fresh, model, done = transferred(source, SOURCE, num_queries=(1 if times == 2 else 3) * count)
    given, first = source.module.state_dict(), fresh.state_dict()
    differing = [name for name, tensor in model.state_dict().items() if tensor.shape != given[name].shape]
    assert {name.removeprefix("queries.").split(".")[0] for name in differing} <= {"embedding", "anchors", "content"}
    assert (done.kept_queries is not None) == bool(differing)
    for name in differing:
        own, kept = model.state_dict()[name], min(len(first[name]), len(given[name]))
        assert torch.equal(own[:kept], given[name][:kept]) and torch.equal(own[kept:], first[name][kept:])
        assert done.kept_queries == (min(2, 1 if times == 2 else 3) * count, 2 * count)
