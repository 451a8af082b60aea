"""Score weights on images with truth, on the field's protocols; tune the threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from model.metrics import Counts, average_precision, dice, grow_regions, iou, score_cells, score_regions
from model.postprocess import Maps, threshold_mask
from model.segmenter import Segmentation, Segmenter
from model.types import Labels
from training.data import Pair
from training.dataset import PairCache

# Candidates for the checkpoint's threshold.
THRESHOLDS = tuple(round(0.2 + 0.05 * step, 2) for step in range(13))
AP_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image.

    Attributes:
        name: the image's stem.
        look: what kind of picture it seems to be: grey or colour, on dark or bright ground.
        dice, iou: of the mask.
        counts: IoU threshold to (tp, fp, fn) of the cells; empty where the truth has no cells of their own.
        aji, pq: of the cells, see model.metrics.CellScores; None likewise.
    """

    name: str
    look: str
    dice: float
    iou: float
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    aji: float | None = None
    pq: float | None = None


@dataclass(frozen=True)
class CellSummary:
    """Scores of the cells over images.

    Attributes:
        ap: IoU threshold to TP / (TP + FP + FN), counts pooled over images; `mean` over the thresholds.
        ap_per_image: the same for each image alone, then the mean over images.
        aji, pq: mean over images.
    """

    ap: dict[str, float]
    ap_per_image: dict[str, float]
    aji: float
    pq: float


@dataclass(frozen=True)
class RegionSummary:
    """Scores of a binary truth that parts a tissue into cells by their membranes, as in ISBI 2012.

    The mask is compared with the truth's 4-connected regions: its own regions are grown until they meet, and
    only pixels inside a true cell count.

    Attributes:
        v_rand, v_info: mean over images at the threshold of the scores.
        best_v_rand, best_v_info: at the threshold that is best for each.
        pixel_error: 1 - F1 of the cell pixels, pooled over images, at the threshold of the scores.
        best_pixel_error: likewise at the best threshold.
    """

    v_rand: float
    best_v_rand: float
    v_info: float
    best_v_info: float
    pixel_error: float
    best_pixel_error: float


@dataclass(frozen=True)
class Scores:
    """Scores of weights on a data set.

    Attributes:
        threshold: of the mask, in (0, 1).
        dice, iou: of the mask, mean over images.
        curve: threshold to mean Dice, of the probability before small cells are dropped.
        cells: where the truth has them.
        regions: where the truth is binary.
        looks: kind of picture to its number, Dice, IoU and AP.
        images: each image's.
    """

    threshold: float
    dice: float
    iou: float
    curve: dict[str, float]
    cells: CellSummary | None
    regions: RegionSummary | None
    looks: dict[str, dict[str, Any]]
    images: tuple[ImageScore, ...]

    @property
    def overall(self) -> float:
        """What "best" means: the Dice of the mask and, where the truth has cells, in equal parts their mean AP."""
        return self.dice if self.cells is None else (self.dice + self.cells.ap["mean"]) / 2

    def __str__(self) -> str:
        parts = f"Dice {self.dice:.4f}"
        if self.cells is None:
            return parts
        return f"{self.overall:.4f} (mean of {parts} and the cells' AP {self.cells.ap['mean']:.4f})"

    def summary(self) -> dict[str, Any]:
        """Plain values without the single images, for a card."""
        values = asdict(self)
        for name in ("images", "curve"):
            del values[name]
        kept = {key: _rounded(value) for key, value in values.items() if value is not None}
        return kept | {"n_images": len(self.images)}


@dataclass(frozen=True)
class Answer:
    """What a segmenter said of an image, beside its truth."""

    pair: Pair
    look: str
    labels: Labels
    maps: Maps


def answer_images(segmenter: Segmenter, pairs: Sequence[Pair] | PairCache, *, quiet: bool = False) -> list[Answer]:
    """Segment images at full size, as a user gets them.

    Raises:
        DataError: a pair cannot be read.
    """
    cache = pairs if isinstance(pairs, PairCache) else PairCache(pairs, quiet=quiet)
    answers = []
    for index in tqdm(range(len(cache)), desc="scoring", unit="image", disable=quiet or None, leave=False):
        image, labels = cache[index]
        answers.append(Answer(cache.pairs[index], cache.looks[index], labels, segmenter.segment(image).maps))
    return answers


def dice_by_threshold(answers: Sequence[Answer]) -> dict[float, float]:
    """Mean Dice of the masks at each of THRESHOLDS, before small cells are dropped."""
    return {
        value: float(np.mean([dice(a.labels > 0, threshold_mask(a.maps.cell, value)) for a in answers]))
        for value in THRESHOLDS
    }


def best_threshold(curve: Mapping[float, float]) -> float:
    """The threshold of the best Dice; of equals that nearest to 0.5."""
    return max(curve, key=lambda value: (curve[value], -abs(value - 0.5)))


