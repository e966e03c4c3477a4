"""The interface of a model, for every detector of the family: ``detect`` and ``objective``."""

import pickle

import pytest
import torch
from shrunk import EVERY_MODEL, EVERY_TRANSFORMER, TARGETS, batch, proposal_labels, shallow

from detrs import ops
from detrs.classification import Softmax
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.models import ModelConfig
from detrs.structures import Batch, Totals

DETECTIONS = 7


@EVERY_TRANSFORMER
@torch.no_grad()
def test_detect_equals_forward_and_manual_postprocessing(config: ModelConfig) -> None:
    detector, inputs = shallow(config), batch()
    prediction = detector(*inputs).last
    found = detector.detect(*inputs, max_detections=DETECTIONS)
    assert found.boxes.shape == (2, DETECTIONS, 4) and found.labels.dtype == torch.int64
    for image in range(2):
        logits, candidates = prediction.logits[image], []
        for query in range(len(logits)):
            if isinstance(config.classification, Softmax):  # one candidate per query
                score, label = logits[query].softmax(-1)[:-1].max(-1)
                candidates.append((score.item(), query, label.item()))
            else:
                candidates += [(score, query, label) for label, score in enumerate(logits[query].sigmoid().tolist())]
        best = sorted(candidates, reverse=True)[:DETECTIONS]
        assert found.labels[image].tolist() == [label for _, _, label in best]
        assert found.scores[image].tolist() == pytest.approx([score for score, _, _ in best])
        assert torch.equal(found.boxes[image], prediction.boxes[image, [query for _, query, _ in best]])


@EVERY_TRANSFORMER
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_objective_equals_forward_and_criterion(config: ModelConfig, autocast: bool) -> None:
    """Under autocast the detector computes in bfloat16 and the criterion in float32."""
    detector, inputs = shallow(config), batch()
    criterion_config = CriterionConfig(box_weight=3.0, giou_weight=0.7)
    objective = detector.objective(criterion_config)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in detector.parameters()}
    with ops.use("reference"), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = objective(Batch(*inputs, TARGETS), Totals.of(TARGETS))
        predictions = detector(*inputs)
    criterion = SetCriterion(criterion_config, config.classification, proposal_labels(config))
    expected = criterion(predictions, TARGETS, Totals.of(TARGETS))
    assert found.total.dtype == torch.float32
    assert torch.equal(found.total, expected.total)
    assert found.terms == expected.terms
    found.total.backward()
    assert detector.decoder.heads[-1].classes.weight.grad.abs().max() > 0


@EVERY_MODEL
def test_models_and_objectives_can_be_pickled(config: ModelConfig) -> None:
    """For ``torch.save`` of a whole model, and for processes that are spawned."""
    model = shallow(config)
    objective = model.objective(CriterionConfig())
    assert list(pickle.loads(pickle.dumps(objective)).state_dict()) == list(objective.state_dict())
    loaded = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        found, expected = (each.detect(*batch(), max_detections=DETECTIONS) for each in (loaded, model))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
