"""Score weights on images with truth: Dice and IoU of the mask, AP of the cells; tune the threshold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from model.metrics import average_precision, dice, iou, match_counts
from model.postprocess import threshold_mask
from model.segmenter import Segmentation, Segmenter
from training.data import Pair
from training.dataset import PairCache

# Candidates for the checkpoint's threshold.
THRESHOLDS = tuple(round(0.2 + 0.05 * step, 2) for step in range(13))
AP_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image; `counts` are tp, fp, fn at an IoU of 0.5, ..."""

    name: str
    dice: float
    iou: float
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Scores of weights on a data set.

    Attributes:
        threshold: of the mask, in (0, 1).
        dice, iou: of the mask, mean over images.
        ap: IoU threshold to TP / (TP + FP + FN) with counts pooled over images; empty where the truth has no cells
            of its own, only a mask.
        images: each image's.
    """

    threshold: float
    dice: float
    iou: float
    ap: dict[str, float]
    images: tuple[ImageScore, ...]

    def summary(self) -> dict[str, Any]:
        """Plain values without the single images, for a card."""
        values = asdict(self)
        del values["images"]
        return {key: _rounded(value) for key, value in values.items()} | {"n_images": len(self.images)}


def evaluate(
    segmenter: Segmenter,
    pairs: Sequence[Pair] | PairCache,
    *,
    threshold: float | None = None,
    tune: bool = False,
    cells: bool = True,
    quiet: bool = False,
) -> Scores:
    """Score a segmenter on images with truth.

    The mask's truth is everything that is in a cell.

    Args:
        segmenter: whose answers are scored, at full size as a user gets them.
        pairs: image and truth.
        threshold: of the mask; None takes the checkpoint's.
        tune: choose the threshold that gives the best mean Dice on these images instead.
        cells: match cells too, where the truth has them.
        quiet: no progress bar.

    Raises:
        DataError: a pair cannot be read.
    """
    cache = pairs if isinstance(pairs, PairCache) else PairCache(pairs, quiet=quiet)
    answers = []
    bar = tqdm(range(len(cache)), desc="scoring", unit="image", disable=quiet or None, leave=False)
    for index in bar:
        image, labels = cache[index]
        answers.append((cache.pairs[index], labels, segmenter.segment(image).maps))
    chosen = segmenter.config.threshold if threshold is None else threshold
    if tune:
        curve = {
            value: float(np.mean([dice(labels > 0, threshold_mask(maps.cell, value)) for _, labels, maps in answers]))
            for value in THRESHOLDS
        }
        chosen = max(curve, key=lambda value: (curve[value], -abs(value - 0.5)))
    images = []
    pooled = {str(value): np.zeros(3, dtype=int) for value in AP_THRESHOLDS}
    has_cells = cells and any(pair.kind != "mask" for pair, _, _ in answers)
    for pair, labels, maps in answers:
        answer = Segmentation(maps, threshold=chosen, min_area_px=segmenter.config.min_area_px)
        mask = answer.mask()
        counts = {}
        if has_cells:
            found = answer.labels()
            counts = {str(value): match_counts(labels, found, value) for value in AP_THRESHOLDS}
            for key, value in counts.items():
                pooled[key] += value
        images.append(ImageScore(pair.name, dice(labels > 0, mask), iou(labels > 0, mask), counts))
    ap = {}
    if has_cells:
        ap = {key: average_precision((int(v[0]), int(v[1]), int(v[2]))) for key, v in pooled.items()}
    return Scores(
        threshold=chosen,
        dice=float(np.mean([image.dice for image in images])),
        iou=float(np.mean([image.iou for image in images])),
        ap=ap,
        images=tuple(images),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
