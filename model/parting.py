"""Part regions of touching cells: number their cores, and flood the regions from these.

By bands and blocks, so that memory follows the size of a block and not that of the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.segmentation import watershed

from model.bands import cut, cut_rows
from model.runs import Box, find_runs
from model.types import Labels, Mask

# Cores smaller than this are noise between two borders, not cells of their own.
CORE_AREA_PX = 8
# Pixels that are numbered in one go.
AT_ONCE_PX = 1 << 24
# Larger images are flooded block by block, each with so many pixels around it, so a region that reaches no further
# beyond the block is parted exactly as in one go.
BLOCK_PX = 2048
HALO_PX = 128

Late = Callable[[slice, slice], npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Parts:
    """What became of an image's regions.

    Attributes:
        first: the lowest number of a part; those below are regions that are whole.
        last: the largest number that there may be; not all numbers are used.
        core_areas: (last + 1,) int64: in pixels, of the core that a part grew from; 0 of a region that is whole.
        usual_area: median area of the image's cores; 1 where no region is parted.
    """

    first: int
    last: int
    core_areas: npt.NDArray[np.int64]
    usual_area: float

    @classmethod
    def none(cls, count: int) -> Self:
        """All of `count` regions are whole, and no core is asked for."""
        return cls(count + 1, count, np.zeros(count + 1, dtype=np.int64), 1.0)


def label_foreground(shape: tuple[int, int], foreground: Callable[[slice], Mask]) -> tuple[Labels, int]:
    """Number the connected regions of an image's foreground, over edges and not over corners.

    Args:
        shape: of the image, (H, W).
        foreground: gives the rows of a slice.

    Returns:
        (H, W) int32, regions 1..n in any order, and n.

    Source: cv2.connectedComponents; beyond AT_ONCE_PX scipy.ndimage.label, slower and with no mask beside the numbers.
    """
    bands = _bands(shape)
    if len(bands) == 1:
        return label_regions(foreground(bands[0]))
    numbers = np.empty(shape, dtype=np.int32)
    for band in bands:
        numbers[band] = foreground(band)
    return numbers, int(ndimage.label(numbers, output=numbers))


def label_regions(mask: Mask) -> tuple[Labels, int]:
    """The same of a mask that is in memory, all in one go."""
    n_with_background, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return np.asarray(labels, dtype=np.int32), n_with_background - 1


def part(
    labels: Labels, count: int, *, core: Callable[[slice], Mask], late: Late, below_px: int | None = None
) -> Parts:
    """Part each region that holds several cores; the others keep their number.

    Args:
        labels: (H, W), regions 1..count; changed in place.
        count: of regions.
        core: where the cores of cells are, in the rows of a slice.
        late: how late a flood from the cores reaches the pixels, in the rows and columns of two slices.
        below_px: leave the regions whole in which no core is smaller, for a caller that only asks which parts are: a
            part is at least as large as its core.

    Source: skimage.segmentation.watershed (decisions/0005).
    """
    region_of, crowded, area = _mark_seeds(labels, count, core, below_px)
    if not crowded.any():
        return Parts.none(count)
    # every seed lies in a crowded region
    floods = np.concatenate([crowded, np.ones(len(region_of) - len(crowded), dtype=np.bool_)])
    height, width = labels.shape
    # beyond, the image itself takes so much memory that what is beside it counts
    block, halo = BLOCK_PX if labels.size <= AT_ONCE_PX else BLOCK_PX // 2, HALO_PX
    unreached: list[Box] = []
    above = labels[:0]  # rows that the blocks before have overwritten, as they were
    for down_block in cut(height, block):
        top, bottom = down_block.start, down_block.stop
        first = top - len(above)
        marked = np.concatenate([above, labels[top : bottom + halo]])
        above = marked[max(bottom - halo - first, 0) : bottom - first]
        for across_block in cut(width, block):
            left, right = across_block.start, across_block.stop
            start, stop = max(left - halo, 0), min(right + halo, width)
            mask = np.take(floods, marked[:, start:stop])  # half the time of indexing
            x, y, across, down = cv2.boundingRect(mask.view(np.uint8))
            box = slice(y, y + down), slice(x, x + across)
            rows = slice(max(top, first + y), min(bottom, first + y + down))
            columns = slice(max(left, start + x), min(right, start + x + across))
            if rows.start >= rows.stop or columns.start >= columns.stop:  # no more than the surroundings
                continue
            numbers = marked[:, start:stop][box]
            order = late(slice(first + y, first + y + down), slice(start + x, start + x + across))
            parted = flood(order, np.where(numbers > count, numbers, 0), mask[box])
            np.copyto(parted, np.take(region_of, numbers), where=parted == 0)
            own = parted[
                rows.start - first - y : rows.stop - first - y, columns.start - start - x : columns.stop - start - x
            ]
            labels[rows, columns] = own
            if _are_whole(own, crowded).any():
                unreached.append((slice(top, bottom), slice(left, right)))
    _adopt(labels, unreached, crowded)
    core_areas = np.concatenate([np.zeros(count + 1, dtype=np.int64), area[1:].astype(np.int64)])
    return Parts(count + 1, len(region_of) - 1, core_areas, usual_core_area(area))


def usual_core_area(areas: npt.NDArray[Any]) -> float:
    """Median of the areas of an image's cores, in pixels, without those that do not count; 1 where none does."""
    real = areas[areas >= CORE_AREA_PX]
    return float(np.median(real)) if len(real) else 1.0


