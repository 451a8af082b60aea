"""From logits to probability, mask and labelled cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special
from skimage.segmentation import watershed

from model.types import Labels, Logits, Mask, Probability

PROBABILITY_LEVELS = 65535
# Values nearby do as well (decisions/0005).
CORE_THRESHOLD = 0.6
CORE_DISTANCE = 0.25
# Cores smaller than this are noise between two borders, not cells of their own.
CORE_AREA_PX = 8


@dataclass(frozen=True)
class Cores:
    """What makes the core of a cell, from which it grows when touching cells are parted.

    Attributes:
        threshold: in [0, 1]. With a border map a core is where the cell's probability is above the border's by more
            than this; None takes CORE_THRESHOLD. With the cell map alone it is where the probability reaches this;
            None parts nothing then.
        distance: in [0, 1]; a core is farther from the cell's edge than this share of the largest distance in it.
            Without a distance map it means nothing.
    """

    threshold: float | None = None
    distance: float = CORE_DISTANCE


DEFAULT_CORES = Cores()


@dataclass(frozen=True)
class Maps:
    """What a network said of an image, as probabilities.

    Attributes:
        cell: (H, W) float32 in [0, 1], in steps of 1/65535, so that a 16-bit picture of it loses nothing.
        border: (H, W) likewise, of being where cells touch; None if the network has no such output.
        distance: (H, W) likewise, from the cell's edge, as a share of the largest in that cell; None likewise.
    """

    cell: Probability
    border: Probability | None = None
    distance: Probability | None = None


def to_maps(logits: Logits, outputs: Sequence[str], activation: str) -> Maps:
    """Turn (K, H, W) logits into probabilities.

    Args:
        logits: raw output of the network.
        outputs: what each of the K maps means, see ModelConfig; several `cell` maps add up.
        activation: `sigmoid` or `softmax` (over the K maps).
    """
    values = special.expit(logits) if activation == "sigmoid" else special.softmax(logits, axis=0)
    cells = [values[index] for index, name in enumerate(outputs) if name == "cell"]
    cell = cells[0] if len(cells) == 1 else np.clip(np.sum(cells, axis=0), 0, 1)
    others = {name: _quantise(values[outputs.index(name)]) for name in ("border", "distance") if name in outputs}
    return Maps(cell=_quantise(cell), **others)


def threshold_mask(probability: Probability, threshold: float) -> Mask:
    """Foreground: where the probability is at or above the threshold.

    Args:
        probability: (H, W) float32 in [0, 1].
        threshold: in [0, 1]; 0 makes everything foreground.

    Raises:
        ValueError: the threshold is outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold}; allowed is 0 to 1")
    # The threshold goes up to the next step of the probability, so that a 16-bit picture of the probability, read back
    # and compared by anyone, gives the very same mask whatever float type they use.
    level = np.float32(np.ceil(threshold * PROBABILITY_LEVELS - 1e-6)) / np.float32(PROBABILITY_LEVELS)
    mask: Mask = probability >= level
    return mask


def label_cells(maps: Maps, *, threshold: float, min_area_px: int = 0, cores: Cores = DEFAULT_CORES) -> Labels:
    """Give each cell its own integer.

    Foreground is where the cell probability reaches the threshold. With the cell map alone, and no threshold for
    cores, each connected region is a cell. Else regions that hold several cores (sure to be cell, no border, far from
    the edge) are parted by a watershed grown from these; a region with one core or none stays whole. So the labels
    cover the foreground exactly, less the cells that are too small.

    Args:
        maps: cell probability, and maybe border and distance, (H, W) each.
        threshold: in [0, 1]; from the checkpoint's config unless the user says otherwise.
        min_area_px: cells smaller than this, in pixels, become background; 0 keeps all.
        cores: what makes a core; from the checkpoint's config.

    Returns:
        (H, W) int32; 0 is background, cells are 1..n without gaps, in the order of their first pixel by rows.

    Raises:
        ValueError: the threshold is outside [0, 1], or min_area_px negative.

    Source: scipy.ndimage.label with its default 4-connectivity; skimage.segmentation.watershed (decisions/0005).
    """
    if min_area_px < 0:
        raise ValueError(f"min_area_px {min_area_px}; allowed is 0 or more")
    mask = threshold_mask(maps.cell, threshold)
    regions, count = ndimage.label(mask)
    labels: npt.NDArray[np.int32] = regions.astype(np.int32, copy=False)
    if count and (maps.border is not None or maps.distance is not None or cores.threshold is not None):
        labels = _part(labels, count, mask, maps, cores)
    if min_area_px > 0:
        areas = np.bincount(labels.ravel())
        labels = np.where(areas[labels] >= min_area_px, labels, 0)
    return _by_first_pixel(labels)


def _part(regions: Labels, count: int, mask: Mask, maps: Maps, rule: Cores) -> Labels:
    """Part each region that holds several cores; the others keep their label."""
    core, height = mask, maps.cell if maps.distance is None else maps.distance
    if maps.border is not None:
        core = core & (maps.cell - maps.border > (CORE_THRESHOLD if rule.threshold is None else rule.threshold))
        height = height - maps.border
    elif rule.threshold is not None:
        core = core & threshold_mask(maps.cell, rule.threshold)
    if maps.distance is not None:
        core = core & (maps.distance > rule.distance)
    cores, n_cores = ndimage.label(core)
    if n_cores < 2:
        return regions
    areas = np.bincount(cores.ravel())
    region_of_core = np.zeros(n_cores + 1, dtype=np.int64)
    region_of_core[cores] = regions  # each core lies in one region
    real = areas >= CORE_AREA_PX
    real[0] = False
    cores_in_region = np.bincount(region_of_core[real], minlength=count + 1)
    crowded = cores_in_region > 1
    crowded[0] = False
    if not crowded.any():
        return regions
    seeds = np.where(real[cores] & crowded[regions], cores + count, 0)
    # Only the pixels of crowded regions are flooded, so the cost follows them and not the image.
    parted = watershed(-height, markers=seeds, mask=crowded[regions])  # type: ignore[no-untyped-call]  # no types
    return np.where(parted > 0, parted, regions).astype(np.int32)


def _by_first_pixel(labels: Labels) -> Labels:
    """Renumber 1..n by rows, so that the numbers depend on nothing but the picture."""
    flat = labels.ravel()
    n = int(flat.max(initial=0))
    if n == 0:
        return labels
    # A label's first pixel starts a run of it; there are far fewer runs than pixels.
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    first = np.full(n + 1, flat.size, dtype=np.int64)
    first[flat[starts[::-1]]] = starts[::-1]  # of several starts of one label the last written, so the first, stays
    first[0] = -1
    order = np.argsort(first, kind="stable")  # absent labels sort to the end
    number = np.empty(n + 1, dtype=np.int32)
    number[order] = np.arange(n + 1, dtype=np.int32)
    renumbered: Labels = number[labels]
    return renumbered


def _quantise(probability: npt.NDArray[np.float32]) -> Probability:
    levels: Probability = np.rint(probability * np.float32(PROBABILITY_LEVELS)) / np.float32(PROBABILITY_LEVELS)
    return levels
