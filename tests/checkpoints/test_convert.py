"""Conversion between our file and folders of ``transformers``, and from official files."""

from argparse import Namespace
from pathlib import Path

import hf_models
import pytest
import torch

from detrs.checkpoints.convert import convert_checkpoint
from detrs.checkpoints.detector import TrainedDetector, load_detector
from detrs.checkpoints.foreign.official_detr import official_state_dict
from detrs.checkpoints.foreign.transformers import load_transformers
from detrs.errors import UserError


def equal(one: TrainedDetector, other: TrainedDetector) -> bool:
    tensors, others = one.module.state_dict(), other.module.state_dict()
    same = tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)
    return same and (one.classes, one.preprocessing, one.experiment) == (
        other.classes,
        other.preprocessing,
        other.experiment,
    )


@pytest.mark.parametrize("name", ["deformable-two-stage", "conditional"])
def test_there_and_back_again_is_bit_exact(name: str, tmp_path: Path) -> None:
    source = load_transformers(hf_models.saved(hf_models.build(name, backbone="resnet18"), tmp_path / "theirs"))
    file = convert_checkpoint(str(tmp_path / "theirs"), "detrs", tmp_path / "ours.safetensors")
    assert equal(load_detector(file), source)
    folder = convert_checkpoint(str(file), "transformers", tmp_path / "again")
    assert equal(load_transformers(folder), source)
    torch.save({"model": official_state_dict(source), "args": Namespace(nheads=4, num_queries=7)}, tmp_path / "x.pth")
    official = load_transformers(convert_checkpoint(str(tmp_path / "x.pth"), "transformers", tmp_path / "official"))
    tensors = official.module.state_dict()
    assert all(torch.equal(tensors[key], tensor) for key, tensor in source.module.state_dict().items())
    best = convert_checkpoint(str(folder), "detrs", tmp_path / "run")
    assert best == tmp_path / "run" / "best.safetensors" and best.read_bytes() == file.read_bytes()


def test_existing_output_and_unknown_format_are_rejected_before_reading(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(UserError, match=r"best.safetensors' exists. Expected a new file"):
        convert_checkpoint("nothing", "detrs", tmp_path)
    with pytest.raises(UserError, match=r"got 'transformer'. Did you mean 'transformers'\?"):
        convert_checkpoint("nothing", "transformer", tmp_path / "x")
