"""What the network's outputs should be."""

import numpy as np

from training.targets import border_map, distance_map, make_targets


def two_cells(gap: int) -> np.ndarray:
    labels = np.zeros((20, 40), np.int32)
    labels[5:15, 5:15], labels[5:15, 15 + gap : 25 + gap] = 1, 2
    return labels


def test_touching_cells_have_a_border_between_them_and_nowhere_else() -> None:
    border = border_map(two_cells(gap=0))
    assert border[7:13, 13:17].all()
    assert not border[:, :12].any()
    assert not border[:, 18:].any()


def test_a_narrow_gap_counts_as_border_a_wide_one_does_not() -> None:
    assert border_map(two_cells(gap=2))[7:13, 15:17].all()
    assert not border_map(two_cells(gap=8)).any()


def test_no_cells_no_border() -> None:
    assert not make_targets(np.zeros((9, 9), np.int32), ("cell", "border")).any()


def test_one_output_parts_touching_cells_two_outputs_keep_the_whole_foreground() -> None:
    labels = two_cells(gap=0)
    (cell,) = make_targets(labels, ("cell",))
    assert not cell[5:15, 14:16].any()
    cell, border = make_targets(labels, ("cell", "border"))
    assert np.array_equal(cell, labels > 0)
    assert np.array_equal(border, border_map(labels))


def test_distance_is_that_from_the_cells_own_edge_as_a_share_of_its_largest() -> None:
    labels = np.zeros((9, 16), np.int32)
    labels[1:8, 1:8] = 3  # 7 x 7 px: 1, 2, 3 and 4 px from outside
    labels[1:8, 8:15] = 1  # touches it
    rings = np.minimum.outer(np.array([1, 2, 3, 4, 3, 2, 1]), np.array([1, 2, 3, 4, 3, 2, 1])) / 4
    expected = np.zeros((9, 16))
    expected[1:8, 1:8] = expected[1:8, 8:15] = rings
    np.testing.assert_allclose(distance_map(labels), expected, rtol=1e-6)


def test_the_pictures_edge_is_not_the_cells() -> None:
    labels = np.zeros((5, 8), np.int32)
    labels[:, :4] = 1
    np.testing.assert_allclose(distance_map(labels)[2], [1, 0.75, 0.5, 0.25, 0, 0, 0, 0])
    assert (distance_map(np.ones((5, 8), np.int32)) == 1).all()


def test_outputs_come_in_the_order_of_their_names() -> None:
    labels = two_cells(gap=0)
    distance, cell, border = make_targets(labels, ("distance", "cell", "border"))
    assert np.array_equal(cell, labels > 0)
    assert np.array_equal(border, border_map(labels))
    assert np.array_equal(distance, distance_map(labels))
