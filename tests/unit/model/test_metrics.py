"""Scores against cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.metrics import average_precision, dice, iou, match_counts

A = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
B = np.array([[0, 1, 1, 0], [0, 1, 1, 0]], dtype=bool)
NOTHING = np.zeros((2, 4), dtype=bool)


def test_dice_and_iou_of_two_squares_that_share_a_third() -> None:
    assert dice(A, B) == 0.5
    assert iou(A, B) == pytest.approx(1 / 3)


def test_equal_masks_score_1_and_disjoint_ones_0() -> None:
    assert dice(A, A) == iou(A, A) == 1.0
    assert dice(A, ~A) == iou(A, ~A) == 0.0


def test_two_empty_masks_agree_and_one_empty_mask_does_not() -> None:
    assert dice(NOTHING, NOTHING) == iou(NOTHING, NOTHING) == 1.0
    assert dice(A, NOTHING) == dice(NOTHING, A) == iou(A, NOTHING) == 0.0


@pytest.mark.parametrize("score", [dice, iou])
def test_masks_of_two_shapes_are_refused(score: object) -> None:
    assert callable(score)
    with pytest.raises(ValueError, match=r"truth is \(2, 4\), prediction is \(4, 2\)"):
        score(A, A.T)
    with pytest.raises(ValueError, match="truth is"):
        match_counts(A.astype(np.int32), A.T.astype(np.int32), 0.5)


def test_matching_counts_what_was_found_what_was_not_and_what_is_none() -> None:
    y_true = np.zeros((10, 30), dtype=np.int32)
    y_true[0:4, 0:4], y_true[0:4, 10:14], y_true[6:10, 0:4] = 1, 2, 3
    y_pred = np.zeros_like(y_true)
    y_pred[0:4, 0:4] = 1  # the first, exactly
    y_pred[0:4, 12:16] = 2  # the second, with an IoU of 8 / 24
    y_pred[6:10, 20:24] = 3  # nothing
    assert match_counts(y_true, y_pred, 0.3) == (2, 1, 1)
    assert match_counts(y_true, y_pred, 0.5) == (1, 2, 2)
    assert average_precision((1, 2, 2)) == 0.2


def test_a_pair_at_exactly_the_threshold_counts() -> None:
    y_true = np.array([[1, 1, 1, 0]], dtype=np.int32)
    y_pred = np.array([[0, 1, 1, 1]], dtype=np.int32)  # 2 of 4
    assert match_counts(y_true, y_pred, 0.5) == (1, 0, 0)


def test_matching_finds_two_pairs_where_taking_the_best_first_finds_one() -> None:
    # IoU of true 1 with 1 is 12/28, with 2 is 8/20; of true 2 with 1 is 8/20, with 2 nothing.
    y_true = np.array([[1] * 20 + [2] * 8], dtype=np.int32)
    y_pred = np.array([[2] * 8 + [1] * 12 + [1] * 8], dtype=np.int32)
    assert match_counts(y_true, y_pred, 0.4) == (2, 0, 0)
    # the best pair first, as here where no other is allowed: neither 2 finds a partner
    assert match_counts(y_true, y_pred, 0.42) == (1, 1, 1)


def test_nothing_to_find_and_nothing_found_is_perfect() -> None:
    empty = np.zeros((3, 3), dtype=np.int32)
    full = np.ones((3, 3), dtype=np.int32)
    assert match_counts(empty, empty, 0.5) == (0, 0, 0)
    assert average_precision((0, 0, 0)) == 1.0
    assert match_counts(full, empty, 0.5) == (0, 0, 1)
    assert match_counts(empty, full, 0.5) == (0, 1, 0)
    assert match_counts(full, full, 0.5) == (1, 0, 0)
    assert average_precision((0, 1, 0)) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.75]))
def test_the_numbers_of_the_cells_do_not_matter(seed: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    y_true = generator.integers(0, 5, (6, 7)).astype(np.int32)
    y_pred = np.where(generator.random((6, 7)) < 0.7, y_true, generator.integers(0, 5, (6, 7))).astype(np.int32)
    ids = np.concatenate([[0], generator.choice(np.arange(1, 10_000), 4, replace=False)]).astype(np.int32)
    counts = match_counts(y_true, y_pred, threshold)
    assert match_counts(ids[y_true], y_pred, threshold) == counts
    assert match_counts(y_true, ids[y_pred], threshold) == counts
    tp, fp, fn = match_counts(y_pred, y_true, threshold)
    assert (tp, fn, fp) == counts  # truth and prediction change places
    assert counts[0] + counts[2] == len(np.unique(y_true[y_true > 0]))
    assert counts[0] + counts[1] == len(np.unique(y_pred[y_pred > 0]))
