"""Numbers of the table of accelerated models."""

import attention_models
import pytest
import torch

import integrations


def test_differences_are_relative_to_large_outputs() -> None:
    expected = {"logits": torch.tensor([8.0, -float("inf")]), "boxes": (torch.tensor([0.5]), torch.tensor([1]))}
    actual = {"logits": torch.tensor([8.5, -float("inf")]), "boxes": (torch.tensor([0.25]), torch.tensor([2]))}
    found = integrations.differences(actual, expected)
    assert found == {"logits": (0.5, 8.0), "boxes.0": (0.25, 0.5)}
    assert integrations.largest_difference({"differences": found}) == 0.25
    with pytest.raises(AssertionError, match="logits"):
        integrations.differences({**actual, "logits": torch.tensor([8.0, 0.0])}, expected)
    with pytest.raises(AssertionError):
        integrations.differences({"logits": actual["logits"]}, expected)


def test_comparison_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both versions run in each round, and the outputs depend on the attention: their rounding differs."""
    monkeypatch.setattr(integrations, "MODELS", {"small": attention_models.rt_detr})
    line = integrations.compare("small", 3, 0.0, torch.device("cpu"))
    assert (line["replaced"], line["repeats"], len(line["ratios"]), len(line["cpu_ratios"])) == (2, 3, 3, 3)
    assert set(line["milliseconds"]) == {"original", "accelerated"}
    assert 0 < integrations.largest_difference(line) < 1e-5
    assert line["differences"]["pred_boxes"][0] < 1e-5
    assert all(value > 0 for value in line["attention_cpu_milliseconds"].values())
    line |= {"ratios": [1.0, 2.0, 4.0], "cpu_ratios": [3.0, 2.5, 2.0]}
    line["attention_cpu_milliseconds"] = {"original": 6.0, "accelerated": 2.0}
    row = integrations.table([line]).splitlines()[-1]
    assert row.startswith("| `small`, 64 x 96 | 2 |") and "| 2.00x | 2.50x | 3.0x | 3 |" in row
