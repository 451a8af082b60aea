"""Parts that are one cell become one; the answer is worked out by hand."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from model import joining, postprocess
from model.joining import COEFFICIENTS, Seams, join_parts
from model.parting import part, usual_core_area
from model.postprocess import Maps, Parting, find_parts, find_seams, label_cells, mask_cells


def seams_of(labels: list[list[int]], *, border: int = 0, cell: int = 65535, least: int = 1) -> Seams:
    numbers = np.array(labels, dtype=np.int32)
    return Seams.find(
        numbers,
        np.full(numbers.shape, border, np.uint8),
        np.full(numbers.shape, cell, np.uint16),
        least=least,
        width=numbers.shape[1],
    )


def row_of_seams(odds: list[float]) -> Seams:
    """Parts 1, 2, 3, ... in a row, each seam of one pair of pixels, whose border gives it the odds at usual sizes."""
    n = len(odds)
    one = np.arange(1, n + 1)
    both, smaller, constant = COEFFICIENTS[2], COEFFICIENTS[3], COEFFICIENTS[4]
    assert smaller * np.log2(1) == 0
    border = np.rint([(value - both - constant) / COEFFICIENTS[0] * 510 for value in odds]).astype(np.int64)
    return Seams(np.stack([one, one + 1, np.ones_like(one), border, np.zeros_like(one), 2 * one]))


def usual_sizes(n: int, size: int = 100) -> npt.NDArray[np.int64]:
    return np.array([0] + [size] * n)


def test_each_pair_of_parts_that_touches_over_edges_has_one_seam_with_its_sums() -> None:
    labels = np.array([[1, 1, 2], [1, 3, 2], [0, 3, 3], [4, 0, 3]], dtype=np.int32)  # 1 and 4 not at all
    border = np.arange(12, dtype=np.uint8).reshape(4, 3)
    cell = (1000 * np.arange(12)).astype(np.uint16).reshape(4, 3)
    seams = Seams.find(labels, border, cell, least=1, width=3)
    assert list(zip(seams.one.tolist(), seams.other.tolist(), strict=True)) == [(1, 2), (1, 3), (2, 3)]
    assert seams.lengths.tolist() == [1, 2, 2]
    # 1 and 3: pixels 1 over 4, and 3 left of 4; 2 and 3: 4 left of 5, and 5 over 8
    assert seams.border.tolist() == [1 + 2, (1 + 4) + (3 + 4), (4 + 5) + (5 + 8)]
    assert seams.cell.tolist() == [3000, 12000, 22000]
    # the first pair by rows, those to the right before those below: 1 and 2 in the first row, 1 over and left of 3, ...
    assert seams.places.tolist() == [2 * 1, 2 * 1 + 1, 2 * 4]


def test_regions_below_the_first_part_have_no_seams() -> None:
    assert len(seams_of([[1, 2, 3]], least=2)) == 1
    assert len(seams_of([[1, 2, 1]], least=3)) == 0
    assert len(seams_of([[1]])) == 0


def test_rows_one_by_one_have_the_seams_of_the_whole() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, (9, 7)).astype(np.int32)
    border = generator.integers(0, 200, labels.shape).astype(np.uint8)
    cell = generator.integers(0, 200, labels.shape).astype(np.uint16)
    whole = Seams.find(labels, border, cell, least=2, width=7)
    rows = [
        Seams.find(labels[at], border[at], cell[at], least=2, n_rows=1, origin=(at.start, 0), width=7)
        for at in (slice(top, top + 2) for top in range(9))
    ]
    together = rows[0].together(*rows[1:])
    np.testing.assert_array_equal(together.table, whole.table)
    assert len(whole) == 6  # of 2 to 5


def test_what_is_said_of_a_seam() -> None:
    seams = seams_of([[1, 1, 2]], border=51, cell=13107)
    np.testing.assert_allclose(
        seams.describe(np.array([0, 50, 200]), 100.0)[:, 0], [0.2, 0.2, np.log2(2.5), np.log2(0.5), 1]
    )


@pytest.mark.parametrize(("probability", "expected"), [(0.6, [1, 2]), (0.45, [1, 1]), (1.0, [1, 2]), (0.0, [1, 1])])
def test_parts_are_joined_above_the_probability(probability: float, expected: list[int]) -> None:
    seams = row_of_seams([0.0])  # even odds
    assert join_parts(seams, usual_sizes(2), 100.0, probability=probability)[1:].tolist() == expected


def test_parts_no_larger_than_other_cells_are_joined_and_cells_are_not() -> None:
    seams = row_of_seams([0.0])
    assert join_parts(seams, usual_sizes(2, 40), 100.0, probability=0.5)[1:].tolist() == [1, 1]
    assert join_parts(seams, usual_sizes(2, 150), 100.0, probability=0.5)[1:].tolist() == [1, 2]


def test_what_was_joined_is_judged_anew_so_a_row_does_not_become_one_cell() -> None:
    # each pair alone is likely; three together are too large
    joined = join_parts(row_of_seams([0.3, 0.5, 0.3]), usual_sizes(4), 100.0, probability=0.5)
    assert joined[1:].tolist() == [1, 2, 2, 4]


def test_small_parts_go_on_being_joined_until_they_are_a_cell() -> None:
    joined = join_parts(row_of_seams([0.3] * 7), usual_sizes(8, 10), 100.0, probability=0.5)
    assert joined[1:].tolist() == [1] * 8  # by pairs, fours and eights


def test_a_long_row_of_equal_parts_is_joined_in_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MOST_ROUNDS", 8)
    joined = join_parts(row_of_seams([0.3] * 999), usual_sizes(1000), 100.0, probability=0.5)
    of_own_cell = np.bincount(joined)[joined[1:]]
    assert of_own_cell.max() == 2
    assert not ((of_own_cell[1:] == 1) & (of_own_cell[:-1] == 1)).any()  # as many pairs as there can be


def test_numbers_do_not_decide_what_is_joined() -> None:
    seams, n = row_of_seams([0.3] * 40), 41
    joined = join_parts(seams, usual_sizes(n), 100.0, probability=0.5)
    order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(n)])
    other = join_parts(seams.renumbered(order), usual_sizes(n), 100.0, probability=0.5)[order]
    np.testing.assert_array_equal(joined[:, None] == joined, other[:, None] == other)


def test_what_the_parts_of_regions_are() -> None:
    """Two regions: one of two cores of 12 and 9 px, one of one core of 16 px and another too small to be one."""
    labels = np.zeros((12, 24), dtype=np.int32)
    labels[1:5, 1:12], labels[7:11, 1:12] = 1, 2
    core = np.zeros(labels.shape, dtype=np.bool_)
    core[1:4, 1:5], core[1:4, 8:11], core[7:11, 1:5], core[8:10, 8:11] = True, True, True, True
    parts = part(
        labels,
        2,
        core=lambda rows: core[rows],
        late=lambda rows, columns: np.zeros(core[rows, columns].shape, np.int32),
    )
    assert (parts.first, parts.last) == (3, 6)
    assert parts.core_areas[labels[1:5, [1, 10]]].tolist() == [[12, 9]] * 4
    assert parts.core_areas[labels[8, 8]] == 0  # a region that is whole
    assert parts.usual_area == 12  # the middle of 9, 12 and 16
    assert usual_core_area(np.array([0, 3, 7])) == 1


def cell_with_a_waist() -> Maps:
    """A row of eight round cells of radius 9 apart, and a long one of two cores with a weak border between them."""
    ys, xs = np.mgrid[:60, :200]
    far = np.zeros(ys.shape)
    for x in range(12, 200, 24):
        far = np.maximum(far, 1 - np.hypot(ys - 15, xs - x) / 9)
    for x in (60, 70):
        far = np.maximum(far, 1 - np.hypot(ys - 45, xs - x) / 7)
    border = np.where((abs(xs - 65) < 1) & (ys > 30) & (far > 0), 0.45, 0.0)
    return Maps.from_probabilities(
        np.where(far > 0, 0.95, 0.02).astype(np.float32), border.astype(np.float32), far.clip(0).astype(np.float32)
    )


def test_labels_of_a_cell_with_two_cores() -> None:
    maps = cell_with_a_waist()
    parted = label_cells(maps, threshold=0.5, parting=Parting(0.6, 0.25))
    assert parted.max() == 10
    assert parted[45, 60] != parted[45, 70]
    joined = label_cells(maps, threshold=0.5, parting=Parting(0.6, 0.25, 0.4))
    assert joined.max() == 9
    assert joined[45, 60] == joined[45, 70]
    np.testing.assert_array_equal(joined > 0, parted > 0)


def test_without_a_border_map_nothing_is_joined() -> None:
    maps = cell_with_a_waist()
    alone = Maps(maps.cell, None, maps.distance)
    one, other = (label_cells(alone, threshold=0.5, parting=Parting(None, 0.25, joins)) for joins in (1.0, 0.0))
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="there is none"):
        find_seams(one, alone, find_parts(alone, threshold=0.5, parting=Parting())[1])


def warped_cells(seed: int) -> Maps:
    """Cells of a grid that is bent, all with the same border between them, and background here and there."""
    generator = np.random.default_rng(seed)
    ys, xs = np.mgrid[:80, :100]
    bend = ndimage.gaussian_filter(generator.standard_normal(ys.shape), 3) * generator.integers(0, 12)
    down, across = generator.integers(4, 14, 2)
    lines = ((ys + np.rint(bend).astype(int)) % down == 0) | (xs % across == 0)
    cell = np.where(ndimage.gaussian_filter(generator.random(ys.shape), 4) > generator.choice([0.4, 0.5]), 0.9, 0.1)
    border = np.where(lines, generator.choice([0.4, 0.5, 0.6]), 0)
    return Maps.from_probabilities(cell.astype(np.float32), border.astype(np.float32))


def test_the_mask_is_where_the_labels_are_also_where_parts_were_joined() -> None:
    n_joined = n_kept = 0
    for seed in [*range(80), 254, 386]:  # in the last two seams as likely as each other lie in a flood of its own box
        maps, min_area_px = warped_cells(seed), (20, 40, 70)[seed % 3]
        rule = Parting(0.45, 0.25, 0.3)
        labels = label_cells(maps, threshold=0.5, min_area_px=min_area_px, parting=rule)
        mask = mask_cells(maps, threshold=0.5, min_area_px=min_area_px, parting=rule)
        np.testing.assert_array_equal(mask, labels > 0)
        apart = mask_cells(maps, threshold=0.5, min_area_px=min_area_px, parting=Parting(0.45, 0.25))
        n_joined += int((mask != apart).any())  # what was too small alone
        n_kept += int(not mask.all())
    assert n_joined > 8
    assert n_kept > 8


@pytest.mark.parametrize("seed", range(6))
def test_equally_likely_seams_are_joined_alike_by_bands(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, rule = warped_cells(seed), Parting(0.45, 0.25, 0.2)
    whole = label_cells(maps, threshold=0.5, parting=rule)
    monkeypatch.setattr(postprocess, "BAND_PX", 700)
    np.testing.assert_array_equal(label_cells(maps, threshold=0.5, parting=rule), whole)


def test_labels_are_joined_across_the_bands_of_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    far = ndimage.distance_transform_edt(ndimage.gaussian_filter(generator.random((240, 200)), 4) > 0.49)
    distance = np.clip(ndimage.gaussian_filter(far, 1) / 12, 0, 1).astype(np.float32)
    border = np.where(far > 0, 1.3 * ndimage.gaussian_filter(generator.random(far.shape), 1), 0).astype(np.float32)
    maps = Maps.from_probabilities(np.where(far > 0, 0.9, 0.1).astype(np.float32), border, distance)
    rule = Parting(0.3, 0.25, 0.2)
    whole = label_cells(maps, threshold=0.5, parting=rule)
    parted = label_cells(maps, threshold=0.5, parting=Parting(0.3, 0.25))
    assert ndimage.label(whole > 0)[1] < whole.max() < parted.max()  # some are joined, and not all
    monkeypatch.setattr(postprocess, "BAND_PX", 1000)
    np.testing.assert_array_equal(label_cells(maps, threshold=0.5, parting=rule), whole)
