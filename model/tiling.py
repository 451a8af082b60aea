"""Cut planes into overlapping square tiles and blend the logits back; knows no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

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


class PlaneReader(Protocol):
    """Normalised planes that are computed part by part.

    Attributes:
        shape: (C, H, W) of the whole.
    """

    shape: tuple[int, int, int]

    def planes(self, top: int, bottom: int, left: int, right: int) -> Planes:
        """(C, bottom - top, right - left) of them; from any thread."""
        ...


class Stitcher:
    """The tiles of one image on their way through a network.

    It holds neither all planes nor, if a subclass takes the rows as they are finished, all logits: memory does not grow
    with the number of tiles.

    Args:
        planes: (C, H, W) float32, or what computes parts of them.
        grid: made for that height and width.
        n_classes: maps that the network returns.

    `tile(i)` may be called in any order, from any thread; `add(i, logits)` must be called once for each tile in
    increasing order, which keeps the sums, and so every byte of the result, independent of what else the network was
    working on.
    """

    def __init__(self, planes: Planes | PlaneReader, grid: TileGrid, n_classes: int) -> None:
        self.grid = grid
        self._planes: PlaneReader = _ArrayPlanes(planes) if isinstance(planes, np.ndarray) else planes
        self._n_classes = n_classes
        self._next = 0
        # sums of the rows that the row of tiles under way covers, from row `_top` on
        self._top = 0
        self._sums: Logits = np.zeros((n_classes, 0, grid.width), dtype=np.float32)
        self._logits: Logits | None = None

    def tile(self, index: int) -> Planes:
        """(C, side, side); where it reaches past the image, that is mirrored at its last row and column."""
        y, x = self._origin(index)
        side, height, width = self.grid.side, self.grid.height, self.grid.width
        if y + side <= height and x + side <= width:
            return self._planes.planes(y, y + side, x, x + side)
        rows, columns = _mirrored(y, side, height), _mirrored(x, side, width)
        top, left = int(rows.min()), int(columns.min())
        part = self._planes.planes(top, int(rows.max()) + 1, left, int(columns.max()) + 1)
        return part[:, (rows - top)[:, None], columns - left]

    def add(self, index: int, logits: Logits) -> None:
        """Blend in the (K, side, side) logits of a tile."""
        if index != self._next:
            raise ValueError(f"tile {index} came where tile {self._next} was due")
        self._next += 1
        grid = self.grid
        if len(grid) == 1:
            self._finish_rows(0, logits[:, : grid.height, : grid.width])
            return
        row, column = divmod(index, len(grid.xs))
        y, x = grid.ys[row], grid.xs[column]
        rows, columns = min(grid.side, grid.height - y), min(grid.side, grid.width - x)
        if column == 0:
            self._begin_row(y, rows)
        down = _weights(grid.ys, grid.side)[row][:rows, None]
        across = _weights(grid.xs, grid.side)[column][None, :columns]
        self._sums[:, :rows, x : x + columns] += logits[:, :rows, :columns] * (down * across)
        if column == len(grid.xs) - 1:
            done = (grid.ys[row + 1] if row + 1 < len(grid.ys) else grid.height) - y
            self._finish_rows(y, self._sums[:, :done])

    @property
    def complete(self) -> bool:
        """Whether every tile has come back."""
        return self._next == len(self.grid)

    def result(self) -> Logits:
        """(K, H, W) logits of the whole image, once complete."""
        self._check_complete()
        if self._logits is None:
            raise ValueError("the logits were taken as they came")
        return self._logits

    def _check_complete(self) -> None:
        if not self.complete:
            raise ValueError(f"{len(self.grid) - self._next} tiles are missing")

    def _finish_rows(self, top: int, logits: Logits) -> None:
        """Take the (K, rows, W) logits of rows that no further tile reaches, from row `top` on.

        They change when a further row of tiles begins.
        """
        if logits.shape[1] == self.grid.height:  # the whole image, after which nothing begins
            self._logits = logits
            return
        if self._logits is None:
            self._logits = np.empty((self._n_classes, self.grid.height, self.grid.width), dtype=np.float32)
        self._logits[:, top : top + logits.shape[1]] = logits

    def _begin_row(self, y: int, rows: int) -> None:
        """Keep of the sums the rows that the next row of tiles reaches too."""
        sums: Logits = np.zeros((self._n_classes, rows, self.grid.width), dtype=np.float32)
        kept = self._sums[:, y - self._top :]
        sums[:, : kept.shape[1]] = kept
        self._top, self._sums = y, sums

    def _origin(self, index: int) -> tuple[int, int]:
        return self.grid.ys[index // len(self.grid.xs)], self.grid.xs[index % len(self.grid.xs)]


class _ArrayPlanes:
    def __init__(self, planes: Planes) -> None:
        self.shape: tuple[int, int, int] = planes.shape
        self._planes = planes

    def planes(self, top: int, bottom: int, left: int, right: int) -> Planes:
        return self._planes[:, top:bottom, left:right]


def _mirrored(first: int, count: int, length: int) -> npt.NDArray[np.int64]:
    """The rows `first` and so on of an image of `length` rows that is mirrored at its edges again and again."""
    if length == 1:
        return np.zeros(count, dtype=np.int64)
    period = 2 * (length - 1)
    position = np.arange(first, first + count) % period
    return np.minimum(position, period - position)


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
