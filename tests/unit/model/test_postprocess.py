"""Masks and cells from drawn shapes whose answer is known."""

import io
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PillowImage
from scipy import ndimage

from model import parting, postprocess, regions
from model.images import encode_probability
from model.postprocess import PROBABILITY_LEVELS, Maps, Parting, label_cells, mask_cells, threshold_mask, to_maps
from model.regions import Regions
from model.runs import Runs
from model.types import Labels, Logits, Mask, Probability


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: float) -> npt.NDArray[np.bool_]:
    ys, xs = np.ogrid[: shape[0], : shape[1]]
    inside: npt.NDArray[np.bool_] = (ys - centre[0]) ** 2 + (xs - centre[1]) ** 2 <= radius**2
    return inside


def as_maps(cell: npt.NDArray[np.bool_], border: npt.NDArray[np.bool_] | None = None) -> Maps:
    return Maps.from_probabilities(
        cell=np.where(cell, 0.9, 0.1).astype(np.float32),
        border=None if border is None else np.where(border, 0.9, 0.0).astype(np.float32),
    )


def numbers(labels: Labels) -> list[int]:
    """The numbers in the order in which they are first met by rows."""
    flat = labels[labels > 0]
    _, first = np.unique(flat, return_index=True)
    return [int(flat[position]) for position in sorted(first)]


