"""What folders of ``transformers`` look like: spellings, formats of weights, old settings; and faulty ones."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detrs import models
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.foreign.transformers import load_transformers, save_transformers
from detrs.checkpoints.lookup import is_transformers_folder
from detrs.classification import Focal
from detrs.errors import UserError
from detrs.presets import preset
from detrs.structures import Classes

TINY = ["detr", "conditional", "deformable", "deformable-two-stage", "dab"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A copy of the folder of a random detector with a tiny backbone."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = hf_models.saved(
                hf_models.build(name, backbone="test_resnet"), tmp_path_factory.mktemp("folders") / name
            )
        copy = tmp_path_factory.mktemp("copies") / name
        copy.mkdir()
        for path in made[name].iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        return copy

    return folder


Folders = Callable[[str], Path]


def change(folder: Path, file: str = "config.json", **values: Any) -> Path:
    """The folder with other settings; ``None`` removes one."""
    path = folder / file
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def rename(folder: Path, new: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The folder with other tensors."""
    save_file(new(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


def equal(one: TrainedDetector, other: TrainedDetector) -> bool:
    tensors, others = one.module.state_dict(), other.module.state_dict()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)


@pytest.mark.parametrize("name", TINY)
def test_names_in_memory_and_counters_are_read(name: str, folders: Folders) -> None:
    """Files written with ``save_file(model.state_dict())``, and old ones with counters of BatchNorm."""
    expected = load_transformers(folders(name))
    model = hf_models.model_class(name).from_pretrained(folders(name))
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert any(".mlp.fc1." in key for key in tensors)
    tensors["model.backbone.model.layer4.0.downsample.1.num_batches_tracked"] = torch.tensor(3)
    assert equal(load_transformers(rename(folders(name), lambda _: tensors)), expected)


@pytest.mark.parametrize("kept", [0, 2])
def test_one_shared_head_of_any_index_is_enough(kept: int, folders: Folders) -> None:
    expected = load_transformers(folders("deformable"))

    def one_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            re.sub(r"^(class|bbox)_embed\.0\.", rf"\1_embed.{kept}.", key): tensor
            for key, tensor in tensors.items()
            if not re.match(r"(class|bbox)_embed\.[1-9]", key)
        }

    assert equal(load_transformers(rename(folders("deformable"), one_head)), expected)


@pytest.mark.parametrize("dropped", [r"^(class|bbox)_embed\.", r"^model\.decoder\.(class|bbox)_embed\."])
def test_heads_are_read_from_the_top_level_or_the_decoder(dropped: str, folders: Folders) -> None:
    name = "deformable-two-stage"
    tensors = load_file(folders(name) / "model.safetensors")
    assert sum(bool(re.match(dropped, key)) for key in tensors) == 4 * 8
    expected = load_transformers(folders(name))
    remaining = {key: tensor for key, tensor in tensors.items() if not re.match(dropped, key)}
    assert equal(load_transformers(rename(folders(name), lambda _: remaining)), expected)


@pytest.mark.parametrize(
    ("name", "dropped", "named"),
    [
        ("deformable-two-stage", r"(model\.decoder\.)?class_embed\.1\.", "class_embed.1.weight"),
        ("deformable-refine", r"(model\.decoder\.)?bbox_embed\.2\.", "bbox_embed.2.layers.0.weight"),
        ("deformable", r"class_embed\.", "class_embed.0.weight"),
        ("detr", r"class_labels", "class_labels_classifier.weight"),
        ("conditional", r".*layers\.0\.ca_qpos_proj", "model.decoder.layers.0.ca_qpos_proj.weight"),
        ("dab", r"model\.decoder\.ref_anchor_head", "model.decoder.ref_anchor_head.layers.0.weight"),
    ],
)
def test_a_dropped_tensor_is_reported(name: str, dropped: str, named: str, folders: Folders) -> None:
    folder = rename(
        folders(name), lambda tensors: {key: value for key, value in tensors.items() if not re.match(dropped, key)}
    )
    with pytest.raises(UserError, match=rf"missing: .*{re.escape(named)}"):
        load_transformers(folder)


def test_heads_with_different_values_are_rejected(folders: Folders) -> None:
    """``transformers`` would use both; our model has one."""

    def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "model.decoder.bbox_embed.0.layers.0.bias"
        return {**tensors, name: tensors[name] + 1}

    with pytest.raises(UserError, match=r"different values .*: bbox_embed\.0\.layers\.0\.bias, model\.decoder"):
        load_transformers(rename(folders("deformable-refine"), changed))


