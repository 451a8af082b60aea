"""One file of weights: state dict, config, card. Written atomically, read without running code, named by SHA-256."""

import glob
import hashlib
import io
import itertools
import math
import os
import pickle
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy import special
from torch import Tensor

from model.errors import WeightsError
from model.postprocess import CORE_DISTANCE, Parting
from model.unet import Layout, UNet

FORMAT = "maskwell/1"
# A temporary file that was last written to so long ago belongs to nobody any more.
STALE_S = 3600.0

Output = Literal["background", "cell", "border", "distance"]


class Architecture(BaseModel):
    """The arguments that build the UNet whose state dict this is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_channels: int = Field(1, ge=1, le=64)
    n_classes: int = Field(1, ge=1, le=64)
    width: int = Field(64, ge=1, le=1024)
    bilinear: bool = True
    layout: Layout = "tutorial"
    align_corners: bool = True

    def build(self) -> UNet:
        """A freshly initialised network."""
        return UNet(
            self.n_channels,
            self.n_classes,
            self.bilinear,
            self.width,
            layout=self.layout,
            align_corners=self.align_corners,
        )


class ModelConfig(BaseModel):
    """All that inference must know about a checkpoint, beside its tensors.

    Attributes:
        normalisation: `percentile` maps the image's own 1st and 99.8th percentile to 0 and 1; `raw` keeps grey levels
            0..255; `unit` divides them by 255.
        outputs: what the network's maps mean, in order. `cell` is the foreground; `border` is where cells touch;
            `distance` that from a cell's edge, as a share of the largest in that cell; both part touching cells;
            `background` only as the first of a softmax.
        activation: from logits to probabilities: `sigmoid` for each map, or `softmax` over them.
        threshold: pixels whose cell probability is at or above it are foreground.
        high_threshold: connected foreground whose cell probability nowhere reaches it is dropped; 0 drops none.
        min_area_px: cells smaller than this, in pixels, are dropped.
        core_threshold, core_distance, join_probability: how touching cells are parted, see model.postprocess.Parting.
        tile_px: sides of the square tiles that the network may be given, in pixels.
        pixel_size_um: of the training images, in micrometres; None if unknown or mixed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = Architecture()
    normalisation: Literal["percentile", "raw", "unit"] = "percentile"
    outputs: tuple[Output, ...] = ("cell",)
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    threshold: float = Field(0.5, gt=0, lt=1)
    high_threshold: float = Field(0.0, ge=0, le=1)
    min_area_px: int = Field(0, ge=0)
    core_threshold: float | None = Field(None, ge=0, le=1)
    core_distance: float = Field(CORE_DISTANCE, ge=0, le=1)
    join_probability: float = Field(1.0, ge=0, le=1)
    tile_px: tuple[int, ...] = Field((256, 512), min_length=1)
    pixel_size_um: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if len(self.outputs) != self.architecture.n_classes:
            raise ValueError(f"{len(self.outputs)} outputs are named; the network has {self.architecture.n_classes}")
        if "cell" not in self.outputs:
            raise ValueError("no output is named 'cell'")
        if self.outputs.count("border") > 1 or self.outputs.count("distance") > 1:
            raise ValueError("at most one 'border' output, and one 'distance'")
        if any(side % 64 or side < 128 for side in self.tile_px):
            raise ValueError("tile_px in multiples of 64, from 128 on")
        return self

    def high_threshold_at(self, threshold: float | None) -> float:
        """The high threshold, in [0, 1], that goes with another threshold.

        With a lower one its odds fall by the same factor, so that fainter cells are found too, and not only those that
        are sure become wider; a higher one leaves it where it is.

        Args:
            threshold: in [0, 1]; None is the config's own.
        """
        if threshold is None or threshold >= self.threshold:
            return self.high_threshold
        if threshold <= 0:
            return 0.0  # all is foreground
        change = special.logit(threshold) - special.logit(self.threshold)
        return float(special.expit(special.logit(self.high_threshold) + change))

    @property
    def parting(self) -> Parting:
        """How touching cells are parted."""
        return Parting(self.core_threshold, self.core_distance, self.join_probability)


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        state: parameter name to float32 tensor, on the CPU.
        config: how to run it.
        card: data, split, scores, commit, recipe: whatever the trainer stored; empty for a bare state dict.
        version: SHA-256 of the file, 64 hex digits.
    """

    state: dict[str, Tensor]
    config: ModelConfig
    card: dict[str, Any]
    version: str

    def build(self) -> UNet:
        """The network with these weights, in evaluation mode."""
        with torch.device("meta"):  # no random weights first, which take longer than all the rest
            network = self.config.architecture.build()
        state = {name: tensor.clone() for name, tensor in self.state.items()}
        network.load_state_dict(state, strict=True, assign=True)
        return network.eval()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a Maskwell checkpoint, or a bare state dict of the tutorial's or milesial's U-Net.

    Args:
        path: the file. It is read once, so the version belongs to the very bytes that are used.

    Raises:
        WeightsError: the file is missing, damaged, a pickle with code in it, no U-Net of a known kind, of shapes that
            contradict its config, or holds NaN or infinity. The text says what was found.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror or error}") from error
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows as whatever the depths of the zip reader and the unpickler raise
        # PyTorch's own words advise to load it without protection
        objects = isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error)
        reason = (
            "it holds objects other than tensors and plain values, which are not loaded since they may run code, "
            "or is damaged"
            if objects
            else "damaged, cut short, or not written by torch.save"
        )
        raise WeightsError(f"{path} ({len(data):,} bytes) is no readable file of weights: {reason}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; a state dict or a Maskwell checkpoint is needed")
    version = hashlib.sha256(data).hexdigest()
    card: dict[str, Any] = {}
    if "format" in content:
        config, state, card = _read_maskwell(path, content)
        problem = _difference(config.architecture, state)
        if problem:
            raise WeightsError(f"{path}: the tensors do not fit the config: {problem}")
    else:
        # milesial's trainer hides the grey levels of its masks among the tensors
        state = _float_state(path, {key: value for key, value in content.items() if key != "mask_values"})
        try:
            config = recognise(state)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path}: {name} holds NaN or infinity")
        if name.endswith(".running_var") and bool((tensor < 0).any()):
            raise WeightsError(f"{path}: {name} holds a negative variance")
    return Checkpoint(state=state, config=config, card=card, version=version)


def write_checkpoint(
    path: Path, state: Mapping[str, Tensor], config: ModelConfig, card: Mapping[str, Any], *, half: bool = False
) -> str:
    """Write a Maskwell checkpoint; a reader sees the old file or the new one, never a part.

    Args:
        path: replaced if it exists; its folder is made.
        state: the network's state dict.
        config: stored beside it.
        card: plain values (dict, list, str, number, bool, None) for people and for `GET /models/{name}`. Tuples become
            lists, NumPy's scalars Python's, and NaN and infinity None, for JSON knows none of these.
        half: store the convolutions as float16, half the size; they are float32 again once read. The statistics of the
            batch norms stay float32, for a variance can be beyond float16's 65504, and so does a convolution that is.

    Returns:
        The version: SHA-256 of the file.

    Raises:
        TypeError: the card holds something else, which `read_checkpoint` would refuse.
    """
    tensors = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        small = value.half() if half and value.is_floating_point() and value.ndim == 4 else value.clone()
        tensors[name] = small if bool(torch.isfinite(small).all()) else value.clone()
    buffer = io.BytesIO()
    torch.save(
        {"format": FORMAT, "config": config.model_dump(mode="json"), "card": _plain(card), "state_dict": tensors},
        buffer,
    )
    data = buffer.getvalue()
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` by way of a temporary file in the same folder: fsync, rename, fsync the folder.

    Raises:
        OSError: it cannot be written; names `path`. What was there stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    # Not by tempfile, whose files are 0600 and could not be read by a server that runs as another user.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # writing to a full disk raises without a name
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sweep(path: Path) -> None:
    """Remove what processes that were killed while they wrote this file have left beside it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):  # not ours, or another one sweeps as well
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()


