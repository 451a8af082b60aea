"""A small drawn data set, and a recipe small enough to train in a second."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import Architecture, ModelConfig, write_checkpoint
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
        RECIPES["default"], width=4, crop_px=128, crops_per_epoch=8, batch_size=2, epochs=2, warmup_steps=2, lr=1e-3,
        paste_prob=0.0,
    )  # fmt: skip


@pytest.fixture
def level_weights(tmp_path: Path) -> Path:
    """A network that answers with the grey level: logit 10 * (grey - 0.5), by hand through its skip connections."""
    config = ModelConfig(architecture=Architecture(width=4), normalisation="unit", threshold=0.3)
    state = {name: torch.zeros_like(value) for name, value in config.architecture.build().state_dict().items()}
    for name, value in state.items():
        if name.endswith("running_var"):
            value.fill_(1.0)
        if name.endswith(("1.weight", "4.weight")) and value.ndim == 1:
            value.fill_(1.0)
    for name in ("inc.double_conv.0", "inc.double_conv.3", "up4.conv.double_conv.0", "up4.conv.double_conv.3"):
        state[f"{name}.weight"][0, 0, 1, 1] = 1.0
    state["outc.conv.weight"][0, 0] = 10.0
    state["outc.conv.bias"][0] = -5.0
    path = tmp_path / "levels.pth"
    write_checkpoint(path, state, config, {"data": "by hand"}, half=True)
    return path
