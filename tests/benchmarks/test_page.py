import importlib
import re
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
    page.put("a", "", readme)  # without results
    assert "newer" in readme.read_text()
    with pytest.raises(AssertionError, match="no markers for c"):
        page.put("c", "new", readme)


@pytest.mark.parametrize("code", [0, 2])
def test_a_run_of_operators_that_fails_writes_no_table(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "LINES", tmp_path / "results" / "ops.jsonl")
    monkeypatch.setattr(ops, "main", lambda argv: code)
    monkeypatch.setattr(ops, "text", lambda reports: "table")
    monkeypatch.setattr(page, "README", tmp_path / "README.md")
    page.README.write_text("<!-- ops: begin -->old<!-- ops: end -->")
    assert ops.run([]) == code
    assert ("table" in page.README.read_text()) == (code == 0)


@pytest.mark.parametrize("name", ["training", "convergence", "accuracy"])
def test_without_results_a_page_stays_as_it_is(name: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text := f"<!-- {name}: begin -->old<!-- {name}: end -->")
    importlib.import_module(name).publish(tmp_path / "none.jsonl", readme, tmp_path)
    assert readme.read_text() == text


def test_the_readme_names_the_scripts_that_append_their_results() -> None:
    intro = page.README.read_text().partition("\n## ")[0].partition("append theirs")[0]
    scripts = {path.name: path.read_text() for path in page.HERE.glob("*.py")}
    appending = {name for name, text in scripts.items() if re.search(r"RESULTS = |LINES = ", text)}
    assert set(re.findall(r"`(\w+\.py)`", intro)) == appending


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