def test_half_precision_is_read_as_float32(folders: Folders) -> None:
    folder = rename(folders("detr"), lambda tensors: {key: tensor.half() for key, tensor in tensors.items()})
    tensors = load_transformers(folder).module.state_dict()
    expected = load_transformers(folders("detr")).module.state_dict()
    assert all(torch.equal(tensors[key], tensor.half().float()) for key, tensor in expected.items())


def test_bin_and_sharded_weights(folders: Folders) -> None:
    expected, folder = load_transformers(folders("detr")), folders("detr")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert is_transformers_folder(folder) and equal(load_transformers(folder), expected)
    (folder / "pytorch_model.bin").unlink()
    assert not is_transformers_folder(folder)

    names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for file in set(names.values()):
        save_file({key: tensor for key, tensor in tensors.items() if names[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert is_transformers_folder(folder) and equal(load_transformers(folder), expected)
    outside = {**names, next(iter(names)): "../other.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(UserError, match="expected the file of each tensor as 'weight_map'"):
        load_transformers(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "test_resnet"},
        {"backbone": "test_resnet", "use_timm_backbone": True, "use_pretrained_backbone": True, "backbone_kwargs": {}},
        {"backbone": "test_resnet", "backbone_kwargs": {"in_chans": 3, "out_indices": [1, 2, 3, 4]}},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [-1]}},
    ],
)
def test_older_settings_of_the_backbone(settings: dict[str, Any], folders: Folders) -> None:
    expected = load_transformers(folders("detr"))
    found = load_transformers(change(folders("detr"), **{"backbone_config": None, **settings}))
    assert equal(found, expected) and found.experiment == expected.experiment


def test_dilation_of_older_settings(folders: Folders) -> None:
    settings = {"backbone_config": None, "backbone": "test_resnet", "dilation": True}
    assert load_transformers(change(folders("detr"), **settings)).experiment.model.backbone.dilated
    kwargs = {**settings, "dilation": None, "backbone_kwargs": {"output_stride": 16}}
    assert load_transformers(change(folders("detr"), **kwargs)).experiment.model.backbone.dilated


def test_preprocessing_of_each_notation(folders: Folders) -> None:
    file = "preprocessor_config.json"
    default = load_transformers(folders("detr")).preprocessing
    assert (default.resize_to, default.mean) == ((800, 1333), (0.485, 0.456, 0.406))
    old = change(folders("detr"), file, size=480, max_size=640, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.5, 1])
    found = load_transformers(old)
    assert (found.preprocessing.resize_to, found.preprocessing.std) == ((480, 640), (0.25, 0.5, 1.0))
    assert found.experiment.model.backbone.mean == (0.5, 0.5, 0.5)
    assert found.experiment.data.resize_to == (480, 640) and found.experiment.data.augment != "official"
    new = change(folders("detr"), file, size={"shortest_edge": 480, "longest_edge": 640}, do_normalize=False)
    found = load_transformers(new)
    assert (found.preprocessing.resize_to, found.preprocessing.mean) == ((480, 640), (0.0, 0.0, 0.0))


def test_classes_of_coco_and_own_names(folders: Folders, tmp_path: Path) -> None:
    labels = {"0": "N/A", "1": "cat", "2": "N/A", "3": "dog", "4": "cat"}
    detector = load_transformers(change(folders("detr"), id2label=labels))
    assert detector.classes == Classes(("N/A 0", "cat", "N/A 2", "dog", "cat 4"), (0, 1, 2, 3, 4))
    save_transformers(detector, tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())["id2label"]
    assert written == {**labels, "4": "cat 4"}

    assert load_transformers(folders("detr")).classes.names == tuple(f"LABEL_{i}" for i in range(5))
    labels = {"0": "a", "1": "a 2", "2": "a", "3": "b", "4": "c"}
    assert load_transformers(change(folders("detr"), id2label=labels)).classes.names == ("a", "a 2", "a 2 2", "b", "c")
    assert load_transformers(change(folders("detr"), id2label=None, num_labels=5)).classes.names[4] == "LABEL_4"

    own = replace(detector, classes=Classes(("a", "b", "c", "d", "e"), (7, 1, 3, 5, 12)))
    save_transformers(own, tmp_path / "own")
    assert load_transformers(tmp_path / "own").classes == own.classes


