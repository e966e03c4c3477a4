"""DAB-DETR, DN-DETR and DINO against numbers of the authors' code, made with hashed weights, inputs and noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import check, inputs, parameter
from torch import Tensor, nn

from detrs.checkpoints.foreign.official_dab import LABELS, label_channels, renaming, without_labels
from detrs.config.backbone import BackboneConfig
from detrs.config.criterion import ContrastiveDenoising, CriterionConfig, Denoising, GroupDenoising
from detrs.config.dab_deformable_detr import DABDeformableDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.dino import DINOConfig
from detrs.criterion.denoising import Denoiser, num_groups
from detrs.criterion.training_objective import TrainingObjective
from detrs.layers.anchors import SizeModulatedLayer, box_features
from detrs.layers.neck import centers
from detrs.layers.position import SinePosition
from detrs.layers.queries import proposal_anchors
from detrs.models import build, dab_deformable_detr, dab_detr, dino
from detrs.models.detector import Detector
from detrs.structures import Batch, Losses, Pyramid, Queries, Target, Totals

CLASSES = 7
SIZE = 61, 83
VALID = ((61, 83), (40, 59), (61, 70))
"""(rows, columns) of each image."""
BOXES = (
    ([2, 5, 0], [[0.30, 0.40, 0.25, 0.30], [0.70, 0.55, 0.40, 0.50], [0.15, 0.80, 0.10, 0.12]]),
    ([], []),
    ([6, 1], [[0.50, 0.50, 0.90, 0.80], [0.22, 0.35, 0.08, 0.06]]),
)
EQUAL = (
    ([2, 5], [[0.30, 0.40, 0.25, 0.30], [0.70, 0.55, 0.40, 0.50]]),
    ([3, 3], [[0.40, 0.30, 0.20, 0.20], [0.60, 0.70, 0.30, 0.10]]),
    BOXES[2],
)
PYRAMID = {0: (8, 8, 11), 1: (12, 4, 6), 2: (16, 2, 3)}
"""(channels, height, width) of the maps of the stub of a backbone."""
ONE_MAP = {0: (12, 5, 7)}

SMALL: Any = {"num_classes": CLASSES, "encoder_layers": 2, "decoder_layers": 3, "ffn_dim": 64}
DINO = DINOConfig(**SMALL, num_queries=6)
DAB = DABDETRConfig(**SMALL, num_queries=5, backbone=BackboneConfig(stages=(5,)))
DN = DABDETRConfig(
    **{**SMALL, "encoder_layers": 1, "decoder_layers": 2},
    num_queries=5,
    content="unknown",
    backbone=BackboneConfig(stages=(5,)),
)
DAB_DEFORMABLE = DABDeformableDETRConfig(**SMALL, num_queries=6)
CONTRASTIVE = ContrastiveDenoising(pairs=6)
"""Two groups for three objects."""
GROUPED = GroupDenoising(groups=2)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    path = shared / "golden" / "goldens_dino.json"
    if not path.is_file():
        pytest.skip("the golden numbers are not in the shared data folder")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


class Maps(nn.Module):
    """A backbone whose output does not depend on images."""

    def __init__(self, sizes: dict[int, tuple[int, int, int]], images: int) -> None:
        super().__init__()
        self.channels = tuple(size[0] for size in sizes.values())
        self.maps = [inputs(1000 + index, images, *size) for index, size in sizes.items()]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps


@pytest.fixture
def detector(golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Detector]:
    """A detector with hashed weights."""

    def make(config: Any, key: str, images: int = 3) -> Detector:
        sizes = ONE_MAP if isinstance(config, DABDETRConfig) else PYRAMID
        for module in (dino, dab_detr, dab_deformable_detr):
            monkeypatch.setattr(module, "TimmBackbone", lambda *_: Maps(sizes, images))
        made = build(config)
        assert isinstance(made, Detector)
        weights = official_weights(config, made, golden[key]["params"])
        shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
        made.load_state_dict(renaming(config).read(without_labels(config, weights), shapes, key))
        made.label_table = weights.get(LABELS)
        return made.eval()

    return make


def official_weights(config: Any, made: Detector, names: list[str]) -> dict[str, Tensor]:
    """Hashed weights by their official name. Names of one tensor are listed once."""
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    official = {LABELS: (CLASSES + 1, channels)} if (channels := label_channels(config)) else {}
    copies: dict[str, tuple[str, ...]] = {}
    for link in renaming(config).links(shapes):
        for name in link.written:
            official.setdefault(name, link.expected(shapes))
            copies[name] = link.written
    found: dict[str, Tensor] = {}
    for index, name in enumerate(names):
        tensor = parameter(name, index, official[name])
        found |= dict.fromkeys(copies.get(name, (name,)), tensor)
    return found


def padding(images: int) -> Tensor:
    mask = torch.ones(images, *SIZE, dtype=torch.bool)
    for image, (rows, columns) in zip(mask, VALID, strict=False):
        image[:rows, :columns] = False
    return mask


def batch(images: int, objects: Any = BOXES) -> Batch:
    targets = tuple(
        Target(torch.tensor(boxes).view(-1, 4), torch.tensor(labels, dtype=torch.long), number, SIZE)
        for number, (labels, boxes) in enumerate(objects)
    )
    return Batch(torch.zeros(images, 3, *SIZE), padding(images), targets)


class Noise:
    """The random numbers of the reference, in the order of its draws."""

    def __init__(self, first: int) -> None:
        self.next = first

    def __call__(self, *size: int) -> Tensor:
        drawn = (inputs(self.next, *size) / 3**0.5 + 1) / 2
        self.next += 1
        return drawn


def rows(text: list[str]) -> Tensor:
    return torch.tensor([[cell == "1" for cell in row] for row in text])


def numbers(entry: dict[str, Any]) -> Tensor:
    return torch.tensor(entry["values"]).view(entry["shape"])


def close(found: Tensor, entry: dict[str, Any]) -> None:
    if "values" in entry:
        torch.testing.assert_close(found, numbers(entry), rtol=1e-4, atol=1e-5)
    else:
        check(found, entry, sum_rtol=1e-3)


def test_number_of_contrastive_groups(golden: dict[str, Any]) -> None:
    for pairs, objects, groups, slots in golden["dino.cdn_groups"]["rows"]:
        if pairs >= 50:  # below, the authors do not divide by the number of objects
            found = num_groups(ContrastiveDenoising(pairs=pairs), objects) if objects else 1
            assert (found, 2 * found * objects) == (groups, slots)


@pytest.mark.parametrize(("key", "config", "channels"), [("dino.cdn", CONTRASTIVE, 16), ("dn.queries", GROUPED, 15)])
def test_slots(key: str, config: Denoising, channels: int, golden: dict[str, Any]) -> None:
    expected = golden[key]
    denoiser = Denoiser(config, CLASSES, channels, lambda boxes: 2 * (boxes.new_zeros(*boxes.shape[:2], 16),))
    denoiser.labels.weight.data = inputs(900, 8, channels)
    anchors = inputs(901, 5, 4).sigmoid()[None].expand(3, -1, -1)
    queries = Queries(torch.zeros(3, 5, 16), torch.zeros(3, 5, 16), anchors)
    noised, answers = denoiser(batch(3).targets, queries, Noise(2000))
    assert answers.slots == expected["pad_size"]
    boxes = numbers(expected["box_logits"])[:, : answers.slots].sigmoid()  # what layers look at
    torch.testing.assert_close(noised.reference[:, : answers.slots], boxes, rtol=1e-4, atol=1e-6)
    assert torch.equal(noised.attention_mask, rows(expected["visible_rows"]))
    table = denoiser.labels.weight.data
    content = noised.content[:, : answers.slots, :channels]
    nearest = torch.cdist(content, table).argmin(-1).masked_fill((content == 0).all(-1), -1)
    assert nearest.tolist() == torch.tensor(expected["label_of_slot"]).view(3, -1)[:, : answers.slots].tolist()


def test_features_of_positions_and_boxes(golden: dict[str, Any]) -> None:
    boxes = torch.tensor([[[0.3, 0.4, 0.25, 0.3], [0.7, 0.55, 0.4, 0.5]]])
    close(box_features(boxes, 256), golden["dino.box_sine"]["out"])
    mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 4:] = True, True
    found = SinePosition(16, shift=0.0, temperature=20.0)(mask).permute(0, 3, 1, 2)
    close(found[0, :, 2, 3], golden["dino.sine_t20"]["cell_0_2_3"])


@pytest.mark.parametrize("frame", ["padded", "image"])
@torch.no_grad()
def test_dino(frame: str, golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    expected = golden["dino.eval" if frame == "padded" else "dino.eval_unpadded_position"]
    made = detector(DINOConfig(**SMALL, num_queries=6, position_frame=frame), "dino.eval")
    predictions = made(torch.zeros(3, 3, *SIZE), padding(3))
    close(predictions.last.logits, expected["logits"])
    close(predictions.last.boxes, expected["boxes"])
    close(predictions.layers[0].boxes, expected["aux_boxes_0"])


NAMES = {"class": "ce", "box": "bbox", "giou": "giou"}


def compare_losses(found: Losses, expected: dict[str, float], denoising: str, layers: int) -> None:
    """``denoising``: prefix or suffix of the reference's names, with * for the term."""
    theirs = {}
    for ours, name in NAMES.items():
        for suffix in ["", *(f"_{i}" for i in range(layers - 1))]:
            theirs[f"{ours}{suffix}"] = expected[f"loss_{name}{suffix}"]
            if denoising:
                theirs[f"{ours}_denoising{suffix}"] = expected[denoising.replace("*", name) + suffix]
        if f"loss_{name}_interm" in expected:
            theirs[f"{ours}_proposals"] = expected[f"loss_{name}_interm"]
    assert set(found.terms) == set(theirs)
    for name, value in theirs.items():
        assert found.terms[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def objective(made: Detector, denoising: Denoising, first: int) -> TrainingObjective:
    found = made.train().objective(CriterionConfig(denoising=denoising))
    assert isinstance(found, TrainingObjective)
    found.denoiser.labels.weight.data = made.label_table
    found.uniform = Noise(first)
    return found


def test_losses_of_dino(golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    expected, data = golden["dino.train"], batch(3)
    trained = objective(detector(DINO, "dino.eval"), CONTRASTIVE, 2000)
    losses = trained(data, Totals.of(data.targets))
    compare_losses(losses, expected["losses"], "loss_*_dn", 3)
    assert losses.total.item() == pytest.approx(expected["total"], rel=1e-4)
    losses.total.backward()
    check_gradients(trained, expected["grad_abs_sum"])


def check_gradients(trained: TrainingObjective, expected: dict[str, float]) -> None:
    config = DINO
    names = [name for name, _ in trained.detector.named_parameters(remove_duplicate=False)]
    links = renaming(config).links(names)
    parameters = dict(trained.detector.named_parameters(remove_duplicate=False))
    for official, value in expected.items():
        if official == LABELS:
            gradient = trained.denoiser.labels.weight.grad
        else:
            link = next(link for link in links if official in link.written)
            gradient = torch.cat(
                [parameters[name].grad for name in dict.fromkeys(link.ours)][: len(link.ours) if link.packed else 1]
            )
        assert gradient.double().abs().sum().item() == pytest.approx(value, rel=1e-3), official


@pytest.mark.parametrize("hide", [False, True])
def test_losses_of_dino_without_padding(hide: bool, golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    expected, data = golden["dino.train_equal"], batch(3, EQUAL)
    config = ContrastiveDenoising(pairs=4, hide_padding=hide)
    losses = objective(detector(DINO, "dino.eval"), config, 2100)(data, Totals.of(data.targets))
    compare_losses(losses, expected["losses"], "loss_*_dn", 3)


def test_no_objects(golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    data = batch(3, [([], [])] * 3)
    trained = objective(detector(DINO, "dino.eval"), CONTRASTIVE, 2000)
    losses = trained(data, Totals.of(data.targets))
    for name, value in golden["dino.empty"]["losses"].items():
        ours = name.replace("loss_ce", "class").replace("_dn", "_denoising").replace("_interm", "_proposals")
        assert losses.terms[ours].item() == pytest.approx(value, rel=1e-4)
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def test_look_forward_twice(golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    made = detector(DINO, "dino.eval").train()
    made(torch.zeros(3, 3, *SIZE), padding(3)).layers[1].boxes.sum().backward()
    trained = made.objective(CriterionConfig(denoising=CONTRASTIVE))
    check_gradients(trained, golden["dino.look_forward_twice"]["grad_abs_sum"])


@pytest.mark.parametrize("patterns", [0, 2])
@torch.no_grad()
def test_dab_detr(patterns: int, golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    expected = golden[f"dab.detr_{patterns}patterns"]
    config = DABDETRConfig(
        **SMALL, num_queries=5 * max(patterns, 1), num_patterns=patterns, backbone=BackboneConfig(stages=(5,))
    )
    made = detector(config, f"dab.detr_{patterns}patterns", images=2)
    predictions = made(torch.zeros(2, 3, *SIZE), padding(2))
    close(predictions.last.logits, expected["logits"])
    close(predictions.last.boxes, expected["boxes"])


@torch.no_grad()
def test_positions_and_spatial_queries(
    golden: dict[str, Any], detector: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, made = golden["dab.modulated"], detector(DAB, "dab.detr_0patterns", images=2)
    seen = []
    original = SizeModulatedLayer.spatial_query

    def record(self: SizeModulatedLayer, queries: Queries) -> Tensor:
        spatial = original(self, queries)
        seen.append((spatial.transpose(0, 1), queries.position.transpose(0, 1)))
        return spatial

    monkeypatch.setattr(SizeModulatedLayer, "spatial_query", record)
    made(torch.zeros(2, 3, *SIZE), padding(2))
    for layer in range(2):
        close(seen[layer][0], expected[f"spatial_{layer}"])
        close(seen[layer][1], expected[f"position_{layer}"])


def test_losses_of_dab_detr(golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    made, data = detector(DAB, "dab.detr_0patterns", images=2), batch(2, (BOXES[0], BOXES[2]))
    losses = made.objective(CriterionConfig())(data, Totals.of(data.targets))
    compare_losses(losses, golden["dab.losses"]["losses"], "", 3)


@torch.no_grad()
def test_dab_deformable_detr(golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    expected, made = golden["dab.deformable"], detector(DAB_DEFORMABLE, "dab.deformable", images=2)
    predictions = made(torch.zeros(2, 3, *SIZE), padding(2))
    close(predictions.last.logits, expected["logits"])
    close(predictions.last.boxes, expected["boxes"])


def test_dn_detr(golden: dict[str, Any], detector: Callable[..., Detector]) -> None:
    made = detector(DN, "dn.eval")
    with torch.no_grad():
        predictions = made(torch.zeros(3, 3, *SIZE), padding(3))
    close(predictions.last.logits, golden["dn.eval"]["logits"])
    close(predictions.last.boxes, golden["dn.eval"]["boxes"])
    data = batch(3)
    losses = objective(made, GROUPED, 2000)(data, Totals.of(data.targets))
    compare_losses(losses, golden["dn.train"]["losses"], "tgt_loss_*", 2)


def test_proposals(golden: dict[str, Any]) -> None:
    expected = golden["dino.proposals"]
    valid = torch.tensor([[[7.0, 5.0], [4.0, 3.0]], [[4.0, 3.0], [2.0, 2.0]]])
    shapes = ((5, 7), (3, 4))
    outside = [
        [
            (x >= w or y >= h)
            for (rows_, columns), (w, h) in zip(shapes, image, strict=True)
            for y in range(rows_)
            for x in range(columns)
        ]
        for image in valid.tolist()
    ]
    empty = torch.zeros(2, 47, 8)
    memory = Pyramid(
        empty,
        empty,
        centers(shapes, valid),
        torch.tensor(outside),
        shapes,
        torch.ones(2, 2, 2),
        torch.ones(2, 2).long(),
    )
    anchors, usable = proposal_anchors(memory)
    assert usable.sum((1, 2)).tolist() == expected["valid"]
    close(anchors.sigmoid(), expected["boxes"])
