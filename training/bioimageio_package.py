"""Pack a checkpoint as the bioimage.io model zoo describes it, so that Fiji, QuPath, napari and ilastik can run it."""

import hashlib
import inspect
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model import unet
from model.checkpoint import Checkpoint, ModelConfig, read_checkpoint, write_atomically
from model.outputs import write_zip
from model.preprocess import CLIP_HIGH, CLIP_LOW, HIGH_PERCENTILE, LOW_PERCENTILE, preprocess
from model.tiling import OVERLAP_PX
from model.unet import STRIDE
from training.errors import TrainingError
from training.onnx_export import OPSET, to_onnx
from training.synthesize import draw_cells

FORMAT_VERSION = "0.5.4"  # old enough for what people have; newer libraries read it as well
UNET_PAPER = {
    "text": "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015.",
    "doi": "10.1007/978-3-319-24574-4_28",
}
NAME = re.compile(r"[A-Za-z0-9 _+()-]{5,128}")
CHANNELS = {1: ["grey"], 3: ["red", "green", "blue"]}
SEED = 7
TOLERANCE = 1e-4  # of a probability: what sums in another order and another rounding may differ by


def export_bioimageio(
    weights: Path, out: Path, *, name: str, authors: Sequence[str], license_id: str | None = None
) -> None:
    """Write a checkpoint as a bioimage.io package.

    The package holds the tensors, `model/unet.py` as it is, the network as ONNX, the preprocessing in the zoo's words,
    and a drawn picture with what Maskwell answers, so that anyone's copy of the zoo's library can compare: `bioimageio
    test PACKAGE`. What it gives are the network's probabilities; threshold and numbering of cells, which the format
    cannot say, stand in its README.

    Args:
        weights: any file of weights that Maskwell reads.
        out: the zip to write, replaced if it exists.
        name: of the model, 5 to 128 letters, digits, spaces, `_`, `+`, `-`, `(` and `)`.
        authors: who made the model, one at least.
        license_id: SPDX identifier of the weights' licence, such as `CC0-1.0`; None says nothing of it.

    Raises:
        WeightsError: the file cannot be used.
        TrainingError: a name that the zoo does not allow, or a network whose input is no picture.
    """
    if not NAME.fullmatch(name):
        raise TrainingError(f"{name!r}; a name has 5 to 128 letters, digits, spaces, and _ + - ( )")
    checkpoint = read_checkpoint(weights)
    image, probability = _example(checkpoint)
    tensors = io.BytesIO()
    torch.save(checkpoint.state, tensors)
    files = {
        "test_image.npy": _npy(image),
        "test_probability.npy": _npy(probability),
        "weights.pt": tensors.getvalue(),
        "weights.onnx": to_onnx(checkpoint),
        "maskwell_unet.py": inspect.getsource(unet).encode(),
        "README.md": _readme(name, checkpoint).encode(),
    }
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    description = _describe(checkpoint.config, digests, name=name, authors=authors, license_id=license_id)
    # JSON is YAML
    write_atomically(out, write_zip({"rdf.yaml": json.dumps(description, indent=1).encode(), **files}))


