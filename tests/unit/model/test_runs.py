"""Runs of a mask against the mask itself, and its regions against scipy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from model.runs import Runs, label_runs
from model.types import Mask


def random_mask(seed: int, shape: tuple[int, int], sigma: float) -> Mask:
    noise = np.random.default_rng(seed).random(shape)
    return np.asarray(ndimage.gaussian_filter(noise, sigma) > np.median(noise))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    sigma=st.sampled_from([0.0, 0.7, 2.0]),
)
def test_regions_are_those_of_scipy(seed: int, shape: tuple[int, int], sigma: float) -> None:
    mask = random_mask(seed, shape, sigma)
    runs = Runs.find(mask)
    assert runs.lengths.sum() == mask.sum()
    [region], count = label_runs(runs)
    labels = np.zeros(shape, dtype=np.int32)
    labels.reshape(-1)[runs.pixels(np.ones(len(runs), dtype=np.bool_))] = np.repeat(region + 1, runs.lengths)
    expected, expected_count = ndimage.label(mask)
    assert count == expected_count
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(expected))  # one for one
    assert np.array_equal(labels > 0, mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 6)])
@pytest.mark.parametrize("value", [False, True])
def test_a_mask_that_is_empty_or_full(shape: tuple[int, int], value: bool) -> None:
    runs = Runs.find(np.full(shape, value))
    assert len(runs) == (shape[0] if value else 0)
    assert label_runs(runs)[1] == int(value)
    assert runs.pixels(np.ones(len(runs), dtype=np.bool_)).tolist() == list(range(shape[0] * shape[1] * value))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    sigma=st.sampled_from([0.0, 0.7]),
)
def test_what_lies_at_and_beside_a_pixel_is_what_the_mask_has_there(
    seed: int, shape: tuple[int, int], sigma: float
) -> None:
    mask = random_mask(seed, shape, sigma)
    runs = Runs.find(mask)
    everywhere = Runs.find(np.ones(shape, dtype=np.bool_))
    places = everywhere.places(np.ones(len(everywhere), dtype=np.bool_))
    np.testing.assert_array_equal((runs.at(places) >= 0).reshape(shape), mask)
    np.testing.assert_array_equal(
        np.bincount(runs.at(places)[mask.reshape(-1)], minlength=len(runs)), runs.lengths
    )  # each pixel in its own run
    padded = np.pad(mask, 1)
    neighbours = padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]
    beside = (runs.at(everywhere.beside(places)) >= 0).reshape(*shape, 4)
    np.testing.assert_array_equal(beside, np.stack(neighbours, axis=-1))


def test_corners_and_the_ends_of_rows_join_nothing() -> None:
    mask = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 1]], dtype=bool)
    assert label_runs(Runs.find(mask))[1] == 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_masks_labelled_together_have_the_regions_of_each_and_no_number_twice(seed: int) -> None:
    masks = [random_mask(seed + place, (20 + place, 30), 1.0) for place in range(3)]
    masks[1][:] = False
    runs = [Runs.find(mask) for mask in masks]
    together, count = label_runs(*runs)
    numbers = [set(region.tolist()) for region in together]
    assert set.union(*numbers) == set(range(count))
    assert sum(map(len, numbers)) == count
    for one, region in zip(runs, together, strict=True):
        if len(one):
            [alone], _ = label_runs(one)
            assert len(set(zip(alone.tolist(), region.tolist(), strict=True))) == len(set(alone.tolist()))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_box_of_runs_is_that_of_their_pixels(seed: int) -> None:
    mask = random_mask(seed, (30, 40), 1.0)
    runs = Runs.find(mask)
    chosen = np.random.default_rng(seed).random(len(runs)) < 0.2
    chosen[0] = True
    rows, columns = np.divmod(runs.pixels(chosen), 40)
    assert runs.box(chosen) == (
        slice(rows.min(), rows.max() + 1),
        slice(columns.min(), columns.max() + 1),
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_each_run_of_a_smaller_mask_lies_in_a_run_of_the_larger(seed: int) -> None:
    mask = random_mask(seed, (30, 40), 1.0)
    inner = mask & random_mask(seed + 1, (30, 40), 0.5)
    runs, others = Runs.find(mask), Runs.find(inner)
    held_by = runs.holding(others)
    assert (runs.starts[held_by] <= others.starts).all()
    assert (others.stops <= runs.stops[held_by]).all()
