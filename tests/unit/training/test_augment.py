"""One draw for image and truth, whole labels, and the same seed the same crop."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy import ndimage

import training.augment
from model.preprocess import preprocess
from training.augment import JPEG_PX, Augmenter, compress
from training.config import CLASSIC, Recipe


def picture(side: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a few blocks, and an image that shows them exactly."""
    labels = np.zeros((side, side), np.int32)
    for number in range(1, 6):
        labels[20 * number : 20 * number + 14, 30 * number : 30 * number + 20] = number
    return (labels > 0)[None].astype(np.float32), labels


@pytest.mark.parametrize("seed", range(8))
def test_a_warp_moves_image_and_truth_alike(tiny_recipe: Recipe, seed: int) -> None:
    recipe = replace(tiny_recipe, warp_prob=1.0, intensity_prob=0.0, elastic_px=4.0)
    planes, labels = Augmenter(recipe)(*picture(), seed=seed)

    assert planes.shape == (1, 128, 128)
    # interpolation blurs the image's edges by half a pixel; the truth lies where the image is bright
    disagree = (planes[0] > 0.5) != (labels > 0)
    assert disagree.mean() < 0.02
    assert set(np.unique(labels)) <= set(range(6))


def test_the_same_seed_gives_the_same_sample_and_another_gives_another(tiny_recipe: Recipe) -> None:
    augment = Augmenter(replace(tiny_recipe, warp_prob=1.0, intensity_prob=1.0))
    first, again, other = (augment(*picture(), seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_intensity_changes_leave_the_truth_alone(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=1.0)
    planes, labels = picture()
    changed, same = Augmenter(recipe)(planes, labels, seed=0)
    assert np.array_equal(same, labels)
    assert not np.allclose(changed, planes, atol=0.01)


def test_an_image_smaller_than_the_crop_is_mirrored(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, warp_prob=0.0, flip_prob=0.0, intensity_prob=0.0)
    planes = np.random.default_rng(0).random((1, 40, 50), dtype=np.float32)
    crop, labels = Augmenter(recipe)(planes, np.ones((40, 50), np.int32), seed=1)
    assert crop.shape == (1, 128, 128)
    assert set(np.unique(crop)) <= set(np.unique(planes))
    assert (labels == 1).all()


def test_the_classic_recipe_flips_whole_images_in_all_four_ways_and_does_nothing_else() -> None:
    planes, labels = np.arange(64, dtype=np.float32).reshape(1, 8, 8), np.arange(64, dtype=np.int32).reshape(8, 8)
    ways = {
        name: np.flip(labels, axes).tobytes() for name, axes in (("none", ()), ("ud", 0), ("lr", 1), ("both", (0, 1)))
    }
    seen = set()
    for seed in range(60):
        image, truth = Augmenter(CLASSIC)(planes, labels, seed=seed)
        assert np.array_equal(image[0], truth)
        seen.add(truth.tobytes())
    assert seen == set(ways.values())


def test_zoom_keeps_shapes_and_stays_within_its_limits(tiny_recipe: Recipe) -> None:
    labels = np.zeros((400, 400), np.int32)
    labels[180:220, 180:220] = 1
    planes = (labels > 0)[None].astype(np.float32)
    recipe = replace(tiny_recipe, crop_px=384, warp_prob=1.0, zoom=2.0, stretch=1.0, elastic_px=0.0, intensity_prob=0.0)
    areas = []
    for seed in range(40):
        _, moved = Augmenter(recipe)(planes, labels, seed=seed)
        pieces, number = ndimage.label(moved)
        areas += [int((pieces == piece).sum()) for piece in range(1, number + 1)]
        places = np.argwhere(moved).astype(np.float32)
        if number == 1 and places.min() > 0 and places.max() < 383:
            # a square stays a square, whichever way it is turned
            _, (long, short), _ = cv2.minAreaRect(places)
            assert max(long, short) / min(long, short) < 1.15
    assert max(areas) <= 1.05 * 4 * 1600
    assert max(areas) > 2.5 * 1600
    assert min(areas) < 0.6 * 1600


def test_a_tint_keeps_the_ground_and_changes_channels_against_each_other(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(
        tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=1.0, tint=0.3,
        gamma=1.0, brightness=0.0, noise_std=0.0,
    )  # fmt: skip
    monkeypatch.setattr(training.augment, "JPEG_PX", 0)
    planes, labels = picture()
    for ground in (0.0, 1.0):
        grey = np.repeat(abs(np.float32(ground) - planes), 3, axis=0)
        changed, _ = Augmenter(recipe)(grey, labels, seed=4)
        far = ndimage.minimum_filter(labels == 0, 15)  # blur does not reach it
        np.testing.assert_allclose(changed[:, far], ground, atol=1e-4)
        assert np.ptp(changed[:, labels == 3].mean(axis=1)) > 0.02


def test_grey_on_dark_ground_is_shown_in_a_colour_and_colour_in_grey(tiny_recipe: Recipe) -> None:
    recipe = replace(
        tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=0.0, recolour_prob=1.0
    )
    planes, labels = picture()
    coloured, same = Augmenter(recipe)(np.repeat(planes, 3, axis=0), labels, seed=1)
    assert np.array_equal(same, labels)
    levels = coloured[:, labels > 0].mean(axis=1)
    assert levels.max() == 1.0
    assert np.ptp(levels) > 0.3
    assert not coloured[:, labels == 0].any()

    stained = np.broadcast_to(np.array([1.0, 0.9, 0.95], np.float32)[:, None, None], (3, *labels.shape)).copy()
    stained[:, labels > 0] = np.array([[0.4], [0.2], [0.6]], np.float32)
    grey, _ = Augmenter(recipe)(stained, labels, seed=1)
    assert np.array_equal(grey[0], grey[1])
    assert np.array_equal(grey[0], grey[2])
    assert grey[0][labels == 0].mean() == pytest.approx(1.0)  # bright ground stays bright
    assert grey[0][labels > 0].mean() == pytest.approx(0.0)

    bright_field = 1 - np.repeat(planes, 3, axis=0)
    assert np.array_equal(Augmenter(recipe)(bright_field, labels, seed=1)[0], bright_field)


def test_an_inverted_picture_is_what_inverting_its_file_gives(tiny_recipe: Recipe) -> None:
    recipe = replace(
        tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=0.0, recolour_prob=0.0,
        invert_prob=1.0,
    )  # fmt: skip
    image = np.random.default_rng(0).integers(20, 180, (60, 70, 3), dtype=np.uint8)
    labels = np.zeros((60, 70), np.int32)
    labels[20:40, 20:40] = 1
    image[labels > 0] += 50
    planes = preprocess(image, n_channels=3, normalisation="percentile")
    inverted, same = Augmenter(recipe)(planes, labels, seed=0)
    assert np.array_equal(same, labels)
    expected = preprocess(255 - image, n_channels=3, normalisation="percentile")
    np.testing.assert_allclose(inverted, expected, atol=1e-5)


def test_grey_on_dark_ground_is_shown_as_stained_tissue_with_dark_nuclei(tiny_recipe: Recipe) -> None:
    recipe = replace(
        tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=0.0, recolour_prob=0.0,
        stain_prob=1.0,
    )  # fmt: skip
    planes, labels = picture()
    grey = np.repeat(planes, 3, axis=0)
    for seed in range(10):
        stained, same = Augmenter(recipe)(grey, labels, seed=seed)
        assert np.array_equal(same, labels)
        assert stained[:, labels > 0].mean() < stained[:, labels == 0].mean() - 0.2
        assert np.ptp(stained, axis=0).mean() > 0.05  # it has colour
    for other in (1 - grey, stained):  # bright ground, and what is stained already
        assert np.array_equal(Augmenter(recipe)(other, labels, seed=1)[0], other)


def test_the_plain_crop_is_the_same_place_as_it_was(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, warp_prob=1.0, intensity_prob=1.0, recolour_prob=0.5, stain_prob=1.0, invert_prob=0.5)
    planes, labels = picture()
    grey = np.repeat(planes, 3, axis=0)
    for seed in range(12):
        both, truth = Augmenter(recipe)(grey, labels, seed=seed, plain=True)
        assert both.shape == (6, 128, 128)
        assert both[3:].min() >= 0
        assert both[3:].max() <= 1
        assert ((both[3] > 0.5) != (truth > 0)).mean() < 0.02
        seen, same = Augmenter(recipe)(grey, labels, seed=seed)
        assert np.array_equal(same, truth)
        assert np.array_equal(seen, both[:3])
        assert not np.allclose(seen, both[3:], atol=0.01)


def test_the_plain_crop_of_a_part_taken_alone_keeps_the_scale_of_its_picture(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, warp_prob=0.0, flip_prob=0.0, intensity_prob=0.0, alone_prob=1.0)
    planes, labels = picture()
    planes = planes + 0.01 * np.random.default_rng(0).random(planes.shape, dtype=np.float32)
    n_empty = 0
    for seed in range(20):
        (seen, plain), truth = Augmenter(recipe)(planes, labels, seed=seed, plain=True)
        assert np.percentile(seen, 99.9) > 0.8
        # what the picture itself has there, cells at 1 and noise of a hundredth
        assert np.array_equal(plain > 0.5, truth > 0)
        assert plain.max() < (1.02 if truth.any() else 0.02)
        n_empty += not truth.any()
    assert 0 < n_empty < 20


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_changes_a_picture_by_less_the_better_its_quality(channels: int) -> None:
    planes = np.random.default_rng(0).normal(0.5, 0.2, (channels, 64, 64)).astype(np.float32)
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.5) for plane in planes])
    errors = [float(abs(compress(planes, quality) - planes).mean()) for quality in (5, 50, 95)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[2] < 0.03 * float(np.ptp(planes))


def test_jpeg_is_among_the_changes_of_intensity_and_its_lowest_quality_counts(tiny_recipe: Recipe) -> None:
    recipe = replace(
        tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=1.0, tint=0.0, gamma=1.0,
        brightness=0.0, noise_std=0.0, blur_px=0.3, jpeg_quality=95,
    )  # fmt: skip
    planes, labels = picture()
    planes = planes + 0.2 * np.random.default_rng(0).random(planes.shape, dtype=np.float32)

    def changed_by(lowest: int) -> float:
        augment = Augmenter(replace(recipe, jpeg_quality=lowest))
        return float(np.mean([abs(augment(planes, labels, seed=seed)[0] - planes).mean() for seed in range(5)]))

    assert changed_by(5) > 1.5 * changed_by(95)


def test_a_picture_too_long_for_a_jpeg_is_left_as_it_is(tiny_recipe: Recipe) -> None:
    recipe = replace(
        tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=1.0, noise_std=0.0
    )
    planes = np.zeros((1, 2, JPEG_PX + 1), np.float32)
    changed, _ = Augmenter(recipe)(planes, np.zeros(planes.shape[1:], np.int32), seed=0)
    assert changed.shape == planes.shape


@pytest.mark.parametrize("normalisation", ["percentile", "unit"])
def test_stained_tissue_has_the_scale_of_a_picture_which_came_so(tiny_recipe: Recipe, normalisation: str) -> None:
    recipe = replace(
        tiny_recipe, crop_px=0, batch_size=1, warp_prob=0.0, flip_prob=0.0, intensity_prob=0.0, recolour_prob=0.0,
        alone_prob=0.0, stain_prob=1.0, normalisation=normalisation,  # type: ignore[arg-type]
    )  # fmt: skip
    planes, labels = picture()
    stained, _ = Augmenter(recipe)(np.repeat(planes, 3, axis=0), labels, seed=0)
    low, high = np.percentile(stained, (1, 99.8))
    if normalisation == "percentile":
        assert (low, high) == pytest.approx((0, 1), abs=1e-4)
    else:  # light that comes through: something of it everywhere, and never more than there was
        assert 0 < stained.min() < low < high <= stained.max() <= 1
        assert low > 0.01


@pytest.mark.parametrize("change", ["alone_prob", "recolour_prob", "invert_prob"])
def test_a_scale_that_is_the_same_for_all_pictures_stays(tiny_recipe: Recipe, change: str) -> None:
    none = {"warp_prob": 0.0, "flip_prob": 0.0, "intensity_prob": 0.0, "recolour_prob": 0.0, "stain_prob": 0.0}
    none["invert_prob"] = 0.0
    recipe = replace(tiny_recipe, normalisation="unit", **(none | {change: 1.0}))  # type: ignore[arg-type]
    stained = np.full((3, 200, 200), 0.5, np.float32) + np.array([0.02, 0.1, 0.0], np.float32)[:, None, None]
    changed, _ = Augmenter(recipe)(stained, picture()[1], seed=0)
    expected = 1 - stained if change == "invert_prob" else stained
    assert expected.min() - 1e-6 <= changed.min() <= changed.max() <= expected.max() + 1e-6


def test_a_part_taken_alone_has_a_scale_of_its_own_and_often_no_cell(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, warp_prob=0.0, flip_prob=0.0, intensity_prob=0.0, alone_prob=1.0)
    planes, labels = picture()
    noise = np.random.default_rng(0).random(planes.shape, dtype=np.float32)
    planes = planes + 0.01 * noise
    n_empty = 0
    for seed in range(20):
        crop, truth = Augmenter(recipe)(planes, labels, seed=seed)
        assert crop.shape == (1, 128, 128)
        assert truth.shape == (128, 128)
        assert np.percentile(crop, 99.9) > 0.8  # the noise fills the scale where there is nothing else
        n_empty += not truth.any()
    assert 8 <= n_empty < 20
