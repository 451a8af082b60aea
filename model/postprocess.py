"""From logits to probability, mask and labelled cells."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from model.bands import cut, cut_rows
from model.joining import Seams, join_parts
from model.parting import Parts, flood, is_one_block, label_foreground, part, usual_core_area
from model.regions import Regions
from model.runs import Box, Runs, find_runs
from model.types import Labels, Levels, Logits, Mask, Probability

PROBABILITY_LEVELS = 65535
# Values nearby do as well (decisions/0005).
CORE_THRESHOLD = 0.6
CORE_DISTANCE = 0.25
# What training gives to networks with a border map.
JOIN_PROBABILITY = 0.3
HIGH_THRESHOLD = 0.9
# Steps of border and distance: finer than a network is sure of, and half the memory of those of the cell.
COARSE_LEVELS = 255
# Pixels that are counted in one go.
BAND_PX = 1 << 22
# A mask with more runs a pixel than this is noise, whose regions are found more quickly pixel by pixel.
RUNS_SHARE = 1 / 16

# A probability times the steps of its map, and a half: rounded down it is the nearest step.
Steps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parting:
    """How touching cells are parted: each grows from a core.

    Attributes:
        core_threshold: in [0, 1]. With a border map a core is where the cell's probability is above the border's by
            more than this; None takes CORE_THRESHOLD. With the cell map alone it is where the probability reaches this;
            None parts nothing then.
        core_distance: in [0, 1]; a core is farther from the cell's edge than this share of the largest distance in it.
            Without a distance map it means nothing.
        join_probability: in [0, 1]; two parts become one again where the probability that they are one cell, see
            model.joining, is above this; 1 joins none. Without a border map it means nothing.
    """

    core_threshold: float | None = None
    core_distance: float = CORE_DISTANCE
    join_probability: float = 1.0


DEFAULT_PARTING = Parting()


@dataclass(frozen=True)
class Maps:
    """What a network said of an image, as probabilities in whole steps: two to four bytes a pixel.

    Attributes:
        cell: (H, W) uint16 in steps of 1/65535: of being in a cell. A 16-bit picture of it loses nothing.
        border: (H, W) uint8 in steps of 1/255: of being where cells touch; None if the network has no such output.
        distance: (H, W) uint8 in steps of 1/255: from the cell's edge, as a share of the largest in that cell; None
            likewise.
    """

    cell: Levels
    border: npt.NDArray[np.uint8] | None = None
    distance: npt.NDArray[np.uint8] | None = None

    @staticmethod
    def from_probabilities(
        cell: Probability, border: Probability | None = None, distance: Probability | None = None
    ) -> "Maps":
        """Maps of (H, W) float32 probabilities in [0, 1]."""
        return Maps._from_steps(
            _in_steps(cell, PROBABILITY_LEVELS),
            *(None if map_ is None else _in_steps(map_, COARSE_LEVELS) for map_ in (border, distance)),
        )

    @staticmethod
    def _from_steps(cell: Steps, border: Steps | None, distance: Steps | None) -> "Maps":
        return Maps(
            cell.astype(np.uint16), *(None if map_ is None else map_.astype(np.uint8) for map_ in (border, distance))
        )

    def empty_like(self, height: int, width: int) -> "Maps":
        """Maps of the same kinds, of another height and width, to be filled by `put`."""
        return Maps(
            *(map_ if map_ is None else np.empty((height, width), map_.dtype) for map_ in self._all())  # type: ignore[arg-type]
        )

    def put(self, top: int, band: "Maps") -> None:
        """Write rows into the maps, from row `top` on."""
        for whole, rows in zip(self._all(), band._all(), strict=True):
            if whole is not None and rows is not None:
                whole[top : top + len(rows)] = rows

    def _all(self) -> tuple[npt.NDArray[Any] | None, ...]:
        return self.cell, self.border, self.distance

    @property
    def probability(self) -> Probability:
        """(H, W) float32 in [0, 1]: of being in a cell; a 16-bit picture of it loses nothing."""
        return self.cell.astype(np.float32) / np.float32(PROBABILITY_LEVELS)


def to_maps(logits: Logits, outputs: Sequence[str], activation: str) -> Maps:
    """Turn (K, H, W) logits, of an image or of some rows of it, into probabilities.

    Args:
        logits: raw output of the network.
        outputs: what each of the K maps means, see ModelConfig; several `cell` maps add up.
        activation: `sigmoid` or `softmax` (over the K maps).

    Raises:
        ValueError: `outputs` are not K.
    """
    in_steps: Callable[[Logits, int], Steps] = _sigmoid_in_steps
    if activation == "softmax":
        logits, in_steps = special.softmax(logits, axis=0), _in_steps
    named: dict[str, Steps] = {}
    for name, map_ in zip(outputs, logits, strict=True):
        if name == "cell":
            cell = in_steps(map_, PROBABILITY_LEVELS)
            if name in named:
                cell = np.minimum(named[name] + cell - np.float32(0.5), np.float32(PROBABILITY_LEVELS))
            named[name] = cell
        elif name in ("border", "distance"):
            named[name] = in_steps(map_, COARSE_LEVELS)
    return Maps._from_steps(named["cell"], named.get("border"), named.get("distance"))


def threshold_mask(probability: Probability | Levels, threshold: float) -> Mask:
    """Foreground: where the probability is at or above the threshold.

    Args:
        probability: (H, W) float32 in [0, 1], or uint16 in steps of 1/65535.
        threshold: in [0, 1]; 0 makes everything foreground.

    Raises:
        ValueError: the threshold is outside [0, 1].
    """
    level = _level(threshold)
    if probability.dtype == np.uint16:
        return probability >= np.uint16(level)
    mask: Mask = probability >= np.float32(level) / np.float32(PROBABILITY_LEVELS)
    return mask


def _level(threshold: float) -> int:
    """The first step of the probability that reaches a threshold.

    So a 16-bit picture of the probability, read back and compared by anyone, gives the very same foreground whatever
    float type they use.

    Raises:
        ValueError: it is outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold}; allowed is 0 to 1")
    return int(np.ceil(threshold * PROBABILITY_LEVELS - 1e-6))


