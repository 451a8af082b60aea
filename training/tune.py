"""Choose anew, on images with truth, what turns the maps into masks and cells; the network stays as it is."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import ModelConfig, read_checkpoint, write_checkpoint
from model.metrics import Counts, grow_labels, score_cells, score_regions
from model.postprocess import HIGH_THRESHOLD, JOIN_PROBABILITY, label_cells
from model.runtime import make_runtime
from model.segmenter import Segmenter
from model.types import Labels
from training.data import Pair
from training.evaluate import (
    AP_THRESHOLDS,
    Answer,
    answer_images,
    best_threshold,
    dice_by_threshold,
    pooled_mean_ap,
    score_answers,
    true_regions,
)
from training.lock import publishing

# Candidates for the rule, see model.postprocess.Parting.
CORE_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CORE_DISTANCES = (0.0, 0.15, 0.25, 0.35, 0.45)
JOIN_PROBABILITIES = (0.2, JOIN_PROBABILITY, 0.4, 0.5, 1.0)
HIGH_THRESHOLDS = (0.0, 0.6, 0.7, 0.8, 0.85, HIGH_THRESHOLD, 0.95)
# A gain smaller than this is chance, and the rule stays what it is.
LEAST_GAIN = 0.002
# Rules whose scores differ by no more are equally good; the one in their middle is the least likely to be so by chance.
EQUALLY_GOOD = 0.001

T = TypeVar("T")
# core_threshold, core_distance and join_probability of a Parting, and high_threshold
Rule = tuple[float, float, float, float]


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Attributes:
        version: of the file that was written.
        config: with the new numbers.
        before, after: score of the cells with the old and the new rule, both at the new threshold: mean AP at IoU 0.5
            to 0.9 where the truth has cells, else V_rand.
        dice: mean, of the foreground at the new threshold, before anything is dropped.
    """

    version: str
    config: ModelConfig
    before: float
    after: float
    dice: float


def tune(weights: Path, pairs: Sequence[Pair], *, to: Path, device: str = "auto", quiet: bool = False) -> Tuning:
    """Choose the threshold of the mask by the mean Dice, then all that makes cells of it by the score of the cells.

    Args:
        weights: a checkpoint or a bare state dict.
        pairs: images that it was not trained on.
        to: where the checkpoint goes; may be the same file, which is replaced in one step.
        device: that the network runs on.
        quiet: no progress bar.

    Raises:
        DataError: a pair cannot be read.
        WeightsError: the weights cannot be used.
        RunError: another process publishes to `to`.
    """
    read_checkpoint(weights)  # what is wrong with it is said before anything is written
    with publishing(to):
        return _tune(weights, pairs, to, device, quiet)


def _tune(weights: Path, pairs: Sequence[Pair], to: Path, device: str, quiet: bool) -> Tuning:
    checkpoint = read_checkpoint(weights)
    runtime = make_runtime(checkpoint, device=device, precision="fp32")
    answers = answer_images(Segmenter(checkpoint, runtime), pairs, quiet=quiet)
    curve = dice_by_threshold(answers)
    threshold = best_threshold(curve)
    config = checkpoint.config.model_copy(update={"threshold": threshold})
    if any(pair.kind != "mask" for pair in pairs):
        score = _scorer(answers, _compare_cells, pooled_mean_ap)
    else:
        score = _scorer(answers, _compare_regions, _mean)
    before = after = score(config)
    found, best = choose_rule(config, lambda rule: score(_with_rule(config, rule)))
    if best >= before + LEAST_GAIN:
        after, config = best, _with_rule(config, found)
    tuned = {
        "images": [pair.name for pair in pairs],
        "dice": round(curve[threshold], 5),
        "cells": round(after, 5),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    scores = score_answers(Segmenter(replace(checkpoint, config=config), runtime), answers, regions=True)
    card = {**checkpoint.card, "scores": {"validation": scores.summary()}, "tuned": tuned}
    version = write_checkpoint(to, checkpoint.state, config, card, half=_is_half(checkpoint.state))
    return Tuning(version, config, before, after, curve[threshold])


def choose_rule(config: ModelConfig, score: Callable[[Rule], float]) -> tuple[Rule, float]:
    """The cores first, with all else as it is after training, then how readily parts are joined, then what is dropped.

    All combinations would take several times as long and say little more: where parts are joined, it matters less what
    a core is. Without a border map no parts are joined, and what is dropped stays as it is.

    Returns:
        The rule and its score.
    """
    distances = CORE_DISTANCES if "distance" in config.outputs else (config.core_distance,)
    has_border = "border" in config.outputs
    join = JOIN_PROBABILITY if has_border else config.join_probability
    high = HIGH_THRESHOLD if has_border else config.high_threshold

    def choose(rules: Iterable[Rule]) -> tuple[Rule, float]:
        scored = {rule: score(rule) for rule in rules}
        chosen = middle_of_best(scored)
        return chosen, scored[chosen]

    (core, distance, join, high), best = choose(itertools.product(CORE_THRESHOLDS, distances, (join,), (high,)))
    if has_border:
        (*_, join, _), _ = choose((core, distance, each, high) for each in JOIN_PROBABILITIES)
        (*_, high), best = choose((core, distance, join, each) for each in HIGH_THRESHOLDS)
    return (core, distance, join, high), best


def middle_of_best(scored: Mapping[Rule, float]) -> Rule:
    """The rule nearest to all those that score within EQUALLY_GOOD of the best; of several, the best of them."""
    best = max(scored.values())
    good = [rule for rule, score in scored.items() if score >= best - EQUALLY_GOOD]

    def order(rule: Rule) -> tuple[float, float]:
        # rounded, for sums of tenths differ in their last digit only
        apart = round(sum(abs(one - two) for other in good for one, two in zip(rule, other, strict=True)), 6)
        return apart, -scored[rule]

    return min(good, key=order)


def _with_rule(config: ModelConfig, rule: Rule) -> ModelConfig:
    names = "core_threshold", "core_distance", "join_probability", "high_threshold"
    return config.model_copy(update=dict(zip(names, rule, strict=True)))


def _scorer(
    answers: Sequence[Answer], compare: Callable[[Answer, Labels], T], pool: Callable[[Sequence[T]], float]
) -> Callable[[ModelConfig], float]:
    """Scores a config by its labels of each image; the same labels, as most rules make of most images, only once."""
    known: list[dict[bytes, T]] = [{} for _ in answers]

    def score(config: ModelConfig) -> float:
        found = []
        for answer, compared in zip(answers, known, strict=True):
            labels = label_cells(
                answer.maps,
                threshold=config.threshold,
                high_threshold=config.high_threshold,
                min_area_px=config.min_area_px,
                parting=config.parting,
            )
            key = hashlib.sha256(labels.tobytes()).digest()
            if key not in compared:
                compared[key] = compare(answer, labels)
            found.append(compared[key])
        return pool(found)

    return score


def _compare_cells(answer: Answer, labels: Labels) -> Mapping[float, Counts]:
    return score_cells(answer.labels, labels, AP_THRESHOLDS).counts


def _compare_regions(answer: Answer, labels: Labels) -> float | None:
    """V_rand of the labels, grown until they meet; None where there is no true cell."""
    if not (answer.labels > 0).any():
        return None
    return score_regions(true_regions(answer), grow_labels(labels)).v_rand


def _mean(scores: Sequence[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else 0.0


def _is_half(state: Mapping[str, Tensor]) -> bool:
    """Whether the convolutions lose nothing as float16, as those do that were stored so."""
    return all(torch.equal(value, value.half().float()) for value in state.values() if value.ndim == 4)
