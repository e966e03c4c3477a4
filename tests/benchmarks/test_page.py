from pathlib import Path

import page
import pytest

import ops
from detrs.errors import UserError


def test_the_newest_line_of_each_kind_counts(tmp_path: Path) -> None:
    results = tmp_path / "results" / "lines.jsonl"
    assert page.newest(results, lambda line: line["name"]) == []
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        page.append(results, {"name": name, "value": value})
    with results.open("a") as file:
        file.write('{"name": "b", "va')  # a full disk
    assert page.newest(results, lambda line: line["name"]) == [{"name": "a", "value": 3}, {"name": "b", "value": 2}]
    page.append(results, {"name": "b"})
    with pytest.raises(UserError, match="line 4, is not valid JSON"):
        page.newest(results, lambda line: line["name"])


def test_only_text_between_the_markers_is_replaced(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("one\n<!-- a: begin -->\nold\n<!-- a: end -->\ntwo\n<!-- b: begin --><!-- b: end -->\n")
    page.put("a", "new", readme)
    page.put("a", "newer", readme)
    assert readme.read_text() == (
        "one\n<!-- a: begin -->\n\nnewer\n\n<!-- a: end -->\ntwo\n<!-- b: begin --><!-- b: end -->\n"
    )
    with pytest.raises(AssertionError, match="no markers for c"):
        page.put("c", "new", readme)


def test_table_of_operators() -> None:
    line = {
        "device": "CPU, 2 threads",
        "name": "encoder",
        "milliseconds": {"detrs": 2.0, "grid_sample": 5.0, "detrs fused +": 4.0, "grid_sample +": 6.0},
        "peak_mib": {"detrs": 10.2, "grid_sample": 99.7},
        "versions": {"torch": "2.10"},
    }
    bare = {"detrs": 1.0, "detrs fused +": 0.5}  # the other implementations are not installed
    assert ops.text([line, line | {"name": "decoder", "milliseconds": bare}]).splitlines() == [
        "**CPU, 2 threads** (torch 2.10)",
        "",
        "| case | detrs | grid_sample | detrs fused + | grid_sample + | MiB, detrs | MiB, grid_sample |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| encoder | 2.00 | 5.00 (2.5x) | 4.00 | 6.00 (1.5x) | 10 | 100 |",
        "| decoder | 1.00 | - | 0.50 | - | 10 | 100 |",
    ]
