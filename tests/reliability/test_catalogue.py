"""Every bad input of the catalogue is handled as demanded: named, skipped with a count, noted or accepted."""

from pathlib import Path

import catalogue
import pytest
import rows_annotations
import rows_boxes
import rows_checkpoints
import rows_images
from catalogue import Case
from known import DEVIATIONS, KNOWN

CASES = [
    *rows_annotations.CASES,
    *rows_boxes.CASES,
    *rows_images.CASES,
    *rows_checkpoints.CASES,
]
ELSEWHERE = {98}
"""A stalled network drive is fault F9."""


def parameter(case: Case) -> object:
    marks = [pytest.mark.slow, pytest.mark.reliability] if case.slow else [pytest.mark.reliability]
    if case.id in KNOWN:
        marks.append(pytest.mark.xfail(reason=KNOWN[case.id], strict=True))
    return pytest.param(case, id=case.id, marks=marks)


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_row(case: Case, tmp_path: Path) -> None:
    outcome = catalogue.run(case, tmp_path)
    assert outcome.agrees(case), f"expected {case.expected} with {case.message}, got {outcome.kind}: {outcome.text}"


def test_all_rows_are_there() -> None:
    assert {case.row for case in CASES} | ELSEWHERE == set(range(1, 113))
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids) and set(KNOWN) <= set(ids)
    assert set(DEVIATIONS) <= set(range(1, 113))
    assert all(case.expected in catalogue.CLASSES for case in CASES)


def test_a_clean_dataset_is_accepted(tmp_path: Path) -> None:
    """Without a fault nothing is noted, so the notes of the other cases are about their faults."""
    from dataset import MANY, reads, trains

    for make in (reads(), reads(images=MANY), trains(lambda train, val: None)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        outcome = catalogue.run(Case(0, "clean", "A", make), folder)
        assert outcome.kind == "A", outcome.text
