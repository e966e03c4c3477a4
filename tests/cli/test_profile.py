from collections.abc import Callable

from detrs import models
from detrs.presets import preset


def test_profile_counts_the_preset(detrs: Callable) -> None:
    done = detrs("profile", "deformable-detr-tiny", "--image-size", 61, 97, "--repeats", 1, "--device", "cpu", "--json")
    assert done.code == 0 and not done.err
    report, detector = done.json, models.build(preset("deformable-detr-tiny").model)
    assert report["preset"] == "deformable-detr-tiny" and report["image_size"] == [61, 97]
    assert report["parameters"] == sum(parameter.numel() for parameter in detector.parameters())
    assert report["trainable_parameters"] == sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert report["gflops"] > 0 and report["latency_ms"] > 0


def test_one_number_is_a_square_and_the_table_agrees(detrs: Callable) -> None:
    words = ("profile", "deformable-detr-tiny", "--image-size", 67, "--repeats", 1, "--device", "cpu")
    report = detrs(*words, "--json").json
    table = detrs(*words)
    assert report["image_size"] == [67, 67]
    assert table.code == 0 and f"{report['parameters']:,}" in table.out and not table.err


def test_unknown_preset_and_device(detrs: Callable) -> None:
    done = detrs("profile", "deformable-dtr-tiny", "--json")
    assert done.code == 2 and done.message.startswith("There is no preset 'deformable-dtr-tiny'. Did you mean")
    done = detrs("profile", "deformable-detr-tiny", "--device", "cupa")
    assert done.code == 2 and "'cupa' is not a device" in done.message


def test_complexity_is_listed_on_request(detrs: Callable) -> None:
    words = (
        "profile",
        "deformable-detr-tiny",
        "--image-size",
        64,
        96,
        "--repeats",
        1,
        "--device",
        "cpu",
        "--complexity",
    )
    rows = detrs(*words, "--json").json["complexity"]
    assert [row["part"] for row in rows] == [
        "encoder self-attention",
        "decoder self-attention",
        "decoder cross-attention",
    ]
    assert rows[0]["total"] == rows[0]["layers"] * sum(rows[0]["terms"].values())
    table = detrs(*words)
    assert table.code == 0 and "min(N_k C^2, N_q L K C^2)" in table.out