def evaluate(
    segmenter: Segmenter,
    pairs: Sequence[Pair] | PairCache,
    *,
    threshold: float | None = None,
    tune: bool = False,
    regions: bool = False,
    quiet: bool = False,
) -> Scores:
    """Score a segmenter on images with truth.

    The mask's truth is everything that is in a cell.

    Args:
        segmenter: whose answers are scored, at full size as a user gets them.
        pairs: image and truth.
        threshold: of the mask; None takes the checkpoint's.
        tune: choose the threshold that gives the best mean Dice on these images instead.
        regions: compare regions too, where the truth is binary; takes a while.
        quiet: no progress bar.

    Raises:
        DataError: a pair cannot be read.
    """
    answers = answer_images(segmenter, pairs, quiet=quiet)
    return score_answers(segmenter, answers, threshold=threshold, tune=tune, regions=regions)


def score_answers(
    segmenter: Segmenter,
    answers: Sequence[Answer],
    *,
    threshold: float | None = None,
    tune: bool = False,
    regions: bool = False,
) -> Scores:
    """Score what a network said, read as the segmenter's config says; arguments as in evaluate."""
    curve = dice_by_threshold(answers)
    chosen = segmenter.config.threshold if threshold is None else threshold
    if tune:
        chosen = best_threshold(curve)
    has_cells = any(answer.pair.kind != "mask" for answer in answers)
    images = []
    for answer in answers:
        found = segmenter.read(answer.maps, threshold=chosen)
        images.append(_score_image(answer, found, has_cells))
    kinds = sorted({image.look for image in images})
    return Scores(
        threshold=chosen,
        dice=float(np.mean([image.dice for image in images])),
        iou=float(np.mean([image.iou for image in images])),
        curve={str(value): score for value, score in curve.items()},
        cells=_summarise_cells(images) if has_cells else None,
        regions=_score_regions(answers, chosen) if regions and not has_cells else None,
        looks={kind: _summarise_look([image for image in images if image.look == kind]) for kind in kinds},
        images=tuple(images),
    )


def _score_image(answer: Answer, found: Segmentation, has_cells: bool) -> ImageScore:
    truth, mask = answer.labels > 0, found.mask()
    score = ImageScore(answer.pair.name, answer.look, dice(truth, mask), iou(truth, mask))
    if not has_cells:
        return score
    cells = score_cells(answer.labels, found.labels(), AP_THRESHOLDS)
    counts = {str(value): count for value, count in cells.counts.items()}
    return ImageScore(score.name, score.look, score.dice, score.iou, counts, cells.aji, cells.pq)


def _summarise_cells(images: Sequence[ImageScore]) -> CellSummary:
    ap, each = {}, {}
    for key in map(str, AP_THRESHOLDS):
        tp, fp, fn = np.sum([image.counts[key] for image in images], axis=0).tolist()
        ap[key] = average_precision((tp, fp, fn))
        each[key] = float(np.mean([average_precision(image.counts[key]) for image in images]))
    for table in (ap, each):
        table["mean"] = float(np.mean(list(table.values())))
    return CellSummary(
        ap=ap,
        ap_per_image=each,
        aji=float(np.mean([image.aji for image in images if image.aji is not None])),
        pq=float(np.mean([image.pq for image in images if image.pq is not None])),
    )


def _summarise_look(images: Sequence[ImageScore]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "n_images": len(images),
        "dice": float(np.mean([image.dice for image in images])),
        "iou": float(np.mean([image.iou for image in images])),
    }
    if images[0].counts:
        summary["ap"] = _summarise_cells(images).ap
    return summary


def _score_regions(answers: Sequence[Answer], chosen: float) -> RegionSummary | None:
    counted = [answer for answer in answers if (answer.labels > 0).any()]
    if not counted:
        return None
    truths = [true_regions(answer) for answer in counted]
    by_threshold = {}
    for threshold in sorted({*THRESHOLDS, chosen}):
        masks = [threshold_mask(answer.maps.cell, threshold) for answer in counted]
        scores = [score_regions(truth, grow_regions(mask)) for truth, mask in zip(truths, masks, strict=True)]
        shared = sum(int((mask & (truth > 0)).sum()) for truth, mask in zip(truths, masks, strict=True))
        total = sum(int(mask.sum()) + int((truth > 0).sum()) for truth, mask in zip(truths, masks, strict=True))
        by_threshold[threshold] = (
            float(np.mean([score.v_rand for score in scores])),
            float(np.mean([score.v_info for score in scores])),
            1 - 2 * shared / total,
        )
    v_rand, v_info, error = by_threshold[chosen]
    rands, infos, errors = zip(*by_threshold.values(), strict=True)
    return RegionSummary(v_rand, max(rands), v_info, max(infos), error, min(errors))


def pooled_mean_ap(counts: Sequence[Mapping[float, Counts]]) -> float:
    """Mean over AP_THRESHOLDS of the AP whose counts are pooled over images.

    Args:
        counts: of each image, at least one: IoU threshold to (tp, fp, fn), as score_cells gives them.
    """
    pooled = np.sum([[image[value] for value in AP_THRESHOLDS] for image in counts], axis=0).tolist()
    return float(np.mean([average_precision((tp, fp, fn)) for tp, fp, fn in pooled]))


def true_regions(answer: Answer) -> Labels:
    """The 4-connected regions of a binary truth."""
    regions: Labels = ndimage.label(answer.labels > 0)[0].astype(np.int32)
    return regions


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
