"""The table of limits: its numbers follow from what is measured."""

from pathlib import Path

import ops_floor
import page
import pytest
import torch


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- ops floor: begin -->\n<!-- ops floor: end -->\n")
    monkeypatch.setattr(page, "README", readme)
    monkeypatch.setattr(ops_floor, "times", lambda: {"one pixel": 8.0, "star": 16.0})
    monkeypatch.setattr(ops_floor, "l2_rate", lambda: 128e9)
    threads = torch.get_num_threads()
    ops_floor.main()
    assert torch.get_num_threads() == threads
    text = readme.read_text()
    assert "128 GB/s, so 512 bytes in 4.0 ns" in text
    assert "| one pixel | 8.0 | 100% | 50% |" in text and "| star | 16.0 | 50% | 25% |" in text


def test_all_samples_read_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def attend(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> None:
        given.append(locations)

    monkeypatch.setattr(ops_floor, "attend", attend)
    monkeypatch.setattr(ops_floor, "ROUNDS", 1)
    assert list(ops_floor.times()) == ["one pixel", "star", "uniform"]
    assert given[0].unique().tolist() == pytest.approx([0.4])
    assert len(given[1].unique()) > 1000


def test_the_rate_is_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_floor, "ROUNDS", 1)
    assert ops_floor.l2_rate() > 1e8
