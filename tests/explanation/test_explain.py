"""The detections are those of prediction, their queries gave them, and the model is left as it was."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explained import EVERY_TINY, photograph, shared_tiny, tiny
from PIL import Image
from torch import nn

import detrs
from detrs.boxes import cxcywh_to_xyxy
from detrs.checkpoints.detector import save_detector, unpadded
from detrs.errors import UserError
from detrs.explanation.explain import explain, explain_iter
from detrs.explanation.views import Explanation
from detrs.layers.decoder import LookForwardTwice
from detrs.predictor import Predictor

THRESHOLD = 0.2
EVERY = pytest.mark.parametrize("name", EVERY_TINY)


def tensors(explanation: Explanation) -> dict[str, torch.Tensor]:
    """All tensors of an explanation."""
    found = {}
    for group in ("trace", "views", "gradients"):
        for i, each in enumerate(getattr(explanation, group)):
            values = each.maps if group == "gradients" else vars(each)
            found |= {f"{group} {i} {key}": value for key, value in values.items() if isinstance(value, torch.Tensor)}
    return found


@pytest.mark.parametrize("name", ["deformable-detr-tiny", "dino-tiny"])
def test_autocast_of_the_program_around_it_changes_nothing(name: str) -> None:
    """Views, gradients and detections are computed in float32."""
    detector, image = shared_tiny(name), photograph()
    (expected,) = explain(detector, [image], threshold=THRESHOLD, device="cpu", num_gradients=1)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = explain(detector, [image], threshold=THRESHOLD, device="cpu", num_gradients=1)
        assert torch.is_autocast_enabled("cpu")
    wanted, given = tensors(expected), tensors(found)
    assert wanted.keys() == given.keys() and any(key.startswith("gradients") for key in wanted)
    for key, value in wanted.items():
        assert torch.equal(given[key], value), key


@EVERY
def test_detections_are_those_of_prediction_and_come_from_their_queries(name: str) -> None:
    predictor = Predictor(shared_tiny(name), "cpu")
    images = [photograph(), photograph((211, 149), seed=1)]
    for image, explanation in zip(images, explain(predictor, images, threshold=THRESHOLD), strict=True):
        (expected,) = predictor([image], threshold=THRESHOLD)
        found = explanation.detections
        assert len(found) > 0
        for key in ("boxes_xyxy", "scores", "labels"):
            assert torch.equal(getattr(found, key), getattr(expected, key)), key
        assert torch.equal(explanation.image, image) and explanation.threshold == THRESHOLD
        height, width = image.shape[1:]
        last = explanation.trace[-1]
        boxes = cxcywh_to_xyxy(last.boxes[explanation.queries]) * torch.tensor([width, height, width, height])
        limits = torch.tensor([width, height, width, height])
        assert torch.allclose(boxes.clamp(min=0).minimum(limits), found.boxes_xyxy, atol=1e-4)
        assert torch.equal(last.scores[explanation.queries, found.labels], found.scores)


@pytest.mark.parametrize("name", ["dino-tiny", "detr-tiny", "faster-rcnn-tiny"])
def test_suppressed_detections_are_not_explained(name: str) -> None:
    detector = shared_tiny(name)
    experiment, image = detector.experiment, photograph()
    found, duplicates = {}, {}
    for nms in (None, 0.2):
        evaluation = replace(experiment.evaluation, nms=nms)
        own = replace(detector, experiment=replace(experiment, evaluation=evaluation))
        (explanation,) = explain(own, image, threshold=0.0, device="cpu", num_gradients=1)
        (expected,) = Predictor(own, "cpu", precision="fp32")([image], threshold=0.0)
        assert torch.equal(explanation.detections.boxes_xyxy, expected.boxes_xyxy)
        last = explanation.trace[-1]
        assert torch.equal(last.scores[explanation.queries, expected.labels], expected.scores)
        found[nms] = len(expected)
        batch = unpadded([own.preprocessing.resize(image)])
        last_layer = own.detect_layers(batch, [(image.shape[1], image.shape[2])])[-1]
        if name == "faster-rcnn-tiny":
            assert explanation.suppressed is not None and any(explanation.suppressed)
            for detection in zip(explanation.queries, expected.labels.tolist(), explanation.suppressed, strict=True):
                assert duplicates.setdefault(detection[:2], detection[2]) == detection[2]  # those of the first pass
        else:
            assert last_layer.queries is not None and last_layer.queries[0].tolist() == explanation.queries
    assert 0 < found[0.2] < found[None]


@EVERY
def test_repr_is_short(name: str) -> None:
    (found,) = explain(shared_tiny(name), photograph(), threshold=THRESHOLD, device="cpu", num_gradients=1)
    assert repr(found).startswith("<Explanation: ") and f"{len(found.views)} view" in repr(found)
    assert repr(found).endswith("gradients of 1 detection>") and len(repr(found)) < 150
    for each in (*found.trace, *found.views, *found.gradients):
        assert repr(each).startswith(f"{type(each).__name__}(") and len(repr(each)) < 500
    assert repr(found.trace[0]).endswith(f"scores=Tensor{tuple(found.trace[0].scores.shape)})")


@EVERY
def test_trace_has_the_reference_before_and_the_box_after_each_layer(name: str) -> None:
    detector = shared_tiny(name)
    (explanation,) = explain(detector, photograph(), threshold=THRESHOLD, device="cpu")
    model: Any = detector.experiment.model
    assert len(explanation.trace) == getattr(model, "decoder_layers", 1)
    assert explanation.detector == type(model).__name__.removesuffix("Config")
    for before, after in zip(explanation.trace, explanation.trace[1:], strict=False):
        refined = after.reference.shape[1] == 4
        same = torch.equal(after.reference, before.boxes if refined else before.reference)
        # with a head whose normalization is applied for the prediction only, the reference is another box
        assert same != isinstance(getattr(detector.module, "decoder", None), LookForwardTwice)
    classes = {layer.scores.shape[1] for layer in explanation.trace}
    assert classes == {len(detector.classes.names)}


def test_explanations_do_not_depend_on_other_images() -> None:
    detector = shared_tiny("deformable-detr-tiny")
    images = [photograph(), photograph(seed=1), photograph((149, 83), seed=2)]
    together = explain(detector, images, threshold=THRESHOLD, num_gradients=1, device="cpu")
    for image, one in zip(images, together, strict=True):
        (alone,) = explain(detector, image, threshold=THRESHOLD, num_gradients=1, device="cpu")
        assert one.queries == alone.queries and len(one.gradients) == 1
        expected = tensors(alone)
        assert len(expected) > 20
        assert all(torch.equal(value, expected[key]) for key, value in tensors(one).items())


def state(module: torch.nn.Module) -> list[Any]:
    """What using a module could leave behind."""
    found: list[Any] = [torch.is_grad_enabled(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # type: ignore[index,union-attr]
    for each in module.modules():
        hooks = {key: len(value) for key, value in vars(each).items() if key.endswith("hooks")}
        found.append((each.training, hooks, sorted(vars(each))))
    for name, value in module.state_dict(keep_vars=True).items():
        found.append((name, value.grad, value.requires_grad, value.device, value._version, value.detach().sum().item()))
    return found


class Interruption(Exception):
    pass


@pytest.mark.parametrize("name", ["deformable-detr-tiny", "sparse-rcnn-tiny"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    detector = tiny(name)
    module: Any = detector.module
    module.train()
    module.backbone.eval()
    next(module.parameters()).requires_grad_(False)
    before = state(module)
    explain(detector, photograph(), threshold=THRESHOLD, num_gradients=1, device="cpu")
    assert state(module) == before

    iterator = explain_iter(detector, [photograph()] * 2, threshold=THRESHOLD, device="cpu")
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert state(module) == before

    with pytest.raises(UserError, match="not a readable image"):
        explain(detector, [photograph(), b"no image"], device="cpu")
    assert state(module) == before

    def interrupt(*_: Any) -> None:
        raise Interruption

    handle = module.decoder.layers[-1].register_forward_pre_hook(interrupt)
    interrupted = state(module)
    with pytest.raises(Interruption):
        explain(detector, photograph(), device="cpu")
    assert state(module) == interrupted
    handle.remove()


def test_hooks_are_present_only_while_the_model_runs() -> None:
    detector = shared_tiny("detr-tiny")
    before = state(Predictor(detector, "cpu").detector.module)
    for _ in explain_iter(Predictor(detector, "cpu"), [photograph()] * 2, threshold=THRESHOLD):
        assert state(detector.module) == before


def test_explanations_in_threads() -> None:
    """Each thread records its own calls of the shared model only."""
    predictor = Predictor(shared_tiny("detr-tiny"), "cpu")
    images = [photograph(seed=seed) for seed in range(4)]
    expected = explain(predictor, images, threshold=THRESHOLD)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: explain(predictor, [image] * 3, threshold=THRESHOLD)[-1], images))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(value, tensors(other)[key]) for key, value in tensors(one).items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_in_a_program_without_gradients(mode: Any) -> None:
    detector = shared_tiny("deformable-detr-tiny")
    (expected,) = explain(detector, photograph(), threshold=THRESHOLD, num_gradients=1, device="cpu")
    with mode():
        (found,) = explain(detector, photograph(), threshold=THRESHOLD, num_gradients=1, device="cpu")
    assert all(torch.equal(value, expected.gradients[0].maps[key]) for key, value in found.gradients[0].maps.items())


def test_an_image_without_detections() -> None:
    (explanation,) = explain(shared_tiny("detr-tiny"), photograph(), threshold=1.0, num_gradients=3, device="cpu")
    assert len(explanation.detections) == 0 and explanation.queries == [] and explanation.gradients == ()
    assert len(explanation.views) > 0 and explanation.to_json()["detections"] == []


def test_a_checkpoint_and_a_file(tmp_path: Path) -> None:
    detector = tiny("conditional-detr-tiny")
    save_detector(tmp_path / "best.safetensors", detector)
    Image.fromarray(photograph().permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    (found,) = detrs.explain(tmp_path, tmp_path / "*.png", threshold=THRESHOLD, device="cpu")
    (expected,) = explain(detector, photograph(), threshold=THRESHOLD, device="cpu")
    assert found.source == str(tmp_path / "image.png") and expected.source is None
    assert found.queries == expected.queries and found.input_size == (97, 131)
    assert all(torch.equal(value, tensors(found)[key]) for key, value in tensors(expected).items())


@pytest.mark.parametrize("own", [None, 0.37])
def test_the_threshold_of_the_detector_is_the_default(own: float | None) -> None:
    detector = replace(shared_tiny("detr-tiny"), threshold=own)
    (explanation,) = explain(detector, photograph(), device="cpu")
    assert explanation.threshold == (0.5 if own is None else own)
    assert len(explanation.detections) == len(Predictor(detector, "cpu")(photograph())[0])


def test_models_of_other_libraries() -> None:
    class Other(nn.Module):
        pass

    module: Any = Other()
    module.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    predictor = Predictor(replace(shared_tiny("detr-tiny"), module=module), "cpu")
    with pytest.raises(UserError, match="Models of the class Other cannot be explained; those of Detector"):
        explain(predictor, photograph())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 50.0}, "threshold is 50.0, but must be in"),
        ({"num_gradients": -1}, "num_gradients is -1, but must be at least 0"),
        ({"max_tokens": 0}, "max_tokens is 0, but must be at least 1"),
        ({"device": "gpu"}, "gpu"),
        ({"images": "absent.jpg"}, "absent.jpg"),
        ({"images": "https://example.com/x.jpg"}, "downloads are disabled"),
        ({"detector": "absent.safetensors"}, "absent.safetensors"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    given = {"detector": shared_tiny("detr-tiny"), "images": photograph(), "device": "cpu"} | arguments
    with pytest.raises(UserError, match=message):
        explain(given.pop("detector"), given.pop("images"), **given)


def test_bccd(shared: Path) -> None:
    image = sorted((shared / "data" / "bccd" / "images").glob("*.jpg"))[0]
    for name in ("deformable-detr-tiny", "anchor-detr-tiny"):
        predictor = Predictor(shared_tiny(name), "cpu")
        (explanation,) = explain(predictor, image, threshold=THRESHOLD)
        (expected,) = predictor(image, threshold=THRESHOLD)
        assert torch.equal(explanation.detections.boxes_xyxy, expected.boxes_xyxy) and len(expected) > 0
        assert explanation.source == str(image) and len(explanation.to_json()["views"]) == len(explanation.views)
