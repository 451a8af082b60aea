"""The int8 twin of a checkpoint: where its network is rounded to 8 bits and over which range; a small file beside it.

`best_model.pth` has `best_model.int8.json`. It is plain JSON, checked against a schema when it is read; it holds the
SHA-256 of the checkpoint that it was made for, and no weights: these come from the checkpoint (decisions/0011).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from model.checkpoint import ModelConfig, write_atomically
from model.errors import WeightsError
from model.types import Batch

FORMAT = "maskwell-int8/1"
SUFFIX = ".int8.json"
# A twin of a network of width 64 has some hundred thousand bytes.
MAX_BYTES = 64 * 1024**2
# The probe's logits may differ by this part of their spread: other processors round in other places, but one whose
# instructions saturate is far off.
PROBE_TOLERANCE = 0.05
# Every so many pixels of the probe's logits are kept.
PROBE_STEP = 16

Name = Annotated[str, Field(max_length=100)]


class Quantiser(BaseModel):
    """A place in the network where values are rounded to a few levels between two ends.

    Attributes:
        inputs: operations, by name and input, that take the rounded values.
        levels: how many.
        low, high: the ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[tuple[Name, Annotated[int, Field(ge=0, le=8)]], ...] = Field(min_length=1, max_length=8)
    levels: int = Field(ge=2, le=256)
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _consistent(self) -> "Quantiser":
        if self.low >= self.high:
            raise ValueError(f"rounded between {self.low} and {self.high}")
        return self


class TwinReport(BaseModel):
    """How a twin was made and how well it answers.

    Attributes:
        n_calibration: tiles that the ranges were taken from.
        n_images: images that both networks were compared on.
        dice_fp32, dice_int8: mean Dice of the masks against the truth.
        agreement: part of all pixels in which both masks agree.
        ap_fp32, ap_int8: of the cells, counts pooled, mean over IoU 0.5 to 0.9; None where the truth has no cells.
        kept_float: convolutions that are not rounded, by name.
        tool: what chose the ranges, with its version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_calibration: int = Field(ge=1)
    n_images: int = Field(ge=1)
    dice_fp32: float = Field(ge=0, le=1)
    dice_int8: float = Field(ge=0, le=1)
    agreement: float = Field(ge=0, le=1)
    ap_fp32: float | None = Field(None, ge=0, le=1)
    ap_int8: float | None = Field(None, ge=0, le=1)
    kept_float: tuple[Name, ...] = Field(max_length=100)
    tool: str = Field(max_length=100)


class Twin(BaseModel):
    """What the file holds.

    Attributes:
        checkpoint: SHA-256 of the file of weights that it belongs to.
        quantisers: where values are rounded.
        scales: of convolutions' weights, by name: what a step of their int8 is, for each channel that they make.
        biases: of convolutions that make up for what rounding shifts, by operation.
        probe: logits of a test picture, to see whether a processor computes what was checked.
        report: how well it answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["maskwell-int8/1"] = "maskwell-int8/1"
    checkpoint: str = Field(pattern=r"^[0-9a-f]{64}$")
    quantisers: tuple[Quantiser, ...] = Field(min_length=1, max_length=1000)
    scales: dict[Name, tuple[Annotated[FiniteFloat, Field(gt=0)], ...]] = Field(max_length=1000)
    biases: dict[Name, tuple[FiniteFloat, ...]] = Field(max_length=1000)
    probe: tuple[FiniteFloat, ...]
    report: TwinReport


@dataclass(frozen=True)
class TwinFile:
    """A twin as it was read, with the SHA-256 of its file."""

    twin: Twin
    digest: str


def twin_path(weights: Path) -> Path:
    """Where the twin of a file of weights lies: `best_model.int8.json` beside `best_model.pth`."""
    return weights.with_name(weights.stem + SUFFIX)


def read_twin(weights: Path, version: str) -> TwinFile | None:
    """The twin beside a file of weights; None where there is none.

    Args:
        weights: the file of weights.
        version: its SHA-256.

    Raises:
        WeightsError: the twin is damaged, or was made for other weights.
    """
    path = twin_path(weights)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise WeightsError(f"{path} has more than {MAX_BYTES:,} bytes")
    try:
        twin = Twin.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise WeightsError(f"{path} is no int8 twin: {place + ': ' if place else ''}{first['msg']}") from error
    if twin.checkpoint != version:
        raise WeightsError(
            f"{path} was made for version {twin.checkpoint[:12]}; these weights are version {version[:12]}"
        )
    return TwinFile(twin, hashlib.sha256(data).hexdigest())


def write_twin(weights: Path, twin: Twin) -> Path:
    """Write a twin beside its file of weights, in one step; returns its path."""
    path = twin_path(weights)
    write_atomically(path, twin.model_dump_json().encode())
    return path


def probe_batch(config: ModelConfig) -> Batch:
    """(1, C, S, S) float32: the test picture, of the smallest tile's size, at the scale that the network takes."""
    side = min(config.tile_px)
    batch = np.random.default_rng(0).random((1, config.architecture.n_channels, side, side), dtype=np.float32)
    return batch * np.float32(255) if config.normalisation == "raw" else batch
