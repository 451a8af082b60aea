"""Files that other libraries wrote come in pixel by pixel or are refused; what is written comes back."""

import io
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image as PillowImage

from model.errors import AmbiguousAxesError, ImageError, ImageTooLargeError, UndecodableImageError
from model.images import (
    decode_image,
    draw_overlay,
    encode_labels,
    encode_mask,
    encode_png,
    encode_probability,
    inspect_image,
    read_image,
)
from model.source import Selection
from tests.files import by_numpy, by_tifffile

Pixels = npt.NDArray[Any]

RNG = np.random.default_rng(0)
# Smooth, so that lossy formats stay close, with a different value in every corner.
GREY8: Pixels = (np.add.outer(np.arange(48), np.arange(80)) * 1.8).astype(np.uint8)
GREY16: Pixels = (GREY8.astype(np.uint16) << 8) + RNG.integers(0, 256, GREY8.shape).astype(np.uint16)
RGB8: Pixels = np.dstack([GREY8, GREY8[::-1], GREY8[:, ::-1]])
RGB16: Pixels = np.dstack([GREY16, GREY16[::-1], GREY16[:, ::-1]])
RGBA16: Pixels = np.dstack([RGB16, GREY16[::-1, ::-1]])
BITS: Pixels = RNG.integers(0, 2, GREY8.shape).astype(bool)
STACK: Pixels = RNG.integers(0, 65536, (2, 3, 4, 16, 18)).astype(np.uint16)