def recognise(state: Mapping[str, Tensor]) -> ModelConfig:
    """Tell from a bare state dict's shapes which U-Net it belongs to, and how its trainer preprocessed images.

    Returns:
        The tutorial's config (grey levels 0..255 as they are, sigmoid, threshold 0.5), or for milesial's layout that
        trainer's (grey levels over 255; softmax where it has several classes).

    Raises:
        WeightsError: the tensors are of no known U-Net; says what was found.
    """
    first, last = state.get("inc.double_conv.0.weight"), state.get("outc.conv.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        found = ", ".join(list(state)[:3]) or "nothing"
        raise WeightsError(f"no U-Net of a known kind: it starts with {found}; expected inc.double_conv.0.weight")
    problems = []
    for layout, bilinear in itertools.product(get_args(Layout), (True, False)):
        try:
            architecture = Architecture(
                n_channels=first.shape[1],
                n_classes=last.shape[0],
                width=first.shape[0],
                layout=layout,
                bilinear=bilinear,
            )
        except ValidationError as error:
            raise WeightsError(f"no U-Net of a known kind: {_first_problem(error)}") from error
        problem = _difference(architecture, state)
        if problem is None:
            return _bare_config(architecture)
        problems.append(f"{layout}, bilinear={bilinear}: {problem}")
    raise WeightsError("no U-Net of a known kind: " + "; ".join(problems))


def _bare_config(architecture: Architecture) -> ModelConfig:
    classes = architecture.n_classes
    outputs: list[Output] = ["cell"]
    if classes > 1:  # one-hot classes, the first of them the background
        outputs = ["background", *(["cell"] * (classes - 1))]  # type: ignore[list-item]  # literals of a list
    return ModelConfig(
        architecture=architecture,
        normalisation="raw" if architecture.layout == "tutorial" else "unit",
        outputs=tuple(outputs),
        activation="sigmoid" if classes == 1 else "softmax",
        # align_corners was True in training, so the size of the map matters: the tutorial's images have 512 px
        tile_px=(512,),
    )


def _read_maskwell(path: Path, content: dict[str, Any]) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    found = content["format"]
    if not isinstance(found, str) or found != FORMAT:
        raise WeightsError(f"{path} is of format {str(found)[:80]!r}; this version reads {FORMAT!r}")
    try:
        config = ModelConfig.model_validate(content.get("config"))
    except ValidationError as error:
        raise WeightsError(f"{path}: config: {_first_problem(error)}") from error
    state, card = content.get("state_dict"), content.get("card")
    if not isinstance(state, dict) or not isinstance(card, dict):
        raise WeightsError(f"{path}: state_dict or card is missing")
    try:
        return config, _float_state(path, state), _plain(card)
    except TypeError as error:
        raise WeightsError(f"{path}: {error}") from error


def _plain(value: Any, place: str = "card") -> Any:
    """`value` in nothing but what JSON can say."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{place} has the key {key!r}; keys are strings")
        return {str(key): _plain(part, f"{place}.{key}") for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{place}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    # sub-classes too: an enum's member is stored as the text or the number that it is
    for kind in (str, int):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else int(value)
    raise TypeError(f"{place} is a {type(value).__name__}; a card holds dict, list, str, number, bool and None")


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}, found {str(first['input'])[:80]!r}" if place else first["msg"]


def _float_state(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {name!r} is a {type(value).__name__}; a state dict holds tensors only")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise WeightsError(f"{path}: {name} is no plain tensor but {value.layout}, {value.dtype}, {value.device}")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _difference(architecture: Architecture, state: Mapping[str, Tensor]) -> str | None:
    """The first way in which `state` does not fit, in words; None if it fits."""
    with torch.device("meta"):
        expected = architecture.build().state_dict()
    for name, tensor in expected.items():
        if name not in state:
            return f"{name} is missing"
        if state[name].shape != tensor.shape:
            return f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        if state[name].dtype != tensor.dtype:
            return f"{name} is of {state[name].dtype}, expected {tensor.dtype}"
    extra = sorted(set(state) - set(expected))
    return f"{extra[0]} is not part of it" if extra else None
