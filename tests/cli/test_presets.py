from collections.abc import Callable

from detrs.presets import PRESETS


def test_json_names_every_preset(detrs: Callable) -> None:
    done = detrs("presets", "--json")
    assert done.code == 0 and len(done.out.splitlines()) == 1 and not done.err
    rows = done.json["presets"]
    assert [row["name"] for row in rows] == list(PRESETS)
    assert rows[list(PRESETS).index("deformable-detr-r50")]["image_size"] == [800, 1333]
    assert all(row["about"] for row in rows)


def test_table_names_every_preset(detrs: Callable) -> None:
    done = detrs("presets")
    assert done.code == 0 and all(name in done.out for name in PRESETS)