def as_pyramid(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(pixels, tile=(16, 16), subifds=1)
        writer.write(pixels[::2, ::2], tile=(16, 16), subfiletype=1)
    return buffer.getvalue()


def by_pillow(picture: PillowImage.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def by_cv2(suffix: str, pixels: Pixels) -> bytes:
    order = (
        {2: None, 3: cv2.COLOR_RGB2BGR}[pixels.ndim]
        if pixels.ndim == 2 or pixels.shape[2] == 3
        else cv2.COLOR_RGBA2BGRA
    )
    good, data = cv2.imencode(suffix, pixels if order is None else cv2.cvtColor(pixels, order))
    assert good
    return bytes(data.tobytes())


def decoded(data: bytes, page: int | None = None) -> Pixels:
    return decode_image(data, page=page).pixels


def assert_same(found: Pixels, expected: Pixels) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def raw_tiff(payload: bytes, *, directories: int = 1, next_offset: int = 0, **tags: int) -> bytes:
    """A little-endian TIFF put together by hand: one 64 x 64 px 8-bit strip at offset 8, but for what `tags` change."""
    numbers = {
        "width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273, "samples": 277,
        "rows": 278, "count": 279, "tile_width": 322, "tile_height": 323, "tile_offset": 324, "tile_count": 325,
    }  # fmt: skip
    values = {"width": 64, "height": 64, "bits": 8, "compression": 1, "photometric": 1, "samples": 1}
    if "tile_width" in tags:
        values |= {"tile_offset": 8, "tile_count": len(payload)}
    else:
        values |= {"offset": 8, "rows": 64, "count": len(payload)}
    values |= tags
    data = b"II*\0" + struct.pack("<I", 8 + len(payload)) + payload
    for index in range(directories):
        entries = b"".join(
            struct.pack("<HHII", tag, 4, 1, values[name]) for name, tag in numbers.items() if name in values
        )
        end = len(data) + 2 + len(entries) + 4
        last = index == directories - 1
        data += struct.pack("<H", len(entries) // 12) + entries + struct.pack("<I", next_offset if last else end)
    return data


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, idat: bytes, *, bits: int = 8, colour: int = 0) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", idat) + png_chunk(b"IEND", b"")


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"),
    sorted({*product(("PNG", "BMP", "WEBP"), ("1", "L", "LA", "P", "RGB", "RGBA"))} - {("BMP", "LA")}),  # no such BMP
)
def test_pillows_pictures_come_as_grey_or_rgb(kind: str, mode: str) -> None:
    picture = PillowImage.fromarray(RGB8).convert(mode)
    data = by_pillow(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    grey = mode in ("1", "L", "LA") and kind != "WEBP"  # WebP has no grey
    found = decode_image(data)
    assert_same(found.pixels, np.asarray(picture.convert("L" if grey else "RGB")))
    assert (found.format, found.n_pages) == (kind, 1)


@pytest.mark.parametrize(
    ("suffix", "pixels"),
    [
        (".png", GREY8), (".png", GREY16), (".png", RGB8), (".png", RGB16), (".png", RGBA16), (".bmp", GREY8),
        (".bmp", RGB8), (".tiff", GREY8), (".tiff", GREY16), (".tiff", RGB8), (".tiff", RGBA16),
        (".tiff", GREY16.astype(np.float32)), (".tiff", GREY16.astype(np.float64)),
    ],
)  # fmt: skip
def test_opencvs_lossless_files_come_pixel_by_pixel(suffix: str, pixels: Pixels) -> None:
    assert_same(decoded(by_cv2(suffix, pixels)), pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_opencvs_lossy_files_come_close(suffix: str) -> None:
    found = decoded(by_cv2(suffix, RGB8))
    assert found.shape == RGB8.shape
    assert np.abs(found.astype(int) - RGB8).mean() < 4


@pytest.mark.parametrize(("suffix", "pixels"), [(".png", GREY8), (".png", RGB8), (".bmp", RGB8), (".tiff", GREY16)])
def test_imageios_files_come_pixel_by_pixel(suffix: str, pixels: Pixels) -> None:
    assert_same(decoded(iio.imwrite("<bytes>", pixels, extension=suffix)), pixels)


def test_16_bit_grey_with_alpha_comes_as_16_bit_grey() -> None:
    assert_same(decoded(bytes(imagecodecs.png_encode(np.dstack([GREY16, GREY16[::-1]])))), GREY16)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_jpegs_of_every_colour_space_come_close_to_their_colours(mode: str) -> None:
    found = decoded(by_pillow(PillowImage.fromarray(RGB8).convert(mode), "JPEG", quality=95))
    expected = np.asarray(PillowImage.fromarray(RGB8).convert(mode).convert("L" if mode == "L" else "RGB"))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 4


def test_a_cameras_jpeg_with_a_preview_behind_it_is_one_jpeg() -> None:
    preview = PillowImage.fromarray(RGB8[:10, :10].copy())
    data = by_pillow(PillowImage.fromarray(RGB8), "MPO", save_all=True, append_images=[preview])
    found = decode_image(data)
    assert (found.format, found.n_pages, found.pixels.shape) == ("JPEG", 1, RGB8.shape)
    assert inspect_image(data).format == "JPEG"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_not_applied(kind: str) -> None:
    exif = PillowImage.Exif()
    exif[274] = 6  # on its side
    assert decoded(by_pillow(PillowImage.fromarray(RGB8), kind, exif=exif)).shape == RGB8.shape


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused_until_a_page_is_said(kind: str) -> None:
    other = RGB8[::-1].copy()
    data = by_pillow(
        PillowImage.fromarray(RGB8), kind, save_all=True, append_images=[PillowImage.fromarray(other)], lossless=True
    )
    with pytest.raises(AmbiguousAxesError, match=f"animated {kind}: 2 planes; .* page=0 to page=1"):
        decode_image(data)
    assert_same(decoded(data, page=0), RGB8)
    assert_same(decoded(data, page=1), other)
    with pytest.raises(ImageError, match="page 2; the file has pages 0 to 1"):
        decode_image(data, page=2)


@pytest.mark.parametrize(
    "data",
    [b"plain text", b"\0" * 100],
)
def test_what_is_no_image_of_a_known_kind_is_refused_with_its_first_bytes(data: bytes) -> None:
    with pytest.raises(
        UndecodableImageError, match=f"not an image of a kind that is read.*{re.escape(repr(data[:8]))}$"
    ):
        decode_image(data)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(UndecodableImageError, match="empty"):
        decode_image(b"")


# --- TIFF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "packbits", "lzma"])
@pytest.mark.parametrize("pixels", [GREY8, GREY16, RGB8], ids=["grey8", "grey16", "rgb8"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 32)}, {"rowsperstrip": 7}], ids=["one", "tiles", "strips"])
def test_lossless_tiffs_come_pixel_by_pixel(compression: str | None, pixels: Pixels, options: dict[str, Any]) -> None:
    colour = "rgb" if pixels.ndim == 3 else "minisblack"
    assert_same(decoded(by_tifffile(pixels, compression=compression, photometric=colour, **options)), pixels)


@pytest.mark.parametrize("compression", ["jpeg", "webp", "jpeg2000"])
def test_tiffs_with_pictures_for_tiles_come_close(compression: str) -> None:
    found = decoded(by_tifffile(RGB8, compression=compression, photometric="rgb", tile=(16, 32)))
    assert found.shape == RGB8.shape
    assert np.abs(found.astype(int) - RGB8).mean() < 4


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u4", "u8"])
def test_every_type_of_number_is_kept(dtype: str) -> None:
    pixels = (GREY8 // 2).astype(dtype)
    assert_same(decoded(by_tifffile(pixels)), pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"bigtiff": True},
        {"byteorder": ">"},
        {"compression": "zlib", "predictor": True},
        {"bigtiff": True, "byteorder": ">"},
    ],
)
def test_big_and_big_endian_and_predicted_tiffs_come_pixel_by_pixel(options: dict[str, Any]) -> None:
    assert_same(decoded(by_tifffile(GREY16, **options)), GREY16)


