"""What is written as TIFF, read by tifffile as ImageJ's: axes, pixel size, range on show, provenance."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from model.errors import ImageError
from model.images import open_image
from model.source import PixelSize
from model.tiff_writer import encode_tiff, find_places, pack, pack_labels

RNG = np.random.default_rng(3)
STACK: npt.NDArray[Any] = RNG.integers(0, 500, (2, 3, 20, 30)).astype(np.uint16)
SIZE = PixelSize(0.325, 0.5, z_um=2.0, frame_s=3.5)


def read(data: bytes) -> tuple[str, npt.NDArray[Any], dict[str, Any]]:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        assert tiff.is_imagej
        return tiff.series[0].axes, tiff.asarray(), dict(tiff.imagej_metadata or {})


@pytest.mark.parametrize(
    ("axes", "sizes", "read_as"),
    [
        ("TZ", (2, 3), "TZYX"),
        ("ZT", (2, 3), "TZYX"),  # ImageJ has one order
        ("CZ", (2, 3), "ZCYX"),
        ("T", (6,), "TYX"),
        ("Z", (6,), "ZYX"),
        ("I", (6,), "ZYX"),  # what has no name becomes slices, as in ImageJ itself
        ("TI", (2, 3), "TZYX"),
        ("QQ", (2, 3), "TZYX"),
    ],
)
def test_a_stack_keeps_its_axes_in_imagejs_order(axes: str, sizes: tuple[int, ...], read_as: str) -> None:
    planes = [pack(plane) for plane in STACK.reshape(6, 20, 30)]
    found_axes, found, _ = read(encode_tiff(planes, axes=axes, sizes=sizes))
    assert found_axes == read_as
    expected = STACK.reshape(*sizes, 20, 30)
    if found.shape[:2] != expected.shape[:2] or read_as == "ZCYX":
        expected = expected.swapaxes(0, 1)
    if axes == "QQ":
        expected = STACK.swapaxes(0, 1)  # the first without a name becomes slices, the second time
    np.testing.assert_array_equal(found, expected)
    places = find_places(axes, sizes)
    letters = dict(zip(places.axes, range(len(places.axes)), strict=True))
    for plane in range(6):
        index = tuple(places.position(plane)[letter] for letter in letters)
        np.testing.assert_array_equal(found[index], STACK.reshape(6, 20, 30)[plane])


def test_pixel_size_range_and_provenance_are_imagejs() -> None:
    planes = [pack(plane) for plane in STACK.reshape(6, 20, 30)]
    data = encode_tiff(
        planes, axes="TZ", sizes=(2, 3), pixel_size=SIZE, text={"X-Model": "größe µ", "X-Threshold": "0.5"}
    )
    _, _, about = read(data)
    assert (about["unit"], about["spacing"], about["finterval"]) == ("um", 2.0, 3.5)
    assert (about["min"], about["max"]) == (0, STACK.max())
    assert about["Info"] == "X-Model=größe µ\nX-Threshold=0.5"
    with open_image(data, several=True) as source:
        assert source.pixel_size == SIZE
        assert (source.axes, source.sizes, source.n_planes) == ("TZ", (2, 3), 6)
        for plane in range(6):
            np.testing.assert_array_equal(source.read(plane), STACK.reshape(6, 20, 30)[plane])


def test_labels_are_uint16_and_float32_above_65535_cells_in_every_plane() -> None:
    few, many = np.zeros((260, 260), np.int32), np.zeros((260, 260), np.int32)
    few[3, 4] = 65_535
    many.ravel()[:65_536] = np.arange(1, 65_537)
    for labels, dtype in ((few, "uint16"), (many, "float32")):
        _, found, about = read(encode_tiff([pack_labels(labels)]))
        assert str(found.dtype) == dtype
        np.testing.assert_array_equal(found, labels)
        assert about["max"] == labels.max()
    _, found, _ = read(encode_tiff([pack_labels(few), pack_labels(many)], axes="T", sizes=(2,)))
    assert str(found.dtype) == "float32"
    np.testing.assert_array_equal(found, [few, many])
    with pytest.raises(ImageError, match="ImageJ can number 16,777,216"):
        pack_labels(np.full((1, 1), 2**24 + 1, np.int32))


def test_colour_stays_colour_and_bytes_are_the_same_each_time() -> None:
    colour = RNG.integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)
    data = encode_tiff([pack(plane) for plane in colour], axes="Z", sizes=(2,))
    axes, found, _ = read(data)
    assert axes == "ZYXS"
    np.testing.assert_array_equal(found, colour)
    assert data == encode_tiff([pack(plane) for plane in colour], axes="Z", sizes=(2,))


@pytest.mark.parametrize("shape", [(20, 1), (1, 20), (1, 1), (20, 3), (20, 4)])
@pytest.mark.parametrize(("axes", "sizes"), [("", ()), ("Z", (4,)), ("TC", (2, 3))])
def test_planes_of_any_width_are_no_samples_of_a_colour(
    shape: tuple[int, int], axes: str, sizes: tuple[int, ...]
) -> None:
    stack = RNG.integers(0, 500, (*sizes, *shape)).astype(np.uint16)
    data = encode_tiff([pack(plane) for plane in stack.reshape(-1, *shape)], axes=axes, sizes=sizes)
    found_axes, found, _ = read(data)
    assert found_axes == f"{axes}YX"
    np.testing.assert_array_equal(found.reshape(stack.shape), stack)