def label_cells(
    maps: Maps,
    *,
    threshold: float,
    high_threshold: float = 0.0,
    min_area_px: int = 0,
    parting: Parting = DEFAULT_PARTING,
) -> Labels:
    """Give each cell its own integer.

    Foreground is where the cell probability reaches the threshold, in connected regions that reach the high one
    somewhere. With the cell map alone, and no threshold for cores, each connected region is a cell. Else regions that
    hold several cores (sure to be cell, no border, far from the edge) are parted by a watershed grown from these, and
    parts that are likely to be one cell joined again; a region with one core or none stays whole. So the labels cover
    the foreground exactly, less the cells that are too small.

    Args:
        maps: cell probability, and maybe border and distance, (H, W) each.
        threshold: in [0, 1]; from the checkpoint's config unless the user says otherwise.
        high_threshold: in [0, 1]; likewise. One that is not above the threshold drops no region.
        min_area_px: cells smaller than this, in pixels, become background; 0 keeps all.
        parting: how touching cells are parted; from the checkpoint's config.

    Returns:
        (H, W) int32; 0 is background, cells are 1..n without gaps, in the order of their first pixel by rows.

    Raises:
        ValueError: a threshold is outside [0, 1], or min_area_px negative.

    Source: two thresholds as in Canny, "A Computational Approach to Edge Detection", PAMI 1986,
    doi:10.1109/TPAMI.1986.4767851; connected regions over edges; skimage.segmentation.watershed (model.parting,
    model.joining, decisions/0005).
    """
    _check_area(min_area_px)
    labels, count = _regions(maps, threshold, high_threshold, min_area_px, parting, mask_only=False)
    _renumber(labels, count, min_area_px)
    return labels


def mask_cells(
    maps: Maps,
    *,
    threshold: float,
    high_threshold: float = 0.0,
    min_area_px: int = 0,
    parting: Parting = DEFAULT_PARTING,
) -> Mask:
    """The pixels that label_cells numbers, at a fraction of the time: it floods only where a cell may be too small.

    Args, Raises: as label_cells.

    Returns:
        (H, W) bool.
    """
    _check_area(min_area_px)
    if not _drops_faint(threshold, high_threshold) and min_area_px == 0:
        return threshold_mask(maps.cell, threshold)
    if is_one_block(maps.cell.shape):  # before the mask is made, for which a large image has no room beside its labels
        mask = _mask_by_runs(maps, threshold, high_threshold, min_area_px, parting)
        if mask is not None:
            return mask
    return _mask_by_labels(maps, threshold, high_threshold, min_area_px, parting)