@pytest.mark.parametrize("options", [{}, {"compression": "lzw", "tile": (16, 16)}])
def test_colours_in_separate_planes_are_put_together(options: dict[str, Any]) -> None:
    data = by_tifffile(np.moveaxis(RGB8, 2, 0), photometric="rgb", planarconfig="separate", **options)
    assert_same(decoded(data), RGB8)


def test_where_white_is_lowest_the_picture_is_inverted() -> None:
    assert_same(decoded(by_tifffile(GREY8, photometric="miniswhite")), 255 - GREY8)
    assert_same(decoded(by_tifffile(GREY16, photometric="miniswhite")), 65535 - GREY16)
    signed = GREY8.astype(np.int16) - 100
    assert_same(decoded(by_tifffile(signed, photometric="miniswhite")), -1 - signed)
    floats = GREY8.astype(np.float32)
    assert_same(decoded(by_tifffile(floats, photometric="miniswhite")), -floats)


@pytest.mark.parametrize("compression", [None, "group3", "group4", "packbits", "tiff_lzw"])
def test_one_bit_tiffs_come_as_bool(compression: str | None) -> None:
    assert_same(decoded(by_pillow(PillowImage.fromarray(BITS), "TIFF", compression=compression)), BITS)


def test_four_bits_cover_the_full_range() -> None:
    packed = bytes(range(256)) * 8  # 64 x 64 px, two a byte
    found = decoded(raw_tiff(packed, bits=4))
    assert found.dtype == np.uint8
    assert_same(found[0, :34], np.array([part for byte in range(17) for part in (byte >> 4, byte & 15)], np.uint8) * 17)


def test_a_palette_becomes_rgb() -> None:
    picture = PillowImage.fromarray(RGB8).quantize(16)
    found = decoded(by_pillow(picture, "TIFF"))
    assert found.dtype == np.uint16
    assert_same((found >> 8).astype(np.uint8), np.asarray(picture.convert("RGB")))


