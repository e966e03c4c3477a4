import pytest

from detrs.cli.flags import with_flags


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("model.num_queries is 0, but must be at least 1.", "--model.num-queries is 0, but must be at least 1."),
        ("data.batch_size 3, runtime.accumulate 2:", "--batch-size 3, --runtime.accumulate 2:"),
        ("data.resize_to[0] is 4", "--image-size[0] is 4"),
        ("set data.keep_empty True.", "set --data.keep-empty True."),
        ("model.classification.no_object_weight is -1", "--model.classification.no-object-weight is -1"),
        ("seed is -1, but must be", "--seed is -1, but must be"),
    ],
)
def test_settings_become_flags(message: str, expected: str) -> None:
    import detrs.config  # noqa: F401

    assert with_flags(message, "train") == expected


@pytest.mark.parametrize(
    "message",
    [
        "runs/data.path, ./data.path/x, data.path/y and data.json are files",
        "add --model.num-queries 65 (or more)",
        "experiment.model.dim: expected int",
        "detrs.training(...) has no model.unknown",
        "the seed is random",
    ],
)
def test_other_words_do_not(message: str) -> None:
    import detrs.config  # noqa: F401

    assert with_flags(message, "train") == message


def test_only_flags_that_the_command_has() -> None:
    import detrs.config  # noqa: F401

    message = "evaluation.max_detections is 0 and model.dim is 3"
    assert with_flags(message, "evaluate") == "--max-detections is 0 and model.dim is 3"
    assert with_flags(message, "predict") == message
