"""Which planes, axes and channels a selection means, and what is refused because nothing says it."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from model.errors import AmbiguousAxesError, ImageError, ImageMemoryError, ImageTooLargeError, UndecodableImageError
from model.images import decode_image, inspect_image, open_image
from model.source import PixelSize, Selection, check_axes
from tests.files import by_numpy, by_tifffile

RNG = np.random.default_rng(1)
STACK: npt.NDArray[Any] = RNG.integers(0, 65536, (2, 3, 4, 16, 18)).astype(np.uint16)  # T Z C Y X
RGB: npt.NDArray[Any] = RNG.integers(0, 256, (16, 18, 3)).astype(np.uint8)


KINDS: dict[str, bytes] = {
    "imagej": by_tifffile(STACK, imagej=True, metadata={"axes": "TZCYX"}),
    "imagej zlib": by_tifffile(STACK, imagej=True, metadata={"axes": "TZCYX"}, compression="zlib"),
    "imagej big-endian": by_tifffile(STACK, imagej=True, metadata={"axes": "TZCYX"}, byteorder=">"),
    "ome": by_tifffile(STACK, ome=True, metadata={"axes": "TZCYX"}),
    "tifffile": by_tifffile(STACK, photometric="minisblack", metadata={"axes": "TZCYX"}),
}
GIVEN: dict[str, bytes] = {
    "plain": by_tifffile(STACK, photometric="minisblack"),
    "npy": by_numpy(STACK),
    "npy fortran": by_numpy(np.asfortranarray(STACK)),
    "npy big-endian": by_numpy(STACK.astype(">u2")),
    "another name": by_tifffile(STACK, photometric="minisblack", metadata={"axes": "CTZYX"}),
}


@pytest.mark.parametrize(
    ("data", "axes"), [(data, None) for data in KINDS.values()] + [(data, "TZCYX") for data in GIVEN.values()],
    ids=[*KINDS, *GIVEN],
)  # fmt: skip
def test_a_channel_and_a_page_of_it_are_that_plane(data: bytes, axes: str | None) -> None:
    for channel, page in ((0, 0), (2, 0), (3, 5), ("1", 4)):
        found = decode_image(data, channel=channel, page=page, axes=axes)
        assert found.pixels.dtype == np.uint16
        np.testing.assert_array_equal(found.pixels, STACK[page // 3, page % 3, int(channel)])
    mean = decode_image(data, channel="mean", page=4, axes=axes).pixels
    assert mean.dtype == np.uint16
    np.testing.assert_array_equal(mean, np.rint(STACK[1, 1].mean(axis=0)))
    # without a channel all planes count
    np.testing.assert_array_equal(decode_image(data, page=23, axes=axes).pixels, STACK[1, 2, 3])
    with pytest.raises(ImageError, match="page 6; the file has pages 0 to 5"):
        decode_image(data, channel=0, page=6, axes=axes)
    with pytest.raises(ImageError, match="channel 4; the image has the channels 0 to 3, and their mean"):
        decode_image(data, channel=4, page=0, axes=axes)
    with pytest.raises(AmbiguousAxesError, match=r"24 planes; .* page=0 to page=23; or one of the 4 channels"):
        decode_image(data, axes=axes)
    with pytest.raises(AmbiguousAxesError, match=r"6 planes; .* page=0 to page=5"):
        decode_image(data, channel="mean", axes=axes)


@pytest.mark.parametrize("axes", ["YXC", "CYX", "XYC", "YCX"])
@pytest.mark.parametrize("kind", ["tiff", "zlib", "npy"])
def test_axes_in_any_order_give_the_very_channel(axes: str, kind: str) -> None:
    channels = STACK[0, 0]  # C Y X
    stored = np.ascontiguousarray(channels.transpose(["CYX".index(letter) for letter in axes]))
    options = {"photometric": "minisblack", "compression": "zlib" if kind == "zlib" else None}
    data = by_numpy(stored) if kind == "npy" else by_tifffile(stored, **options)
    for channel in range(4):
        np.testing.assert_array_equal(decode_image(data, axes=axes, channel=channel).pixels, channels[channel])
    assert (inspect_image(data, Selection(axes=axes, channel=0)).height, len(channels)) == (16, 4)


def test_colour_is_said_by_s_and_channels_by_c() -> None:
    for data in (by_numpy(RGB), by_tifffile(RGB, photometric="minisblack", planarconfig="contig")):
        with pytest.raises(AmbiguousAxesError, match=r"axes|channel"):
            decode_image(data)
        np.testing.assert_array_equal(decode_image(data, axes="YXS").pixels, RGB)
        np.testing.assert_array_equal(decode_image(data, axes="YXC", channel=1).pixels, RGB[:, :, 1])
    with pytest.raises(AmbiguousAxesError, match="axes=YXS for colour"):
        decode_image(by_numpy(RGB))
    planes = by_tifffile(np.moveaxis(RGB, 2, 0), photometric="minisblack")
    np.testing.assert_array_equal(decode_image(planes, axes="SYX").pixels, RGB)


def test_a_channel_of_a_picture_in_colour_goes_by_its_number_or_its_name() -> None:
    data = by_tifffile(RGB, photometric="rgb")
    for channel, index in ((0, 0), ("2", 2), ("green", 1), ("Blue", 2)):
        np.testing.assert_array_equal(decode_image(data, channel=channel).pixels, RGB[:, :, index])
    np.testing.assert_array_equal(decode_image(data, channel="mean").pixels, np.rint(RGB.mean(axis=2)))
    with pytest.raises(ImageError, match=r"channel 3; .* 0 to 2 \(red, green, blue\)"):
        decode_image(data, channel=3)


def test_channels_go_by_the_names_of_the_file() -> None:
    channels = STACK[0, 0]
    ome = by_tifffile(channels, ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "Cy5", "gfp"]}})
    np.testing.assert_array_equal(decode_image(ome, channel="dapi").pixels, channels[0])
    np.testing.assert_array_equal(decode_image(ome, channel="gfp").pixels, channels[3])
    with pytest.raises(AmbiguousAxesError, match="2 channels have that name"):
        decode_image(ome, channel="Gfp")
    with pytest.raises(AmbiguousAxesError, match=r"the 4 channels \(DAPI, GFP, Cy5, gfp\)"):
        decode_image(ome)
    with pytest.raises(ImageError, match=r"channel 'RFP'; .*\(DAPI, GFP, Cy5, gfp\)"):
        decode_image(ome, channel="RFP")


def named(*names: str) -> bytes:
    return by_tifffile(STACK[0, 0, : len(names)], ome=True, metadata={"axes": "CYX", "Channel": {"Name": list(names)}})


def test_a_number_beyond_the_last_channel_may_be_a_name() -> None:
    lasers = named("405", "488", "561")
    for channel, index in (("405", 0), ("488", 1), (561, 2), ("0", 0), (1, 1), ("02", 2)):
        np.testing.assert_array_equal(decode_image(lasers, channel=channel).pixels, STACK[0, 0, index])
    with pytest.raises(ImageError, match=r"channel '3'; .* 0 to 2 \(405, 488, 561\)"):
        decode_image(lasers, channel="3")
    zeroth = named("0", "1", "2")
    np.testing.assert_array_equal(decode_image(zeroth, channel="1").pixels, STACK[0, 0, 1])


def test_a_number_that_is_the_name_of_another_channel_is_refused_with_both_readings() -> None:
    counted = named("1", "2", "3")
    words = (
        r"'1' is a number, of the channel named '2', and the name of number 0; say channel=01 .* channel=0 for number 0"
    )
    for channel in ("1", 1):
        with pytest.raises(AmbiguousAxesError, match=words):
            decode_image(counted, channel=channel)
    for channel, index in (("0", 0), ("01", 1), ("02", 2), ("3", 2)):
        np.testing.assert_array_equal(decode_image(counted, channel=channel).pixels, STACK[0, 0, index])
    padded = named("01", "02", "1")
    with pytest.raises(AmbiguousAxesError, match=r"channel=001 for number 1 or channel=0 for number 0"):
        decode_image(padded, channel="01")
    np.testing.assert_array_equal(decode_image(padded, channel="001").pixels, STACK[0, 0, 1])


def test_planes_that_nobody_calls_channels_are_not_taken_for_any() -> None:
    data = by_tifffile(STACK[0, 0], photometric="minisblack")
    with pytest.raises(AmbiguousAxesError, match=r"nothing says that they are channels; .* axes=CYX"):
        decode_image(data, channel=0)
    with pytest.raises(AmbiguousAxesError, match="axes=ZYX or axes=CYX"):
        decode_image(data)


@pytest.mark.parametrize(
    ("shape", "readings"),
    [
        ((24, 26, 2), ("ZYX", "TYX", "CYX", "YXC")),
        ((24, 26, 3), ("ZYX", "TYX", "CYX", "YXC", "YXS")),
        ((3, 24, 26, 2), ("ZTYX", "TZYX", "CTYX", "TYXC")),
        ((5, 24, 26), ("ZYX", "TYX", "CYX")),
    ],
)
def test_a_last_axis_that_is_short_may_be_channels(shape: tuple[int, ...], readings: tuple[str, ...]) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    data = by_tifffile(pixels, photometric="minisblack")
    with pytest.raises(AmbiguousAxesError) as caught:
        decode_image(data)
    assert caught.value.choices is not None
    assert caught.value.choices.axes == readings
    if "YXC" in readings:
        assert "axes=ZYX or axes=CYX or axes=YXC" in str(caught.value)
        np.testing.assert_array_equal(decode_image(data, axes="YXC", channel=1).pixels, pixels[:, :, 1])
        with pytest.raises(AmbiguousAxesError, match="if they are, say so by axes=CYX or axes=YXC"):
            decode_image(data, channel=1)


def test_axes_that_do_not_fit_are_refused_with_what_was_found() -> None:
    data = by_tifffile(STACK[0, 0], photometric="minisblack")
    with pytest.raises(AmbiguousAxesError, match=r"axes=TZYX names 4 axes; .* shape \(4, 16, 18\), which has 3"):
        decode_image(data, axes="TZYX")
    for axes in ("ZY", "ZZYX", "QYX", "", "Y X"):
        with pytest.raises(ValueError, match="letters of TZCYXS"):
            check_axes(axes)
        with pytest.raises(AmbiguousAxesError, match="letters of TZCYXS"):
            decode_image(data, axes=axes)
    with pytest.raises(ImageError, match="S is the axis of colour"):
        decode_image(by_numpy(STACK[0, 0]), axes="SYX" if STACK.shape[2] not in (3, 4) else "YSX")


def test_an_array_of_two_axes_needs_no_names_and_others_do() -> None:
    for shape in ((16, 18), (1, 16, 18), (16, 18, 1), (1, 1, 16, 18)):
        np.testing.assert_array_equal(decode_image(by_numpy(STACK[0, 0, 0].reshape(shape))).pixels, STACK[0, 0, 0])
    with pytest.raises(AmbiguousAxesError, match=r"does not name its axes; .*axes=CYX"):
        decode_image(by_numpy(STACK[0, 0]))
    with pytest.raises(ImageError, match="two axes"):
        decode_image(by_numpy(np.zeros(5)))


def test_a_npy_file_is_never_unpickled_and_must_be_as_long_as_it_says() -> None:
    good = by_numpy(STACK[0, 0, 0])
    refused = {
        "pickle": by_numpy(np.array([[{"a": 1}, None]], dtype=object)),
        "cut short": good[:-1],
        "longer than it says": good + b"\0",
        "version 9": good[:6] + b"\x09" + good[7:],
        "damaged|header": good[:8] + b"\xff\xff" + b" " * 70_000,
    }
    for words, data in refused.items():
        with pytest.raises(UndecodableImageError, match=words):
            decode_image(data)
    huge = good.replace(b"(16, 18)", b"(99999, 99999)").replace(b"          \n", b"    \n")
    with pytest.raises((UndecodableImageError, ImageTooLargeError)):
        decode_image(huge)
    for dtype in ("c8", "M8[s]", "S4", "V4"):
        with pytest.raises(ImageError, match=r"complex|pixels of type"):
            decode_image(by_numpy(np.zeros((4, 5), dtype)))


def test_rows_are_those_of_the_whole_plane() -> None:
    for data, selection in (
        (KINDS["imagej"], Selection(page=5)),
        (KINDS["imagej zlib"], Selection(page=1, channel="mean")),
        (by_tifffile(RGB, photometric="rgb", rowsperstrip=3, compression="zlib"), Selection()),
        (by_numpy(STACK), Selection(axes="TZCYX", page=7)),
    ):
        with open_image(data, selection) as source:
            whole = source.read()
            assert whole.shape[:2] == (source.height, source.width)
            for start, stop in ((0, 1), (3, 11), (15, 16)):
                np.testing.assert_array_equal(source.read_rows(start, stop), whole[start:stop])


def test_a_level_of_a_pyramid_has_its_own_size_and_pixels_as_much_larger() -> None:
    image = STACK.reshape(2 * 3 * 16, 4 * 18)[:64, :64]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        options: dict[str, Any] = {"tile": (16, 16), "resolutionunit": "centimeter"}
        writer.write(image, subifds=2, resolution=(20_000, 20_000), **options)
        writer.write(image[::2, ::2], subfiletype=1, **options)
        writer.write(image[::4, ::4], subfiletype=1, **options)
    data = buffer.getvalue()
    for level, step in enumerate((1, 2, 4)):
        found = decode_image(data, level=level, max_pixels=(64 // step) ** 2)
        np.testing.assert_array_equal(found.pixels, image[::step, ::step])
        assert found.pixel_size == PixelSize(0.5 * step, 0.5 * step)
    with pytest.raises(ImageError, match="level 3; the file has levels 0 to 2"):
        decode_image(data, level=3)
    for other in (by_tifffile(RGB, photometric="rgb"), by_numpy(image)):
        with pytest.raises(ImageError, match=r"level 1; .* level 0 alone"):
            decode_image(other, level=1)


def test_ome_xml_with_a_document_type_is_refused() -> None:
    head = b"<?xml version='1.0'?><!DOCTYPE OME [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
    plain = by_tifffile(STACK[0, 0, 0], ome=True)
    with tifffile.TiffFile(io.BytesIO(plain)) as tiff:
        xml = (tiff.ome_metadata or "").encode()
    good = by_tifffile(STACK[0, 0, 0], description=xml, metadata=None)
    np.testing.assert_array_equal(decode_image(good).pixels, STACK[0, 0, 0])
    with pytest.raises(UndecodableImageError, match="document type or entities"):
        decode_image(
            by_tifffile(
                STACK[0, 0, 0], description=xml.replace(b'<?xml version="1.0" encoding="UTF-8"?>', head), metadata=None
            )
        )


def test_axes_may_name_those_of_length_1_too() -> None:
    stack = by_tifffile(STACK[:1, :, :1], imagej=True, metadata={"axes": "TZCYX"})
    for axes in ("ZYX", "TZCYX"):
        np.testing.assert_array_equal(decode_image(stack, axes=axes, page=2).pixels, STACK[0, 2, 0])
    colour = by_tifffile(np.stack([RGB] * 3), imagej=True, metadata={"axes": "ZYXS"})
    np.testing.assert_array_equal(decode_image(colour, axes="TZCYXS", page=1).pixels, RGB)
    with pytest.raises(AmbiguousAxesError, match="axes=TZCYX names 5 axes"):
        decode_image(colour, axes="TZCYX", page=1)


def short_of_memory(_: int) -> None:
    error = MemoryError("Unable to allocate")
    vars(error).update(shape=(16, 18, 3), dtype=np.dtype(np.uint8))  # as NumPy's own has them
    raise error


def ask_for_too_much(_: int) -> None:
    np.empty((1 << 40, 1 << 10))


def ask_in_c(_: int) -> None:  # which does not say for how much
    raise MemoryError


@pytest.mark.parametrize(
    ("read", "kind"),
    [(short_of_memory, ImageMemoryError), (ask_for_too_much, ImageTooLargeError), (ask_in_c, ImageTooLargeError)],
)
def test_no_memory_is_the_machine_s_fault_where_the_image_asks_for_what_it_said(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[int], None], kind: type[ImageError]
) -> None:
    source = open_image(by_numpy(RGB), Selection(axes="YXS"))
    monkeypatch.setattr(source._store, "read", read)
    with pytest.raises(kind):
        source.read()
    assert issubclass(ImageMemoryError, MemoryError)  # so that the service answers as it does where it has none itself


def test_each_reading_that_is_offered_can_be_taken() -> None:
    for data in (
        by_tifffile(STACK[0, :, 0], photometric="minisblack"),
        by_numpy(RGB),
        by_numpy(STACK[0]),
        by_numpy(STACK),
    ):
        with pytest.raises(AmbiguousAxesError) as caught:
            inspect_image(data)
        choices = caught.value.choices
        assert choices is not None
        assert choices.axes
        for axes in choices.axes:
            channel = 1 if "C" in axes else None  # which is then left to choose, and nothing else
            if channel is not None:
                with pytest.raises(AmbiguousAxesError) as again:
                    inspect_image(data, Selection(axes=axes), several=True)
                assert again.value.choices is not None
                assert again.value.choices.channels > 1
            inspect_image(data, Selection(axes=axes, channel=channel), several=True)


def test_a_plane_of_other_samples_than_its_header_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = by_tifffile(RGB, photometric="rgb")
    monkeypatch.setattr("model.tiff._TiffStore.read", lambda *_: RGB[..., 0])
    with open_image(data) as source, pytest.raises(UndecodableImageError, match="1 samples a pixel, not 3"):
        source.read()


def test_pages_that_may_be_a_pyramid_are_refused_with_both_readings() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for step in (1, 2):
            writer.write(STACK[0, 0, 0, ::step, ::step], metadata=None)
    words = (
        r"2 images, which may be the levels of a pyramid \(page=0 .* level=1 .*\) or pictures of their own: 2 planes"
    )
    with pytest.raises(AmbiguousAxesError, match=words) as caught, open_image(buffer.getvalue(), several=True):
        pass
    assert "page=all" not in str(caught.value)  # of two sizes they do not go into one answer