def two_touching_discs() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Foreground of two discs side by side, and the border where they touch."""
    cell = disc((50, 90), (25, 25), 18) | disc((50, 90), (25, 60), 18)
    border = np.zeros_like(cell)
    border[:, 41:45] = cell[:, 41:45]
    return cell, border


def test_two_separate_discs_get_two_labels() -> None:
    left, right = disc((50, 90), (28, 20), 10), disc((50, 90), (25, 60), 12)  # the right one reaches higher
    labels = label_cells(as_maps(left | right), threshold=0.5)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, right * 1 + left * 2)


def test_touching_discs_are_one_cell_without_a_border_map_and_two_with_one() -> None:
    cell, border = two_touching_discs()
    assert label_cells(as_maps(cell), threshold=0.5).max() == 1
    labels = label_cells(as_maps(cell, border), threshold=0.5)
    assert labels.max() == 2
    np.testing.assert_array_equal(labels > 0, cell)
    assert labels[25, 25] != labels[25, 60]
    areas = np.bincount(labels.ravel())[1:]
    assert abs(int(areas[0]) - int(areas[1])) < 0.1 * areas.sum()


def test_touching_discs_are_parted_by_their_distance_alone_and_where_it_says_so() -> None:
    cell, _ = two_touching_discs()
    far = np.zeros(cell.shape, np.float32)
    for x in (25, 60):
        ys, xs = np.ogrid[:50, :90]
        far = np.maximum(far, np.clip(1 - np.hypot(ys - 25, xs - x) / 18, 0, 1)).astype(np.float32)
    labels = label_cells(Maps.from_probabilities(cell.astype(np.float32) * 0.9, distance=far), threshold=0.5)
    assert labels.max() == 2
    np.testing.assert_array_equal(labels > 0, cell)
    # where one cell ends and the other begins, halfway
    assert labels[25, 38] == labels[25, 25] != labels[25, 60] == labels[25, 47]
    flat = Maps.from_probabilities(cell.astype(np.float32) * 0.9, distance=np.where(cell, 0.9, 0).astype(np.float32))
    assert label_cells(flat, threshold=0.5).max() == 1


def test_a_core_needs_both_no_border_and_some_distance() -> None:
    cell, border = two_touching_discs()
    inside, edge = np.where(cell, 0.9, 0.1).astype(np.float32), np.where(border, 0.9, 0).astype(np.float32)
    near = Maps.from_probabilities(inside, edge)
    assert label_cells(near, threshold=0.5).max() == 2
    left = disc((50, 90), (25, 25), 14)  # the right one has no inside
    one = Maps.from_probabilities(inside, edge, np.where(left, 0.8, 0.1).astype(np.float32))
    assert label_cells(one, threshold=0.5).max() == 1


def test_a_region_without_a_core_stays_whole_beside_regions_that_are_parted() -> None:
    cell, border = two_touching_discs()
    cell = np.concatenate([cell, np.zeros((10, 90), dtype=bool)])
    border = np.concatenate([border, np.zeros((10, 90), dtype=bool)])
    cell[52:58, 10:40] = border[52:58, 10:40] = True  # border all over
    labels = label_cells(as_maps(cell, border), threshold=0.5)
    assert labels.max() == 3
    assert len(np.unique(labels[52:58, 10:40])) == 1
    np.testing.assert_array_equal(labels > 0, cell)


def test_a_core_of_a_few_pixels_is_no_cell_of_its_own() -> None:
    cell = np.zeros((20, 40), dtype=bool)
    cell[5:15, 5:35] = True
    border = np.zeros_like(cell)
    border[5:15, 29:32] = True
    border[5:15, 32:35] = True
    border[9:11, 33:35] = False  # four pixels of core
    assert label_cells(as_maps(cell, border), threshold=0.5).max() == 1


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(np.bool_, (17, 23)),
    hnp.arrays(np.bool_, (17, 23)),
    st.booleans(),
)
def test_the_labels_cover_the_mask_exactly_and_are_numbered_by_first_pixel_without_gaps(
    cell: npt.NDArray[np.bool_], border: npt.NDArray[np.bool_], with_border: bool
) -> None:
    maps = as_maps(
        ndimage.binary_dilation(cell, iterations=2) if with_border else cell, border if with_border else None
    )
    labels = label_cells(maps, threshold=0.5)
    np.testing.assert_array_equal(labels > 0, threshold_mask(maps.cell, 0.5))
    assert numbers(labels) == list(range(1, int(labels.max()) + 1))
    for number in range(1, int(labels.max()) + 1):
        assert ndimage.label(labels == number)[1] == 1  # each cell is in one piece


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), min_area_px=st.integers(0, 60), with_border=st.booleans())
def test_the_mask_is_where_the_labels_are_whatever_is_parted_and_dropped(
    seed: int, min_area_px: int, with_border: bool
) -> None:
    generator = np.random.default_rng(seed)
    far = ndimage.distance_transform_edt(ndimage.gaussian_filter(generator.random((90, 110)), 2) > 0.5)
    cell = np.where(far > 0, 0.9, 0.1).astype(np.float32)
    distance = np.clip(ndimage.gaussian_filter(far, 1) / 6, 0, 1).astype(np.float32)
    border = ((far > 0) & (generator.random(cell.shape) < 0.05)).astype(np.float32) if with_border else None
    maps = Maps.from_probabilities(cell, border, distance)
    labels = label_cells(maps, threshold=0.5, min_area_px=min_area_px)
    np.testing.assert_array_equal(mask_cells(maps, threshold=0.5, min_area_px=min_area_px), labels > 0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sigma=st.sampled_from([0.0, 0.6, 3.0]),
    min_area_px=st.integers(0, 400),
    alone=st.sampled_from([0, 1, 1000]),
)
def test_a_mask_by_runs_is_the_mask_by_labels(seed: int, sigma: float, min_area_px: int, alone: int) -> None:
    """Also of what looks like no cell, where many runs make the runs give up, and flooded alone or together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "ALONE_REGIONS", alone)
        check_mask_by_runs(seed, sigma, min_area_px)


def check_mask_by_runs(seed: int, sigma: float, min_area_px: int) -> None:
    generator = np.random.default_rng(seed)
    cell, border, distance = (
        np.clip(0.5 + 3 * ndimage.gaussian_filter(generator.random((70, 80)) - 0.5, sigma), 0, 1).astype(np.float32)
        for _ in range(3)
    )
    high = float(generator.choice([0.0, 0.55, 0.7, 0.9]))
    for maps in (Maps.from_probabilities(cell), Maps.from_probabilities(cell, border, distance)):
        for rule in (Parting(), Parting(0.2, 0.3), Parting(0.2, 0.1, 0.3), Parting(0.2, 0.3, 0.0)):
            asked: dict[str, Any] = {"threshold": 0.5, "high_threshold": high, "min_area_px": min_area_px}
            labels = label_cells(maps, **asked, parting=rule)
            np.testing.assert_array_equal(mask_cells(maps, **asked, parting=rule), labels > 0)