def _mask_by_runs(
    maps: Maps, threshold: float, high_threshold: float, min_area_px: int, parting: Parting
) -> Mask | None:
    """The mask of an image that is parted in one block; None where it has too many runs.

    It takes less time than by labels, for no number is written for any pixel but those of regions to flood.
    """
    mask = np.ascontiguousarray(threshold_mask(maps.cell, threshold))
    runs = Runs.find(mask)
    if len(runs) > mask.size * RUNS_SHARE:
        return None
    if not len(runs):
        return mask
    core_runs = Runs.find(_core(maps, parting, (slice(None),)) & mask if _has_cores(maps, parting) else mask[:0])
    regions = Regions.find(runs, core_runs)
    if _drops_faint(threshold, high_threshold):
        regions = regions.reaching(threshold_mask(runs.maxima(maps.cell), high_threshold))
    small = regions.areas < max(min_area_px, 1)
    mask.reshape(-1)[runs.pixels(small[regions.region])] = False
    for chosen in regions.to_floods(regions.are_doubtful(min_area_px)):
        box, seeds, pixels = regions.cut_out(chosen)
        parts = flood(_late(maps, box), seeds, pixels)
        areas = np.bincount(parts.reshape(-1), minlength=len(regions) + 1)
        small = (areas > 0) & (areas < min_area_px)
        small[0] = False  # what is no part
        if small.any() and _joins(maps, parting):
            core_areas = np.concatenate([[0], regions.core_areas])
            usual, seams = usual_core_area(regions.core_areas), _seams(parts, maps, box, least=1)
            cell = join_parts(seams, core_areas, usual, probability=parting.join_probability)
            small &= np.bincount(cell, weights=areas, minlength=len(areas))[cell] < min_area_px
        mask[box] &= ~np.take(small, parts)
    return mask


def _mask_by_labels(maps: Maps, threshold: float, high_threshold: float, min_area_px: int, parting: Parting) -> Mask:
    labels, count = _regions(maps, threshold, high_threshold, min_area_px, parting, mask_only=True)
    flat = labels.reshape(-1)
    bands = cut(flat.size, BAND_PX)
    areas = np.zeros(count + 1)
    for band in bands:
        _, lengths, number_of_run = find_runs(flat[band])
        areas += np.bincount(number_of_run, weights=lengths, minlength=count + 1)
    kept = areas >= min_area_px
    kept[0] = False
    # The mask takes the room of the labels, whose bytes before a band have been read: a large image has none for both.
    mask = flat.view(np.bool_)
    for band in bands:
        mask[band] = np.take(kept, flat[band])
    return mask[: flat.size].reshape(labels.shape)


def _regions(
    maps: Maps, threshold: float, high_threshold: float, min_area_px: int, parting: Parting, *, mask_only: bool
) -> tuple[Labels, int]:
    """(H, W) int32 cells before small ones are dropped, and the largest number that there may be."""
    below_px = min_area_px if mask_only else None
    labels, parts = find_parts(
        maps, threshold=threshold, high_threshold=high_threshold, parting=parting, below_px=below_px
    )
    if parts.first <= parts.last and _joins(maps, parting):
        seams = find_seams(labels, maps, parts)
        cell = join_parts(seams, parts.core_areas, parts.usual_area, probability=parting.join_probability)
        if (cell < np.arange(len(cell))).any():
            for band in cut_rows(labels.shape, BAND_PX):
                labels[band] = np.take(cell, labels[band])
    return labels, parts.last


def find_parts(
    maps: Maps, *, threshold: float, high_threshold: float = 0.0, parting: Parting, below_px: int | None = None
) -> tuple[Labels, Parts]:
    """What label_cells makes cells of: regions, and of each region that holds several cores the parts grown from these.

    Args:
        maps, threshold, high_threshold, parting: as there; no parts are joined yet.
        below_px: as model.parting.part takes it.

    Returns:
        (H, W) int32, 0 the background, and what the other numbers are.
    """
    labels, count = label_foreground(maps.cell.shape, lambda rows: threshold_mask(maps.cell[rows], threshold))
    if _drops_faint(threshold, high_threshold):
        _keep_reaching(labels, count, maps.cell, high_threshold)
    if not count or not _has_cores(maps, parting):
        return labels, Parts.none(count)
    return labels, part(
        labels,
        count,
        core=lambda *at: _core(maps, parting, at),
        late=lambda *at: _late(maps, at),
        below_px=below_px,
    )


def _drops_faint(threshold: float, high_threshold: float) -> bool:
    """Whether foreground may fail to reach the high threshold."""
    return _level(threshold) < _level(high_threshold)


def _keep_reaching(labels: Labels, count: int, cell: Levels, high_threshold: float) -> None:
    """Make background of the regions 1..count whose probability nowhere reaches the threshold, in place."""
    bands = cut_rows(labels.shape, BAND_PX)
    reaches = np.zeros(count + 1, dtype=np.bool_)
    for band in bands:
        reaches[labels[band][threshold_mask(cell[band], high_threshold)]] = True
    if reaches[1:].all():
        return
    number = np.where(reaches, np.arange(count + 1, dtype=np.int32), np.int32(0))
    for band in bands:
        labels[band] = np.take(number, labels[band])


def find_seams(labels: Labels, maps: Maps, parts: Parts) -> Seams:
    """Where the parts of find_parts touch; there has to be a border map."""
    first, *others = (
        _seams(labels[band.start : band.stop + 1], maps, (band, slice(None)), least=parts.first)
        for band in cut_rows(labels.shape, BAND_PX)
    )
    return first.together(*others) if others else first


