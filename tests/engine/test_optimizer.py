import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch

from detrs import models
from detrs.checkpoints import format
from detrs.config import OptimizerConfig
from detrs.engine.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors, set_lr

CONFIG = OptimizerConfig(lr=3e-4, backbone_lr_factor=0.2, sampling_lr_factor=0.05, weight_decay=7e-3)


@pytest.fixture(params=["two-stage", "one-stage"])
def detector(tiny: ModuleType, request: pytest.FixtureRequest) -> torch.nn.Module:
    config = tiny.MODEL
    if request.param == "one-stage":
        config = dataclasses.replace(config, queries="learned", reference="keep")
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, freeze_stem=True))
    return models.build(config)


def test_groups_cover_every_trained_parameter_once_with_the_official_rates(detector: torch.nn.Module) -> None:
    optimizer = build_optimizer(dict(detector.named_parameters()), CONFIG)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rates)
    kinds = set()
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in rates, name
            continue
        kind = 0.2 if name.startswith("backbone.") else 1.0
        if ".sampling_offsets." in f".{name}" or ".reference_points." in f".{name}":
            kind = 0.05
        assert rates.pop(id(parameter)) == pytest.approx(kind * 3e-4), name
        kinds.add(kind)
    assert not rates and kinds == {1.0, 0.2, 0.05}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {7e-3}


def test_schedule_keeps_the_ratios(detector: torch.nn.Module) -> None:
    optimizer = build_optimizer(dict(detector.named_parameters()), CONFIG)
    set_lr(optimizer, 1e-5)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([5e-7, 2e-6, 1e-5])


def test_factor_zero_freezes(detector: torch.nn.Module) -> None:
    optimizer = build_optimizer(dict(detector.named_parameters()), dataclasses.replace(CONFIG, backbone_lr_factor=0.0))
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in detector.named_parameters() if name.startswith("backbone.")}
    assert all(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"])


def steps(detector: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in detector.parameters():
            if parameter.requires_grad:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.grad = torch.empty_like(parameter).copy_(values)  # in the parameter's memory format
        optimizer.step()


def test_state_survives_a_round_trip_through_a_file_to_the_bit(detector: torch.nn.Module, tmp_path: Path) -> None:
    """A file forgets strides, and the weights of convolutions may be channels-last."""
    detector.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(dict(detector.named_parameters()), CONFIG)
    steps(detector, optimizer, seed=1, count=3)
    weights = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    format.save(tmp_path / "state.safetensors", optimizer_tensors(optimizer, dict(detector.named_parameters())), {})
    steps(detector, optimizer, seed=2, count=2)
    expected = {name: tensor.clone() for name, tensor in detector.state_dict().items()}

    detector.load_state_dict(weights)
    again = build_optimizer(dict(detector.named_parameters()), CONFIG)
    load_optimizer_tensors(
        again, dict(detector.named_parameters()), format.load(tmp_path / "state.safetensors").tensors
    )
    steps(detector, again, seed=2, count=2)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in detector.state_dict().items())


def test_one_step_is_that_of_adamw(detector: torch.nn.Module) -> None:
    """Against the update as published: bias-corrected moments, decoupled decay."""
    parameter = detector.decoder.heads[0].get_parameter(
        next(n for n, _ in detector.decoder.heads[0].named_parameters())
    )
    before = parameter.detach().double().clone()
    optimizer = build_optimizer(dict(detector.named_parameters()), CONFIG)
    steps(detector, optimizer, seed=5, count=1)
    assert parameter.grad is not None
    gradient = parameter.grad.double()
    expected = before * (1 - 3e-4 * 7e-3) - 3e-4 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-7)
