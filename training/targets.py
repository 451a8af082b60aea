"""From truth to what the network's outputs should be."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from model.types import Labels
from training.data import part_touching

# A pixel is border where a square of this side around it holds two cells: narrow gaps count, wide ones don't.
BORDER_WINDOW_PX = 5

Targets = npt.NDArray[np.float32]  # (K, H, W), 0 or 1


def make_targets(labels: Labels, outputs: tuple[str, ...]) -> Targets:
    """0/1 maps for the named outputs.

    Args:
        labels: (H, W) int32, 0 = background.
        outputs: `("cell",)`: foreground, touching cells parted by a line of background; `("cell", "border")`: the whole
            foreground, and the places where two cells are near each other.

    Returns:
        (len(outputs), H, W) float32.
    """
    if outputs == ("cell",):
        return part_touching(labels)[None].astype(np.float32)
    return np.stack([labels > 0, border_map(labels)]).astype(np.float32)


def border_map(labels: Labels) -> npt.NDArray[np.bool_]:
    """(H, W) True where the window around a pixel holds two cells or more."""
    highest = ndimage.maximum_filter(labels, BORDER_WINDOW_PX)
    none = np.iinfo(np.int32).max
    lowest = ndimage.minimum_filter(np.where(labels > 0, labels, none), BORDER_WINDOW_PX)
    border: npt.NDArray[np.bool_] = (highest > 0) & (lowest < highest)
    return border