def test_grey_with_alpha_loses_its_alpha_and_rgba_keeps_it() -> None:
    grey_alpha = np.dstack([GREY8, GREY8[::-1]])
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    assert_same(decoded(by_tifffile(grey_alpha, **options)), GREY8)
    assert_same(decoded(by_tifffile(RGBA16, photometric="rgb", extrasamples=["unassalpha"])), RGBA16)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True}, {"ome": True}])
def test_the_planes_of_a_hyperstack_are_pages_in_file_order(options: dict[str, Any]) -> None:
    named = {"metadata": {"axes": "TZCYX"}} if options.keys() & {"imagej", "ome"} else {"photometric": "minisblack"}
    data = by_tifffile(STACK, **options, **named)
    with pytest.raises(AmbiguousAxesError, match="24 planes; say which one is meant by page=0 to page=23"):
        decode_image(data)
    planes = STACK.reshape(-1, 16, 18)
    for page in (0, 5, 23):
        found = decode_image(data, page=page)
        assert_same(found.pixels, planes[page])
        assert found.n_pages == 24
    for page in (-1, 24):
        with pytest.raises(ImageError, match=f"page {page}; the file has pages 0 to 23"):
            decode_image(data, page=page)


def test_the_refusal_of_a_stack_names_its_axes() -> None:
    with pytest.raises(AmbiguousAxesError, match=r"axes TZCYX of shape \(2, 3, 4, 16, 18\)"):
        decode_image(by_tifffile(STACK, imagej=True, metadata={"axes": "TZCYX"}))


def test_a_stack_of_rgb_pages_gives_rgb() -> None:
    assert_same(decoded(by_tifffile(np.stack([RGB8, RGB8[::-1]]), photometric="rgb"), page=1), RGB8[::-1])


def test_channels_that_are_not_said_to_be_colours_are_pages_and_not_guessed() -> None:
    data = by_tifffile(RGB8, photometric="minisblack", planarconfig="contig")
    with pytest.raises(AmbiguousAxesError, match="3 planes"):
        decode_image(data)
    assert_same(decoded(data, page=2), RGB8[:, :, 2])


def test_pages_of_several_sizes_are_pages_and_not_guessed() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(GREY8)
        writer.write(GREY16[:20])
    with pytest.raises(AmbiguousAxesError, match="TIFF with 2 images: 2 planes"):
        decode_image(buffer.getvalue())
    assert_same(decoded(buffer.getvalue(), page=1), GREY16[:20])


@pytest.mark.parametrize("sub", [True, False])
def test_thumbnails_and_pyramid_levels_do_not_count_as_pages(sub: bool) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(GREY8, subifds=1 if sub else None)
        writer.write(GREY8[::2, ::2], subfiletype=1)
    assert_same(decoded(buffer.getvalue()), GREY8)


@pytest.mark.parametrize(
    ("data", "error", "found"),
    [
        (by_tifffile(GREY8.astype(np.complex64)), ImageError, "complex"),
        (by_pillow(PillowImage.fromarray(RGB8).convert("CMYK"), "TIFF"), UndecodableImageError, "SEPARATED"),
        (by_pillow(PillowImage.fromarray(RGB8).convert("LAB"), "TIFF"), UndecodableImageError, "CIELAB"),
        (by_pillow(PillowImage.fromarray(RGB8).convert("YCbCr"), "TIFF"), UndecodableImageError, "YCBCR"),
        (by_tifffile(GREY8, compression="png"), UndecodableImageError, "compression PNG"),
        (by_tifffile(np.tile(RGB8, 2), photometric="rgb", planarconfig="contig"), AmbiguousAxesError, "6 samples"),
        (b"II*\0", UndecodableImageError, "cut short"),
        (b"II*\0" + bytes(4), UndecodableImageError, "no image|damaged"),
    ],
)  # fmt: skip
def test_a_tiff_that_is_not_read_is_refused_with_what_was_found(
    data: bytes, error: type[ImageError], found: str
) -> None:
    with pytest.raises(error, match=found) as caught:
        decode_image(data)
    assert type(caught.value) is error


