import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from model.images import read_image
from model.outputs import encode_output
from model.postprocess import Maps
from model.quality import (
    FLAGS,
    PROFILE_QUANTILES,
    assess_answer,
    assess_image,
    describe_intensity,
    in_order,
    is_blurred,
    is_saturated,
    make_profile,
    sample_rows,
)
from model.segmenter import Segmentation
from tests.e2e.kit import draw_cells


def coins() -> npt.NDArray[np.uint8]:
    """A photograph in focus, which scikit-image's package brings."""
    return np.asarray(skimage.data.coins())  # type: ignore[no-untyped-call]


def blurred(image: npt.NDArray[Any], sigma: float) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, 1, image.shape)
    soft = cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma) + noise
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def test_a_picture_in_focus_is_told_from_the_same_out_of_focus() -> None:
    sharp = coins()
    assert not is_blurred(sharp)
    assert is_blurred(blurred(sharp, 4))
    large = np.tile(sharp, (4, 4))
    assert not is_blurred(large)
    assert is_blurred(blurred(large, 4))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int32])
def test_focus_does_not_depend_on_type_or_exposure(dtype: type) -> None:
    sharp = coins()
    for image, expected in ((sharp, False), (blurred(sharp, 4), True)):
        assert is_blurred((image.astype(np.float64) * 37 + 1000).astype(dtype)) is expected
        assert is_blurred(np.stack([image] * 3, axis=-1)) is expected


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (64, 64), (64, 64, 3)])
def test_where_there_is_nothing_to_see_it_says_nothing_of_the_focus(shape: tuple[int, ...]) -> None:
    assert not is_blurred(np.full(shape, 7, np.uint8))
    noise = np.random.default_rng(1).normal(100, 5, shape).astype(np.uint8)
    assert not is_blurred(noise)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.uint16, 4095), (np.float32, 1.0)])
def test_clipped_pixels_are_seen_at_the_ends_where_detectors_clip(dtype: type, top: float) -> None:
    ramp = np.linspace(0, 1.2, 10_000).reshape(100, 100)
    clipped: npt.NDArray[Any] = (np.minimum(ramp, 1) * top).astype(dtype)
    assert is_saturated(clipped)
    within: npt.NDArray[Any] = (np.linspace(0, 1, 10_000).reshape(100, 100) * top * 0.9).astype(dtype)
    assert not is_saturated(within)


def test_few_pixels_at_the_top_are_no_saturation_and_nor_is_a_flat_image() -> None:
    image = np.zeros((100, 100), np.uint8)
    image[0, :50] = 255
    assert not is_saturated(image)
    assert not is_saturated(np.full((100, 100), 255, np.uint8))
    assert not is_saturated(np.zeros((100, 100), np.bool_))
    assert not is_saturated(np.full((10, 10), np.nan, np.float32))


def answer_of(cell: npt.NDArray[np.float32], min_area_px: int = 0) -> Segmentation:
    return Segmentation(Maps.from_probabilities(cell), threshold=0.5, min_area_px=min_area_px)


def test_an_answer_without_a_cell_is_empty_and_nothing_else() -> None:
    cell = np.full((50, 50), 0.3, np.float32)
    assert answer_of(cell).quality() == ("empty",)
    cell[:3, :3] = 0.9
    assert answer_of(cell, min_area_px=20).quality() == ("empty",)
    assert "empty" not in answer_of(cell, min_area_px=9).quality()
    assert "empty" not in answer_of(cell, min_area_px=20).quality(with_labels=False)


def test_a_network_that_does_not_know_is_seen() -> None:
    sure = np.zeros((100, 100), np.float32)
    sure[20:60, 20:60] = 0.97
    assert answer_of(sure).quality() == ()
    unsure = np.full((100, 100), 0.45, np.float32)
    unsure[20:60, 20:60] = 0.55
    assert answer_of(unsure).quality() == ("low_confidence",)
    large = np.zeros((3000, 3000), np.uint16)
    large[::2] = 30000
    large[:100] = 60000
    assert assess_answer(large, threshold=0.5, n_foreground=1) == {"low_confidence"}