REJECTED: list[tuple[str, str, dict[str, Any], str]] = [
    ("detr", "config.json", {"model_type": "yolos"}, "model_type is 'yolos', which is not supported. Expected 'detr'"),
    ("detr", "config.json", {"architectures": ["DetrForSegmentation"]}, "architectures is 'DetrForSegmentation'"),
    ("detr", "config.json", {"activation_function": "gelu"}, "activation_function is 'gelu', which is not supported"),
    ("detr", "config.json", {"position_embedding_type": "learned"}, "position_embedding_type is 'learned'"),
    ("detr", "config.json", {"auxiliary_loss": True}, "auxiliary_loss is True, which is not supported"),
    ("conditional", "config.json", {"decoder_attention_heads": 8}, "Expected the value of encoder_attention_heads, 4"),
    ("deformable", "config.json", {"encoder_n_points": 2}, "decoder_n_points is 4, which is not supported"),
    ("deformable", "config.json", {"two_stage": True}, "model.queries 'proposals' needs model.reference 'refine'"),
    ("dab", "config.json", {"query_dim": 2}, "query_dim is 2, which is not supported. Expected 4"),
    ("dab", "config.json", {"keep_query_pos": True}, "keep_query_pos is True, which is not supported"),
    ("dab", "config.json", {"normalize_before": True}, "normalize_before is True, which is not supported"),
    ("dab", "config.json", {"activation_function": "relu"}, "activation_function is 'relu', which is not supported"),
    ("dab", "config.json", {"sine_position_embedding_scale": 1.0}, "Expected null, which means 2 pi"),
    ("dab", "config.json", {"temperature_width": 30}, "Expected the value of temperature_height, 20.0"),
    ("dab", "config.json", {"temperature_height": 0, "temperature_width": 0}, "model.temperature"),
    ("dab", "config.json", {"num_patterns": -1}, "model.num_patterns"),
    ("dab", "config.json", {"num_patterns": 10**9}, "model.num_queries"),
    ("detr", "config.json", {"d_model": "64"}, "d_model is '64', which is not supported. Expected a value of type int"),
    ("detr", "config.json", {"encoder_layers": 10**9}, "model.encoder_layers"),
    ("detr", "config.json", {"decoder_layers": 10**9}, "model.decoder_layers"),
    ("deformable", "config.json", {"num_feature_levels": 10**9}, "model.num_levels"),
    ("detr", "config.json", {"id2label": None, "num_labels": 10**12}, "num_labels is 1000000000000"),
    (
        "detr",
        "config.json",
        {"backbone_config": None, "backbone": "mobilenetv2_100"},
        "'mobilenetv2_100' gives other feature maps in transformers",
    ),
    ("detr", "config.json", {"id2label": {"0": "a", "2": "b"}}, "Expected a name for each row from 0 to 1"),
    ("detr", "config.json", {"backbone_config": {"model_type": "swin"}}, "backbone_config.model_type is 'swin'"),
    ("detr", "config.json", {"backbone_config": None, "backbone": "resnet999"}, "backbone is 'resnet999'"),
    (
        "detr",
        "config.json",
        {"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}},
        "Expected those of ResNet-18, 26, 34, 50, 101 or 152",
    ),
    ("detr", "preprocessor_config.json", {"size": {"height": 640, "width": 640}}, "size is {'height': 640"),
    ("detr", "preprocessor_config.json", {"resample": 3}, "resample is 3, which is not supported. Expected 2"),
    ("detr", "preprocessor_config.json", {"do_resize": False}, "do_resize is False"),
    ("detr", "preprocessor_config.json", {"image_std": [1, 1]}, "image_std is [1, 1]"),
    ("detr", "preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor is 1.0"),
]


@pytest.mark.parametrize(("name", "file", "values", "message"), REJECTED)
def test_unsupported_settings_are_named(
    name: str, file: str, values: dict[str, Any], message: str, folders: Folders
) -> None:
    folder = change(folders(name), file, **values)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        load_transformers(folder)
    assert f"'{folder}'" in str(raised.value)


def test_backbones_that_transformers_changes_are_rejected(folders: Folders) -> None:
    """Its frozen BatchNorm has no activation, which timm fuses into that of MobileNetV2."""
    model = preset("detr-tiny").model
    model = replace(model, backbone=replace(model.backbone, name="mobilenetv2_100", norm="frozen"))
    detector = replace(
        load_transformers(folders("detr")),
        module=models.build(model),
        experiment=replace(preset("detr-tiny"), model=model),
    )
    with pytest.raises(UserError, match="'mobilenetv2_100' gives other feature maps in transformers"):
        save_transformers(detector, folders("detr") / "new")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "invalid JSON at line 1, column 2"),
        (b"[]", "expected an object, got []"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_faulty_json(content: bytes, message: str, folders: Folders) -> None:
    folder = folders("detr")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        load_transformers(folder)


def test_faulty_weights(folders: Folders) -> None:
    folder = folders("detr")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(UserError, match="is truncated or damaged"):
        load_transformers(folder)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="is not a valid safetensors file"):
        load_transformers(folder)
    weights.unlink()
    with pytest.raises(UserError, match="has no weights. Expected model.safetensors"):
        load_transformers(folder)
    weights.write_bytes(content)

    def diverged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**tensors, "class_labels_classifier.bias": torch.full((6,), float("nan"))}

    with pytest.raises(UserError, match=r"contains NaN or infinity in class_labels_classifier\.bias"):
        load_transformers(rename(folder, diverged))


