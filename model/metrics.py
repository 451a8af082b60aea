"""How well a prediction agrees with the truth; truth first, as everywhere in the field."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.segmentation import watershed

from model.types import Labels, Mask

Counts = tuple[int, int, int]


@dataclass(frozen=True)
class CellScores:
    """Scores of one image's cells.

    Attributes:
        counts: IoU threshold to (tp, fp, fn), see match_counts.
        aji: aggregated Jaccard index, in [0, 1]: intersections over unions, both summed over true cells, each with the
            cell found that overlaps it best by IoU; cells found that are nobody's best count into the union.
            Source: Kumar et al., IEEE TMI 2017, doi:10.1109/TMI.2017.2677499.
        pq: panoptic quality, in [0, 1]: the sum of the IoU of matches above 0.5 over tp + (fp + fn) / 2.
            Source: Kirillov et al., CVPR 2019, arXiv:1801.00868.
    """

    counts: dict[float, Counts]
    aji: float
    pq: float


@dataclass(frozen=True)
class RegionScores:
    """How alike two partitions of the same pixels are; each has its split and merge side in it.

    Attributes:
        v_rand: foreground-restricted Rand F-score; 1 is alike.
        v_info: foreground-restricted information F-score; 1 is alike.
        adapted_rand_error: 1 - F-score of Rand precision and recall, 0 is alike. It differs from 1 - v_rand in that it
            counts pairs of different pixels only, as scikit-image's does.

    Source: Arganda-Carreras et al., Front. Neuroanat. 2015, doi:10.3389/fnana.2015.00142, with alpha 0.5.
    """

    v_rand: float
    v_info: float
    adapted_rand_error: float


def dice(y_true: Mask, y_pred: Mask) -> float:
    """2 |A and B| / (|A| + |B|) of two (H, W) masks, in [0, 1]; 1.0 where both are empty.

    Raises:
        ValueError: they differ in shape, or are not bool: 255 and 1 would count as unlike.
    """
    _same_masks(y_true, y_pred)
    total = int(y_true.sum()) + int(y_pred.sum())
    return 2 * int((y_true & y_pred).sum()) / total if total else 1.0


def iou(y_true: Mask, y_pred: Mask) -> float:
    """|A and B| / |A or B| of two (H, W) masks, in [0, 1]; 1.0 where both are empty; raises as dice does."""
    _same_masks(y_true, y_pred)
    union = int((y_true | y_pred).sum())
    return int((y_true & y_pred).sum()) / union if union else 1.0


def match_counts(y_true: Labels, y_pred: Labels, threshold: float) -> Counts:
    """Match cells one to one, as many as can be at an IoU of at least `threshold`.

    Args:
        y_true, y_pred: (H, W) integer, 0 = background.
        threshold: in (0, 1].

    Returns:
        tp, fp, fn: matched pairs, predictions without a partner, true cells without one.

    Source: the matching of Schmidt et al., MICCAI 2018 (StarDist): one to one at an IoU of the threshold; as
        only the number of pairs counts, by scipy.sparse.csgraph.maximum_bipartite_matching.
    """
    return _match(_Overlap(y_true, y_pred), threshold)


def score_cells(y_true: Labels, y_pred: Labels, thresholds: Sequence[float]) -> CellScores:
    """All scores of one image's cells at once.

    Args:
        y_true, y_pred: (H, W) integer, 0 = background.
        thresholds: of the IoU, in (0, 1], to count matches at.

    Returns:
        The scores; 1 where there is nothing to find and nothing found.
    """
    overlap = _Overlap(y_true, y_pred)
    return CellScores({value: _match(overlap, value) for value in thresholds}, _aji(overlap), _pq(overlap))


def score_regions(y_true: Labels, y_pred: Labels) -> RegionScores:
    """Compare two partitions where there are true cells; other pixels do not count.

    Args:
        y_true: (H, W) integer, 0 = not to be counted.
        y_pred: (H, W) integer; 0 is a region like others, so close its gaps by grow_regions first.

    Raises:
        ValueError: other shapes, or no pixel to count.
    """
    _same_shape(y_true, y_pred)
    counted = y_true > 0
    n = int(counted.sum())
    if n == 0:
        raise ValueError("the truth has no region")
    _, true_index = np.unique(y_true[counted], return_inverse=True)
    _, pred_index = np.unique(y_pred[counted], return_inverse=True)
    joint = sparse.coo_array((np.full(n, 1 / n), (true_index, pred_index))).tocsr()
    parts, true_share, pred_share = (np.asarray(v, dtype=np.float64) for v in (joint.data, joint.sum(1), joint.sum(0)))
    together = (parts**2).sum()
    alike = 0.5 * (true_share**2).sum() + 0.5 * (pred_share**2).sum()
    v_rand = together / alike
    # without each pixel's pair with itself, n of n squared; regions of one pixel each have no pair, and agree
    error = (alike - together) / (alike - 1 / n) if alike - 1 / n > 1e-12 else 0.0
    true_entropy, pred_entropy, both = _entropy(true_share), _entropy(pred_share), _entropy(parts)
    total = true_entropy + pred_entropy
    # two partitions of one region each carry no information, and agree
    v_info = 2 * (true_entropy + pred_entropy - both) / total if total > 1e-12 else 1.0
    return RegionScores(float(v_rand), float(v_info), float(error))


def grow_regions(mask: Mask) -> Labels:
    """The 4-connected regions of a mask, grown at an even pace until no pixel between them is left: thin borders.

    Returns:
        (H, W) int32, 1..n; all 0 where the mask is empty.
    """
    return grow_labels(ndimage.label(mask)[0].astype(np.int32))


def grow_labels(labels: Labels) -> Labels:
    """(H, W) int32: the labels, grown at an even pace until no background is left; all 0 where there are none."""
    if not labels.any():
        return labels
    grown: Labels = watershed(np.zeros(labels.shape, np.uint8), markers=labels)  # type: ignore[no-untyped-call]
    return grown.astype(np.int32)


def average_precision(counts: Counts) -> float:
    """tp / (tp + fp + fn), the AP of the cell-segmentation papers; 1.0 where nothing is to find and nothing found."""
    total = sum(counts)
    return counts[0] / total if total else 1.0


class _Overlap:
    """Which true cells meet which predicted ones, and in how many pixels; as many entries as pairs that meet."""

    def __init__(self, y_true: Labels, y_pred: Labels) -> None:
        _same_shape(y_true, y_pred)
        true_ids, true_index = np.unique(y_true, return_inverse=True)
        pred_ids, pred_index = np.unique(y_pred, return_inverse=True)
        table = sparse.coo_array(
            (np.ones(y_true.size), (true_index.ravel(), pred_index.ravel())), shape=(true_ids.size, pred_ids.size)
        ).tocsr()
        of_true, of_pred = np.flatnonzero(true_ids), np.flatnonzero(pred_ids)
        self.true_area: npt.NDArray[np.float64] = table.sum(axis=1)[of_true]
        self.pred_area: npt.NDArray[np.float64] = table.sum(axis=0)[of_pred]
        met = table[of_true][:, of_pred].tocoo()
        self.true_cell, self.pred_cell = met.coords  # in the order of true cells, then of predicted ones
        self.shared = met.data
        self.union = self.true_area[self.true_cell] + self.pred_area[self.pred_cell] - self.shared
        self.iou = self.shared / self.union

    @property
    def n_true(self) -> int:
        return len(self.true_area)

    @property
    def n_pred(self) -> int:
        return len(self.pred_area)


def _match(overlap: _Overlap, threshold: float) -> Counts:
    n_true, n_pred = overlap.n_true, overlap.n_pred
    if min(n_true, n_pred) == 0:
        return 0, n_pred, n_true
    alike = overlap.iou >= threshold
    pairs = overlap.true_cell[alike], overlap.pred_cell[alike]
    graph = sparse.csr_array((np.ones(len(pairs[0]), dtype=np.bool_), pairs), shape=(n_true, n_pred))
    tp = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
    return tp, n_pred - tp, n_true - tp


def _aji(overlap: _Overlap) -> float:
    n_true, n_pred = overlap.n_true, overlap.n_pred
    if n_true == 0 or n_pred == 0:
        return float(n_true == n_pred)
    # the best partner of each true cell that meets any: the first of its entries, once the best comes first
    order = np.lexsort((overlap.pred_cell, -overlap.iou, overlap.true_cell))
    met, first = np.unique(overlap.true_cell[order], return_index=True)
    best = order[first]
    # a true cell that meets none counts with its own area
    union = overlap.union[best].sum() + np.delete(overlap.true_area, met).sum()
    nobodys = np.delete(overlap.pred_area, np.unique(overlap.pred_cell[best])).sum()
    return float(overlap.shared[best].sum() / (union + nobodys))


def _pq(overlap: _Overlap) -> float:
    n_both = overlap.n_true + overlap.n_pred
    if n_both == 0:
        return 1.0
    matched = overlap.iou > 0.5  # at most one partner each, by arithmetic
    return float(overlap.iou[matched].sum() / (matched.sum() + 0.5 * (n_both - 2 * matched.sum())))


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def _same_masks(y_true: Mask, y_pred: Mask) -> None:
    _same_shape(y_true, y_pred)
    if y_true.dtype != np.bool_ or y_pred.dtype != np.bool_:
        raise ValueError(f"truth is {y_true.dtype}, prediction is {y_pred.dtype}; masks are bool")


def _same_shape(y_true: npt.NDArray[np.generic], y_pred: npt.NDArray[np.generic]) -> None:
    if y_true.shape != y_pred.shape:
        raise ValueError(f"truth is {y_true.shape}, prediction is {y_pred.shape}")
