"""Rows of a TIFF are read from the strips and tiles that hold them, and from no others."""

import io
from typing import Any

import numpy as np
import pytest
import tifffile

from model.images import open_image

WAYS: list[dict[str, Any]] = [
    {"rowsperstrip": 16},
    {"rowsperstrip": 16, "byteorder": ">"},
    {"rowsperstrip": 7, "compression": "zlib"},
    {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    {"tile": (32, 48)},
    {"tile": (32, 48), "compression": "zstd", "byteorder": ">"},
    {"tile": (16, 16), "compression": "zlib", "predictor": True, "bigtiff": True},
]


def write(pixels: np.ndarray[Any, np.dtype[Any]], **way: Any) -> bytes:
    buffer = io.BytesIO()
    byteorder = way.pop("byteorder", None)
    bigtiff = way.pop("bigtiff", False)
    with tifffile.TiffWriter(buffer, byteorder=byteorder, bigtiff=bigtiff) as writer:
        writer.write(pixels, metadata=None, photometric="rgb" if pixels.ndim == 3 else "minisblack", **way)
    return buffer.getvalue()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(100, 130), (100, 130, 3)])
def test_rows_are_those_of_the_whole(shape: tuple[int, ...], dtype: str, way: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    with open_image(write(pixels, **way)) as source:
        assert source.by_rows
        for start, stop in ((0, 1), (0, 50), (13, 14), (40, 99), (99, 100)):
            rows = source.read_rows(start, stop)
            np.testing.assert_array_equal(rows, pixels[start:stop])
            assert rows.dtype == np.dtype(dtype)
            assert rows.dtype.isnative


def test_only_the_strips_of_the_rows_are_unpacked() -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (160, 90)).astype(np.uint8)
    data = bytearray(write(pixels, rowsperstrip=16, compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tiff:
        page = tiff.pages.first
        for strip in (0, 1, 2, 5, 6, 7, 8, 9):  # what is damaged there does not matter
            at, count = page.dataoffsets[strip], page.databytecounts[strip]
            data[at : at + count] = bytes(count)
    with open_image(bytes(data)) as source:
        np.testing.assert_array_equal(source.read_rows(50, 80), pixels[50:80])


def test_channels_apart_and_one_strip_that_is_the_image_are_read_as_a_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (3, 60, 50)).astype(np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb", planarconfig="separate", compression="zlib", metadata=None)
    with open_image(buffer.getvalue()) as source:
        assert not source.by_rows
        np.testing.assert_array_equal(source.read_rows(10, 20), np.moveaxis(pixels, 0, -1)[10:20])
    tall = np.zeros((2000, 3), np.uint8)
    with open_image(write(tall, rowsperstrip=2000, compression="zlib")) as source:
        assert not source.by_rows
    with open_image(write(tall, rowsperstrip=2000)) as source:
        assert source.by_rows  # as they are: any rows can be found