def _joins(maps: Maps, parting: Parting) -> bool:
    """Whether parts may become one again."""
    return maps.border is not None and parting.join_probability < 1


def _seams(labels: Labels, maps: Maps, at: Box, *, least: int) -> Seams:
    """Within a part of the image; of the labels there may be a row more, which its last row is compared with."""
    if maps.border is None:
        raise ValueError("seams are judged by a border map, and there is none")
    rows, columns = at
    beyond = slice(rows.start, rows.start + len(labels)), columns
    return Seams.find(
        labels,
        maps.border[beyond],
        maps.cell[beyond],
        least=least,
        n_rows=rows.stop - rows.start,
        origin=(rows.start, columns.start or 0),
        width=maps.cell.shape[1],
    )


def _check_area(min_area_px: int) -> None:
    if min_area_px < 0:
        raise ValueError(f"min_area_px {min_area_px}; allowed is 0 or more")


def _has_cores(maps: Maps, parting: Parting) -> bool:
    """Whether there is anything to part touching cells by."""
    return maps.border is not None or maps.distance is not None or parting.core_threshold is not None


def _core(maps: Maps, parting: Parting, at: tuple[slice, ...]) -> Mask:
    """Where cores are, in a part of the image."""
    core = np.ones(maps.cell[at].shape, dtype=np.bool_)
    if maps.border is not None:
        threshold = CORE_THRESHOLD if parting.core_threshold is None else parting.core_threshold
        core &= -_late_by_cell(maps, at) > math.floor(threshold * PROBABILITY_LEVELS)
    elif parting.core_threshold is not None:
        core &= threshold_mask(maps.cell[at], parting.core_threshold)
    if maps.distance is not None:
        core &= maps.distance[at] > math.floor(np.float32(parting.core_distance * COARSE_LEVELS))
    return core


def _late(maps: Maps, at: tuple[slice, ...]) -> npt.NDArray[np.int32]:
    """In which order a flood from the cores reaches the pixels of a part of the image: the middle of a cell first."""
    if maps.distance is None:
        return _late_by_cell(maps, at)
    distance = maps.distance[at].astype(np.int32)
    return -distance if maps.border is None else maps.border[at] - distance


def _late_by_cell(maps: Maps, at: tuple[slice, ...]) -> npt.NDArray[np.int32]:
    """The border's probability less the cell's, in steps of 1/65535."""
    cell = maps.cell[at].astype(np.int32)
    return -cell if maps.border is None else maps.border[at] * np.int32(PROBABILITY_LEVELS // COARSE_LEVELS) - cell


def _renumber(labels: Labels, count: int, min_area_px: int) -> None:
    """Drop cells that are too small and renumber the others 1..n by rows, in place.

    So the numbers depend on nothing but the picture. By bands of rows, for the counts are wider than the labels.
    """
    if count == 0:
        return
    areas = np.zeros(count + 1)
    first = np.full(count + 1, labels.size, dtype=np.int64)
    flat = labels.reshape(-1)
    bands = cut(flat.size, BAND_PX)
    for band in bands:
        starts, lengths, number_of_run = find_runs(flat[band])
        areas += np.bincount(number_of_run, weights=lengths, minlength=count + 1)
        of_band = np.full(count + 1, labels.size, dtype=np.int64) if len(bands) > 1 else first
        # of several runs of one label the last written, which is the first
        of_band[number_of_run[::-1]] = starts[::-1] + band.start
        np.minimum(first, of_band, out=first)
    kept = (first < labels.size) & (areas >= min_area_px)
    kept[0] = False
    order = np.argsort(first[kept], kind="stable")
    number = np.zeros(count + 1, dtype=np.int32)
    number[np.flatnonzero(kept)[order]] = np.arange(1, len(order) + 1, dtype=np.int32)
    for band in bands:
        flat[band] = np.take(number, flat[band])


def _in_steps(probability: Probability, levels: int) -> Steps:
    return probability * np.float32(levels) + np.float32(0.5)


def _sigmoid_in_steps(logits: Logits, levels: int) -> Steps:
    """`_in_steps` of 1 / (1 + e**-x), as 1 - 1 / (1 + e**x): all in one, for each time over the picture counts.

    By NumPy's vectorised exponential, several times as quick as scipy.special.expit.
    """
    with np.errstate(over="ignore"):  # e**x of a large x is infinite, and the probability 1
        steps: Steps = np.exp(logits)
    steps += np.float32(1)
    np.divide(np.float32(-levels), steps, out=steps)
    steps += np.float32(levels + 0.5)
    return steps