def test_an_upload_cannot_name_another_file_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = np.full((16, 16), 77, dtype=np.uint8)
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite(tmp_path / "secret.tif", secret, ome=True)
    xml = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
    <Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="16" SizeY="16" SizeC="1"
    SizeZ="1" SizeT="2"><TiffData FirstT="0" IFD="0" PlaneCount="1"/><TiffData FirstT="1" IFD="0" PlaneCount="1">
    <UUID FileName="secret.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>"""
    data = by_tifffile(np.zeros((16, 16), dtype=np.uint8), description=xml, metadata=None)
    for page in (0, 1):
        try:
            found = decoded(data, page=page)
        except ImageError:
            continue
        assert not (found == 77).any()


# --- limits ---------------------------------------------------------------------------------------------------------


def headers_of_60000() -> dict[str, bytes]:
    jpeg = bytearray(by_pillow(PillowImage.fromarray(GREY8), "JPEG"))
    at = jpeg.find(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    bmp = struct.pack("<2sIHHI", b"BM", 2000, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, *[0] * 6)
    # the most that WebP allows, in each of its three headers
    lossless = bytearray(by_pillow(PillowImage.fromarray(RGB8), "WEBP", lossless=True))
    assert lossless[12:16] == b"VP8L"
    lossless[21:25] = struct.pack("<I", 16382 | 16382 << 14)
    lossy = bytearray(by_pillow(PillowImage.fromarray(RGB8), "WEBP"))
    assert lossy[12:16] == b"VP8 "
    lossy[26:30] = struct.pack("<HH", 16383, 16383)
    extended = bytearray(by_pillow(PillowImage.fromarray(RGB8), "WEBP", exif=b"Exif\0\0" + bytes(8)))
    assert extended[12:16] == b"VP8X"
    extended[24:30] = (16382).to_bytes(3, "little") * 2
    return {
        "png": raw_png(60000, 60000, zlib.compress(bytes(100))),
        "png16": raw_png(60000, 60000, zlib.compress(bytes(100)), bits=16, colour=2),
        "tiff": raw_tiff(bytes(10), width=60000, height=60000, rows=60000),
        "bmp": bmp + bytes(1000),
        "jpeg": bytes(jpeg),
        "webp-lossless": bytes(lossless),
        "webp-lossy": bytes(lossy),
        "webp-extended": bytes(extended),
    }


LIMITED = """
import resource, sys
from pathlib import Path
from model.errors import ImageError
from model.images import decode_image
decode_image(Path(sys.argv[1]).read_bytes())
base = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + 300 * 2**20,) * 2)
for path in sys.argv[2:]:
    try:
        pixels = decode_image(Path(path).read_bytes()).pixels
        print(Path(path).name, "read", *pixels.shape)
    except ImageError as error:
        print(Path(path).name, type(error).__name__, "memory" in str(error))
"""


def bombs() -> dict[str, bytes]:
    """Small files that a careless reader would spend gigabytes or hours on."""
    deflate = zlib.compressobj(1)
    bomb = b"".join(deflate.compress(bytes(1 << 24)) for _ in range(25)) + deflate.flush()  # 400 MiB of zeros
    jpeg = by_pillow(PillowImage.new("L", (18000, 18000)), "JPEG", quality=1)
    jp2 = bytes(imagecodecs.jpeg2k_encode(np.zeros((6000, 6000), np.uint8)))
    ome = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="16" SizeY="16" SizeC="1000" SizeZ="1000" '
        'SizeT="1000"><TiffData/></Pixels></Image></OME>'
    )
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    laughs = f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">{entities}]><OME>&j;</OME>'
    small = np.zeros((16, 16), np.uint8)
    chain = raw_tiff(bytes(4096), directories=5000)
    looped = raw_tiff(bytes(4096), directories=5000, next_offset=8 + 4096 + (2 + 9 * 12 + 4) * 2500)
    return {
        "png-bomb": raw_png(64, 64, bomb),
        "png16-bomb": raw_png(64, 64, bomb, bits=16, colour=2),
        "tiff-bomb": raw_tiff(bomb, compression=8),
        "tiff-huge-tile": raw_tiff(zlib.compress(bytes(4096)), compression=8, tile_width=65536, tile_height=65536),
        "tiff-huge-jpeg": raw_tiff(jpeg, compression=7),
        "tiff-huge-jp2": raw_tiff(jp2, compression=34712),
        "tiff-huge-strip": raw_tiff(bytes(10), width=8000, height=8000, rows=8000, count=64_000_000),
        "tiff-many-samples": raw_tiff(bytes(10), width=8000, height=8000, samples=60000),
        "tiff-own-loop": raw_tiff(bytes(4096), next_offset=8 + 4096),
        "tiff-late-loop": looped,
        "tiff-chain": chain,
        "tiff-long-chain": raw_tiff(bytes(4096), directories=20_000),
        "tiff-ome-liar": by_tifffile(small, description=ome, metadata=None),
        "tiff-laughs": by_tifffile(small, description=laughs, metadata=None),
        "tiff-shape-liar": by_tifffile(small, description='{"shape": [1000000000, 16, 16]}', metadata=None),
        "tiff-imagej-liar": by_tifffile(small, description="ImageJ=1.5\nimages=9999999\nslices=9999999", metadata=None),
    }  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures its memory by /proc")
