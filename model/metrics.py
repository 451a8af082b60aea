"""How well a prediction agrees with the truth; truth first, as everywhere in the field."""

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

from model.types import Labels, Mask


def dice(y_true: Mask, y_pred: Mask) -> float:
    """2 |A and B| / (|A| + |B|) of two masks of one shape, in [0, 1]; 1.0 where both are empty."""
    _same_shape(y_true, y_pred)
    total = int(y_true.sum()) + int(y_pred.sum())
    return 2 * int((y_true & y_pred).sum()) / total if total else 1.0


def iou(y_true: Mask, y_pred: Mask) -> float:
    """|A and B| / |A or B| of two masks of one shape, in [0, 1]; 1.0 where both are empty."""
    _same_shape(y_true, y_pred)
    union = int((y_true | y_pred).sum())
    return int((y_true & y_pred).sum()) / union if union else 1.0


def match_counts(y_true: Labels, y_pred: Labels, threshold: float) -> tuple[int, int, int]:
    """Match cells one to one, as many as can be at an IoU of at least `threshold`.

    Args:
        y_true, y_pred: (H, W) integer, 0 = background.
        threshold: in (0, 1].

    Returns:
        tp, fp, fn: matched pairs, predictions without a partner, true cells without one.

    Source: the matching of Schmidt et al., MICCAI 2018 (StarDist): linear assignment by IoU above the threshold.
    """
    overlap = _iou_matrix(y_true, y_pred)
    n_true, n_pred = overlap.shape
    if min(n_true, n_pred) == 0:
        return 0, n_pred, n_true
    # first of all as many pairs as can be, then the largest IoU
    costs = -(overlap >= threshold).astype(float) - overlap / (2 * min(n_true, n_pred))
    rows, columns = optimize.linear_sum_assignment(costs)
    tp = int((overlap[rows, columns] >= threshold).sum())
    return tp, n_pred - tp, n_true - tp


def average_precision(counts: tuple[int, int, int]) -> float:
    """tp / (tp + fp + fn), the AP of the cell-segmentation papers; 1.0 where nothing is to find and nothing found."""
    total = sum(counts)
    return counts[0] / total if total else 1.0


def _iou_matrix(y_true: Labels, y_pred: Labels) -> npt.NDArray[np.float64]:
    _same_shape(y_true, y_pred)
    true_ids, true_index = np.unique(y_true, return_inverse=True)
    pred_ids, pred_index = np.unique(y_pred, return_inverse=True)
    shared = sparse.coo_array(
        (np.ones(y_true.size), (true_index.ravel(), pred_index.ravel())), shape=(true_ids.size, pred_ids.size)
    ).toarray()
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    overlap: npt.NDArray[np.float64] = (shared / union)[true_ids != 0][:, pred_ids != 0]
    return overlap


def _same_shape(y_true: npt.NDArray[np.generic], y_pred: npt.NDArray[np.generic]) -> None:
    if y_true.shape != y_pred.shape:
        raise ValueError(f"truth is {y_true.shape}, prediction is {y_pred.shape}")
