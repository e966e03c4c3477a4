from typing import Any

import pytest
import torch

from detrs.backbones.timm import BackboneConfig, TimmBackbone
from detrs.config import RuntimeConfig
from detrs.criterion.objective import Objective
from detrs.engine.runtime import Runtime
from detrs.errors import UserError


def test_fp16_needs_an_accelerator() -> None:
    with pytest.raises(UserError, match="fp16.*bf16"):
        Runtime(RuntimeConfig(device="cpu", precision="fp16"))


class Linear(Objective):
    """A linear layer in the place of an objective."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(7, 5)

    def forward(self, batch: Any, totals: Any = None) -> Any:
        return self.linear(batch)


def test_precision_may_change_from_run_to_run() -> None:
    """accelerate keeps its state for the whole process and refuses a second precision."""
    net = torch.nn.Linear(7, 5)
    values = torch.randn(3, 7)
    outputs = {}
    for precision in ("fp32", "bf16", "fp32"):
        runtime = Runtime(RuntimeConfig(device="cpu", precision=precision))
        own = Linear()
        own.linear.load_state_dict(net.state_dict())
        model, _ = runtime.prepare(own, torch.optim.AdamW(own.parameters()))
        with runtime.autocast():
            outputs[precision] = model(values).float()
    assert torch.equal(outputs["fp32"], net(values))
    assert not torch.equal(outputs["bf16"], net(values))
    torch.testing.assert_close(outputs["bf16"], net(values), rtol=0.05, atol=0.05)


def test_alone_everything_is_already_agreed() -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"))
    assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
    assert runtime.total(5) == 5 and runtime.largest(3) == 3
    assert runtime.gather([1, 2]) == [1, 2] and runtime.from_main("x") == "x"
    assert torch.equal(runtime.mean(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    assert runtime.memory_bytes() > 2**20


def test_clip_measures_before_and_limits_after() -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"))
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5)]
    for limit, expected in ((0.1, 0.1), (100.0, 2 * 8**0.5), (None, 2 * 8**0.5)):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 2.0)
        assert float(runtime.clip(parameters, limit)) == pytest.approx(2 * 8**0.5)
        gradients = torch.cat([p.grad for p in parameters if p.grad is not None])
        assert float(gradients.norm()) == pytest.approx(expected, rel=1e-4)


def test_loss_scale_that_was_lowered_waits_before_it_grows_again() -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    runtime._accelerator.scaler = scaler
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def good_step() -> None:
        optimizer.zero_grad()
        scaler.scale(weight * 2).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(2):
        good_step()
    assert runtime.back_off() and scaler.get_scale() == 512.0
    for _ in range(2):
        good_step()
    assert scaler.get_scale() == 512.0  # with the two before it would have grown already
    good_step()
    assert scaler.get_scale() == 1024.0


def test_batch_norm_over_several_gpus_keeps_weights_and_activations() -> None:
    backbone = TimmBackbone(BackboneConfig(name="test_efficientnet", weights="none", norm="batch", freeze_stem=False))
    images = torch.rand(2, 3, 61, 83)
    expected = [level.clone() for level in backbone.eval()(images)]
    names = list(backbone.state_dict())
    runtime = Runtime(RuntimeConfig(device="cpu"))
    assert runtime.synchronize_batch_norm(backbone) is backbone
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in backbone.modules())
    runtime.world_size, runtime.device = 2, torch.device("cuda")
    together = runtime.synchronize_batch_norm(backbone).eval()
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in together.modules())
    assert list(together.state_dict()) == names
    for level, other in zip(together(images), expected, strict=True):
        torch.testing.assert_close(level, other)
