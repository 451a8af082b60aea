"""Files as the libraries write them that others use too, and weights of small seeded networks."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch

from model.checkpoint import ModelConfig, write_checkpoint


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