def _are_whole(labels: Labels, crowded: Mask) -> Mask:
    """Where a region that holds several cores still has its own number."""
    count = len(crowded) - 1
    return (labels <= count) & np.take(crowded, np.minimum(labels, count))


def _adopt(labels: Labels, blocks: list[Box], crowded: Mask) -> None:
    """Give what no flood reached, for its core lies beyond the halo, to the cell that goes on beyond the block.

    Each connected piece goes to the cell along which it has the longest seam, of equal ones to that of the lowest
    number. A piece may reach through several blocks, hence the rounds.
    """
    adopts = True
    while blocks and adopts:
        adopts, left = False, []
        for rows, columns in blocks:
            own = labels[rows, columns]
            pieces, n = label_regions(_are_whole(own, crowded))
            seams = [np.zeros((2, 0), dtype=np.int32)]
            for inside, beyond in (
                (pieces[:1], labels[max(rows.start - 1, 0) : rows.start, columns]),
                (pieces[-1:], labels[rows.stop : rows.stop + 1, columns]),
                (pieces[:, :1].T, labels[rows, max(columns.start - 1, 0) : columns.start].T),
                (pieces[:, -1:].T, labels[rows, columns.stop : columns.stop + 1].T),
            ):
                if beyond.size:
                    seam = np.concatenate([inside, beyond])
                    seams.append(seam[:, (seam[0] > 0) & (seam[1] >= len(crowded))])
            (piece, cell), lengths = np.unique(np.concatenate(seams, axis=1), axis=1, return_counts=True)
            order = np.lexsort((cell, -lengths, piece))
            found, first = np.unique(piece[order], return_index=True)
            cell_of = np.zeros(n + 1, dtype=np.int32)
            cell_of[found] = cell[order][first]
            adopted = np.take(cell_of, pieces)
            np.copyto(own, adopted, where=adopted > 0)
            adopts |= found.size > 0
            if len(found) < n:
                left.append((rows, columns))
        blocks = left


def is_one_block(shape: tuple[int, ...]) -> bool:
    """Whether an image of (H, W) is flooded in one go."""
    return max(shape) <= BLOCK_PX


def are_crowded(
    region_of: npt.NDArray[np.int32], area: npt.NDArray[Any], count: int, *, below_px: int | None = None
) -> Mask:
    """Which of `count` regions hold several cores.

    Args:
        region_of: (n,) of each core, below `count`.
        area: (n,) of each core, in pixels; those below CORE_AREA_PX do not count.
        below_px: leave out regions in which no core is smaller, as part does.

    Returns:
        (count,) bool.
    """
    real = area >= CORE_AREA_PX
    crowded: Mask = np.bincount(region_of[real], minlength=count) > 1
    if below_px is not None:
        crowded &= np.bincount(region_of[real & (area < below_px)], minlength=count) > 0
    return crowded


