"""From image to planes: percentiles, scales by dtype, and what cannot be taken as it is."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.errors import ImageError
from model.preprocess import (
    CLIP_HIGH,
    CLIP_LOW,
    HIGH_PERCENTILE,
    LOW_PERCENTILE,
    Normalisation,
    Preprocessor,
    preprocess,
)

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)


def percentile(image: npt.NDArray[Any], n_channels: int = 1) -> npt.NDArray[np.float32]:
    return preprocess(image, n_channels=n_channels, normalisation="percentile")


def seeded(dtype: str, shape: tuple[int, ...] = (20, 30)) -> npt.NDArray[Any]:
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    return generator.integers(0, min(np.iinfo(dtype).max, 40_000), shape).astype(dtype)


def by_numpy(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The definition, in float64."""
    values = image.astype(np.float64)
    low, high = np.percentile(values, (LOW_PERCENTILE, HIGH_PERCENTILE))
    if low == high:
        low, high = values.min(), values.max()
    if low == high:
        return np.zeros_like(values)
    scaled: npt.NDArray[np.float64] = np.clip((values - low) / (high - low), CLIP_LOW, CLIP_HIGH)
    return scaled


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.uint8, SHAPES) | hnp.arrays(np.uint16, SHAPES))
def test_integers_are_scaled_by_numpys_percentiles(image: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(percentile(image)[0], by_numpy(image), rtol=1e-4, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-1000, 1000, width=32).map(lambda value: round(value, 2))))
def test_floats_are_scaled_by_numpys_percentiles(image: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(percentile(image)[0], by_numpy(image), rtol=1e-3, atol=2e-3)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32))
    | hnp.arrays(np.float64, SHAPES, elements=st.floats())
    | hnp.arrays(np.float16, SHAPES, elements=st.floats(width=16)),
    st.sampled_from(["percentile", "raw", "unit"]),
)
def test_any_float_image_gives_finite_planes(image: npt.NDArray[Any], normalisation: Normalisation) -> None:
    planes = preprocess(image, n_channels=1, normalisation=normalisation)
    assert planes.dtype == np.float32
    assert np.isfinite(planes).all()


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64", ">u2"]
)
def test_every_dtype_gives_contrast_between_0_and_1(dtype: str) -> None:
    planes = percentile(seeded(dtype))
    assert planes.shape == (1, 20, 30)
    assert planes.dtype == np.float32
    np.testing.assert_allclose(np.percentile(planes, (LOW_PERCENTILE, HIGH_PERCENTILE)), (0, 1), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "white"),
    [("uint8", 255), ("uint16", 65535), (">u2", 65535), ("int8", 127), ("int16", 32767), (">i2", 32767)],
)
def test_grey_levels_as_they_are_are_a_share_of_their_types_largest(dtype: str, white: int) -> None:
    image = np.array([[0, 1, white // 2, white]], dtype)
    share = np.array([[0, 1, white // 2, white]]) / white
    np.testing.assert_allclose(preprocess(image, n_channels=1, normalisation="unit")[0], share, rtol=1e-6)
    np.testing.assert_allclose(preprocess(image, n_channels=1, normalisation="raw")[0], share * 255, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "uint32", ">i4", "int64", "uint64"])
def test_integers_of_which_nobody_can_say_what_is_white_are_refused_where_it_matters(dtype: str) -> None:
    image = seeded(dtype)
    with pytest.raises(ImageError, match=rf"pixels of type {np.dtype(dtype)}.* or floats of 0 to 255"):
        preprocess(image, n_channels=1, normalisation="raw")
    with pytest.raises(ImageError, match=r"send 8 or 16 bits, or floats of 0 to 1$"):
        preprocess(image, n_channels=1, normalisation="unit")


def test_the_order_of_bytes_changes_nothing() -> None:
    image = seeded("uint16")
    for normalisation in ("percentile", "raw", "unit"):
        one, other = (preprocess(i, n_channels=3, normalisation=normalisation) for i in (image, image.astype(">u2")))
        np.testing.assert_array_equal(one, other)


def test_a_bool_image_becomes_0_and_1() -> None:
    image = np.zeros((10, 10), dtype=bool)
    image[3:6, 3:6] = True
    np.testing.assert_array_equal(percentile(image)[0], image)
    np.testing.assert_array_equal(preprocess(image, n_channels=1, normalisation="raw")[0], image * 255.0)
    np.testing.assert_allclose(preprocess(image, n_channels=1, normalisation="unit")[0], image)


@pytest.mark.parametrize("normalisation", ["percentile", "raw", "unit"])
@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_stored_as_rgb_gives_identical_planes(normalisation: Normalisation, n_channels: int, dtype: str) -> None:
    grey = seeded(dtype, (33, 47))
    planes = preprocess(grey, n_channels=n_channels, normalisation=normalisation)
    for same in (np.dstack([grey] * 3), grey[:, :, None], np.dstack([grey] * 3 + [grey[::-1]])):
        np.testing.assert_array_equal(preprocess(same, n_channels=n_channels, normalisation=normalisation), planes)


def test_float_grey_stored_as_rgb_gives_almost_identical_planes() -> None:
    grey = seeded("float32")
    np.testing.assert_allclose(percentile(np.dstack([grey] * 3)), percentile(grey), atol=1e-5)
    np.testing.assert_array_equal(percentile(np.dstack([grey] * 3), 3), percentile(grey, 3))


def test_colour_becomes_grey_by_the_weights_of_bt_601() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    grey = preprocess(image, n_channels=1, normalisation="raw")[0, 0]
    np.testing.assert_allclose(grey, (0.299 * 255, 0.587 * 255, 0.114 * 255), atol=0.5)


def test_colour_keeps_the_order_of_its_channels() -> None:
    image = seeded("uint8", (5, 7, 3))
    np.testing.assert_array_equal(preprocess(image, n_channels=3, normalisation="raw"), image.transpose(2, 0, 1))


def test_alpha_is_ignored() -> None:
    image = seeded("uint8", (20, 20, 4))
    other = image.copy()
    other[:, :, 3] = 0
    for n_channels in (1, 3):
        np.testing.assert_array_equal(percentile(image, n_channels), percentile(other, n_channels))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int32"])
@pytest.mark.parametrize("value", [0, 17])
def test_a_constant_image_becomes_all_zero(dtype: str, value: int) -> None:
    assert not percentile(np.full((9, 9), value, dtype=dtype)).any()


def test_a_few_hot_pixels_neither_hide_the_rest_nor_reach_the_network() -> None:
    image = np.random.default_rng(0).integers(100, 200, (100, 100)).astype(np.uint16)
    clean = percentile(image)
    image[50, 50] = 65535
    hot = percentile(image)
    assert hot[0, 50, 50] == CLIP_HIGH
    others = np.ones((100, 100), dtype=bool)
    others[50, 50] = False
    np.testing.assert_allclose(hot[0][others], clean[0][others], atol=0.02)


def test_nan_counts_as_the_lowest_and_infinity_as_the_nearest_value() -> None:
    image = seeded("float32")
    image[0, :3] = image.min(), image.max(), image.min()
    spoilt = image.copy()
    spoilt[0, :3] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(percentile(spoilt), percentile(image))
    np.testing.assert_array_equal(
        preprocess(spoilt, n_channels=1, normalisation="raw"), preprocess(image, n_channels=1, normalisation="raw")
    )


def test_numbers_beyond_float32_count_as_infinite() -> None:
    image = seeded("float32").astype(np.float64)
    image[0, :3] = image.min(), image.max(), image.min()
    spoilt = image.copy()
    spoilt[0, 1:3] = 1e300, -1e300
    np.testing.assert_array_equal(percentile(spoilt), percentile(image))


def test_an_image_of_nothing_but_nan_becomes_all_zero() -> None:
    assert not percentile(np.full((4, 4), np.nan)).any()


def test_a_float_image_with_next_to_no_span_gives_finite_planes() -> None:
    image = np.zeros((10, 10), dtype=np.float32)
    image[0, 0] = 1e-44
    planes = percentile(image)
    assert np.isfinite(planes).all()
    assert planes[0, 0, 0] > planes[0, 5, 5]


def test_raw_and_unit_scale_by_dtype_and_never_by_the_pixels() -> None:
    for dtype, top in (("uint8", 255), ("uint16", 65535)):
        dark = np.array([[0, 1], [top // 5, top]], dtype=dtype)
        np.testing.assert_allclose(
            preprocess(dark, n_channels=1, normalisation="raw")[0], dark * (255 / top), rtol=1e-6
        )
        np.testing.assert_allclose(preprocess(dark, n_channels=1, normalisation="unit")[0], dark / top, rtol=1e-6)
    floats = np.array([[0.25, 7.5]], dtype=np.float64)
    for normalisation in ("raw", "unit"):
        np.testing.assert_array_equal(preprocess(floats, n_channels=1, normalisation=normalisation)[0], floats)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5,), (), (5, 5, 2), (5, 5, 5), (2, 5, 5, 3), (0, 0, 3), (5, 5, 0)])
def test_other_shapes_are_refused_with_the_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="an image of shape"):
        percentile(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]", "object"])
def test_other_dtypes_are_refused_with_the_dtype(dtype: str) -> None:
    with pytest.raises(ImageError, match="pixels of type"):
        percentile(np.zeros((3, 3), dtype=dtype))


def test_colour_for_a_network_of_two_channels_is_refused() -> None:
    with pytest.raises(ImageError, match="takes 2 channels"):
        percentile(np.zeros((3, 3, 3), dtype=np.uint8), 2)


def test_the_image_is_left_as_it_was() -> None:
    for dtype in ("uint8", "float32", "float64"):
        image = seeded(dtype)
        before = image.copy()
        percentile(image)
        preprocess(image, n_channels=1, normalisation="raw")
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("normalisation", ["percentile", "raw", "unit"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(90, 70), (90, 70, 3)])
def test_a_part_has_the_numbers_that_it_has_in_the_whole(
    shape: tuple[int, ...],
    dtype: type[Any],
    normalisation: Normalisation,
    n_channels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = np.random.default_rng(0).integers(0, 251, shape).astype(dtype)
    if np.dtype(dtype).kind == "f":
        image.flat[::7], image.flat[::11], image.flat[3] = np.nan, np.inf, -np.inf
    whole = preprocess(image, n_channels=n_channels, normalisation=normalisation)
    monkeypatch.setattr("model.preprocess.BAND_PX", 500)
    parts = Preprocessor(image, n_channels=n_channels, normalisation=normalisation)
    assert parts.shape == whole.shape
    np.testing.assert_array_equal(parts.planes(13, 61, 5, 70), whole[:, 13:61, 5:70])