def _describe(
    config: ModelConfig, digests: dict[str, str], *, name: str, authors: Sequence[str], license_id: str | None
) -> dict[str, Any]:
    """The package's rdf.yaml, of format 0.5."""

    def file(path: str) -> dict[str, str]:
        return {"source": path, "sha256": digests[path]}

    architecture = config.architecture
    # a network whose answer depends on the size of the map is told the size that it was trained with
    size: Any = {"min": min(config.tile_px), "step": STRIDE}
    if architecture.align_corners and architecture.bilinear:
        size = max(config.tile_px)
    scaling: list[dict[str, Any]] = []
    if config.normalisation == "percentile":
        percentiles = {"min_percentile": LOW_PERCENTILE, "max_percentile": HIGH_PERCENTILE}
        scaling = [
            {"id": "scale_range", "kwargs": {"axes": ["channel", "y", "x"], **percentiles}},
            {"id": "clip", "kwargs": {"min": CLIP_LOW, "max": CLIP_HIGH}},
        ]
    elif config.normalisation == "unit":
        scaling = [{"id": "scale_linear", "kwargs": {"gain": 1 / 255, "offset": 0.0}}]
    activation: dict[str, Any] = {"id": "sigmoid"}
    if config.activation == "softmax":
        activation = {"id": "softmax", "kwargs": {"axis": "channel"}}
    people = [{"name": author} for author in authors]
    image_axes = [{"type": "space", "id": axis, "size": size} for axis in "yx"]
    # without a halo, for which the zoo's library would mirror the picture's edge where the network saw zeros
    probability_axes = [{"type": "space", "id": axis, "size": {"tensor_id": "image", "axis_id": axis}} for axis in "yx"]
    return {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "name": name,
        "description": "Finds cells in microscope images: a U-Net trained with Maskwell.",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "authors": people,
        "cite": [UNET_PAPER],
        **({} if license_id is None else {"license": license_id}),
        "documentation": "README.md",
        "tags": ["segmentation", "cells", "2d", "unet", "pytorch"],
        "inputs": [
            {
                "id": "image",
                "description": "any grey levels" if config.normalisation == "percentile" else "grey levels of 0 to 255",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": CHANNELS[architecture.n_channels]},
                    *image_axes,
                ],
                "data": {"type": "float32"},
                "test_tensor": file("test_image.npy"),
                "preprocessing": [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}, *scaling],
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": _channels(config)},
                    *probability_axes,
                ],
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": file("test_probability.npy"),
                "postprocessing": [activation],
            }
        ],
        "weights": {
            "pytorch_state_dict": {
                **file("weights.pt"),
                "authors": people,
                "architecture": {
                    **file("maskwell_unet.py"),
                    "callable": "UNet",
                    "kwargs": architecture.model_dump(mode="json"),
                },
                "pytorch_version": torch.__version__.split("+")[0],
            },
            "onnx": {**file("weights.onnx"), "opset_version": OPSET, "parent": "pytorch_state_dict"},
        },
        "config": {
            "bioimageio": {
                "reproducibility_tolerance": [{"absolute_tolerance": TOLERANCE, "relative_tolerance": 0.0}],
            },
            "maskwell": {
                "threshold": config.threshold,
                "high_threshold": config.high_threshold,
                "min_area_px": config.min_area_px,
            },
        },
    }


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _example(checkpoint: Checkpoint) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A drawn picture, (1, C, side, side) float32 of 0 to 255, and the network's probabilities, (1, K, side, side)."""
    config = checkpoint.config
    channels = config.architecture.n_channels
    side = max(config.tile_px) if config.architecture.align_corners else min(config.tile_px)
    if channels not in CHANNELS:
        raise TrainingError(f"a network of {channels} channels; pictures have 1 or 3")
    grey, _ = draw_cells(side, np.random.default_rng(SEED))
    image = grey[..., None].repeat(channels, axis=2)
    planes = preprocess(image, n_channels=channels, normalisation=config.normalisation)
    with torch.inference_mode():
        logits = checkpoint.build()(torch.from_numpy(planes.copy())[None])
    values = torch.sigmoid(logits) if config.activation == "sigmoid" else torch.softmax(logits, dim=1)
    return np.moveaxis(image, 2, 0)[None].astype(np.float32), values.numpy()


def _channels(config: ModelConfig) -> list[str]:
    """The maps' names; those that share one are numbered."""
    counts = Counter(config.outputs)
    return [
        name if counts[name] == 1 else f"{name}_{config.outputs[:index].count(name) + 1}"
        for index, name in enumerate(config.outputs)
    ]


def _readme(name: str, checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    scores = checkpoint.card.get("scores", {}).get("validation", {})
    validation = (
        f"Mean Dice of the mask on the validation images: {scores['dice']:.3f}."
        if "dice" in scores
        else "The checkpoint holds no scores."
    )
    cell = " + ".join(
        channel for channel, kind in zip(_channels(config), config.outputs, strict=True) if kind == "cell"
    )
    return f"""# {name}

A U-Net that finds cells, trained with Maskwell. Training data: {checkpoint.card.get("data", "not said")}.
SHA-256 of the checkpoint: `{checkpoint.version}`.

## From probabilities to cells

A pixel belongs to a cell where the probability `{cell}` is at least
{config.threshold:g}. Connected regions that nowhere reach {config.high_threshold:g} are dropped, and so are cells of
fewer than {config.min_area_px} px. Maskwell parts touching cells by the
other maps, if there are any, and numbers them; the connected regions of the mask are the simple way.

A grey image goes into each channel of a model with three. Give it whole pictures; tiles, if need be,
should overlap by {OVERLAP_PX} px.

## Validation

{validation} The package holds a drawn picture with Maskwell's probabilities; `bioimageio test` compares.
"""
