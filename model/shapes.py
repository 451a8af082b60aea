"""Outlines of labelled cells as polygons from pixel corner to pixel corner: filled, they give the labels again."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from model.types import Labels, Mask

Ring = npt.NDArray[np.int32]  # (n, 2) corners as x, y; closed without repeating the first; x grows right, y down


@dataclass(frozen=True)
class Outline:
    """The outline of one cell.

    Attributes:
        label: of the cell.
        polygons: its pieces (one, for the cells that Maskwell labels), each an outer ring and the rings of its holes.
    """

    label: int
    polygons: tuple[tuple[Ring, ...], ...]


def trace_cells(labels: Labels) -> list[Outline]:
    """Outline each cell.

    Args:
        labels: (H, W) integer, 0 = background.

    Returns:
        An outline a cell, by label. Corners are whole numbers: (0, 0) is the outer corner of the first pixel and
        (W, H) that of the last. Outer rings go clockwise on the screen, holes the other way. Pieces are 8-connected:
        rings may touch themselves or each other at a corner, and never cross.

    Source: Suzuki and Abe's border following, cv2.findContours.
    """
    outlines = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            offset = np.array([box[1].start, box[0].start], dtype=np.int32)
            outlines.append(Outline(index, _trace(labels[box] == index, offset)))
    return outlines


def _trace(cell: Mask, offset: npt.NDArray[np.int32]) -> tuple[tuple[Ring, ...], ...]:
    # OpenCV's contours run through the middles of border pixels. In a picture of twice the size each border pixel lies
    # in one corner of the old pixel, 2x at its near side and 2x + 1 at its far side, so (u + 1) // 2 is that corner.
    twice = cell.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons: dict[int, list[Ring]] = {}
    for index, (contour, (_, _, _, parent)) in enumerate(zip(contours, hierarchy[0], strict=True)):
        # OpenCV walks outer contours counterclockwise as seen on the screen
        ring = _corners((contour[::-1, 0].astype(np.int32) + 1) // 2) + offset
        polygons.setdefault(index if parent < 0 else int(parent), []).insert(0 if parent < 0 else len(contours), ring)
    return tuple(tuple(rings) for rings in polygons.values())


def _corners(points: Ring) -> Ring:
    """Leave out repeated points and those on a straight line between their neighbours."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners: Ring = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return corners
