from collections.abc import Callable

import pytest

from detrs.presets import PRESETS


def test_json_names_every_preset(detrs: Callable) -> None:
    done = detrs("presets", "--json")
    assert done.code == 0 and len(done.out.splitlines()) == 1 and not done.err
    rows = done.json["presets"]
    assert [row["name"] for row in rows] == list(PRESETS)
    assert rows[list(PRESETS).index("deformable-detr-r50")]["image_size"] == [800, 1333]
    assert all(row["about"] for row in rows)
    found = {row["name"]: (row["ap"], row["ap_split"]) for row in rows}
    assert found["deformable-detr-r50"] == (44.5, "val2017") and found["detr-tiny"] == (None, None)
    assert found["deformable-detr-r101-two-stage"] == (48.7, "test-dev")


def test_table_has_one_line_of_80_columns_per_preset(detrs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = detrs("presets")
    lines = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.strip()}
    assert done.code == 0 and all(len(line) <= 80 for line in done.out.splitlines())
    assert set(PRESETS) <= set(lines)
    assert lines["deformable-detr-r50"] == ["800,", "1333", "50", "32", "44.5"]
    assert lines["deformable-detr-r101-two-stage"][-1] == "48.7*" and lines["detr-tiny"][-1] == "-"
