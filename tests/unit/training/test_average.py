"""The mean of weights, and of nothing that does not belong together."""

from pathlib import Path

import pytest
import torch

from model.checkpoint import Architecture, ModelConfig, read_checkpoint, write_checkpoint
from tests.files import write_seeded_weights
from training.__main__ import main
from training.widen import widen


def write(path: Path, seed: int, threshold: float, width: int = 4) -> Path:
    config = ModelConfig(architecture=Architecture(width=width), threshold=threshold)
    card = {"seen": [f"{seed:04d}"], "data": f"data {seed}", "scores": {"dice": 1.0}}
    write_seeded_weights(path, config, card, seed=seed)
    return path


def test_each_number_is_the_mean_and_the_rest_the_last_one_s(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.pth", 0, 0.3), write(tmp_path / "b.pth", 1, 0.6)
    out = tmp_path / "mean.pth"
    assert main(["average", str(first), str(second), "--to", str(out)]) == 0
    a, b, mean = read_checkpoint(first), read_checkpoint(second), read_checkpoint(out)
    for name, value in mean.state.items():
        # stored as float16
        assert torch.allclose(value.float(), (a.state[name].float() + b.state[name].float()) / 2, atol=1e-3), name
    assert mean.config == b.config
    assert mean.card["data"] == "data 1"
    assert mean.card["seen"] == ["0000", "0001"]
    assert mean.card["average_of"] == [a.version, b.version]
    assert "scores" not in mean.card


def test_one_file_or_different_networks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = write(tmp_path / "a.pth", 0, 0.5), write(tmp_path / "b.pth", 0, 0.5, width=8)
    assert main(["average", str(small), "--to", str(tmp_path / "c.pth")]) == 2
    assert "two or more are needed" in capsys.readouterr().err
    assert main(["average", str(large), str(small), "--to", str(tmp_path / "c.pth")]) == 2
    assert "name the widest last" in capsys.readouterr().err
    assert not (tmp_path / "c.pth").exists()


def test_narrower_weights_are_widened_as_training_from_them_begins(tmp_path: Path) -> None:
    narrow = write(tmp_path / "a.pth", 0, 0.5)
    old = read_checkpoint(narrow)
    architecture = old.config.architecture.model_copy(update={"width": 8})
    begun = widen(old.state, old.config.architecture, architecture)
    config = old.config.model_copy(update={"architecture": architecture})
    write_checkpoint(tmp_path / "b.pth", begun, config, {})
    assert main(["average", str(narrow), str(tmp_path / "b.pth"), "--to", str(tmp_path / "c.pth")]) == 0
    mean = read_checkpoint(tmp_path / "c.pth")
    assert mean.config.architecture.width == 8
    for name, value in mean.state.items():
        assert torch.allclose(value.float(), begun[name].float(), atol=1e-3), name
