"""Copies of images: exact and similar ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from detrs.data import copies
from detrs.data.copies import exact_copies, signature, similar_images


def photograph(seed: int, size: tuple[int, int] = (211, 157)) -> Image.Image:
    """A smooth random image."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def test_exact_copies_are_grouped(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths[:4]):
        photograph(number).save(path)
    shutil.copy(paths[1], paths[4])
    shutil.copy(paths[1], paths[5])
    assert exact_copies(paths) == [[1, 4, 5]]
    assert exact_copies([paths[0], paths[2], paths[0]]) == [[0, 2]]
    assert exact_copies([*paths[:4], tmp_path / "missing.png", tmp_path / "missing.png"]) == []


def test_files_with_equal_ends_are_compared_completely(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    content = bytearray((tmp_path / "b.png").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "b.png").write_bytes(content)
    assert exact_copies([tmp_path / "a.png", tmp_path / "b.png"]) == []


def test_similar_images_are_found_and_others_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "BLOCK", 7)  # several blocks
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        photograph(number).save(path)
    original = photograph(3)
    changed = {
        "quality.jpg": original,
        "small.png": original.resize((101, 75)),
        "bright.png": ImageEnhance.Brightness(original).enhance(0.7),
        "gray.png": original.convert("L"),
    }
    for name, image in changed.items():
        image.save(tmp_path / name, **({"quality": 30} if name.endswith("jpg") else {}))
        paths.append(tmp_path / name)
    pairs = similar_images(paths)
    assert {pair[:2] for pair in pairs} == {(a, b) for a in (3, 20, 21, 22, 23) for b in (20, 21, 22, 23) if a < b}
    assert all(0.98 <= value <= 1.0001 for *_, value in pairs)
    assert [pair[2] for pair in pairs] == sorted((pair[2] for pair in pairs), reverse=True)


def test_images_without_contrast_and_unreadable_ones_are_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (7, 7, 7)).save(tmp_path / "flat.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert signature(tmp_path / "flat.png") is None and signature(tmp_path / "broken.png") is None
    assert similar_images([tmp_path / "flat.png"] * 2 + [tmp_path / "broken.png"] * 2) == []


def test_signature_is_normalized(tmp_path: Path) -> None:
    photograph(1).save(tmp_path / "a.png")
    values = signature(tmp_path / "a.png")
    assert values is not None and values.shape == (256,)
    assert abs(values.mean()) < 1e-6 and abs(np.linalg.norm(values) - 1) < 1e-5