def test_output_is_complete_or_not_written(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = load_transformers(folders("detr"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for folder in (tmp_path / "full", tmp_path / "full" / "notes.txt"):
        with pytest.raises(UserError, match="exists. Expected a new or an empty folder"):
            save_transformers(detector, folder)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(UserError, match="Cannot write .*: No space left on device"):
        save_transformers(detector, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    monkeypatch.undo()

    (tmp_path / "empty").mkdir()
    save_transformers(detector, tmp_path / "empty")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("anchor-detr-tiny", {}, "transformers does not have AnchorDETR. Expected DETR"),
        ("faster-rcnn-tiny", {}, "transformers does not have FasterRCNN"),
        ("dino-tiny", {}, "transformers does not have DINO"),
        ("dn-detr-r50", {}, "model.content is 'unknown'. To convert, train with --model.content zero."),
        ("dab-detr-r50", {"temperature": 20.5}, "model.temperature is 20.5, but transformers only has whole numbers"),
        (
            "deformable-detr-tiny",
            {},
            "To convert, train with --model.neck-norm group --model.proposals all.",
        ),
        ("deformable-detr-r50-fpn", {}, "model.neck is 'fpn'. To convert, train with --model.neck projection."),
        ("deformable-detr-r50-own-level", {}, "model.encoder_attention is 'own-level'"),
        ("detr-tiny", {"classification": Focal()}, "model.classification is Focal"),
    ],
)
def test_detectors_that_transformers_does_not_have(
    name: str, values: dict[str, Any], message: str, folders: Folders
) -> None:
    experiment = preset(name)
    experiment = replace(experiment, model=replace(experiment.model, **values))
    detector = replace(load_transformers(folders("detr")), experiment=experiment)
    with pytest.raises(UserError, match=re.escape(message)):
        save_transformers(detector, folders("detr") / "new")


@pytest.mark.parametrize("name", ["detr-tiny", "conditional-detr-tiny", "dab-detr-tiny"])
def test_presets_with_ordinary_batch_norm_are_written(name: str, folders: Folders, tmp_path: Path) -> None:
    """Counters of BatchNorm are left out; in evaluation, ordinary and frozen BatchNorm are equal."""
    experiment = preset(name)
    experiment = replace(experiment, model=replace(experiment.model, num_classes=5))
    source = load_transformers(folders("detr"))
    detector = replace(source, experiment=experiment, module=models.build(experiment.model).eval())
    save_transformers(detector, tmp_path / "new")
    found = load_transformers(tmp_path / "new")
    pixels, padding = hf_models.images()
    mine: Any = detector.module
    other: Any = found.module
    torch.testing.assert_close(other(pixels, padding).last.logits, mine(pixels, padding).last.logits)
    theirs = hf_models.model_class(name.split("-")[0]).from_pretrained(tmp_path / "new").eval()
    with torch.no_grad():
        logits = theirs(pixels, (~padding).long()).logits
    torch.testing.assert_close(logits, mine(pixels, padding).last.logits, atol=1e-5, rtol=1e-5)
