"""Weights as a bioimage.io package, tested and run by the zoo's own library."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from model.checkpoint import Architecture, ModelConfig, write_checkpoint
from model.segmenter import load_segmenter
from tests.e2e.kit import ROOT, draw_cells, write_weights
from training.__main__ import main

TOLERANCE = 2e-5  # the service rounds probabilities to steps of 1/65535
NAMES = ["--name", "Drawn cells", "--author", "A. Nonymous"]


def run_in_the_zoo(package: Path, kind: str, image: npt.NDArray[Any], folder: Path) -> npt.NDArray[Any]:
    """(K, H, W): what bioimageio.core gets for a (1, C, H, W) image, once it has tested the package."""
    np.save(folder / "image.npy", image)
    script = ROOT / "tests" / "recipes" / "bioimageio_run.py"
    command = [sys.executable, *map(str, (script, package, kind, folder / "image.npy", folder / "probability.npy"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    result: npt.NDArray[Any] = np.load(folder / "probability.npy")[0]
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {
            "architecture": Architecture(width=4, n_channels=3, n_classes=3, align_corners=False),
            "outputs": ("cell", "border", "distance"),
            "tile_px": (128, 192),
        },
        {"architecture": Architecture(width=4, layout="milesial", bilinear=False, n_classes=3), "normalisation": "unit",
         "outputs": ("background", "cell", "cell"), "activation": "softmax", "tile_px": (192,)},
        {"architecture": Architecture(width=4), "normalisation": "raw", "tile_px": (192,)},
    ],
)  # fmt: skip
def test_the_zoo_s_library_accepts_the_package_and_gets_the_same_probability(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    weights, package = tmp_path / "w.pth", tmp_path / "cells.zip"
    write_weights(weights, **config)
    assert main(["export-bioimageio", str(weights), str(package), *NAMES, "--license", "CC0-1.0"]) == 0
    grey = draw_cells(192, 192, 5)
    segmenter = load_segmenter(weights, device="cpu")
    channels = segmenter.config.architecture.n_channels
    image = np.repeat(grey[None, None].astype(np.float32), channels, axis=1)
    maps = [index for index, name in enumerate(segmenter.config.outputs) if name == "cell"]
    expected = segmenter.segment(grey).probability
    assert np.ptp(expected) > 100 * TOLERANCE
    for kind in ("pytorch_state_dict", "onnx"):
        result = run_in_the_zoo(package, kind, image, tmp_path)
        np.testing.assert_allclose(result[maps].sum(axis=0), expected, atol=TOLERANCE, err_msg=kind)


def test_a_package_says_what_made_it_and_how_cells_come_about(tmp_path: Path) -> None:
    weights, package = tmp_path / "w.pth", tmp_path / "cells.zip"
    version = write_weights(weights, min_area_px=7, high_threshold=0.9, tile_px=(128,))
    assert main(["export-bioimageio", str(weights), str(package), *NAMES]) == 0
    with zipfile.ZipFile(package) as archive:
        description = yaml.safe_load(archive.read("rdf.yaml"))
        readme = archive.read("README.md").decode()
    assert "license" not in description
    assert description["config"]["maskwell"]["min_area_px"] == 7
    assert version in readme
    assert "fewer than 7 px" in readme
    assert "nowhere reach 0.9 are dropped" in readme


def test_what_cannot_be_packed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, package = tmp_path / "w.pth", tmp_path / "cells.zip"
    write_weights(weights, tile_px=(128,))
    given = ["export-bioimageio", str(weights), str(package), "--author", "A", "--name"]
    assert main([*given, "c/d"]) == 2
    assert "'c/d'; a name has 5 to 128" in capsys.readouterr().err
    architecture = Architecture(width=4, n_channels=2)
    config = ModelConfig(architecture=architecture, tile_px=(128,))
    write_checkpoint(weights, architecture.build().state_dict(), config, {})
    assert main([*given, "cells"]) == 2
    assert "a network of 2 channels" in capsys.readouterr().err
    assert not package.exists()
