"""Run the tests whose results depend on rounding under every perturbation, and print a table of runs and failures.

python tests/numerics/perturb.py [--only NAME ...] [PYTEST ARGUMENTS]

A perturbation is a set of environment variables. PyTorch, oneDNN and MKL read their own, ``tests/conftest.py`` reads
``DETRS_TEST_*``. Perturbations run one after the other. The exit status is 1 if a test failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

SEED, THREADS, ONEDNN = "DETRS_TEST_SEED", "DETRS_TEST_THREADS", "DETRS_TEST_ONEDNN"
SEEDS = 5

TESTS = (
    # a threshold after training
    "tests/family/test_family.py::test_overfits_one_image",
    "tests/family/test_interface.py",
    "tests/engine/test_train.py::test_loss_falls",
    "tests/engine/test_seam.py",
    # equal results of equal computations in another place: resumed, recomputed, saved and loaded, in another process
    "tests/engine/test_train.py::test_run_stopped_after_every_single_step_equals_the_undisturbed_one",
    "tests/engine/test_train.py::test_run_stopped_in_its_evaluations_equals_the_undisturbed_one",
    "tests/engine/test_train.py::test_closing_the_generator_saves",
    "tests/engine/test_train.py::test_process_stopped_by_sigterm_exits_143_and_resumes_exactly",
    "tests/engine/test_train.py::test_finished_run_resumes_to_nothing",
    "tests/engine/test_train.py::test_runtime_settings_do_not_change_the_result",
    "tests/engine/test_evaluate.py",
    "tests/layers/test_activation_checkpointing.py",
    "tests/family/test_family.py::test_a_saved_detector_predicts_the_same",
    "tests/family/test_family.py::test_dropout_applies_in_training_only",
    "tests/family/test_model.py",
    "tests/test_predictor.py::test_a_saved_detector_predicts_as_before",
    # equal results of other batches, micro-batches and processes
    "tests/engine/test_train.py::test_micro_batches_give_the_curve_of_the_whole_batch",
    "tests/engine/test_train.py::test_weighted_means_are_over_the_whole_batch_too",
    "tests/engine/test_train.py::test_objects_are_counted_over_the_whole_batch",
    "tests/engine/test_train.py::test_training_starts_from_the_weights_of_a_trained_detector",
    "tests/engine/test_distributed.py",
    "tests/family/test_family.py::test_a_batch_equals_its_images_one_by_one",
    "tests/test_predictor.py::test_batches_equal_single_images",
    # a bound on rounding errors
    "tests/family/test_family.py::test_every_parameter_learns",
    "tests/family/test_family.py::test_content_of_the_padding_has_no_influence",
    "tests/family/test_family.py::test_shuffled_queries_give_shuffled_boxes",
    "tests/family/test_family.py::test_order_of_targets_does_not_matter",
    "tests/family/test_family.py::test_coordinates_and_scores_are_exact_under_autocast",
    "tests/family/test_family.py::test_attention_mask_separates_groups_of_queries",
    "tests/family/test_attention_mask.py",
    "tests/family/test_export.py::test_an_exported_program_equals_eager",
    "tests/layers",
    "tests/models",
    # numbers of threads
    "tests/ops/test_ms_deform_attn_runtime.py",
)
"""Tests whose results depend on the processor, the number of threads or the random seed."""


class Perturbation(NamedTuple):
    name: str
    environment: dict[str, str]


PERTURBATIONS = (
    Perturbation("as is", {}),
    *(Perturbation(f"seed {seed}", {SEED: str(seed)}) for seed in range(1, SEEDS)),
    Perturbation("2 threads", {THREADS: "2"}),
    Perturbation("no oneDNN", {ONEDNN: "0"}),
    Perturbation("AVX2", {"ATEN_CPU_CAPABILITY": "avx2"}),
    Perturbation("no vectors in PyTorch", {"ATEN_CPU_CAPABILITY": "default"}),
    Perturbation(  # what libraries fall back to on the oldest processors
        "SSE4.1 everywhere",
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    ),
)
"""The first seed is that of the tests, so there are ``SEEDS`` of them."""


class Outcome(NamedTuple):
    runs: int
    skipped: int
    failures: list[str]


def outcome(report: Path) -> Outcome:
    """The counts in a JUnit XML report of pytest; a report that is missing is one failure."""
    if not report.exists():
        return Outcome(0, 0, ["pytest wrote no report"])
    cases = list(ElementTree.parse(report).iter("testcase"))
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Outcome(len(cases) - skipped, skipped, failures if cases else ["no test was found"])


def run(perturbation: Perturbation, arguments: list[str]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *arguments, f"--junit-xml={report}", "--tb=short"]
        clean = {name: value for name, value in os.environ.items() if name not in (SEED, THREADS, ONEDNN)}
        done = subprocess.run(command, env={**clean, **perturbation.environment}, capture_output=True, text=True)
        found = outcome(report)
        if found.failures or done.returncode:
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        if done.returncode and not found.failures:
            found.failures.append(f"pytest ended with status {done.returncode}")
        return found


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [perturbation.name for perturbation in PERTURBATIONS]
    parser.add_argument("--only", action="append", choices=names, help="run this perturbation; can be repeated")
    options, arguments = parser.parse_known_args(words)
    print("| perturbation | tests run | skipped | failures |\n|---|---|---|---|", flush=True)
    failures: list[str] = []
    for perturbation in PERTURBATIONS:
        if options.only is None or perturbation.name in options.only:
            found = run(perturbation, arguments or list(TESTS))
            print(f"| {perturbation.name} | {found.runs} | {found.skipped} | {len(found.failures)} |", flush=True)
            failures += [f"{perturbation.name}: {test}" for test in found.failures]
    print(*failures, sep="\n", end="")
    return bool(failures)


def apply() -> None:
    """Apply the perturbations that PyTorch has no environment variable for: seeds and oneDNN."""
    import torch

    if os.environ.get(ONEDNN) == "0":
        torch.backends.mkldnn.set_flags(False)
    if offset := 1000 * int(os.environ.get(SEED, "0")):
        manual_seed = torch.manual_seed
        torch.manual_seed = lambda seed: manual_seed(seed + offset)  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
