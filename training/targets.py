"""From truth to what the network's outputs should be."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from model.types import Labels
from training.data import part_touching

# A pixel is border where a square of this side around it holds two cells: narrow gaps count, wide ones don't.
BORDER_WINDOW_PX = 5

Targets = npt.NDArray[np.float32]  # (K, H, W), 0 to 1


def make_targets(labels: Labels, outputs: Sequence[str]) -> Targets:
    """Maps for the named outputs.

    Args:
        labels: (H, W) int32, 0 = background.
        outputs: `cell`: foreground; where it is the only one, touching cells are parted by a line of background.
            `border`: the places where two cells are near each other. `distance`: see distance_map.

    Returns:
        (len(outputs), H, W) float32 in [0, 1].
    """
    if tuple(outputs) == ("cell",):
        return part_touching(labels)[None].astype(np.float32)
    make = {"cell": _foreground, "border": border_map, "distance": distance_map}
    return np.stack([make[name](labels).astype(np.float32) for name in outputs])


def _foreground(labels: Labels) -> npt.NDArray[np.bool_]:
    return labels > 0


def border_map(labels: Labels) -> npt.NDArray[np.bool_]:
    """(H, W) True where the window around a pixel holds two cells or more."""
    highest = ndimage.maximum_filter(labels, BORDER_WINDOW_PX)
    none = np.iinfo(np.int32).max
    lowest = ndimage.minimum_filter(np.where(labels > 0, labels, none), BORDER_WINDOW_PX)
    border: npt.NDArray[np.bool_] = (highest > 0) & (lowest < highest)
    return border


def distance_map(labels: Labels) -> npt.NDArray[np.float32]:
    """(H, W) distance from each cell's edge, as a share of the largest in that cell; 0 in the background.

    The picture's edge is none of the cell's: what lies beyond it is not known.
    Source: exact Euclidean distances of cv2.distanceTransform, cell by cell, so that another cell counts as outside.
    """
    distance = np.zeros(labels.shape, dtype=np.float32)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        # one pixel more, where there is one, is outside
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        cell = labels[around] == number
        if cell.all():  # fills the whole picture
            distance[around] = 1.0
            continue
        inside = cv2.distanceTransform(cell.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # Squared distances are whole numbers; OpenCV's last bit depends on where in memory the picture lies.
        exact = np.sqrt(np.rint(inside[cell] ** 2))
        distance[around][cell] = exact / exact.max()
    return distance
