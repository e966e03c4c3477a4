"""The list of tests that depend on rounding, their perturbations, and the report of their runs."""

import os
from pathlib import Path

import perturb
import pytest
import torch

REPOSITORY = Path(__file__).parents[2]


def test_every_listed_test_exists() -> None:
    for test in perturb.TESTS:
        path, _, function = test.partition("::")
        assert (REPOSITORY / path).exists(), test
        assert not function or f"def {function}(" in (REPOSITORY / path).read_text(), test


def test_settings_are_those_of_the_environment() -> None:
    if perturb.THREADS in os.environ:
        assert torch.get_num_threads() == int(os.environ[perturb.THREADS])
    assert torch.backends.mkldnn.enabled == (os.environ.get(perturb.ONEDNN) != "0")
    torch.manual_seed(3)
    assert torch.initial_seed() == 3 + 1000 * int(os.environ.get(perturb.SEED, "0"))


@pytest.mark.parametrize("name", ["seed 3", "2 threads", "no oneDNN"])
def test_perturbations_reach_the_tests(name: str) -> None:
    (perturbation,) = (each for each in perturb.PERTURBATIONS if each.name == name)
    probe = f"{__file__}::{test_settings_are_those_of_the_environment.__name__}"
    assert perturb.run(perturbation, [probe]) == perturb.Outcome(1, 0, [])


def test_failures_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    assert perturb.outcome(report).failures == ["pytest wrote no report"]
    report.write_text("<testsuite/>")
    assert perturb.outcome(report).failures == ["no test was found"]
    cases = '<testcase classname="a" name="x"/><testcase classname="a" name="y"><skipped/></testcase>'
    cases += '<testcase classname="b" name="z"><failure/></testcase>'
    cases += '<testcase classname="b" name="w"><error/></testcase>'
    report.write_text(f"<testsuite>{cases}</testsuite>")
    assert perturb.outcome(report) == perturb.Outcome(3, 1, ["b::z", "b::w"])
