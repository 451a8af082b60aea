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
from model.png import Content, inspect_plain_png, read_plain_png, write_png

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


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, SHAPES) | hnp.arrays(np.uint16, SHAPES) | hnp.arrays(np.uint8, SHAPES.map(lambda s: (*s, 3))),
    st.integers(0, 9),
)
def test_a_plain_png_of_another_writer_is_read_as_pillow_reads_it(pixels: npt.NDArray[Any], level: int) -> None:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, format="PNG", compress_level=level)
    decoded = read_plain_png(buffer.getvalue())
    assert decoded is not None
    assert decoded.dtype == pixels.dtype
    np.testing.assert_array_equal(decoded, pixels)
    assert inspect_plain_png(buffer.getvalue()) == pixels.shape[:2]


def test_pixels_in_several_chunks_are_read_as_one_stream() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)
    data = write_png(pixels, text={"Software": "another"})
    at = data.index(b"IDAT") + 4
    n_bytes = int.from_bytes(data[at - 8 : at - 4], "big")
    packed = data[at : at + n_bytes]
    parts = [packed[start : start + 100] for start in range(0, len(packed), 100)]
    chunks = [b"".join(png._chunk(b"IDAT", part)) for part in parts]
    split = data[: at - 8] + b"".join(chunks) + data[at + n_bytes + 4 :]
    decoded = read_plain_png(split)
    assert decoded is not None
    np.testing.assert_array_equal(decoded, pixels)


def spoilt_pngs() -> dict[str, bytes]:
    data = write_png(np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8))
    at = data.index(b"IDAT") + 40
    palette, frames = io.BytesIO(), io.BytesIO()
    PillowImage.new("P", (8, 8)).save(palette, format="PNG")
    still = PillowImage.new("L", (8, 8))
    still.save(frames, format="PNG", save_all=True, append_images=[PillowImage.new("L", (8, 8), 9)])
    return {
        "nothing": b"",
        "no PNG": b"GIF89a" + bytes(100),
        "a header alone": data[:33],
        "cut short": data[:-200],
        "damaged pixels": data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :],
        "a damaged header": data[:20] + b"\xff" + data[21:],
        "more rows than it says": png.SIGNATURE
        + b"".join(png._chunk(b"IHDR", data[16:20] + b"\0\0\0\x10" + data[24:29]))
        + data[33:],
        "a palette": palette.getvalue(),
        "an animation": frames.getvalue(),
    }


@pytest.mark.parametrize("what", sorted(spoilt_pngs()))
def test_whatever_else_is_left_to_other_readers(what: str) -> None:
    assert read_plain_png(spoilt_pngs()[what]) is None


def test_a_png_of_very_many_chunks_is_left_to_other_readers() -> None:
    data = write_png(np.zeros((4, 4), np.uint8))
    empty = b"".join(png._chunk(b"IDAT", b""))
    assert inspect_plain_png(data[:33] + empty * 100_000 + data[33:]) is None


def test_a_picture_that_would_not_be_unpacked_at_once_is_left_to_other_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_png(np.zeros((40, 40), np.uint8))
    assert read_plain_png(data) is not None
    monkeypatch.setattr(png, "AT_ONCE_BYTES", 100)
    assert read_plain_png(data) is None
