import json
from pathlib import Path

import model_peers
import page
import pytest
import step_memory
import torch
from model_floor import Floor
from model_peers import Case, batch_of, our_model, torchvision_model, transformers_model

import models
from detrs.evaluation.speed import count_flops
from detrs.presets import preset

TINY = Case("deformable-detr-tiny", (64, 96), 1, False, torch.device("cpu"))
FOLDED = TINY._replace(name="deformable-detr-r50")
"""Its convolutions contain frozen BatchNorm."""


def no_grad_detect(case: Case) -> model_peers.Work:
    return model_peers.works(case, ["detrs"])["detrs"]


@pytest.mark.parametrize("case", [TINY, FOLDED], ids=lambda case: case.name)
def test_the_floor_counts_all_multiply_adds_of_the_forward_pass(case: Case) -> None:
    floor = Floor(no_grad_detect(case))
    floor.measure(lambda run: (run(), 2.0)[1])
    line = floor.line()
    batch = batch_of(case)
    model = our_model(preset(case.name)).eval()
    expected = count_flops(model, batch.images, batch.padding, run=model.detect)
    assert line["giga_multiply_adds"] == pytest.approx(expected / 1e9, rel=1e-12)
    calls = sum(count for call, count in floor.calls.items() if floor.multiply_adds[call])
    assert line["milliseconds"] == pytest.approx(2000.0 * calls)
    layers = len(model.encoder.layers) + len(model.decoder.layers)
    assert line["sampling_milliseconds"] == pytest.approx(2000.0 * layers)


def test_the_floor_takes_the_faster_memory_format() -> None:
    floor = Floor(no_grad_detect(TINY))
    for lists in floor.seconds.values():
        for number, times in enumerate(lists):
            times.append(3.0 - number)
    calls = [(call, count) for call, count in floor.calls.items() if floor.multiply_adds[call]]
    total = sum(count * (2.0 if "convolution" in call.operator._schema.name else 3.0) for call, count in calls)
    assert floor.line()["milliseconds"] == pytest.approx(1000.0 * total)


@pytest.mark.parametrize("name", model_peers.TRANSFORMERS)
def test_peers_have_as_many_parameters(name: str) -> None:
    experiment = preset(name)
    with torch.device("meta"):
        ours, theirs = our_model(experiment), transformers_model(experiment)
    own, their = (sum(p.numel() for p in model.parameters()) for model in (ours, theirs))
    shared = 5 * 91 * 257 if name == "deformable-detr-r50-refine" else 0  # they share the class layer of all heads here
    assert own - shared == their
    own, their = (sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs))
    assert own - shared == their, "not the same parameters are trained"


def test_faster_rcnn_trains_the_parameters_of_its_peer() -> None:
    case = TINY._replace(name="faster-rcnn-r50-fpn")
    models = our_model(preset(case.name)), torchvision_model(case)
    own, their = (sum(p.numel() for p in model.parameters() if p.requires_grad) for model in models)
    assert own == their


def test_resident_memory_grows_by_what_is_allocated() -> None:
    step_memory.reset_peak()
    before = step_memory.resident_kib("VmRSS")
    block = torch.ones(48 << 20, dtype=torch.uint8)
    assert block[-1] == 1
    del block
    grown = (step_memory.resident_kib("VmHWM") - before) / 1024
    assert 46 < grown < 80


def test_a_run_appends_a_line_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- models: begin -->\n<!-- models: end -->\n")
    monkeypatch.setattr(models, "RESULTS", tmp_path / "models.jsonl")
    monkeypatch.setattr(page, "README", readme)
    words = "models.py deformable-detr-tiny --image-size 64 96 --repeats 1 --no-memory --device cpu --floor"
    monkeypatch.setattr("sys.argv", [*words.split(), "--implementations", "detrs", "grid_sample"])
    models.main()
    forward, step = [json.loads(line) for line in models.RESULTS.read_text().splitlines()]
    assert forward["pass"] == "forward" and step["pass"] == "forward + backward"
    assert set(step["milliseconds"]) == {"detrs fp32", "detrs bf16", "grid_sample fp32"}
    assert set(forward["floor"]) == {"fp32", "bf16"} and not step["floor"]
    assert "deformable-detr-tiny, 1 x 64 x 96, forward + backward: grid_sample fp32" in readme.read_text()
    assert "multiply-adds take at least" in readme.read_text() and "of the forward pass" in capsys.readouterr().out