def test_headers_and_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    files = {**{f"header-{name}": data for name, data in headers_of_60000().items()}, **bombs()}
    good = tmp_path / "good"
    good.write_bytes(by_tifffile(GREY8, compression="zlib"))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in files]
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(good), *paths], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    outcomes = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert set(outcomes) == set(files)
    for name, (outcome, *rest) in outcomes.items():
        if name.startswith("header"):
            assert (outcome, rest) == ("ImageTooLargeError", ["False"]), name  # by the header, not for want of memory
        elif outcome == "read":
            assert rest[:2] in (["64", "64"], ["16", "16"]), name
        else:
            assert rest == ["False"], name


def test_the_limit_is_height_times_width_to_the_pixel() -> None:
    for data in (by_tifffile(GREY8), encode_png(GREY8), encode_png(GREY16)):
        assert decode_image(data, max_pixels=48 * 80).pixels.shape == (48, 80)
        for refuse in (decode_image, inspect_image):
            with pytest.raises(ImageTooLargeError, match="80 x 48 px = 3,840 pixels; at most 3,839"):
                refuse(data, max_pixels=48 * 80 - 1)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("TIFF", by_tifffile(STACK, imagej=True, metadata={"axes": "TZCYX"})),
        ("PNG", encode_png(STACK[0, 0, 0])),
        ("JPEG", by_pillow(PillowImage.new("L", (18, 16)), "JPEG")),
        ("WEBP", by_pillow(PillowImage.new("RGB", (18, 16)), "WEBP")),
        ("WEBP", by_pillow(PillowImage.new("RGB", (18, 16)), "WEBP", lossless=True)),
        ("WEBP", by_pillow(PillowImage.new("RGB", (18, 16)), "WEBP", exif=b"Exif\0\0" + bytes(8))),
        ("BMP", by_pillow(PillowImage.new("RGB", (18, 16)), "BMP")),
    ],
)
def test_the_header_tells_size_and_format(kind: str, data: bytes) -> None:
    header = inspect_image(data, Selection(page=0), max_pixels=16 * 18)
    assert (header.height, header.width, header.format) == (16, 18, kind)
    with pytest.raises(ImageTooLargeError, match="18 x 16 px"):
        inspect_image(data, Selection(page=0), max_pixels=16 * 18 - 1)


