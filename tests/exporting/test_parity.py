"""The gate itself, with models of PyTorch in place of exported files."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import exported_files
import pytest
import torch
from torch import Tensor
from trained import experiment, trained
from wrong import WRONG

from detrs import ops
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import ExportedModel
from detrs.data.digits import DigitsDataset
from detrs.errors import UserError
from detrs.exporting import parity
from detrs.exporting.inputs import InputShapes, gate_inputs
from detrs.exporting.limits import LIMITS
from detrs.exporting.parity import ParityReport, check, compare
from detrs.models.detector import Model
from detrs.structures import Boxes

SETTINGS = experiment("deformable-detr-tiny")
SETTINGS = replace(SETTINGS, evaluation=replace(SETTINGS.evaluation, nms=None))
SHAPES = InputShapes(resize_to=(90, 110))
N = 100


class Pooled(Model):
    """A model that costs nothing: 200 boxes and scores, linear in the image of 4 x 4 pixels."""

    def __init__(self, change: Callable[[Boxes], Boxes] = lambda boxes: boxes) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(48, 2 * N * 5, generator=generator) / 20
        self.bias = torch.randn(2 * N * 5, generator=generator)
        self.change = change

    def objective(self, config):
        raise NotImplementedError

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = N) -> Boxes:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        out = (pooled @ self.weight + self.bias).view(len(images), 2 * N, 5).sigmoid()
        scores, order = out[..., 4].topk(min(max_detections, 2 * N))
        boxes = out[..., :4].gather(1, order[..., None].expand(-1, -1, 4))
        return self.change(Boxes(boxes, scores, order % 3))


def compared(
    change: Callable[[Boxes], Boxes], precision: str = "float32", nms: float | None = None, **settings
) -> ParityReport:
    """An original without, and an exported file with a change of its detections before non-maximum suppression."""
    original, exported = (trained(SETTINGS, model).suppressing(nms) for model in (Pooled(), Pooled(change)))
    return compare(original, exported, gate_inputs(SHAPES), precision, **settings)


def test_a_detector_agrees_with_itself() -> None:
    report = compared(lambda boxes: boxes)
    assert report.failures() == []
    assert (report.num_inputs, report.num_images, report.num_detections) == (20, 32, 32 * N)
    assert report.num_agreeing == 32 * N and report.max_box_difference < 1e-6 and report.contrast > 0.01
    values = report.to_json()
    assert values["precision"] == "float32" and values["limits"]["box"] == 1e-4 and values["num_inputs"] == 20


@pytest.fixture(scope="module")
def deformable() -> TrainedDetector:
    return trained(experiment("deformable-detr-tiny", encoder_layers=1, decoder_layers=2))


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_wrong_sampling_is_refused_even_with_initial_weights(deformable: TrainedDetector, change) -> None:
    class Wrong(Pooled):
        def detect(self, images: Tensor, padding: Tensor, max_detections: int = N) -> Boxes:
            with pytest.MonkeyPatch.context() as patch, ops.use("reference"):
                change(patch)
                return deformable.module.detect(images, padding, max_detections)

    report = compare(deformable, trained(deformable.experiment, Wrong()), gate_inputs(SHAPES))
    assert report.relative_difference > 0.1 and len(report.failures()) == 2


def test_initial_weights_agree_with_another_implementation_of_sampling(deformable: TrainedDetector) -> None:
    class Reference(Pooled):
        def detect(self, images: Tensor, padding: Tensor, max_detections: int = N) -> Boxes:
            with ops.use("reference"):
                return deformable.module.detect(images, padding, max_detections)

    report = compare(deformable, trained(deformable.experiment, Reference()), gate_inputs(SHAPES))
    assert report.failures() == [] and 0 < report.relative_difference < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b._replace(labels=(b.labels + 1) % 3), "another class"),
        (lambda b: b._replace(boxes=b.boxes + 2e-4), "differ by more than 0.0001 of the image"),
        (lambda b: b._replace(boxes=b.boxes.roll(1, 1)), "differ by more than 0.0001 of the image"),
        (lambda b: b._replace(boxes=b.boxes[..., [1, 0, 3, 2]]), "differ by more than 0.0001 of the image"),
        (lambda b: b._replace(scores=b.scores - 0.002), "0.001 in score"),
        (lambda b: b._replace(boxes=torch.full_like(b.boxes, torch.nan)), "detections differ"),
        (lambda b: b._replace(scores=torch.full_like(b.scores, torch.nan)), "detections differ"),
        (lambda b: b._replace(scores=torch.zeros_like(b.scores)), "detections differ"),
        (lambda b: Boxes(*(each[:, :50] for each in b)), "detections differ"),
        (lambda b: Boxes(*(each[:, :1].expand_as(each) for each in b)), "detections differ"),
        (lambda b: Boxes(*(each.flip(0) for each in b)), "detections differ"),
    ],
    ids=[
        "labels",
        "shifted",
        "rolled",
        "transposed",
        "scores",
        "nan-boxes",
        "nan-scores",
        "empty",
        "half",
        "repeated",
        "batch-reversed",
    ],
)
@pytest.mark.parametrize("nms", [None, 0.6])
def test_a_file_with_other_detections_is_refused(
    change: Callable[[Boxes], Boxes], message: str, nms: float | None
) -> None:
    assert any(message in failure for failure in compared(change, nms=nms).failures())


def test_differences_within_the_limits_are_reported_not_refused() -> None:
    report = compared(lambda b: b._replace(boxes=b.boxes + 5e-5, scores=b.scores + 5e-5))
    assert report.failures() == []
    assert report.max_box_difference == pytest.approx(7.5e-5, rel=0.1)  # center and half of the size
    assert report.max_score_difference == pytest.approx(5e-5, rel=0.1)


def test_detections_whose_scores_are_almost_equal_may_change_places() -> None:
    def swap(boxes: Boxes) -> Boxes:
        """As if the scores of two queries had changed by 1e-4: also the last with the one behind it."""
        scores = boxes.scores.round(decimals=3)
        order = (scores + torch.linspace(0, 1e-4, scores.shape[1])).argsort(descending=True, stable=True)[:, :N]
        return Boxes(
            boxes.boxes.gather(1, order[..., None].expand(-1, -1, 4)),
            boxes.scores.gather(1, order),
            boxes.labels.gather(1, order),
        )

    class All(Pooled):
        def detect(self, images: Tensor, padding: Tensor, max_detections: int = N) -> Boxes:
            return swap(super().detect(images, padding, 2 * N))

    original = trained(SETTINGS, Pooled())
    report = compare(original, trained(SETTINGS, All()), gate_inputs(SHAPES))
    assert report.failures() == [] and report.num_agreeing == 32 * N


@pytest.mark.parametrize("precision", LIMITS)
def test_suppressed_detections_are_compared(precision: str) -> None:
    """Of the best ``N``, without later ones in the place of those that are suppressed."""
    report = compared(lambda boxes: boxes, precision, 0.6)
    assert report.failures() == [] and report.num_agreeing == report.num_detections < 0.9 * 32 * N


@pytest.mark.parametrize("nms", [None, 0.7, 0.5])
def test_another_suppression_is_refused(nms: float | None) -> None:
    original = trained(SETTINGS, Pooled()).suppressing(0.6)
    exported = trained(SETTINGS, Pooled()).suppressing(nms)
    assert any("detections differ" in each for each in compare(original, exported, gate_inputs(SHAPES)).failures())


def test_a_suppressed_file_may_have_another_last_detection() -> None:
    """One with an equal score."""

    class Equal(Pooled):
        def __init__(self, places: list[int]) -> None:
            super().__init__()
            self.places = [*range(N - 1), *places, *range(N + 1, 2 * N)]

        def detect(self, images: Tensor, padding: Tensor, max_detections: int = N) -> Boxes:
            found = super().detect(images, padding, 2 * N)
            found.scores[:, N] = found.scores[:, N - 1]
            return Boxes(*(each[:, self.places][:, :max_detections] for each in found))

    original = trained(SETTINGS, Equal([N - 1, N])).suppressing(0.6)
    exported = replace(original, module=Equal([N, N - 1]).eval())
    report = compare(original, exported, gate_inputs(SHAPES))
    # It can overlap others than the last one of the checkpoint does.
    assert report.num_agreeing >= 0.999 * report.num_detections


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_few_detections_after_suppression_are_compared(kept: int) -> None:
    """Of a checkpoint with three boxes for each image, all of which the exported file should return."""

    class Few(Pooled):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.count = count

        def detect(self, images: Tensor, padding: Tensor, max_detections: int = N) -> Boxes:
            found = super().detect(images, padding, N)
            boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])
            boxes = boxes[torch.arange(N) % 3].expand(len(images), -1, -1)
            scores = torch.where(torch.arange(N) < self.count, found.scores, 0.0)
            return Boxes(boxes, scores, torch.zeros_like(found.labels))

    original, exported = (trained(SETTINGS, Few(count)).suppressing(0.6) for count in (3, kept))
    assert compare(original, original, gate_inputs(SHAPES)).failures() == []
    assert "detections differ" in compare(original, exported, gate_inputs(SHAPES)).failures()[0]


class Deciding(Pooled):
    """A model that moves the boxes of images for which a condition holds."""

    def __init__(self, condition: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.condition = condition

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = N) -> Boxes:
        found = super().detect(images, padding, max_detections)
        moved = self.condition(images.double().mean((1, 2, 3)))
        return found._replace(boxes=found.boxes + 0.1 * moved[:, None, None])


def decided(
    original: Callable[[Tensor], Tensor], exported: Callable[[Tensor], Tensor], shapes: InputShapes = SHAPES
) -> ParityReport:
    detectors = (trained(SETTINGS, Deciding(condition)) for condition in (original, exported))
    return compare(*detectors, gate_inputs(shapes))


def mean_of(number: int, shapes: InputShapes = SHAPES) -> float:
    """Of a normalized image of the gate."""
    batch = list(gate_inputs(shapes))[number].batch
    return float(trained(SETTINGS, Pooled()).preprocessing.normalize(batch).images.double().mean((1, 2, 3))[0])


@pytest.mark.parametrize(("number", "padding"), [(5, False), (16, False), (16, True)])
def test_an_image_that_rounding_changes_is_left_out(number: int, padding: bool) -> None:
    """It is of a single input and of a batch, of which the other images are compared."""
    shapes = replace(SHAPES, padding=padding)
    limit = mean_of(number, shapes)
    report = decided(lambda mean: mean > limit + 1e-8, lambda mean: mean > limit - 1e-8, shapes)
    assert report.failures() == [] and report.num_undecided == 1
    assert (report.num_images, report.num_detections) == (32, 31 * N)


def test_an_image_that_rounding_does_not_change_is_compared() -> None:
    limit = mean_of(5)
    report = decided(lambda mean: mean > limit + 0.01, lambda mean: mean > limit - 1e-8)
    assert report.num_undecided == 0 and "detections differ" in report.failures()[0]


def test_a_checkpoint_that_rounding_changes_in_most_images_is_refused() -> None:
    report = decided(lambda mean: (mean * 1e9).sin() > 0, lambda mean: (mean * 1e9).sin() < 0)
    assert report.num_undecided == 0 and "detections differ" in report.failures()[0]


def test_nothing_compared_never_passes() -> None:
    original = trained(SETTINGS, Pooled())
    assert compare(original, original, []).failures()
    assert compare(original, original, list(gate_inputs(SHAPES))[:19]).failures()
    empty = trained(SETTINGS, Pooled(lambda b: b._replace(scores=torch.zeros_like(b.scores))))
    assert "only 0 detections" in compare(empty, empty, gate_inputs(SHAPES)).failures()[0]
    constant = trained(SETTINGS, Pooled(lambda b: b._replace(scores=torch.full_like(b.scores, 0.3))))
    assert "do not depend on the image" in compare(constant, constant, gate_inputs(SHAPES)).failures()[0]
    nan = trained(SETTINGS, Pooled(lambda b: b._replace(scores=torch.full_like(b.scores, torch.nan))))
    assert compare(nan, nan, gate_inputs(SHAPES)).failures()


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_low_precision_compares_visible_detections_and_the_best_of_every_image(precision: str) -> None:
    limits = LIMITS[precision]
    faint = trained(SETTINGS, Pooled(lambda b: b._replace(scores=b.scores / 100)))
    report = compare(faint, faint, gate_inputs(SHAPES), precision)
    assert report.failures() == [] and report.num_detections == 32 * 10
    wrong = trained(SETTINGS, Pooled(lambda b: Boxes(b.boxes.roll(1, 1), b.scores / 100, b.labels)))
    assert compare(faint, wrong, gate_inputs(SHAPES), precision).failures()

    def hidden(b: Boxes) -> Boxes:
        return b._replace(boxes=b.boxes + (b.scores < limits.visible)[..., None] * 0.3)

    original = trained(SETTINGS, Pooled(lambda b: b._replace(scores=b.scores**4)))
    exported = trained(SETTINGS, Pooled(lambda b: hidden(b._replace(scores=b.scores**4))))
    assert compare(original, exported, gate_inputs(SHAPES), precision).failures() == []
    assert compare(original, exported, gate_inputs(SHAPES)).failures()


@pytest.mark.parametrize(("precision", "score", "ap"), [("float16", 0.05, 0.01), ("int8", 0.2, 0.02)])
def test_low_precision_has_limits_of_scores_and_ap(precision: str, score: float, ap: float) -> None:
    report = compared(lambda b: b, precision)
    assert replace(report, original_ap=0.5, exported_ap=0.5 - ap / 4).failures() == []
    assert "AP is" in replace(report, original_ap=0.5, exported_ap=0.5 - ap).failures()[0]
    assert "of the difference between two images" in replace(report, relative_difference=0.5).failures()[0]
    lower = compared(lambda b: b._replace(scores=(b.scores - score).clamp(min=1e-3)), precision)
    assert any("in score" in failure for failure in lower.failures())


def test_boxes_are_compared_beyond_the_edge_of_the_image_unless_the_file_clips_them() -> None:
    def outside(b: Boxes) -> Boxes:
        return b._replace(boxes=b.boxes + torch.tensor([2.0, 0, 0, 0]))

    def further(b: Boxes) -> Boxes:
        return b._replace(boxes=b.boxes + torch.tensor([2.1, 0, 0, 0]))

    original, exported = trained(SETTINGS, Pooled(outside)), trained(SETTINGS, Pooled(further))
    assert compare(original, exported, gate_inputs(SHAPES)).failures()
    assert compare(original, exported, gate_inputs(SHAPES), clips=True).failures() == []


class Exported(ExportedModel):
    """An exported file whose program is ``Pooled``."""

    def __init__(self, change: Callable[[Boxes], Boxes] = lambda boxes: boxes, **export) -> None:
        super().__init__(replace(INFO, **export), trained(SETTINGS, Pooled()).preprocessing, None, "model.onnx")
        self.pooled, self.shapes = Pooled(change), set()

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = N) -> Boxes:
        self.shapes.add((*images.shape[2:], bool(padding.any())))
        return self.pooled.detect(images, padding, max_detections)


INFO = replace(exported_files.INFO, min_size=97, max_detections=N)


def test_inputs_are_those_that_the_file_accepts() -> None:
    original = trained(SETTINGS, Pooled())
    model = Exported()
    report = check(original, trained(SETTINGS, model))
    assert report.images == "made" and report.original_ap is None
    assert min(min(height, width) for height, width, _ in model.shapes) == 97
    assert {(128, 192, False), (192, 128, False)} <= model.shapes and len(model.shapes) == len(report.sizes)
    fixed = Exported(static=(101, 131))
    check(original, trained(SETTINGS, fixed))
    assert fixed.shapes == {(101, 131, False)}
    padded = Exported(padding=True)
    check(original, trained(SETTINGS, padded))
    assert {is_padded for *_, is_padded in padded.shapes} == {False, True}


def test_ap_of_both_is_computed_on_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, model=replace(SETTINGS.model, num_classes=10))
    digits = DigitsDataset("val", 12)
    original = replace(trained(settings, Pooled()), classes=digits.classes)
    report = check(original, replace(original, module=Exported()), dataset=digits, score=True)
    assert report.images == "real" and report.original_ap == report.exported_ap is not None

    aps = [0.51, 0.5102]
    monkeypatch.setattr(
        parity, "evaluate", lambda *_: SimpleNamespace(report=SimpleNamespace(ap=aps.pop(0)))
    )  # the AP of a made-up model is 0 whatever it does
    with pytest.raises(UserError, match=r"AP is 0\.51020 instead of 0\.51000, expected .* at most 0\.0001"):
        check(original, replace(original, module=Exported()), dataset=digits, score=True)
    assert aps == []


def test_a_refusal_has_the_numbers_and_what_to_do() -> None:
    original = trained(SETTINGS, Pooled())
    with pytest.raises(UserError, match=r"3\d+ of \d+ detections differ by more than 0.0001 .* not written"):
        check(original, trained(SETTINGS, Exported(lambda b: b._replace(boxes=b.boxes + 1e-3))))
    with pytest.raises(UserError, match="Export with full precision"):
        check(original, trained(SETTINGS, Exported(lambda b: b._replace(boxes=b.boxes + 0.2), precision="float16")))
    empty = trained(SETTINGS, Pooled(lambda b: b._replace(scores=torch.zeros_like(b.scores))))
    with pytest.raises(UserError, match="Pass --data with images in which the checkpoint finds objects"):
        check(empty, trained(SETTINGS, Exported(lambda b: b._replace(scores=torch.zeros_like(b.scores)))))


def test_ap_is_compared_if_it_is_known() -> None:
    report = compared(lambda boxes: boxes)
    assert replace(report, original_ap=0.5, exported_ap=0.50009).failures() == []
    assert "AP is 0.49980 instead of 0.50000" in replace(report, original_ap=0.5, exported_ap=0.4998).failures()[0]
    assert replace(report, original_ap=0.5).failures()
    assert replace(report, original_ap=0.5, exported_ap=float("nan")).failures()


def test_modes_of_the_models_are_restored() -> None:
    original, exported = trained(SETTINGS, Pooled()), trained(SETTINGS, Pooled())
    original.module.train()
    compare(original, exported, list(gate_inputs(SHAPES))[:1])
    assert original.module.training and not exported.module.training


def test_the_table_has_the_numbers() -> None:
    from rich.console import Console

    report = replace(compared(lambda boxes: boxes), original_ap=0.5151, exported_ap=0.5152)
    console = Console(width=120, record=True)
    console.print(report.table())
    text = console.export_text()
    assert "20 inputs, 32 made images" in text and "100.00%" in text and "AP 0.5151 and 0.5152" in text


@pytest.mark.parametrize("score", [True, False])
def test_a_file_in_int8_needs_an_ap(score: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if both are undefined, as on a dataset without objects."""
    monkeypatch.setattr(parity, "evaluate", lambda *_: SimpleNamespace(report=SimpleNamespace(ap=None)))
    original, digits = trained(SETTINGS, Pooled()), DigitsDataset("val", 4)
    for precision in ("float32", "int8"):
        exported = replace(original, module=Exported(precision=precision))
        if precision == "int8":
            with pytest.raises(UserError, match="AP, which a file in int8 must keep, is undefined"):
                check(original, exported, dataset=digits, score=score)
        else:
            assert check(original, exported, dataset=digits, score=score).original_ap is None