def small_cores(seed: int) -> Maps:
    """Touching cells with cores of 8 px and a few more, some next to each other, in whatever order they are reached."""
    generator = np.random.default_rng(seed)
    cell = ndimage.gaussian_filter(generator.random((60, 70)), 3) > 0.495
    distance = generator.random(cell.shape) * 0.2
    for _ in range(40):
        y, x, down, across = generator.integers((0, 0, 2, 2), (58, 68, 5, 6))
        distance[y : y + down, x : x + across] = generator.uniform(0.3, 0.9)
    return Maps.from_probabilities(np.where(cell, 0.9, 0.1).astype(np.float32), distance=distance.astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), min_area_px=st.integers(9, 40))
def test_the_mask_of_small_cores_is_where_the_labels_are(seed: int, min_area_px: int) -> None:
    maps = small_cores(seed)
    labels = label_cells(maps, threshold=0.5, min_area_px=min_area_px)
    np.testing.assert_array_equal(mask_cells(maps, threshold=0.5, min_area_px=min_area_px), labels > 0)


@pytest.mark.parametrize(("gap", "floods"), [(4, 0), (1, 1)])
def test_a_mask_is_not_flooded_where_a_core_and_what_touches_it_alone_are_large_enough(
    gap: int, floods: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cores of 12 px in one cell; what lies between them touches both where they are a pixel apart."""
    cell, distance = np.zeros((20, 40), np.float32), np.zeros((20, 40), np.float32)
    cell[3:12, 3:30] = 0.9
    distance[6:9, 6:10] = distance[6:9, 10 + gap : 14 + gap] = 0.9
    flooded = []

    def watch(order: npt.NDArray[np.int32], seeds: Labels, mask: Mask) -> Labels:
        flooded.append(mask)
        return parting.flood(order, seeds, mask)

    monkeypatch.setattr(postprocess, "flood", watch)
    maps = Maps.from_probabilities(cell, distance=distance)
    for min_area_px in (20, 26):  # 12, and 14 around them of which 3 may be between both
        mask = mask_cells(maps, threshold=0.5, min_area_px=min_area_px)
        np.testing.assert_array_equal(mask, label_cells(maps, threshold=0.5, min_area_px=min_area_px) > 0)
    assert len(flooded) == floods
    mask_cells(maps, threshold=0.5, min_area_px=27)
    assert len(flooded) == floods + 1


@pytest.mark.parametrize("far", [False, True])
def test_regions_are_flooded_alone_where_their_boxes_are_the_smaller(far: bool) -> None:
    mask = np.zeros((60, 60), np.bool_)
    mask[2:8, 2:8] = True
    if far:
        mask[50:58, 50:58] = True
    else:
        mask[2:50, 10:12] = mask[48:50, 2:12] = True  # around the first
        mask[2:4, 10:40] = True
    found = Regions.find(Runs.find(mask), Runs.find(mask[:0]))
    assert len(found) == 2
    floods = found.to_floods(np.ones(2, np.bool_))
    assert [int(chosen.sum()) for chosen in floods] == ([1, 1] if far else [2])
    assert found.to_floods(np.zeros(2, np.bool_)) == []


def test_what_a_flood_leaves_out_is_no_small_cell() -> None:
    """The box around a region that is flooded has a corner of another region, with fewer pixels than the least cell."""
    cell, distance = np.zeros((40, 60), np.float32), np.zeros((40, 60), np.float32)
    cell[:30, :30] = 0.9
    cell[:6, 27:30] = 0
    cell[:2, 28:] = 0.9
    distance[2:12, 2:12] = distance[20:22, 20:26] = 0.9
    maps = Maps.from_probabilities(cell, distance=distance)
    labels = label_cells(maps, threshold=0.5, min_area_px=19)
    np.testing.assert_array_equal(mask_cells(maps, threshold=0.5, min_area_px=19), labels > 0)


def test_a_region_as_large_as_the_least_cell_but_of_two_is_dropped() -> None:
    cell, distance = np.zeros((10, 20), np.float32), np.zeros((10, 20), np.float32)
    cell[4:6, 4:14] = distance[4:6, 4:8] = distance[4:6, 10:14] = 0.9
    maps = Maps.from_probabilities(cell, distance=distance)
    assert mask_cells(maps, threshold=0.5, min_area_px=10).sum() == 20
    assert not label_cells(maps, threshold=0.5, min_area_px=20).any()
    assert not mask_cells(maps, threshold=0.5, min_area_px=20).any()


def test_an_empty_mask_has_no_cores_to_look_for() -> None:
    maps = Maps.from_probabilities(np.zeros((20, 20), np.float32))
    assert not mask_cells(maps, threshold=0.5, min_area_px=5, parting=Parting(1.5)).any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", [Parting(), Parting(0.3, 0.25, 0.4)])
@pytest.mark.parametrize("high_threshold", [0.0, 0.75])
def test_a_large_image_is_labelled_by_bands_and_blocks_to_the_same_numbers(
    seed: int, rule: Parting, high_threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(seed)
    far = ndimage.distance_transform_edt(ndimage.gaussian_filter(generator.random((300, 260)), 4) > 0.5)
    cell = np.asarray(far > 0)
    distance = np.clip(ndimage.gaussian_filter(far, 1) / 12, 0, 1).astype(np.float32)
    border = (cell & (generator.random(cell.shape) < 0.02)).astype(np.float32)
    probability = np.where(cell, 0.5 + 0.4 * distance, 0.1).astype(np.float32)
    maps = Maps.from_probabilities(probability, border, distance)
    asked: dict[str, Any] = {"threshold": 0.5, "high_threshold": high_threshold, "min_area_px": 10, "parting": rule}
    whole = label_cells(maps, **asked)
    if high_threshold:
        assert 0 < (whole > 0).sum() < (label_cells(maps, **(asked | {"high_threshold": 0})) > 0).sum()
    else:
        assert whole.max() > ndimage.label(cell)[1]  # some are parted
    monkeypatch.setattr(parting, "AT_ONCE_PX", 4000)
    monkeypatch.setattr(parting, "BLOCK_PX", 100)
    monkeypatch.setattr(parting, "HALO_PX", 300)  # as far as any of the regions reaches
    monkeypatch.setattr(postprocess, "BAND_PX", 3000)
    np.testing.assert_array_equal(label_cells(maps, **asked), whole)
    np.testing.assert_array_equal(mask_cells(maps, **asked), whole > 0)


def test_a_region_that_nowhere_reaches_the_high_threshold_is_dropped_whole() -> None:
    cell = np.zeros((20, 60), np.float32)
    cell[2:12, 2:12] = 0.6
    cell[2:12, 20:30] = 0.6
    cell[5, 25] = 0.9  # sure in one place, so all of it stays
    cell[2:12, 40:50] = 0.9
    maps = Maps.from_probabilities(cell)
    assert label_cells(maps, threshold=0.5).max() == 3
    for min_area_px in (0, 20):
        labels = label_cells(maps, threshold=0.5, high_threshold=0.9, min_area_px=min_area_px)
        assert np.bincount(labels.reshape(-1)).tolist() == [1000, 100, 100]
        mask = mask_cells(maps, threshold=0.5, high_threshold=0.9, min_area_px=min_area_px)
        np.testing.assert_array_equal(mask, labels > 0)
    assert not mask_cells(maps, threshold=0.5, high_threshold=0.95).any()
    assert not label_cells(maps, threshold=0.5, high_threshold=0.95).any()
    # one that is lower than the threshold itself asks for nothing
    assert label_cells(maps, threshold=0.8, high_threshold=0.3).max() == 2
    for wrong in (-0.1, 1.5, float("inf"), float("nan")):
        for threshold in (0.5, wrong):
            for function in (label_cells, mask_cells):
                with pytest.raises(ValueError, match=f"{wrong}; allowed is 0 to 1"):
                    function(maps, threshold=threshold, high_threshold=wrong)


def faint_and_sure(seed: int) -> Maps:
    """Touching cells; some regions are sure, with larger cores than the faint ones."""
    generator = np.random.default_rng(seed)
    cell = ndimage.gaussian_filter(generator.random((120, 130)), 3) > 0.497
    region, n_regions = ndimage.label(cell)
    sure = generator.random(n_regions + 1) < 0.4
    distance = generator.random(cell.shape) * 0.2
    for _ in range(120):
        y, x, down, across = generator.integers((0, 0, 2, 2), (116, 126, 4, 6))
        scale = 3 if sure[region[y, x]] else 1
        distance[y : y + down * scale, x : x + across * scale] = generator.uniform(0.3, 0.9)
    probability = np.where(cell, np.where(sure[region], 0.95, 0.8), 0.1)
    border = np.where(cell, generator.random(cell.shape) * 0.3, 0)
    return Maps.from_probabilities(*(map_.astype(np.float32) for map_ in (probability, border, distance)))


@pytest.mark.parametrize(("seed", "min_area_px"), [(20, 60), (43, 30), (45, 60)])
def test_cores_of_what_is_dropped_do_not_say_how_large_cells_usually_are(seed: int, min_area_px: int) -> None:
    """In these pictures the mask would have other pixels if they did."""
    maps = faint_and_sure(seed)
    asked: dict[str, Any] = {"threshold": 0.5, "min_area_px": min_area_px, "parting": Parting(0.3, 0.25, 0.5)}
    labels = label_cells(maps, **asked, high_threshold=0.9)
    without_faint = replace(maps, cell=np.where(maps.cell < 0.9 * PROBABILITY_LEVELS, np.uint16(0), maps.cell))
    np.testing.assert_array_equal(labels, label_cells(without_faint, **asked))
    np.testing.assert_array_equal(mask_cells(maps, **asked, high_threshold=0.9), labels > 0)


def test_a_mask_of_a_large_image_is_not_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "BLOCK_PX", 256)
    ys, xs = np.mgrid[:1024, :1024]
    distance = np.clip(1 - np.hypot(ys % 40 - 20, xs % 40 - 20) / 24, 0, 1).astype(np.float32)
    maps = Maps.from_probabilities(np.where(distance > 0.33, 0.9, 0.1).astype(np.float32), distance=distance)
    tracemalloc.start()
    try:
        mask_cells(maps, threshold=0.5, min_area_px=20)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 13.85 bytes a pixel, most of them a block's; a mask beside the labels would be one more
    assert peak_bytes < 14.35 * distance.size


def test_a_region_larger_than_a_block_is_parted_into_the_same_cells_but_for_pixels_at_the_seams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ys, xs = np.mgrid[:400, :400]
    near = np.hypot(ys % 40 - 20, xs % 40 - 20)  # a hundred cells side by side, one region
    distance = np.clip(1 - near / 24, 0, 1).astype(np.float32)
    maps = Maps.from_probabilities(np.full((400, 400), 0.9, np.float32), distance=distance)
    whole = label_cells(maps, threshold=0.5)
    monkeypatch.setattr(parting, "AT_ONCE_PX", 4000)
    monkeypatch.setattr(parting, "BLOCK_PX", 90)
    monkeypatch.setattr(parting, "HALO_PX", 30)
    blocks = label_cells(maps, threshold=0.5)
    assert whole.max() == blocks.max() == 100
    # by the middles of the cells, for their first pixels, and so their numbers, can be those of a neighbour
    number = np.zeros(101, dtype=np.int32)
    number[blocks[20::40, 20::40]] = whole[20::40, 20::40]
    assert len(np.unique(number)) == 101
    assert (number[blocks] != whole).mean() < 0.05  # along the edges of cells, where both are as near


def one_region_with_long_tails(seed: int) -> Maps:
    """A maze of one region, whose few cores lie far from most of it."""
    generator = np.random.default_rng(seed)
    cell = np.zeros((300, 400), dtype=bool)
    for y in range(10, 300, 40):
        cell[y : y + 12, 5:-5] = True
    for _ in range(16):
        y, x = int(generator.integers(0, 260)), int(generator.integers(5, 380))
        cell[y : y + 45, x : x + 10] = True
    distance = np.zeros(cell.shape, dtype=np.float32)
    for _ in range(6):
        y, x = 10 + 40 * int(generator.integers(0, 8)), int(generator.integers(10, 380))
        distance[y + 2 : y + 9, x : x + 8] = 0.9
    return Maps.from_probabilities(np.where(cell, 0.9, 0.1).astype(np.float32), distance=distance)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("min_area_px", [0, 20, 200])
def test_no_seam_makes_a_cell_of_what_lies_far_from_every_core(
    seed: int, min_area_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = one_region_with_long_tails(seed)
    whole = label_cells(maps, threshold=0.5, min_area_px=min_area_px)
    monkeypatch.setattr(parting, "AT_ONCE_PX", 4000)
    monkeypatch.setattr(parting, "BLOCK_PX", 64)
    monkeypatch.setattr(parting, "HALO_PX", 8)
    blocks = label_cells(maps, threshold=0.5, min_area_px=min_area_px)
    assert blocks.max() == whole.max()
    np.testing.assert_array_equal(blocks > 0, whole > 0)
    np.testing.assert_array_equal(mask_cells(maps, threshold=0.5, min_area_px=min_area_px), blocks > 0)
    if min_area_px == 0:
        assert blocks.max() > ndimage.label(threshold_mask(maps.cell, 0.5))[1]  # some are parted


def test_corners_that_touch_do_not_join_cells() -> None:
    cell = np.array([[1, 0], [0, 1]], dtype=bool)
    np.testing.assert_array_equal(label_cells(as_maps(cell), threshold=0.5), [[1, 0], [0, 2]])


def test_cells_below_the_least_area_are_dropped_and_the_rest_numbered_anew() -> None:
    cell = np.zeros((10, 20), dtype=bool)
    cell[0, 0:3] = cell[4:6, 0:2] = cell[8, 0:5] = True  # 3, 4 and 5 px
    for min_area_px, kept in ((0, 3), (3, 3), (4, 2), (5, 1), (6, 0)):
        labels = label_cells(as_maps(cell), threshold=0.5, min_area_px=min_area_px)
        assert numbers(labels) == list(range(1, kept + 1))
        assert labels.max() == kept


def test_nothing_found_gives_all_zeros_and_everything_found_one_cell() -> None:
    nothing = np.zeros((8, 9), dtype=bool)
    for border in (None, nothing):
        assert not label_cells(as_maps(nothing, border), threshold=0.5).any()
        assert (label_cells(as_maps(~nothing, border), threshold=0.5) == 1).all()
    assert (label_cells(as_maps(nothing), threshold=0) == 1).all()


def test_more_than_65535_cells_keep_their_numbers() -> None:
    cell = np.zeros((520, 520), dtype=bool)
    cell[::2, ::2] = True
    labels = label_cells(as_maps(cell), threshold=0.5)
    assert labels.max() == 260 * 260
    np.testing.assert_array_equal(labels[::2, ::2].ravel(), np.arange(1, 260 * 260 + 1))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="allowed is 0 to 1"):
        threshold_mask(np.zeros((2, 2), dtype=np.float32), threshold)


def test_a_negative_least_area_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed is 0 or more"):
        label_cells(as_maps(np.zeros((2, 2), dtype=bool)), threshold=0.5, min_area_px=-1)


def every_level() -> Probability:
    """One pixel of each of the 65,536 probabilities, by way of logits."""
    levels = np.arange(PROBABILITY_LEVELS + 1) / PROBABILITY_LEVELS
    with np.errstate(divide="ignore"):
        logits = (np.log(levels) - np.log1p(-levels)).astype(np.float32).reshape(1, 256, 256)
    return to_maps(logits, ("cell",), "sigmoid").probability


THRESHOLDS = [0.0, 1.0, 0.5, 0.1, 0.2, 0.25, 0.3, 0.4, 0.6, 0.62, 0.7, 0.75, 0.8, 0.9, 0.95, 0.999, 1e-6, 1 / 3]


@pytest.mark.parametrize(
    "threshold", THRESHOLDS + [k / PROBABILITY_LEVELS for k in (1, 2, 7, 13107, 26214, 32767, 32768, 45875, 65534)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_16_bit_picture_of_the_probability_gives_the_mask_again(threshold: float, dtype: type[np.floating]) -> None:
    probability = every_level()
    assert len(np.unique(probability)) > 60_000
    stored = np.asarray(PillowImage.open(io.BytesIO(encode_probability(probability)))).astype(dtype)
    decoded = stored / dtype(PROBABILITY_LEVELS)
    np.testing.assert_array_equal(decoded >= dtype(threshold), threshold_mask(probability, threshold))


def test_probabilities_come_in_steps_of_a_16_bit_picture() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 50, 60)).astype(np.float32) * 5
    cell = to_maps(logits, ("cell",), "sigmoid").probability
    assert cell.dtype == np.float32
    levels = cell.astype(np.float64) * PROBABILITY_LEVELS
    np.testing.assert_allclose(levels, np.rint(levels), atol=0.01)
    exact = PROBABILITY_LEVELS / (1 + np.exp(-logits[0].astype(np.float64)))
    np.testing.assert_allclose(levels, exact, atol=0.52)  # the nearest step


def three_maps() -> Logits:
    return np.random.default_rng(0).normal(size=(3, 20, 30)).astype(np.float32)


def test_softmax_is_over_the_maps_and_several_cell_maps_add_up() -> None:
    logits = three_maps()
    maps = to_maps(logits, ("background", "cell", "cell"), "softmax")
    background = np.exp(logits[0]) / np.exp(logits).sum(0)
    np.testing.assert_allclose(maps.probability, 1 - background, atol=2e-5)
    assert maps.border is None


def test_shares_that_add_up_are_rounded_once_and_reach_no_further_than_1() -> None:
    logits = three_maps()
    levels = to_maps(logits, ("background", "cell", "cell"), "softmax").cell
    exact = np.exp(logits.astype(np.float64))
    exact = PROBABILITY_LEVELS * (1 - exact[0] / exact.sum(0))
    np.testing.assert_allclose(levels, exact, atol=0.55)
    assert abs((levels - exact).mean()) < 0.1
    several = to_maps(np.full((2, 1, 3), [-9, 0.4, 9], np.float32), ("cell", "cell"), "sigmoid").cell
    assert several[0, 0] == 16  # 2 / (1 + e**9)
    assert several[0, 1:].tolist() == [PROBABILITY_LEVELS] * 2


def test_each_map_is_found_by_its_name() -> None:
    logits = three_maps()
    maps = to_maps(logits, ("background", "border", "cell"), "sigmoid")
    np.testing.assert_allclose(maps.probability, 1 / (1 + np.exp(-logits[2])), atol=1e-5)
    assert maps.border is not None
    np.testing.assert_allclose(maps.border / 255, 1 / (1 + np.exp(-logits[1])), atol=1 / 500)


def test_huge_logits_give_0_and_1_and_no_warning() -> None:
    logits = np.array([[[-3e38, -1000, 1000, 3e38]]], dtype=np.float32)
    np.testing.assert_array_equal(to_maps(logits, ("cell",), "sigmoid").cell, [[0, 0, 65535, 65535]])


def test_cores_above_a_threshold_of_their_own_part_a_region_of_the_cell_map() -> None:
    cell = np.zeros((20, 60), np.float32)
    cell[5:15, 5:55] = 0.6
    cell[6:14, 8:24], cell[6:14, 34:52] = 0.95, 0.95
    maps = Maps.from_probabilities(cell)
    assert label_cells(maps, threshold=0.5).max() == 1
    labels = label_cells(maps, threshold=0.5, parting=Parting(core_threshold=0.8))
    assert labels.max() == 2
    assert np.array_equal(labels > 0, cell > 0)  # the mask stays what it is
    assert labels[10, 10] != labels[10, 50]
    # nothing is parted where the mask is as strict as the cores
    assert label_cells(maps, threshold=0.9, parting=Parting(core_threshold=0.8)).max() == 2


def test_what_makes_a_core_can_be_chosen_with_a_border_too() -> None:
    cell = np.zeros((20, 60), np.float32)
    cell[5:15, 5:55] = 0.9
    border = np.zeros_like(cell)
    border[5:15, 29:32] = 0.4
    maps = Maps.from_probabilities(cell, border)
    assert label_cells(maps, threshold=0.5).max() == 2  # 0.5 is not above 0.6
    assert label_cells(maps, threshold=0.5, parting=Parting(core_threshold=0.3)).max() == 1
