"""Pasted cells: laid against others, with their light, and nothing of what was there is lost."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from model.preprocess import CLIP_HIGH
from training.augment import Augmenter
from training.config import Recipe
from training.paste import HALO_PX, MOST_OVERLAP, paste_cells


def field(seed: int, count: int = 12, side: int = 220) -> tuple[np.ndarray, np.ndarray]:
    """Lone discs of many sizes that shine on an uneven ground, blurred as a microscope does; grey in three channels."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    light = np.zeros((side, side), np.float32)
    for number in range(1, count + 1):
        row, column = divmod(number - 1, 4)
        centre = (30 + 52 * column + int(generator.integers(-8, 9)), 30 + 52 * row + int(generator.integers(-8, 9)))
        cell = cv2.circle(np.zeros((side, side), np.uint8), centre, int(generator.integers(4, 12)), 1, -1) > 0
        labels[cell] = number
        light[cell] = generator.uniform(0.3, 0.9)
    ground = 0.05 + 0.05 * np.linspace(0, 1, side, dtype=np.float32)
    return np.repeat((cv2.GaussianBlur(light, (0, 0), 1) + ground)[None], 3, axis=0), labels


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_cells_that_were_there_keep_their_pixels_and_new_ones_bring_their_light(seed: int) -> None:
    planes, labels = field(seed)
    before = planes.copy(), labels.copy()
    pasted, numbers = paste_cells(planes, labels, np.random.default_rng(seed))

    assert np.array_equal(planes, before[0])  # what was given is left alone
    assert np.array_equal(labels, before[1])
    assert np.array_equal(numbers[labels > 0], labels[labels > 0])
    new = numbers > labels.max()
    assert numbers.max() > labels.max()
    assert sorted(set(np.unique(numbers[new]))) == list(range(int(labels.max()) + 1, int(numbers.max()) + 1))
    added = pasted - planes
    assert (added[0][new] > 0.03).mean() > 0.9
    far = ndimage.distance_transform_edt(~new) > HALO_PX + 6  # of a copy that lies on another a few pixels are not new
    assert not added[:, far].any()
    assert np.array_equal(pasted[0], pasted[1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_copy_is_a_cell_of_the_image_and_lies_against_another(seed: int) -> None:
    planes, labels = field(seed)
    _, numbers = paste_cells(planes, labels, np.random.default_rng(seed))
    areas = np.bincount(labels.ravel())[1:]
    touching = 0
    for number in range(int(labels.max()) + 1, int(numbers.max()) + 1):
        cell = numbers == number
        # as large as one of them, less what lies on others
        assert (((1 - MOST_OVERLAP) * areas <= cell.sum()) & (cell.sum() <= areas)).any()
        assert ndimage.label(cell)[1] == 1
        around = ndimage.binary_dilation(cell, iterations=2) & ~cell
        touching += bool((numbers[around] > 0).any())
    assert touching == numbers.max() - labels.max()


def test_what_is_not_alone_too_small_too_faint_or_at_the_edge_is_not_copied() -> None:
    labels = np.zeros((160, 160), np.int32)
    labels[40:60, 40:50], labels[40:60, 52:62] = 1, 2  # each in the other's halo
    labels[100:103, 100:104] = 3  # twelve pixels
    labels[120:140, 60:80] = 4  # hardly brighter than the ground
    labels[0:20, 120:140] = 5  # goes on beyond the image
    planes = np.full((1, 160, 160), 0.1, np.float32)
    planes[:, labels > 0] += 0.5
    planes[:, labels == 4] = 0.11
    for seed in range(30):
        pasted, numbers = paste_cells(planes, labels, np.random.default_rng(seed))
        assert np.array_equal(numbers, labels)
        assert np.array_equal(pasted, planes)
    planes[:, labels == 4] = 0.5
    assert max(paste_cells(planes, labels, np.random.default_rng(seed))[1].max() for seed in range(5)) > 5


@pytest.mark.parametrize("cells", [0, 1])
def test_an_image_without_two_cells_stays_as_it_is(cells: int) -> None:
    planes, labels = np.zeros((3, 50, 60), np.float32), np.zeros((50, 60), np.int32)
    labels[20:30, 20 : 20 + 10 * cells] = 7  # numbers need not begin with 1
    same, numbers = paste_cells(planes, labels, np.random.default_rng(0))
    assert same is planes
    assert numbers is labels


def test_a_recipe_pastes_into_grey_pictures_of_dark_ground_alone(tiny_recipe: Recipe) -> None:
    recipe = replace(
        tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=0.0, recolour_prob=0.0,
        stain_prob=0.0, invert_prob=0.0, paste_prob=1.0,
    )  # fmt: skip
    planes, labels = field(0)
    both, truth = Augmenter(recipe)(planes, labels, seed=3, plain=True)
    assert truth.max() > labels.max()
    assert np.array_equal(both[:3], both[3:])  # a teacher sees them as well
    again, same = Augmenter(recipe)(planes, labels, seed=3)
    assert np.array_equal(again, both[:3])
    assert np.array_equal(same, truth)
    stained = planes * np.array([1.0, 0.2, 0.5], np.float32)[:, None, None]
    for other in (1 - planes, 0.6 + 0.4 * planes, stained + 0.2):
        other = other.astype(np.float32)
        seen, numbers = Augmenter(recipe)(other, labels, seed=3)
        assert np.array_equal(seen, other)
        assert np.array_equal(numbers, labels)


def test_a_copy_is_turned_with_its_light_and_brighter_or_darker_than_the_cell() -> None:
    labels = np.zeros((200, 200), np.int32)
    labels[60:80, 60:66], labels[74:80, 60:76] = 1, 1  # an L, which looks another way each time
    labels[140:150, 140:150] = 2
    planes = np.zeros((2, 200, 200), np.float32)
    planes[0][labels == 1], planes[1][labels == 1] = 0.5, 0.25
    shapes, gains = set(), set()
    for seed in range(60):
        pasted, numbers = paste_cells(planes, labels, np.random.default_rng(seed))
        new = (numbers > 2) & (labels == 0)
        if numbers.max() != 3 or np.count_nonzero(new) != np.count_nonzero(labels == 1):
            continue
        light = pasted[0][new]
        assert np.ptp(light) < 1e-6  # all of the L's light is where the L is
        np.testing.assert_allclose(pasted[1][new], light / 2, rtol=1e-5)
        ys, xs = np.nonzero(new)
        shapes.add(new[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].tobytes())
        gains.add(round(float(light[0]), 3))
    assert len(shapes) == 8
    assert len(gains) > 8
    assert min(gains) < 0.45
    assert max(gains) > 0.55


def test_no_copy_lies_in_the_hollow_of_a_cell_and_large_ones_are_pasted_as_well() -> None:
    ring, labels = np.zeros((300, 300), np.uint8), np.zeros((300, 300), np.int32)
    cv2.circle(ring, (90, 90), 60, 1, 6)
    labels[ring > 0], labels[240:250, 240:250] = 1, 2
    planes = 0.6 * (labels > 0)[None].astype(np.float32)
    hollow = cv2.floodFill(ring.copy(), None, (90, 90), 2)[1] == 2
    found = 0
    for seed in range(40):
        pasted, numbers = paste_cells(planes, labels, np.random.default_rng(seed))
        new = numbers > 2
        found += bool(new.any())
        small = np.bincount(numbers.ravel(), minlength=4)[3:] == 100
        assert not any((hollow & (numbers == 3 + place)).any() for place in np.flatnonzero(small))
    assert found > 5

    large = np.zeros((900, 900), np.int32)
    for number, centre in enumerate(((220, 220), (660, 660)), start=1):
        large[cv2.circle(np.zeros((900, 900), np.uint8), centre, 100, 1, -1) > 0] = number
    bright = np.where(large > 0, np.float32(2.9), np.float32(0))[None]
    most = 0
    for seed in range(10):
        pasted, numbers = paste_cells(bright, large, np.random.default_rng(seed))
        most = max(most, int(numbers.max()))
        assert pasted.max() <= CLIP_HIGH  # as an image that came so
        for number in range(3, int(numbers.max()) + 1):
            around = cv2.dilate((numbers == number).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            assert len(set(np.unique(numbers[around])) - {0, number}) >= 1  # it touches
    assert most > 2
