"""A small drawn data set, and a recipe small enough to train in a second."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.config import RECIPES, Recipe
from training.synthesize import synthesize


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of 128 x 128 px with instances."""
    folder = tmp_path_factory.mktemp("cells")
    synthesize(folder, count=10, size_px=128, seed=3)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks this small only lose by sharing their work, most of all where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_recipe() -> Recipe:
    return replace(
        RECIPES["default"], width=4, crop_px=128, crops_per_epoch=8, batch_size=2, epochs=2, warmup_steps=2, lr=1e-3
    )
