"""Score weights on images with truth, on the field's protocols; tune the threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from model.metrics import (
    Counts,
    RegionScores,
    average_precision,
    dice,
    grow_regions,
    iou,
    score_cells,
    score_regions,
)
from model.postprocess import Maps, threshold_mask
from model.segmenter import Segmentation, Segmenter
from model.types import Labels
from training.data import Pair
from training.dataset import PairCache

# Candidates for the checkpoint's threshold.
THRESHOLDS = tuple(round(0.2 + 0.05 * step, 2) for step in range(13))
# Where the best scores of regions are looked for: membranes may well part best far from the best Dice.
REGION_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
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
        v_rand, v_info, adapted_rand_error: of the cells, or of a binary truth's regions, see
            model.metrics.RegionScores; None where the truth is empty, or its regions were not compared.
    """

    name: str
    look: str
    dice: float
    iou: float
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    aji: float | None = None
    pq: float | None = None
    v_rand: float | None = None
    v_info: float | None = None
    adapted_rand_error: float | None = None


@dataclass(frozen=True)
class CellSummary:
    """Scores of the cells over images.

    Attributes:
        ap: IoU threshold to TP / (TP + FP + FN), counts pooled over images; `mean` over the thresholds.
        ap_per_image: the same for each image alone, then the mean over images.
        aji, pq: mean over images.
        v_info, adapted_rand_error: of the labels, in the pixels of true cells only, where background that was found
            is one region more; mean over the images that have cells, None if there is none.
    """

    ap: dict[str, float]
    ap_per_image: dict[str, float]
    aji: float
    pq: float
    v_info: float | None = None
    adapted_rand_error: float | None = None


@dataclass(frozen=True)
class RegionSummary:
    """Scores of a binary truth that parts a tissue into cells by their membranes, as in ISBI 2012.

    The mask is compared with the truth's 4-connected regions: its own regions are grown until they meet, and
    only pixels inside a true cell count, so images without any have no such score.

    Attributes:
        v_rand, v_info, adapted_rand_error: mean over images at the threshold of the scores.
        best_v_rand, best_v_info, best_adapted_rand_error: at that of REGION_THRESHOLDS which is best for each.
        best_v_rand_threshold: where V_rand is best; of equals the one nearest to 0.5.
        pixel_error: 1 - F1 of the cell pixels, pooled over all images, at the threshold of the scores.
        best_pixel_error, best_pixel_error_threshold: likewise at the best threshold.
    """

    v_rand: float
    best_v_rand: float
    best_v_rand_threshold: float
    v_info: float
    best_v_info: float
    adapted_rand_error: float
    best_adapted_rand_error: float
    pixel_error: float
    best_pixel_error: float
    best_pixel_error_threshold: float


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

    @property
    def worst(self) -> list[int]:
        """Indices of the images, the worst first: by V_rand where regions were compared, else by Dice.

        An image of regions that has none itself goes by its Dice: 1 where nothing was found, 0 where something was.
        """
        by_regions = self.regions is not None
        judged = [image.v_rand if by_regions and image.v_rand is not None else image.dice for image in self.images]
        return sorted(range(len(judged)), key=judged.__getitem__)

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
    """The threshold of the best score; of equals that nearest to 0.5."""
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
    summary = None
    if regions and not has_cells:
        summary, each = _score_regions(answers, chosen)
        images = [_with_regions(image, score) for image, score in zip(images, each, strict=True)]
    kinds = sorted({image.look for image in images})
    return Scores(
        threshold=chosen,
        dice=float(np.mean([image.dice for image in images])),
        iou=float(np.mean([image.iou for image in images])),
        curve={str(value): score for value, score in curve.items()},
        cells=_summarise_cells(images) if has_cells else None,
        regions=summary,
        looks={kind: _summarise_look([image for image in images if image.look == kind]) for kind in kinds},
        images=tuple(images),
    )


