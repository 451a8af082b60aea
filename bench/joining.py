"""What tells that two parts are one cell: the constants of model.joining, fitted to the images trained on.

    python bench/joining.py DATA --val-list docs/splits/dsb2018.txt [--weights weights/best_model.pth]

Logistic regression over all seams between parts, of which both lie in some true cell. Prints the coefficients, how
often they are right about the validation images' seams, and what joining gains there.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from kit import split_data
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.joining import COEFFICIENTS
from model.metrics import score_cells
from model.postprocess import CORE_THRESHOLD, Parting, find_parts, find_seams, label_cells
from model.segmenter import load_segmenter
from model.types import Labels
from training.evaluate import AP_THRESHOLDS, Answer, answer_images, pooled_ap, pooled_mean_ap

NAMES = "border", "cell", "both sizes", "smaller size", "constant"
Values = npt.NDArray[np.float64]


class Thresholds(TypedDict):
    """Of the mask, as model.postprocess takes them."""

    threshold: float
    high_threshold: float


def main() -> None:
    """Fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--val-list", type=Path, required=True, help="file of image names, a line each")
    parser.add_argument("--weights", type=Path, default=Path("weights/best_model.pth"))
    parser.add_argument("--core-threshold", type=float, default=0.3)
    parser.add_argument("--core-distance", type=float, default=0.25)
    options = parser.parse_args()
    segmenter = load_segmenter(options.weights, device="cpu")
    parting = Parting(options.core_threshold, options.core_distance)
    thresholds = Thresholds(threshold=segmenter.config.threshold, high_threshold=segmenter.config.high_threshold)
    validation, trained = split_data(options.data, options.val_list)
    features, is_one = gather(answer_images(segmenter, trained), thresholds, parting)
    coefficients = fit(features, is_one)
    print(f"{len(is_one):,} seams, of which {is_one.mean():.2f} lie within a cell")
    print(", ".join(f"{name} {value:.2f}" for name, value in zip(NAMES, coefficients, strict=True)))

    min_area_px = segmenter.config.min_area_px
    answers = answer_images(segmenter, validation)
    others, truth = gather(answers, thresholds, parting)
    for name, values in (("fitted", coefficients), ("in model.joining", np.array(COEFFICIENTS))):
        right = ((others @ values > 0) == truth).mean()
        print(f"{name}: right about {right:.3f} of {len(truth):,} seams of the validation images, log loss", end=" ")
        print(f"{loss(values, others, truth):.3f}; of the images fitted to {loss(values, features, is_one):.3f}")

    def show(name: str, cells: Sequence[Labels]) -> None:
        counts = [
            score_cells(answer.labels, labels, AP_THRESHOLDS).counts
            for answer, labels in zip(answers, cells, strict=True)
        ]
        dark = [count for count, answer in zip(counts, answers, strict=True) if answer.look == "grey, dark"]
        scores = [pooled_mean_ap(counts), pooled_ap([count[0.5] for count in dark]), pooled_mean_ap(dark)]
        print(f"| {name} | " + " | ".join(f"{score:.3f}" for score in scores) + " |", flush=True)

    print("\n| parts are joined | mean AP | grey on dark ground: AP at 0.5 | mean AP |\n|---|---|---|---|")
    for core_threshold in (options.core_threshold, CORE_THRESHOLD):
        for probability in (1.0, 0.6, 0.5, 0.4, 0.3, 0.2):
            rule = Parting(core_threshold, options.core_distance, probability)
            name = "not" if probability == 1 else f"above {probability}"
            show(
                f"{name}, cores above {core_threshold}",
                [label_cells(answer.maps, **thresholds, min_area_px=min_area_px, parting=rule) for answer in answers],
            )
    show("by the truth", [join_truly(answer, thresholds, parting, min_area_px) for answer in answers])


def join_truly(answer: Answer, thresholds: Thresholds, parting: Parting, min_area_px: int) -> Labels:
    """The parts, those of one true cell joined, without cells that are too small."""
    labels, parts = find_parts(answer.maps, **thresholds, parting=parting)
    seams = find_seams(labels, answer.maps, parts)
    owner = owners(labels, answer.labels, parts.last)
    same = (owner[seams.one] > 0) & (owner[seams.one] == owner[seams.other])
    size = parts.last + 1
    graph = coo_array((np.ones(same.sum()), (seams.one[same], seams.other[same])), shape=(size, size))
    cell = connected_components(graph, directed=False)[1].astype(np.int32)
    joined = np.where(labels > 0, cell[labels] + np.int32(1), np.int32(0))
    return np.where(np.bincount(joined.reshape(-1))[joined] >= min_area_px, joined, np.int32(0))


def owners(labels: Labels, truth: Labels, last: int) -> npt.NDArray[np.int64]:
    """(last + 1,) the true cell that most of each part lies in; 0 if none of it does."""
    n_cells = int(truth.max())
    table = np.bincount(
        labels.reshape(-1).astype(np.int64) * (n_cells + 1) + truth.reshape(-1), minlength=(last + 1) * (n_cells + 1)
    ).reshape(last + 1, n_cells + 1)
    table[:, 0] = 0
    owner: npt.NDArray[np.int64] = table.argmax(axis=1)
    return owner


def gather(answers: Sequence[Answer], thresholds: Thresholds, parting: Parting) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Of all seams whose parts both lie in true cells: (n, 5) what the odds depend on, and (n,) whether it is one."""
    features, same = [np.zeros((0, len(NAMES)))], [np.zeros(0, dtype=np.bool_)]
    for answer in answers:
        labels, parts = find_parts(answer.maps, **thresholds, parting=parting)
        if parts.first > parts.last:
            continue
        owner = owners(labels, answer.labels, parts.last)
        seams = find_seams(labels, answer.maps, parts)
        known = (owner[seams.one] > 0) & (owner[seams.other] > 0)
        features.append(seams.describe(parts.core_areas, parts.usual_area).T[known])
        same.append((owner[seams.one] == owner[seams.other])[known])
    return np.concatenate(features), np.concatenate(same)


def fit(features: Values, is_one: npt.NDArray[np.bool_]) -> Values:
    """Coefficients of the log odds for which what is seen is likeliest."""
    found: Values = minimize(loss, np.zeros(features.shape[1]), (features, is_one), method="BFGS").x
    return found


def loss(coefficients: Values, features: Values, is_one: npt.NDArray[np.bool_]) -> float:
    """Mean cross-entropy, natural logarithm."""
    odds = features @ coefficients
    return float(np.mean(np.logaddexp(0, np.where(is_one, -odds, odds))))


if __name__ == "__main__":
    main()