def test_intensities_unlike_all_of_the_training_images_are_seen() -> None:
    training = [draw_cells(120, 160, seed) for seed in range(40)]
    profile = make_profile(map(describe_intensity, training))
    assert profile is not None
    assert len(profile["quantiles"]) <= 64
    alike = [draw_cells(120, 160, seed) for seed in range(100, 130)]
    assert np.mean(["unusual_intensity" in assess_image(image, profile) for image in alike]) < 0.2
    for image in alike:
        assert "unusual_intensity" in assess_image(255 - image, profile)
        assert "unusual_intensity" in assess_image(cv2.applyColorMap(image, cv2.COLORMAP_JET), profile)
        assert ("unusual_intensity" in assess_image(image.astype(np.uint16) * 200, profile)) == (
            "unusual_intensity" in assess_image(image, profile)
        )  # exposure and depth do not matter


@pytest.mark.parametrize("profile", [{}, [], "x", {"quantiles": [[1]], "limit": 1}, {"quantiles": [], "limit": "a"}])
def test_a_card_that_holds_no_profile_flags_nothing(profile: Any) -> None:
    assert "unusual_intensity" not in assess_image(draw_cells(60, 80), profile)


def test_training_images_that_are_all_alike_make_a_profile_too() -> None:
    profile = make_profile([describe_intensity(draw_cells(60, 80))] * 5)
    assert profile is not None
    assert len(profile["quantiles"]) == 1
    assert "unusual_intensity" not in assess_image(draw_cells(60, 80), profile)


def test_too_few_images_make_no_profile() -> None:
    assert make_profile([describe_intensity(draw_cells(60, 80))]) is None


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 5000), (40, 30, 3), (40, 30, 4), (900, 900, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, np.bool_])
def test_any_image_that_is_read_can_be_assessed(shape: tuple[int, ...], dtype: type) -> None:
    image: npt.NDArray[Any] = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    before = image.copy()
    profile = make_profile(describe_intensity(draw_cells(60, 80, seed)) for seed in range(4))
    assert assess_image(image, profile) <= set(FLAGS)
    np.testing.assert_array_equal(image, before)


def test_not_a_number_is_no_reason_to_fail() -> None:
    image = draw_cells(100, 100).astype(np.float32)
    image[3:50, 4] = np.nan
    image[60, 7] = np.inf
    profile = make_profile(describe_intensity(draw_cells(60, 80, seed)) for seed in range(4))
    assert assess_image(image, profile) <= set(FLAGS)
    assert assess_image(np.full((50, 50), np.nan, np.float32), profile) <= set(FLAGS)


def test_flags_have_an_order() -> None:
    assert in_order({"empty", "saturated"}) == ("saturated", "empty")


def test_a_table_says_the_same_in_every_row() -> None:
    cell = np.zeros((20, 20), np.float32)
    cell[2:6, 2:6] = cell[10:15, 10:15] = 0.9
    flagged = replace(answer_of(cell), image_quality=frozenset({"out_of_focus", "saturated"}))
    for answer, said in ((flagged, "saturated, out_of_focus"), (answer_of(cell), "ok")):
        table, _ = encode_output("table", answer, draw_cells(20, 20), {"X-Model": "m"})
        rows = list(csv.DictReader(io.StringIO(table.decode())))
        assert [row["quality"] for row in rows] == [said] * 2


def test_an_image_that_is_read_by_rows_is_judged_by_a_part_of_them() -> None:
    image = np.tile(coins(), (5, 3))
    for given, expected in ((image, set()), (blurred(image, 4), {"out_of_focus"})):
        part = sample_rows(lambda start, stop, given=given: given[start:stop], len(given))  # type: ignore[misc]
        assert len(part) <= 512
        assert assess_image(part) == assess_image(given) == expected


def test_the_picture_that_the_page_offers_to_try_shows_no_such_sign() -> None:
    sample = read_image(Path(__file__).parents[3] / "app" / "static" / "sample.png")
    assert assess_image(sample) == set()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_intensity_profile_is_made_of_the_quantiles_that_numpy_gives(dtype: type) -> None:
    image: npt.NDArray[Any] = np.random.default_rng(0).gamma(2.0, 20.0, (90, 70)).clip(0, 255).astype(dtype)
    low, high, *inner = np.quantile(image.astype(np.float64), (0.01, 0.998, *PROFILE_QUANTILES))
    np.testing.assert_allclose(describe_intensity(image)[:-1], (np.array(inner) - low) / (high - low), atol=1e-6)