def _score_image(answer: Answer, found: Segmentation, has_cells: bool) -> ImageScore:
    if has_cells:
        found.labels()  # the mask follows from them, and not they from it
    truth, mask = answer.labels > 0, found.mask()
    score = ImageScore(answer.pair.name, answer.look, dice(truth, mask), iou(truth, mask))
    if not has_cells:
        return score
    labels = found.labels()
    cells = score_cells(answer.labels, labels, AP_THRESHOLDS)
    counts = {str(value): count for value, count in cells.counts.items()}
    score = replace(score, counts=counts, aji=cells.aji, pq=cells.pq)
    return _with_regions(score, score_regions(answer.labels, labels) if truth.any() else None)


def _with_regions(image: ImageScore, score: RegionScores | None) -> ImageScore:
    return image if score is None else replace(image, **vars(score))


def _summarise_cells(images: Sequence[ImageScore]) -> CellSummary:
    ap, each = {}, {}
    for key in map(str, AP_THRESHOLDS):
        ap[key] = pooled_ap([image.counts[key] for image in images])
        each[key] = float(np.mean([average_precision(image.counts[key]) for image in images]))
    for table in (ap, each):
        table["mean"] = float(np.mean(list(table.values())))
    return CellSummary(
        ap=ap,
        ap_per_image=each,
        aji=float(np.mean([image.aji for image in images if image.aji is not None])),
        pq=float(np.mean([image.pq for image in images if image.pq is not None])),
        v_info=_mean([image.v_info for image in images]),
        adapted_rand_error=_mean([image.adapted_rand_error for image in images]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _summarise_look(images: Sequence[ImageScore]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "n_images": len(images),
        "dice": float(np.mean([image.dice for image in images])),
        "iou": float(np.mean([image.iou for image in images])),
    }
    if images[0].counts:
        summary["ap"] = _summarise_cells(images).ap
    return summary


def _score_regions(answers: Sequence[Answer], chosen: float) -> tuple[RegionSummary | None, list[RegionScores | None]]:
    """The summary, None if no truth has a region, and each image's scores at the chosen threshold."""
    truths = [true_regions(answer) for answer in answers]
    if not any(truth.any() for truth in truths):
        return None, [None] * len(answers)
    means, errors, each = {}, {}, {}
    for threshold in sorted({*REGION_THRESHOLDS, chosen}):
        masks = [threshold_mask(answer.maps.cell, threshold) for answer in answers]
        each[threshold] = [
            score_regions(truth, grow_regions(mask)) if truth.any() else None
            for truth, mask in zip(truths, masks, strict=True)
        ]
        found = [score for score in each[threshold] if score is not None]
        means[threshold] = RegionScores(*np.mean([list(vars(score).values()) for score in found], axis=0).tolist())
        # over all images: what is found where there is no cell is an error like any other
        shared = sum(int((mask & (truth > 0)).sum()) for truth, mask in zip(truths, masks, strict=True))
        total = sum(int(mask.sum()) + int((truth > 0).sum()) for truth, mask in zip(truths, masks, strict=True))
        errors[threshold] = 1 - 2 * shared / total
    by_rand = best_threshold({threshold: score.v_rand for threshold, score in means.items()})
    by_pixels = best_threshold({threshold: -error for threshold, error in errors.items()})
    at = means[chosen]
    summary = RegionSummary(
        v_rand=at.v_rand,
        best_v_rand=means[by_rand].v_rand,
        best_v_rand_threshold=by_rand,
        v_info=at.v_info,
        best_v_info=max(score.v_info for score in means.values()),
        adapted_rand_error=at.adapted_rand_error,
        best_adapted_rand_error=min(score.adapted_rand_error for score in means.values()),
        pixel_error=errors[chosen],
        best_pixel_error=errors[by_pixels],
        best_pixel_error_threshold=by_pixels,
    )
    return summary, each[chosen]


def pooled_mean_ap(counts: Sequence[Mapping[float, Counts]]) -> float:
    """Mean over AP_THRESHOLDS of the AP whose counts are pooled over images.

    Args:
        counts: of each image, at least one: IoU threshold to (tp, fp, fn), as score_cells gives them.
    """
    return float(np.mean([pooled_ap([image[value] for image in counts]) for value in AP_THRESHOLDS]))


def pooled_ap(counts: Sequence[Counts]) -> float:
    """AP of (tp, fp, fn) that are summed over images, at least one."""
    tp, fp, fn = np.sum(counts, axis=0).tolist()
    return average_precision((tp, fp, fn))


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
