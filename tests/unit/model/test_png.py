"""Pixels written as PNG come back the same from every reader, with their text."""

import io
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngImageFile

from model import png
from model.png import Content, write_png

CONTENTS: tuple[Content, ...] = ("mask", "labels", "picture")
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)


def read_three_ways(data: bytes) -> list[npt.NDArray[Any]]:
    opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert opencv is not None
    if opencv.ndim == 3:
        opencv = opencv[:, :, ::-1]
    return [np.asarray(PillowImage.open(io.BytesIO(data))), opencv, imagecodecs.png_decode(data)]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, SHAPES) | hnp.arrays(np.uint16, SHAPES) | hnp.arrays(np.uint8, SHAPES.map(lambda s: (*s, 3))),
    st.sampled_from(CONTENTS),
)
def test_every_reader_gets_the_pixels_back(pixels: npt.NDArray[Any], content: Content) -> None:
    for decoded in read_three_ways(write_png(pixels, content=content)):
        np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_large_picture_is_packed_by_bands_and_comes_back_as_well(
    content: Content, dtype: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50)).astype(dtype)
    whole = write_png(pixels, content=content)
    monkeypatch.setattr(png, "AT_ONCE_BYTES", 100)
    monkeypatch.setattr(png, "BAND_BYTES", 700)
    banded = write_png(pixels, content=content)
    for data in (whole, banded):
        for decoded in read_three_ways(data):
            np.testing.assert_array_equal(decoded, pixels)


def test_bool_becomes_0_and_255_and_labels_become_16_bits() -> None:
    mask = np.arange(12).reshape(3, 4) % 2 == 0
    for decoded in read_three_ways(write_png(mask, content="mask")):
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, mask * 255)
    labels = np.array([[0, 1], [300, 65535]], dtype=np.int32)
    for decoded in read_three_ways(write_png(labels, content="labels")):
        assert decoded.dtype == np.uint16
        np.testing.assert_array_equal(decoded, labels)


def test_pixels_that_lie_apart_in_memory_are_written_in_order() -> None:
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8).T[::-1, ::2]
    for content in CONTENTS:
        for decoded in read_three_ways(write_png(pixels, content=content)):
            np.testing.assert_array_equal(decoded, pixels)


def test_text_is_read_back_also_beyond_latin_1() -> None:
    text = {"Software": "Maskwell", "X-Threshold": "0.5", "Note": "café", "Probe": "µ-Δ 細胞"}
    with PillowImage.open(io.BytesIO(write_png(np.zeros((2, 2), np.uint8), text=text))) as picture:
        assert isinstance(picture, PngImageFile)
        assert picture.text == text


@pytest.mark.parametrize(
    "pixels", [np.zeros((0, 4), np.uint8), np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4)]
)
def test_other_shapes_and_types_are_refused(pixels: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="allowed are grey"):
        write_png(pixels)