def flood(order: npt.NDArray[np.int32], seeds: Labels, mask: Mask) -> Labels:
    """Watershed of the pixels of a mask, and of no others, so that the cost follows them and not the image.

    Args:
        order: (H, W), when a flood from the seeds reaches a pixel, the lowest first; changed where seeds are.
        seeds: (H, W), numbers above 0 within the mask.
        mask: (H, W), to be flooded.

    Returns:
        (H, W) int32: the number of the seed that each pixel was reached from; 0 outside, and where none reaches.

    The inside of a seed floods nothing, so only its rim goes into the queue, which is where the time goes: it becomes
    several times shorter, and only between pixels that are reached at the very same height may the answer change.
    """
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)
    inside = cv2.erode((seeds > 0).view(np.uint8), cross).view(np.bool_)
    rims = np.where(inside, 0, seeds)
    # The queue takes equal seeds in an order that hangs on all else in it. Here each has a place, before what it floods
    # and by rows, so that a region is parted alike in any company. model.regions counts on all seeds coming first.
    starts = rims > 0
    n = np.count_nonzero(starts)
    order[starts] = np.arange(n, dtype=np.int32) + (order.min(initial=0) - np.int32(n))
    parted: Labels = watershed(order, markers=rims, mask=mask & ~inside)  # type: ignore[no-untyped-call]  # no types
    np.copyto(parted, seeds, where=inside)
    return parted


def _mark_seeds(
    labels: Labels, count: int, core: Callable[[slice], Mask], below_px: int | None
) -> tuple[npt.NDArray[np.int32], Mask, npt.NDArray[Any]]:
    """Give the pixels of cores in regions that hold several of them numbers above `count`, one a core, in place.

    Returns:
        For each number that there may now be its region; for each region whether it holds several cores; and for each
        core, numbered from 1, its area.
    """
    areas: list[npt.NDArray[Any]] = [np.zeros(1)]
    regions = [np.zeros(1, dtype=np.int32)]
    joints: list[npt.NDArray[np.int32]] = []
    bands = _bands(labels.shape)
    n = 0
    for band in bands:
        cores = core(band) & (labels[band] > 0)
        numbers, found = label_regions(cores)
        starts, lengths, core_of_run = find_runs(numbers.reshape(-1))
        region = np.zeros(found + 1, dtype=np.int32)
        region[core_of_run] = labels[band].reshape(-1)[starts]  # each core lies in one region
        areas.append(np.bincount(core_of_run, weights=lengths, minlength=found + 1)[1:])
        regions.append(region[1:])
        if len(bands) > 1:  # a single band, as most images are, gets its seeds below, once it is known which cores are
            labels[band][cores] = numbers[cores] + np.int32(count + n)
        n += found
        if band.start:  # cores that go on from the band before
            pair = labels[band.start - 1 : band.start + 1]
            joints.append(pair[:, (pair > count).all(axis=0)] - count)
    area, region_of_core = np.concatenate(areas), np.concatenate(regions)
    core_of = _join(n, joints) if joints else np.arange(n + 1)
    area = np.bincount(core_of, weights=area, minlength=n + 1)
    region_of_joined = np.zeros(n + 1, dtype=np.int32)
    region_of_joined[core_of] = region_of_core
    crowded = are_crowded(region_of_joined, area, count + 1, below_px=below_px)
    is_seed = (area >= CORE_AREA_PX) & crowded[region_of_joined]
    mark = np.where(is_seed[core_of], core_of + count, region_of_core).astype(np.int32)
    if len(bands) > 1:
        number_of = np.concatenate([np.arange(count + 1, dtype=np.int32), mark[1:]])
        for band in bands:
            labels[band] = np.take(number_of, labels[band])
    elif crowded.any():
        labels[cores] = np.take(mark, numbers[cores])
    return np.concatenate([np.arange(count + 1, dtype=np.int32), region_of_core[1:]]), crowded, area


def _join(n: int, joints: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int64]:
    """For each of 0..n the lowest number that it is joined to, by way of others too."""
    one, other = np.concatenate(joints, axis=1)
    graph = coo_array((np.ones(len(one), dtype=np.bool_), (one, other)), shape=(n + 1, n + 1))
    _, component = connected_components(graph, directed=False)
    first = np.full(n + 1, n, dtype=np.int64)
    np.minimum.at(first, component, np.arange(n + 1))
    lowest: npt.NDArray[np.int64] = first[component]
    return lowest


def _bands(shape: tuple[int, ...]) -> list[slice]:
    """Rows of an image: all of them, or a quarter of AT_ONCE_PX at a time."""
    return cut_rows(shape, AT_ONCE_PX if shape[0] * shape[1] <= AT_ONCE_PX else AT_ONCE_PX // 4)
