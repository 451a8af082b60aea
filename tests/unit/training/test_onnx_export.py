"""The ONNX file against the network in PyTorch, by a reader that shares nothing with the exporter."""

import json
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch

from model.checkpoint import Architecture, ModelConfig, read_checkpoint, write_checkpoint
from model.unet import Layout
from training.__main__ import main


def write(path: Path, **architecture: object) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(architecture=Architecture(width=8, n_channels=3, **architecture))  # type: ignore[arg-type]
    network = config.architecture.build().train()
    with torch.no_grad():  # batch norms that have seen something
        network(torch.rand(2, 3, 32, 32) * 3)
    write_checkpoint(path, network.state_dict(), config, {})
    return path


@pytest.mark.parametrize("layout", ["tutorial", "milesial"])
@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
def test_any_batch_and_size_gives_what_pytorch_gives(
    tmp_path: Path, layout: Layout, bilinear: bool, align_corners: bool
) -> None:
    weights = write(tmp_path / "a.pth", layout=layout, bilinear=bilinear, align_corners=align_corners)
    out = tmp_path / "out" / "a.onnx"
    assert main(["export-onnx", str(weights), str(out)]) == 0
    core = ov.Core()
    found = core.compile_model(core.read_model(out), "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    network = read_checkpoint(weights).build()
    for shape in ((1, 3, 64, 64), (1, 3, 16, 16), (3, 3, 48, 128)):
        batch = np.random.default_rng(0).random(shape, dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(found([batch])[0], expected, atol=1e-5)


def test_the_file_says_how_to_use_it(tmp_path: Path) -> None:
    weights = write(tmp_path / "a.pth")
    assert main(["export-onnx", str(weights), str(tmp_path / "a.onnx")]) == 0
    checkpoint = read_checkpoint(weights)
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert ModelConfig.model_validate(json.loads(said["maskwell"])) == checkpoint.config
    assert said["maskwell_checkpoint_sha256"] == checkpoint.version


def test_weights_that_cannot_be_read_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pth").write_bytes(b"junk")
    assert main(["export-onnx", str(tmp_path / "bad.pth"), str(tmp_path / "a.onnx")]) == 2
    assert "no readable file of weights" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