# --- damage ---------------------------------------------------------------------------------------------------------

WHOLE: dict[str, Callable[[], bytes]] = {
    "png": lambda: encode_png(GREY8),
    "png16": lambda: bytes(imagecodecs.png_encode(RGB16)),
    "jpeg": lambda: by_pillow(PillowImage.fromarray(RGB8), "JPEG"),
    "webp": lambda: by_pillow(PillowImage.fromarray(RGB8), "WEBP"),
    "webp-lossless": lambda: by_pillow(PillowImage.fromarray(RGB8), "WEBP", lossless=True),
    "bmp": lambda: by_pillow(PillowImage.fromarray(RGB8), "BMP"),
    "tiff": lambda: by_tifffile(GREY16),
    "tiff-lzw": lambda: by_tifffile(GREY16, compression="lzw", tile=(16, 16)),
    "tiff-jpeg": lambda: by_tifffile(RGB8, compression="jpeg", photometric="rgb"),
    "tiff-zstd": lambda: by_tifffile(RGB8, compression="zstd", photometric="rgb", predictor=True),
    "tiff-ome": lambda: by_tifffile(STACK[0, 0, 0], ome=True, compression="zlib"),
    "tiff-imagej": lambda: by_tifffile(STACK[0, 0], imagej=True),
    "tiff-pyramid": lambda: as_pyramid(GREY16),
    "npy": lambda: by_numpy(GREY16),
    "tiff-big": lambda: by_tifffile(GREY8, bigtiff=True, byteorder=">", compression="packbits"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # tifffile on numbers out of range in tags that nothing here uses
@pytest.mark.parametrize("kind", WHOLE)
def test_damaged_files_raise_nothing_but_image_errors(kind: str) -> None:
    whole = WHOLE[kind]()
    generator = np.random.default_rng(len(whole))
    refused = 0
    for turn in range(40):
        data = bytearray(whole)
        # half of the damage near the ends, where the headers of most formats are
        reach = len(whole) if turn % 2 else min(len(whole), 60)
        for position in generator.integers(0, reach, 1 + turn % 4):
            data[int(position) if turn % 4 < 2 else len(whole) - 1 - int(position)] ^= 1 << int(generator.integers(8))
        try:
            decode_image(bytes(data), page=0 if turn % 3 else None)
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("kind", sorted(WHOLE.keys() - {"tiff-pyramid"}))  # its full picture may be whole all the same
def test_files_cut_short_are_refused(kind: str) -> None:
    whole = WHOLE[kind]()
    # what TIFF's writers put at the end may be a tag that nobody needs, so the cut goes well into the file
    for length in (1, 3, 7, 30, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        with pytest.raises(UndecodableImageError) as caught:
            decode_image(whole[:length], page=0)
        assert "returned" not in str(caught.value)  # as a codec says that a function of it has failed


def test_a_tiff_whose_pixels_end_early_is_refused() -> None:
    for compression in (None, "lzw", "packbits", "zlib", "zstd"):
        whole = by_tifffile(GREY16, compression=compression, rowsperstrip=8)  # tags first, then pixels
        with pytest.raises(UndecodableImageError, match="cut short"):
            decode_image(whole[:-200])


def test_a_png_whose_pixels_end_early_is_refused_though_every_chunk_is_intact() -> None:
    for bits, colour in ((8, 0), (16, 0), (16, 2)):
        with pytest.raises(UndecodableImageError):
            decode_image(raw_png(64, 64, zlib.compress(bytes(2000)), bits=bits, colour=colour))


def test_reading_a_file_puts_its_name_before_the_error(tmp_path: Path) -> None:
    path = tmp_path / "cells.png"
    with pytest.raises(UndecodableImageError, match=r"cells\.png: No such file"):
        read_image(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UndecodableImageError, match=r"cells\.png: not an image"):
        read_image(path)
    path.write_bytes(encode_png(GREY8))
    with pytest.raises(ImageTooLargeError, match=r"cells\.png: 80 x 48"):
        read_image(path, max_pixels=10)
    assert_same(read_image(path), GREY8)


# --- writing --------------------------------------------------------------------------------------------------------


def test_a_mask_is_an_8_bit_grey_png_of_0_and_255() -> None:
    picture = PillowImage.open(io.BytesIO(encode_mask(BITS, {"X-Threshold": "0.5"})))
    assert picture.format == "PNG"
    assert picture.mode == "L"
    assert_same(np.asarray(picture), BITS * np.uint8(255))
    assert picture.info["X-Threshold"] == "0.5"


def test_a_probability_is_a_16_bit_png_that_loses_nothing() -> None:
    levels = np.arange(65536, dtype=np.float32).reshape(256, 256) / np.float32(65535)
    data = encode_probability(levels)
    assert data[24] == 16
    assert_same(decoded(data), np.arange(65536, dtype=np.uint16).reshape(256, 256))


def test_text_of_any_script_travels_in_a_png() -> None:
    text = {"Software": "Maskwell", "X-Model": "zellkerne-größe", "Note": "細胞 µm"}
    assert PillowImage.open(io.BytesIO(encode_png(GREY8, text))).info == text


@pytest.mark.parametrize(("n", "media_type"), [(0, "image/png"), (65535, "image/png"), (65536, "image/tiff")])
def test_more_than_65535_cells_make_a_32_bit_tiff(n: int, media_type: str) -> None:
    labels = np.zeros((260, 260), dtype=np.int32)
    labels.ravel()[:n] = np.arange(1, n + 1)
    data, found = encode_labels(labels, {"X-Model": "zellkerne-größe"})
    assert found == media_type
    assert_same(decoded(data), labels.astype(np.uint16 if n < 65536 else np.uint32))
    if found == "image/tiff":
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            assert "X-Model=zellkerne-größe" in tiff.pages.first.description


@pytest.mark.parametrize("pixels", [GREY8, GREY16, RGB8])
def test_what_is_written_as_png_is_read_again(pixels: Pixels) -> None:
    for view in (pixels, pixels[::2, ::3]):
        assert_same(decoded(encode_png(view)), view)


@pytest.mark.parametrize("image", [GREY8, GREY16, RGB8, RGBA16, GREY8.astype(np.float64), BITS, GREY8[:, :, None]])
def test_the_overlay_is_8_bit_rgb_of_the_same_size(image: Pixels) -> None:
    overlay = draw_overlay(image, np.zeros(image.shape[:2], dtype=np.int32))
    assert overlay.shape == (48, 80, 3)
    assert overlay.dtype == np.uint8
    assert overlay.max() > 200


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1), (1, 7, 3), (7, 1)])
def test_the_overlay_of_a_pixel_or_a_line(shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape[:2], dtype=np.int32)
    labels[0, 0] = 1
    assert draw_overlay(np.full(shape, 9, np.uint8), labels).shape == (*shape[:2], 3)


def test_the_overlay_outlines_each_cell_on_its_inner_side() -> None:
    labels = np.zeros((9, 12), dtype=np.int32)
    labels[2:7, 2:6] = 1
    labels[2:7, 6:10] = 2  # touches the first
    yellow = (draw_overlay(np.zeros((9, 12), dtype=np.uint8), labels) == (255, 220, 0)).all(axis=2)
    expected = labels > 0
    expected[3:6, 3:5] = expected[3:6, 7:9] = False
    np.testing.assert_array_equal(yellow, expected)


def test_a_cell_at_the_edge_of_the_image_has_no_outline_along_it() -> None:
    labels = np.ones((6, 6), dtype=np.int32)
    assert not (draw_overlay(np.zeros((6, 6), dtype=np.uint8), labels) == (255, 220, 0)).all(axis=2).any()
