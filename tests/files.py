"""Files as the libraries write them that others use too, and weights of small seeded networks."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch

from model.checkpoint import Checkpoint, ModelConfig, write_checkpoint
from model.runtime import TorchRuntime


def by_tifffile(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    """A TIFF; options as those of tifffile.imwrite."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def by_numpy(pixels: npt.NDArray[Any], version: tuple[int, int] | None = None) -> bytes:
    """A .npy file; Python objects become a pickle, as in numpy.save."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, pixels, version=version)
    return buffer.getvalue()


def write_seeded_weights(path: Path, config: ModelConfig, card: dict[str, Any] | None = None, *, seed: int = 0) -> Path:
    """Weights of an untrained network that are the same each time; returns the path."""
    torch.manual_seed(seed)
    write_checkpoint(path, config.architecture.build().state_dict(), config, card or {})
    return path


def spread(checkpoint: Checkpoint) -> Checkpoint:
    """The same network, each of whose maps has a mean of 0 and a deviation of 1 on a noisy tile.

    Untrained ones answer with next to a constant, beside which no error of rounding shows.
    """
    tile = np.random.default_rng(0).random((1, checkpoint.config.architecture.n_channels, 128, 128), np.float32)
    logits = TorchRuntime(checkpoint, device="cpu").run(tile)[0]
    state = {name: value.clone() for name, value in checkpoint.state.items()}
    for weight, bias, map_ in zip(state["outc.conv.weight"], state["outc.conv.bias"], logits, strict=True):
        weight /= float(map_.std())
        bias -= float(map_.mean())
        bias /= float(map_.std())
    return replace(checkpoint, state=state)
