"""Drawn cells: the same seed the same pictures, and truth that fits them."""

from pathlib import Path

import numpy as np
import pytest

from training.data import find_pairs
from training.errors import DataError
from training.synthesize import draw_cells, synthesize


def test_the_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthesize(tmp_path / name, count=2, size_px=64, seed=5)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 4
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_cells_are_brighter_than_what_is_around_them_and_numbered_without_gaps() -> None:
    image, labels = draw_cells(128, np.random.default_rng(1))
    assert image[labels > 0].mean() > image[labels == 0].mean() + 30
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert labels.max() >= 3


def test_what_it_writes_is_a_data_set(tmp_path: Path) -> None:
    synthesize(tmp_path, count=3, size_px=48)
    pairs = find_pairs(tmp_path)
    assert len(pairs) == 3
    image, labels = pairs[0].read()
    assert image.shape == labels.shape == (48, 48)


def test_no_images_and_too_small_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        synthesize(tmp_path, count=0)
    with pytest.raises(DataError):
        synthesize(tmp_path, count=1, size_px=16)


def test_images_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    synthesize(tmp_path, count=1, size_px=48)
    before = (tmp_path / "image" / "0000.png").read_bytes()
    with pytest.raises(DataError, match="image holds files already"):
        synthesize(tmp_path, count=1, size_px=64)
    assert (tmp_path / "image" / "0000.png").read_bytes() == before
