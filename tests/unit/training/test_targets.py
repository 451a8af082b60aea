"""What the network's outputs should be."""

import numpy as np

from training.targets import border_map, make_targets


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
