"""Scores against cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information

from model.metrics import average_precision, dice, grow_regions, iou, match_counts, score_cells, score_regions

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


def three_cells() -> tuple[np.ndarray, np.ndarray]:
    """Found: the first exactly, half of the second (IoU 8 / 24), not the third, and one that is none."""
    y_true = np.zeros((10, 30), dtype=np.int32)
    y_true[0:4, 0:4], y_true[0:4, 10:14], y_true[6:10, 0:4] = 1, 2, 3
    y_pred = np.zeros_like(y_true)
    y_pred[0:4, 0:4], y_pred[0:4, 12:16], y_pred[6:10, 20:25] = 1, 2, 3
    return y_true, y_pred


def test_aji_and_pq_of_a_case_worked_out_by_hand() -> None:
    scores = score_cells(*three_cells(), (0.3, 0.5))
    # shared 16 + 8; unions 16 + 24, the third true cell 16, and the one that is none 20
    assert scores.aji == pytest.approx(24 / (16 + 24 + 16 + 20))
    # one match with an IoU of 1, two false positives, two false negatives
    assert scores.pq == pytest.approx(1 / (1 + 2 / 2 + 2 / 2))
    assert scores.counts == {0.3: (2, 1, 1), 0.5: (1, 2, 2)}


def test_scores_of_cells_where_there_is_none() -> None:
    empty, full = np.zeros((3, 3), dtype=np.int32), np.ones((3, 3), dtype=np.int32)
    for y_true, y_pred, expected in ((empty, empty, 1.0), (full, empty, 0.0), (empty, full, 0.0), (full, full, 1.0)):
        scores = score_cells(y_true, y_pred, (0.5,))
        assert (scores.aji, scores.pq) == (expected, expected)


def test_rand_and_information_of_a_case_worked_out_by_hand() -> None:
    # truth: two regions of 4 px; found: one region of 6 px over all of the first and half of the second
    y_true = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2]], dtype=np.int32)
    y_pred = np.array([[5, 5, 5, 5, 5, 5, 5, 7, 7]], dtype=np.int32)
    scores = score_regions(y_true, y_pred)
    # shares: 4/8, 2/8, 2/8 together; 4/8 and 4/8 of the truth; 6/8 and 2/8 found
    assert scores.v_rand == pytest.approx((16 + 4 + 4) / (0.5 * (16 + 16) + 0.5 * (36 + 4)))
    # pairs of different pixels: 28 in all; 12 together in the truth, 16 in what was found, 8 in both
    assert scores.adapted_rand_error == pytest.approx(1 - 2 * (8 / 12) * (8 / 16) / (8 / 12 + 8 / 16))
    entropy = [-sum(p * np.log(p) for p in shares) for shares in ((0.5, 0.5), (0.75, 0.25), (0.5, 0.25, 0.25))]
    assert scores.v_info == pytest.approx(2 * (entropy[0] + entropy[1] - entropy[2]) / (entropy[0] + entropy[1]))


@pytest.mark.parametrize("seed", range(5))
def test_rand_and_information_agree_with_scikit_image(seed: int) -> None:
    generator = np.random.default_rng(seed)
    y_true = ndimage.label(ndimage.gaussian_filter(generator.random((120, 120)), 4) > 0.5)[0].astype(np.int32)
    y_pred = grow_regions(ndimage.gaussian_filter(generator.random((120, 120)), 3) > 0.5)
    scores = score_regions(y_true, y_pred)
    error = adapted_rand_error(y_true, y_pred)[0]  # type: ignore[no-untyped-call]
    assert scores.adapted_rand_error == pytest.approx(error)
    # it counts pairs of different pixels, the published score pairs with repetition
    assert scores.v_rand == pytest.approx(1 - error, abs=2e-3)
    counted = y_true > 0
    more, less = variation_of_information(y_true[counted], y_pred[counted])  # type: ignore[no-untyped-call]
    shares = [np.unique(labels[counted], return_counts=True)[1] / counted.sum() for labels in (y_true, y_pred)]
    total = sum(-(share * np.log2(share)).sum() for share in shares)
    assert scores.v_info == pytest.approx((total - more - less) / total)


def test_alike_partitions_score_1_whatever_their_numbers() -> None:
    y_true = np.array([[1, 1, 2, 0], [3, 3, 2, 0]], dtype=np.int32)
    y_pred = np.array([[9, 9, 4, 1], [7, 7, 4, 2]], dtype=np.int32)
    scores = score_regions(y_true, y_pred)
    assert [scores.v_rand, scores.v_info, scores.adapted_rand_error] == pytest.approx([1, 1, 0])
    # no pair of different pixels is together in either
    assert score_regions(np.array([[1, 2]], np.int32), np.array([[4, 3]], np.int32)).adapted_rand_error == 0
    one = np.ones((2, 2), dtype=np.int32)
    assert score_regions(one, one).v_info == 1
    with pytest.raises(ValueError, match="no region"):
        score_regions(one * 0, one)


def test_regions_grow_until_they_meet() -> None:
    mask = np.array([[1, 0, 0, 0, 0, 1]], dtype=bool)
    np.testing.assert_array_equal(grow_regions(mask), [[1, 1, 1, 2, 2, 2]])
    assert not grow_regions(np.zeros((3, 3), dtype=bool)).any()
