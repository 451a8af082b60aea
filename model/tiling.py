"""Cut planes into overlapping square tiles and blend the logits back; knows no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from model.types import Logits, Planes
from model.unet import STRIDE

OVERLAP_PX = 64  # least width shared by neighbours
# The outermost pixels of a tile saw the convolutions' zero padding; where a neighbour covers them they don't count.
MARGIN_PX = 16


@dataclass(frozen=True)
class TileGrid:
    """Where the tiles of an image lie.

    Attributes:
        height, width: of the image, in pixels.
        side: of the square tiles, in pixels.
        ys, xs: first row and column of each row and column of tiles; multiples of 16, so that every tile meets the
            pooling grid in the same phase. The last tiles may reach past the image, which is mirrored there.
    """

    height: int
    width: int
    side: int
    ys: tuple[int, ...]
    xs: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ys) * len(self.xs)

    @property
    def pixels(self) -> int:
        """What the network computes for this image, in pixels."""
        return len(self) * self.side**2


def plan_tiles(height: int, width: int, sides: Sequence[int]) -> TileGrid:
    """Cover an image with tiles of that one of the given sides that computes least; of two alike the larger.

    Args:
        height, width: of the image, in pixels, >= 1.
        sides: tile sides to choose from, multiples of 64, in pixels.
    """
    grids = [
        TileGrid(height, width, side, _origins(height, side), _origins(width, side))
        for side in sorted(sides, reverse=True)
    ]
    return min(grids, key=lambda grid: grid.pixels)


class Stitcher:
    """The tiles of one image on their way through a network.

    Args:
        planes: (C, H, W) float32.
        grid: made for that height and width.
        n_classes: maps that the network returns.

    `tile(i)` may be called in any order; `add(i, logits)` must be called once for each tile in increasing order, which
    keeps the sums, and so every byte of the result, independent of what else the network was working on.
    """

    def __init__(self, planes: Planes, grid: TileGrid, n_classes: int) -> None:
        self.grid = grid
        bottom = grid.ys[-1] + grid.side - grid.height
        right = grid.xs[-1] + grid.side - grid.width
        self._padded = np.pad(planes, ((0, 0), (0, max(bottom, 0)), (0, max(right, 0))), mode="reflect")
        self._whole = len(grid) == 1
        self._logits: Logits = np.zeros((n_classes, grid.height, grid.width), dtype=np.float32)
        self._next = 0

    def tile(self, index: int) -> Planes:
        """(C, side, side): a view of the padded planes."""
        y, x = self._origin(index)
        side = self.grid.side
        return self._padded[:, y : y + side, x : x + side]

    def add(self, index: int, logits: Logits) -> None:
        """Blend in the (K, side, side) logits of a tile."""
        if index != self._next:
            raise ValueError(f"tile {index} came where tile {self._next} was due")
        self._next += 1
        grid = self.grid
        y, x = self._origin(index)
        rows, columns = min(grid.side, grid.height - y), min(grid.side, grid.width - x)
        target = self._logits[:, y : y + rows, x : x + columns]
        if self._whole:
            target[...] = logits[:, :rows, :columns]
            return
        down = _weights(grid.ys, grid.side)[index // len(grid.xs)][:rows, None]
        across = _weights(grid.xs, grid.side)[index % len(grid.xs)][None, :columns]
        target += logits[:, :rows, :columns] * (down * across)

    @property
    def complete(self) -> bool:
        """Whether every tile has come back."""
        return self._next == len(self.grid)

    def result(self) -> Logits:
        """(K, H, W) logits of the whole image, once complete."""
        if not self.complete:
            raise ValueError(f"{len(self.grid) - self._next} tiles are missing")
        return self._logits

    def _origin(self, index: int) -> tuple[int, int]:
        return self.grid.ys[index // len(self.grid.xs)], self.grid.xs[index % len(self.grid.xs)]


def _origins(length: int, side: int) -> tuple[int, ...]:
    if length <= side:
        return (0,)
    count = -(-(length - OVERLAP_PX) // (side - OVERLAP_PX))
    stride = -(-(length - side) // (count - 1))
    stride = -(-stride // STRIDE) * STRIDE
    count = -(-(length - side) // stride) + 1  # rounding the stride up can spare a tile
    return tuple(index * stride for index in range(count))


@lru_cache(maxsize=64)
def _weights(origins: tuple[int, ...], side: int) -> tuple[npt.NDArray[np.float32], ...]:
    """For each tile along one axis its weight at each pixel; over the tiles they add up to 1."""
    total = np.zeros(origins[-1] + side)
    ramps = []
    for index, origin in enumerate(origins):
        position = np.arange(side)
        ramp = np.ones(side)
        if index > 0:
            shared = origins[index - 1] + side - origin
            ramp = np.minimum(ramp, (position + 0.5 - MARGIN_PX) / (shared - 2 * MARGIN_PX))
        if index < len(origins) - 1:
            shared = origin + side - origins[index + 1]
            ramp = np.minimum(ramp, (side - position - 0.5 - MARGIN_PX) / (shared - 2 * MARGIN_PX))
        ramp = np.clip(ramp, 0.0, 1.0)
        total[origin : origin + side] += ramp
        ramps.append(ramp)
    return tuple(
        (ramp / total[origin : origin + side]).astype(np.float32) for ramp, origin in zip(ramps, origins, strict=True)
    )
