"""More places where cells touch: copies of an image's own cells, laid against others.

Source of the idea: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
CVPR 2021, arXiv:2012.07177. Here light is added instead of exchanged, as a microscope adds that of neighbours.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from model.preprocess import CLIP_HIGH
from model.types import Labels, Mask, Planes

# How far the light of a cell reaches beyond its edge; no other cell may be as near to one that is copied.
HALO_PX = 4
# Cells that are pasted, as a share of those in the image, drawn evenly; and no more than so many.
SHARES = (0.1, 0.6)
MOST_PASTED = 40
# Pairs of a cell to copy and one to lay it against that are tried for each that is wanted.
TRIES = 4
# Smaller cells are often no more than specks of a truth, and fainter ones, as a share of the range, hardly to be seen.
LEAST_PX = 20
LEAST_LIGHT = 0.03
# Of the light of the copy, over the original's.
GAINS = (0.75, 1.25)
# Largest share of a copy that may lie on other cells, which keep these pixels; each draws its own.
MOST_OVERLAP = 0.06
# How far a copy is moved at least before it is given up, for others may be in its way.
REACH_PX = 120
# Places that are tried for each side of a copy; cells that are larger than so many pixels are moved by more than one.
PLACES = 64


@dataclass(frozen=True)
class _Cutout:
    """A cell with its halo.

    Attributes:
        light: (C, h, w) float32: what it adds to the ground.
        cell: (h, w) which pixels are the cell.
    """

    light: Planes
    cell: Mask


def paste_cells(planes: Planes, labels: Labels, generator: np.random.Generator) -> tuple[Planes, Labels]:
    """Lay turned and mirrored copies of lone cells against other cells.

    Args:
        planes: (C, H, W) float32, bright cells on dark ground, on a scale of about 0 to 1.
        labels: (H, W) int32.
        generator: of all draws.

    Returns:
        Arrays of the same shapes: new ones, or the very same where the image has fewer than two cells. Cells that were
        there keep all their pixels; new ones have the numbers behind the highest, and lack what lies on others.
    """
    boxes = ndimage.find_objects(labels)
    # scipy's types know nothing of the None of a number that is not there
    numbers = [number for number, box in enumerate(boxes, start=1) if box is not None]  # type: ignore[redundant-expr]
    if len(numbers) < 2:
        return planes, labels
    planes, labels = planes.copy(), labels.copy()
    wanted = min(MOST_PASTED, max(1, round(generator.uniform(*SHARES) * len(numbers))))
    pasted, highest = 0, len(boxes)
    for donor, host in generator.choice(numbers, (TRIES * wanted, 2)):
        if pasted == wanted:
            break
        cutout = _cut_out(planes, labels, donor, boxes[donor - 1], generator)
        if cutout is not None and _lay(cutout, boxes[host - 1], highest + pasted + 1, planes, labels, generator):
            pasted += 1
    # As preprocessing does. The scale stays that of the picture without them.
    return np.minimum(planes, CLIP_HIGH, out=planes), labels


def _cut_out(
    planes: Planes, labels: Labels, number: int, box: tuple[slice, slice], generator: np.random.Generator
) -> _Cutout | None:
    """A copy of a cell, with a gain, turned and mirrored; None if it is not alone, too small, faint or at the edge."""
    rows, columns = (slice(side.start - HALO_PX, side.stop + HALO_PX) for side in box)
    if not _is_within((rows, columns), labels):
        return None
    numbers = labels[rows, columns]
    cell = numbers == number
    near = _grow(cell, HALO_PX)
    if (numbers[near & ~cell] > 0).any() or np.count_nonzero(cell) < LEAST_PX:
        return None
    light = planes[:, rows, columns]
    ground = np.median(light[:, near & ~_grow(cell, HALO_PX // 2)], axis=1)
    if (light[:, cell].mean(axis=1) - ground).max() < LEAST_LIGHT:
        return None
    # its halo fades out, so that there is no edge where it ends
    beyond = cv2.distanceTransform((~cell).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    fade = np.clip(1 - beyond / (HALO_PX + 1), 0, 1)
    fade = np.minimum(1, 1.6 * fade).astype(np.float32)
    light = (light - ground[:, None, None]) * fade * np.float32(generator.uniform(*GAINS))
    turns, mirrored = int(generator.integers(4)), bool(generator.integers(2))
    light, cell = np.rot90(light, turns, (1, 2)), np.rot90(cell, turns)
    return _Cutout(light[:, :, ::-1], cell[:, ::-1]) if mirrored else _Cutout(light, cell)


def _lay(
    cutout: _Cutout,
    host: tuple[slice, slice],
    number: int,
    planes: Planes,
    labels: Labels,
    generator: np.random.Generator,
) -> bool:
    """Move a copy out of the middle of another cell, until it lies on next to none, and leave it there; in place.

    Returns:
        Whether there was such a place within the image.
    """
    angle = generator.uniform(0, 2 * np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    size = np.array(cutout.cell.shape)
    lengths = np.array([side.stop - side.start for side in host])
    start = np.array([side.start for side in host]) + (lengths - size) / 2
    most = np.count_nonzero(cutout.cell) * generator.uniform(0, MOST_OVERLAP)

    def place(step: int) -> tuple[slice, slice]:
        top, left = (round(value) for value in start + direction * step)
        return slice(top, top + int(size[0])), slice(left, left + int(size[1]))

    def is_free(step: int) -> bool:
        return bool(np.count_nonzero(labels[place(step)][cutout.cell]) <= most)

    stride = max(1, int(size.max()) // PLACES)
    beyond = int(np.hypot(*(lengths + size)) / 2) + 1  # where no part of it can lie on the other cell
    for step in range(0, max(beyond + stride, REACH_PX), stride):
        if not _is_within(place(step), labels):
            return False
        if not is_free(step):
            continue
        if step == 0:  # in the hollow of a cell, or between its pieces
            return False
        nearest = next(near for near in range(step - stride + 1, step + 1) if is_free(near))
        at = place(nearest)
        labels[at][cutout.cell & (labels[at] == 0)] = number
        planes[:, *at] += cutout.light
        return True
    return False


def _is_within(box: tuple[slice, slice], labels: Labels) -> bool:
    return all(side.start >= 0 and side.stop <= length for side, length in zip(box, labels.shape, strict=True))


def _grow(mask: Mask, px: int) -> npt.NDArray[np.bool_]:
    side = 2 * px + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), dtype=np.uint8)).astype(np.bool_)
