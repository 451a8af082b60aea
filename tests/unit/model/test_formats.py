"""Files as other people's libraries write them, a case a kind: the right pixels, or the right refusal."""

# ruff: noqa: E501 (tables with a case a line)
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import imageio.v3 as iio
import matplotlib.image
import numpy as np
import numpy.typing as npt
import pytest
import skimage.io
import tifffile
from PIL import Image as PillowImage

from app.errors import find_answer
from model.errors import ImageError
from model.images import decode_image, open_image
from model.source import PixelSize, Selection
from tests.files import by_numpy, by_tifffile
from tests.unit.model.raw_tiff import lsm, packed, stk

Pixels = npt.NDArray[Any]
Data = Path(__file__).parents[2] / "data" / "formats"

RNG = np.random.default_rng(7)
# Smooth, so that lossy formats stay close, with a different value in every corner.
GREY: Pixels = (np.add.outer(np.arange(24), np.arange(40)) * 4).astype(np.uint8)
GREY16: Pixels = (GREY.astype(np.uint16) << 8) + RNG.integers(0, 256, GREY.shape).astype(np.uint16)
SIGNED: Pixels = (GREY16.astype(np.int32) - 30_000).astype(np.int16)
FLOAT: Pixels = GREY16.astype(np.float32) / 65535
# What tests/data/formats/make.sh draws, with GREY and RGB.
DRAWN: Pixels = GREY.astype(np.uint16) * 200 + 7
DRAWN3: Pixels = np.stack([DRAWN, DRAWN[::-1], DRAWN[:, ::-1]])
RGB: Pixels = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
SQUARE: Pixels = np.tile(GREY, (2, 2))[:48, :48]
RGBA: Pixels = np.dstack([RGB, GREY[::-1, ::-1]])
RGB16: Pixels = np.dstack([GREY16, GREY16[::-1], GREY16[:, ::-1]])
BITS: Pixels = RNG.integers(0, 2, GREY.shape).astype(bool)
MANY: Pixels = np.dstack([GREY16, GREY16[::-1], GREY16[:, ::-1], GREY16 // 2, GREY16 // 3])
STACK: Pixels = RNG.integers(0, 65536, (2, 3, 4, 12, 14)).astype(np.uint16)  # T Z C Y X
CALIBRATED = "ImageJ=1.54f\nunit=micron\nyunit=mm\n"
FOUR: Pixels = RNG.integers(0, 65536, (4, 12, 14)).astype(np.uint16)
MEAN4: Pixels = np.rint(FOUR.mean(axis=0)).astype(np.uint16)
# As tifffile writes four planes by itself.
AS_COLOUR: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate"}
ZYX, CYX, FIVE = STACK[0, :, 0], STACK[0, 0], STACK.reshape(-1, 12, 14)[:5]


def by_pillow(pixels: Pixels, kind: str, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = PillowImage.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def by_cv2(suffix: str, pixels: Pixels, *flags: int) -> bytes:
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, codes[pixels.shape[2]])
    good, data = cv2.imencode(suffix, ordered, flags)
    assert good
    return bytes(data.tobytes())


def by_matplotlib() -> bytes:
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, GREY, cmap="gray", vmin=0, vmax=255, format="png")
    return buffer.getvalue()


def by_skimage(tmp_path: Path, suffix: str, pixels: Pixels) -> bytes:
    path = tmp_path / f"x{suffix}"
    skimage.io.imsave(path, pixels, check_contrast=False)
    return path.read_bytes()


def exif(orientation: int) -> PillowImage.Exif:
    found = PillowImage.Exif()
    found[274] = orientation
    return found


def pyramid(*, sub: bool, flag: int = 1, **options: Any) -> bytes:
    image = STACK.reshape(-1, 56)[:48, :48]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, **options) as writer:
        writer.write(image, tile=(16, 16), subifds=2 if sub else None, metadata=None if not options else {})
        for step in (2, 4):
            writer.write(image[::step, ::step], tile=(16, 16), subfiletype=flag, metadata=None)
    return buffer.getvalue()


def shrinking() -> bytes:
    smaller = [PillowImage.fromarray(SQUARE[::step, ::step].copy()) for step in (2, 4)]
    return by_pillow(SQUARE, "TIFF", save_all=True, append_images=smaller)


def slide() -> bytes:
    """As Aperio's: no level is called one, and the second page is a thumbnail."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for pixels, tile in ((RGB, (16, 16)), (RGB[::3, ::3], None), (RGB[::2, ::2], (16, 16))):
            writer.write(pixels, photometric="rgb", tile=tile, description=APERIO, metadata=None)
    return buffer.getvalue()


def positions() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as writer:
        for planes in (ZYX[::-1], ZYX):
            writer.write(planes, photometric="minisblack", metadata={"axes": "ZYX"})
    return buffer.getvalue()


def file(name: str) -> Callable[[], bytes]:
    return (Data / name).read_bytes


@dataclass(frozen=True)
class Case:
    """A file; what comes of it: pixels, to the last bit or closely, or the code of the refusal."""

    data: Callable[[], bytes]
    expected: Pixels | str
    query: dict[str, Any] = field(default_factory=dict)
    close: bool = False


def case(data: Callable[[], bytes], expected: Pixels | str, *, close: bool = False, **query: Any) -> Case:
    return Case(data, expected, query, close)


def tiff(expected: Pixels | str, pixels: Pixels, *, query: dict[str, Any] | None = None, close: bool = False,
         **options: Any) -> Case:  # fmt: skip
    return Case(lambda: by_tifffile(pixels, **options), expected, query or {}, close)


FRAMES: dict[str, Any] = {"save_all": True, "append_images": [PillowImage.fromarray(RGB[::-1].copy())]}
TWO_PAGES: dict[str, Any] = {"save_all": True, "append_images": [PillowImage.fromarray(GREY[::-1].copy())]}
IMAGEJ: dict[str, Any] = {"imagej": True, "metadata": {"axes": "TZCYX"}}
OME: dict[str, Any] = {"ome": True, "metadata": {"axes": "TZCYX"}}
APERIO = "Aperio Image Library v1.0\n40x24 [0,0 40x24] (16x16) Q=70|AppMag = 20|MPP = 0.4990"
PALETTE = (np.arange(256, dtype=np.uint16) * 257)[None] * np.array([[0], [1], [0]], np.uint16)

CASES: dict[str, Case] = {
    # PNG
    "pillow png 1-bit": case(lambda: by_pillow(BITS, "PNG"), BITS * np.uint8(255)),
    "pillow png grey": case(lambda: by_pillow(GREY, "PNG"), GREY),
    "pillow png grey 16-bit": case(lambda: by_pillow(GREY16, "PNG"), GREY16),
    "pillow png grey with alpha": case(lambda: by_pillow(RGBA, "PNG", "LA"), np.asarray(PillowImage.fromarray(RGBA).convert("LA"))[..., 0]),
    "pillow png palette": case(lambda: by_pillow(RGB, "PNG", "P"), np.asarray(PillowImage.fromarray(RGB).convert("P").convert("RGB"))),
    "pillow png palette, one colour transparent": case(lambda: by_pillow(RGB, "PNG", "P", transparency=3), np.asarray(PillowImage.fromarray(RGB).convert("P").convert("RGB"))),
    "pillow png rgb": case(lambda: by_pillow(RGB, "PNG"), RGB),
    "pillow png rgba": case(lambda: by_pillow(RGBA, "PNG"), RGB),
    "pillow png turned by exif": case(lambda: by_pillow(RGB, "PNG", exif=exif(8)), RGB),
    "pillow png animated": case(lambda: by_pillow(RGB, "PNG", **FRAMES), "ambiguous_axes"),
    "pillow png animated, frame 1": case(lambda: by_pillow(RGB, "PNG", **FRAMES), RGB[::-1], page=1),
    "pillow png animated, 16-bit": case(lambda: by_pillow(GREY16, "PNG", save_all=True, append_images=[PillowImage.fromarray(GREY16[::-1].copy())]), "undecodable_image", page=1),
    "imagecodecs png animated, 16-bit": case(lambda: bytes(imagecodecs.apng_encode(np.stack([GREY16, GREY16[::-1]]))), "undecodable_image", page="all"),
    "imagecodecs png animated, rgb 16-bit": case(lambda: bytes(imagecodecs.apng_encode(np.stack([RGB16, RGB16[::-1]]))), "undecodable_image", page=0),
    "imagecodecs png animated, rgb": case(lambda: bytes(imagecodecs.apng_encode(np.stack([RGB, RGB[::-1]]))), np.stack([RGB, RGB[::-1]]), page="all"),
    "opencv png grey": case(lambda: by_cv2(".png", GREY), GREY),
    "opencv png grey 16-bit": case(lambda: by_cv2(".png", GREY16), GREY16),
    "opencv png 1-bit": case(lambda: by_cv2(".png", BITS * np.uint8(255), cv2.IMWRITE_PNG_BILEVEL, 1), BITS * np.uint8(255)),
    "opencv png rgb 16-bit": case(lambda: by_cv2(".png", RGB16), RGB16),
    "opencv png rgba": case(lambda: by_cv2(".png", RGBA), RGB),
    "opencv png rgba 16-bit, green": case(lambda: by_cv2(".png", np.dstack([RGB16, GREY16])), RGB16[..., 1], channel="green"),
    "imageio png": case(lambda: iio.imwrite("<bytes>", RGB, extension=".png"), RGB),
    "imageio png 16-bit": case(lambda: iio.imwrite("<bytes>", GREY16, extension=".png"), GREY16),
    "imagecodecs png grey 16-bit with alpha, its channel": case(lambda: bytes(imagecodecs.png_encode(np.dstack([GREY16, GREY16[::-1]]))), GREY16, channel=0, axes="YX"),
    "imagecodecs png grey 16-bit with alpha, red": case(lambda: bytes(imagecodecs.png_encode(np.dstack([GREY16, GREY16]))), "unsupported_image", channel="red"),
    "imagecodecs png grey 16-bit with alpha": case(lambda: bytes(imagecodecs.png_encode(np.dstack([GREY16, GREY16]))), GREY16),
    "matplotlib png": case(by_matplotlib, np.dstack([GREY] * 3), close=True),
    # JPEG
    "pillow jpeg grey": case(lambda: by_pillow(GREY, "JPEG", quality=95), GREY, close=True),
    "pillow jpeg rgb": case(lambda: by_pillow(RGB, "JPEG", quality=95), RGB, close=True),
    "pillow jpeg progressive": case(lambda: by_pillow(RGB, "JPEG", quality=95, progressive=True), RGB, close=True),
    "pillow jpeg cmyk": case(lambda: by_pillow(RGB, "JPEG", "CMYK", quality=95), RGB, close=True),
    "pillow jpeg turned by exif": case(lambda: by_pillow(RGB, "JPEG", quality=95, exif=exif(6)), RGB, close=True),
    "pillow mpo": case(lambda: by_pillow(RGB, "MPO", quality=95, save_all=True, append_images=[PillowImage.fromarray(RGB[:8, :8].copy())]), RGB, close=True),
    "opencv jpeg": case(lambda: by_cv2(".jpg", RGB), RGB, close=True),
    "imageio jpeg": case(lambda: iio.imwrite("<bytes>", RGB, extension=".jpg", quality=95), RGB, close=True),
    # WebP
    "pillow webp lossless": case(lambda: by_pillow(RGB, "WEBP", lossless=True), RGB),
    "pillow webp with alpha": case(lambda: by_pillow(RGBA, "WEBP", lossless=True, exact=True), RGB),
    "pillow webp lossy": case(lambda: by_pillow(RGB, "WEBP", quality=95), RGB, close=True),
    "pillow webp animated": case(lambda: by_pillow(RGB, "WEBP", **FRAMES), "ambiguous_axes"),
    "opencv webp": case(lambda: by_cv2(".webp", RGB, cv2.IMWRITE_WEBP_QUALITY, 101), RGB),
    "imagecodecs webp": case(lambda: bytes(imagecodecs.webp_encode(RGB, lossless=True)), RGB),
    # BMP
    "pillow bmp 1-bit": case(lambda: by_pillow(BITS, "BMP"), BITS * np.uint8(255)),
    "pillow bmp palette": case(lambda: by_pillow(RGB, "BMP", "P"), np.asarray(PillowImage.fromarray(RGB).convert("P").convert("RGB"))),
    "pillow bmp rgba": case(lambda: by_pillow(RGBA, "BMP"), RGB),
    "opencv bmp": case(lambda: by_cv2(".bmp", RGB), RGB),
    "imageio bmp": case(lambda: iio.imwrite("<bytes>", GREY, extension=".bmp"), GREY),
    # TIFF, one plane
    "pillow tiff": case(lambda: by_pillow(GREY, "TIFF"), GREY),
    "pillow tiff 16-bit": case(lambda: by_pillow(GREY16, "TIFF"), GREY16),
    "pillow tiff float": case(lambda: by_pillow(FLOAT, "TIFF"), FLOAT),
    "pillow tiff lzw": case(lambda: by_pillow(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "pillow tiff deflate": case(lambda: by_pillow(RGB, "TIFF", compression="tiff_adobe_deflate"), RGB),
    "pillow tiff packbits": case(lambda: by_pillow(GREY, "TIFF", compression="packbits"), GREY),
    "pillow tiff zstd": case(lambda: by_pillow(GREY, "TIFF", compression="zstd"), GREY),
    "pillow tiff fax group 4": case(lambda: by_pillow(BITS, "TIFF", compression="group4"), BITS),
    "pillow tiff jpeg": case(lambda: by_pillow(RGB, "TIFF", compression="jpeg", quality=95), RGB, close=True),
    "pillow tiff palette": case(lambda: by_pillow(RGB, "TIFF", "P"), np.asarray(PillowImage.fromarray(RGB).convert("P").convert("RGB")).astype(np.uint16) * 257, close=True),
    "pillow tiff rgba": case(lambda: by_pillow(RGBA, "TIFF"), RGBA),
    "pillow tiff turned by exif": case(lambda: by_pillow(RGB, "TIFF", exif=exif(3)), RGB),
    "pillow tiff cmyk": case(lambda: by_pillow(RGB, "TIFF", "CMYK"), "undecodable_image"),
    "pillow tiff lab": case(lambda: by_pillow(RGB, "TIFF", "LAB"), "undecodable_image"),
    "opencv tiff float64": case(lambda: by_cv2(".tiff", FLOAT.astype(np.float64)), FLOAT.astype(np.float64)),
    "opencv tiff rgb 16-bit": case(lambda: by_cv2(".tiff", RGB16), RGB16),
    "imageio tiff": case(lambda: iio.imwrite("<bytes>", GREY16, extension=".tiff"), GREY16),
    "tifffile int16": tiff(SIGNED, SIGNED),
    "tifffile int32": tiff(SIGNED.astype(np.int32), SIGNED.astype(np.int32)),
    "tifffile uint32": tiff(GREY16.astype(np.uint32) * 9, GREY16.astype(np.uint32) * 9),
    "tifffile float16": tiff(FLOAT.astype(np.float16), FLOAT.astype(np.float16)),
    "tifffile big-endian": tiff(GREY16, GREY16, byteorder=">"),
    "tifffile bigtiff": tiff(GREY16, GREY16, bigtiff=True),
    "tifffile tiles": tiff(RGB16, RGB16, photometric="rgb", tile=(16, 16)),
    "tifffile colours in separate planes": tiff(RGB, np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"),
    "tifffile white is lowest": tiff(255 - GREY, GREY, photometric="miniswhite"),
    "tifffile lzw, differences": tiff(GREY16, GREY16, compression="lzw", predictor=2),
    "tifffile deflate, differences of floats": tiff(FLOAT, FLOAT, compression="zlib", predictor=3),
    "tifffile lzma": tiff(GREY16, GREY16, compression="lzma"),
    "tifffile zstd": tiff(GREY16, GREY16, compression="zstd"),
    "tifffile jpeg 2000": tiff(GREY16, GREY16, compression="jpeg2000"),
    "tifffile webp": tiff(RGB, RGB, photometric="rgb", compression="webp", compressionargs={"lossless": True}),
    "tifffile jpeg tiles": tiff(RGB, RGB, photometric="rgb", compression="jpeg", tile=(16, 16), close=True),
    "tifffile jpeg xl": tiff("undecodable_image", GREY, compression="jpegxl"),
    "tifffile lerc": tiff("undecodable_image", GREY, compression="lerc"),
    "tifffile complex": tiff("unsupported_image", GREY.astype(np.complex64)),
    "tifffile rgb and a sample that is called nothing": tiff(RGBA, RGBA, photometric="rgb", extrasamples=["unspecified"]),
    "tifffile rgb and a sample, taken as a channel": tiff(
        RGBA[..., 3], RGBA, photometric="rgb", extrasamples=["unspecified"], query={"axes": "YXC", "channel": "3"}
    ),
    "tifffile alpha between the channels": tiff(
        MANY[..., 4], MANY, photometric="minisblack", planarconfig="contig", query={"channel": "3"},
        extrasamples=["assocalpha", "unspecified", "unspecified", "unspecified"],
    ),
    "tifffile planes, more axes said than there are": tiff(
        "ambiguous_axes", ZYX, photometric="minisblack", metadata=None, query={"axes": "CZYX", "channel": "0"}
    ),
    "tifffile six samples called rgb": tiff("ambiguous_axes", np.dstack([RGB, RGB]), photometric="rgb", planarconfig="contig"),
    # TIFF, stacks
    "pillow tiff of two pages": case(lambda: by_pillow(GREY, "TIFF", **TWO_PAGES), "ambiguous_axes"),
    "pillow tiff of two pages, page 1": case(lambda: by_pillow(GREY, "TIFF", **TWO_PAGES), GREY[::-1], page=1),
    "pillow tiff of two pages, page 2": case(lambda: by_pillow(GREY, "TIFF", **TWO_PAGES), "unsupported_image", page=2),
    "pillow tiff of two pages, all": case(lambda: by_pillow(GREY, "TIFF", **TWO_PAGES), np.stack([GREY, GREY[::-1]]), page="all"),
    "pillow tiff of two pages as times": case(lambda: by_pillow(GREY, "TIFF", **TWO_PAGES), np.stack([GREY, GREY[::-1]]), axes="TYX"),
    "opencv tiff of two pages": case(lambda: bytes(cv2.imencodemulti(".tiff", [GREY, GREY[::-1].copy()])[1].tobytes()), GREY[::-1], page=1),
    "imageio tiff of planes": case(lambda: iio.imwrite("<bytes>", FIVE, extension=".tiff"), "ambiguous_axes"),
    "imageio tiff of planes, axes said": case(lambda: iio.imwrite("<bytes>", FIVE, extension=".tiff"), FIVE, axes="ZYX"),
    "imageio tiff of three planes, which it calls rgb": case(lambda: iio.imwrite("<bytes>", ZYX, extension=".tiff"), np.moveaxis(ZYX, 0, 2)),
    "imageio tiff of three planes, axes said": case(lambda: iio.imwrite("<bytes>", ZYX, extension=".tiff"), ZYX, axes="ZYX"),
    "tifffile planes without a word": tiff("ambiguous_axes", ZYX, metadata=None, photometric="minisblack"),
    "tifffile planes, axes in its own words": tiff(ZYX, ZYX, photometric="minisblack", metadata={"axes": "ZYX"}),
    "tifffile axes that do not fit": tiff("ambiguous_axes", ZYX, photometric="minisblack", query={"axes": "TZYX"}),
    "tifffile channels last, axes said": tiff(ZYX[1], np.moveaxis(ZYX, 0, 2), photometric="minisblack", query={"axes": "YXC", "channel": 1}),
    "tifffile rgb that is channels": tiff(RGB[..., 2], RGB, photometric="rgb", query={"axes": "YXC", "channel": 2}),
    "tifffile four planes, which it calls rgb and alpha": tiff("ambiguous_axes", FOUR, **AS_COLOUR, query={"axes": "CYX"}),
    "tifffile four planes called rgb and alpha, all": tiff(FOUR, FOUR, **AS_COLOUR, query={"axes": "CYX", "page": "all"}),
    "tifffile four planes called rgb and alpha, as depths": tiff(FOUR, FOUR, **AS_COLOUR, query={"axes": "ZYX"}),
    "tifffile four planes called rgb and alpha, the last": tiff(FOUR[3], FOUR, **AS_COLOUR, query={"axes": "CYX", "channel": 3}),
    "tifffile four planes called rgb and alpha, their mean": tiff(MEAN4, FOUR, **AS_COLOUR, query={"axes": "CYX", "channel": "mean"}),
    "tifffile four samples called rgb and alpha, all": tiff(FOUR, np.moveaxis(FOUR, 0, 2), query={"axes": "YXC", "page": "all"}),
    "tifffile four samples called rgb and alpha, the last": tiff(FOUR[3], np.moveaxis(FOUR, 0, 2), query={"axes": "YXC", "channel": 3}),
    "tifffile four samples called rgb and alpha, their mean": tiff(MEAN4, np.moveaxis(FOUR, 0, 2), query={"axes": "YXC", "channel": "mean"}),
    "tifffile grey and alpha, taken as channels": tiff(FOUR[:2], np.moveaxis(FOUR[:2], 0, 2), photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"], query={"axes": "YXC", "page": "all"}),
    "tifffile channels in a pixel": tiff("ambiguous_axes", RGB, photometric="minisblack", planarconfig="contig"),
    "tifffile channels in a pixel, one": tiff(RGB[..., 1], RGB, photometric="minisblack", planarconfig="contig", query={"channel": 1}),
    "imagej z": tiff(ZYX, ZYX, imagej=True, metadata={"axes": "ZYX"}),
    "imagej channels": tiff("ambiguous_axes", CYX, imagej=True, metadata={"axes": "CYX"}),
    "imagej channels, one": tiff(CYX[3], CYX, imagej=True, metadata={"axes": "CYX"}, query={"channel": "3"}),
    "imagej channels, their mean": tiff(np.rint(CYX.mean(axis=0)).astype(np.uint16), CYX, imagej=True, metadata={"axes": "CYX"}, query={"channel": "mean"}),
    "imagej hyperstack": tiff("ambiguous_axes", STACK, **IMAGEJ),
    "imagej hyperstack, a channel": tiff(STACK[:, :, 1], STACK, **IMAGEJ, query={"channel": 1}),
    "imagej hyperstack, a plane": tiff(STACK[1, 0, 2], STACK, **IMAGEJ, query={"channel": 2, "page": 3}),
    "imagej floats": tiff(ZYX.astype(np.float32), ZYX.astype(np.float32), imagej=True, metadata={"axes": "TYX"}),
    "imagej rgb stack": tiff(np.stack([RGB, RGB[::-1]]), np.stack([RGB, RGB[::-1]]), imagej=True, metadata={"axes": "ZYXS"}),
    "imagej grey levels shown in green": tiff(GREY, GREY, imagej=True, colormap=PALETTE),
    "imagej, channel by its label": tiff(CYX[2], CYX, imagej=True, metadata={"axes": "CYX", "Labels": ["DAPI", "GFP", "Cy3", "Cy5"]}, query={"channel": "Cy3"}),
    "ome of two positions": case(positions, "ambiguous_axes"),
    "ome of two positions, a plane of the second": case(positions, ZYX[1], page=4),
    "ome": tiff("ambiguous_axes", STACK, **OME),
    "ome, a channel": tiff(STACK[:, :, 0], STACK, **OME, query={"channel": 0}),
    "ome, channel by name": tiff(CYX[1], CYX, ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "Cy3", "Cy5"]}}, query={"channel": "GFP"}),
    "ome, channel by name, one of them nameless": tiff(CYX[1], CYX, ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "", "Cy5"]}}, query={"channel": "GFP"}),
    "ome, channel without a name": tiff(CYX[2], CYX, ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "", "Cy5"]}}, query={"channel": "2"}),
    "ome in another order": tiff(np.moveaxis(STACK, 0, 1)[:, :, 1], np.moveaxis(STACK, 0, 1), ome=True, metadata={"axes": "ZTCYX"}, query={"channel": 1}),
    "ome rgb": tiff(RGB, RGB, ome=True, photometric="rgb", metadata={"axes": "YXS"}),
    "ome times, compressed": tiff(ZYX, ZYX, ome=True, compression="zlib", tile=(16, 16), metadata={"axes": "TYX"}),
    "ome pyramid, level 1": case(lambda: pyramid(sub=True, ome=True), STACK.reshape(-1, 56)[:48:2, :48:2], level=1),
    "pyramid below its page": case(lambda: pyramid(sub=True), STACK.reshape(-1, 56)[:48, :48]),
    "pyramid below its page, level 2": case(lambda: pyramid(sub=True), STACK.reshape(-1, 56)[:48:4, :48:4], level=2),
    "pyramid of pages, level 1": case(lambda: pyramid(sub=False), STACK.reshape(-1, 56)[:48:2, :48:2], level=1),
    "pyramid of pages, level 3": case(lambda: pyramid(sub=False), "unsupported_image", level=3),
    "pillow tiff of pages that shrink": case(shrinking, "ambiguous_axes"),
    "pillow tiff of pages that shrink, the first": case(shrinking, SQUARE, page=0),
    "pillow tiff of pages that shrink, the second": case(shrinking, SQUARE[::2, ::2], page=1),
    "pillow tiff of pages that shrink, said to be a pyramid": case(shrinking, SQUARE[::4, ::4], level=2),
    "tifffile pages that shrink": case(lambda: pyramid(sub=False, flag=0), "ambiguous_axes"),
    "tifffile pages that shrink, the last": case(lambda: pyramid(sub=False, flag=0), STACK.reshape(-1, 56)[:48:4, :48:4], page=2),
    "slide scanner, its levels": case(slide, RGB[::2, ::2], level=1),
    "slide scanner": tiff(RGB, RGB, photometric="rgb", tile=(16, 16), description=APERIO, metadata=None),
    # by hand, after the descriptions of these formats
    "lsm": case(lambda: lsm(GREY[None, None], scan=0, sizes={}, voxel_um=(1, 1, 1)), GREY),
    "lsm of two channels": case(lambda: lsm(CYX[None, :2], scan=0, sizes={}, voxel_um=(1, 1, 1)), "ambiguous_axes"),
    "lsm of three channels, which it calls rgb": case(lambda: lsm(CYX[None, :3], scan=0, sizes={}, voxel_um=(1, 1, 1)), "ambiguous_axes"),
    "lsm of three channels, one": case(lambda: lsm(CYX[None, :3], scan=0, sizes={}, voxel_um=(1, 1, 1)), CYX[1], channel=1),
    "lsm of depths": case(lambda: lsm(ZYX[:, None], scan=0, sizes={"Z": 3}, voxel_um=(1, 1, 1)), ZYX),
    "lsm of times, depths and channels, one": case(lambda: lsm(STACK.reshape(6, 4, 12, 14), scan=6, sizes={"T": 2, "Z": 3}, voxel_um=(1, 1, 1)), STACK[:, :, 2], channel=2),
    "lsm of times, depths and channels, all": case(lambda: lsm(STACK.reshape(6, 4, 12, 14), scan=6, sizes={"T": 2, "Z": 3}, voxel_um=(1, 1, 1)), STACK, page="all"),
    "stk of depths": case(lambda: stk(ZYX, z_um=0.5), ZYX),
    "stk of times, one": case(lambda: stk(ZYX, interval_ms=20), ZYX[2], page=2),
    "stk without a word": case(lambda: stk(ZYX), "ambiguous_axes"),
    "tiff 1-bit palette": case(lambda: packed(BITS.astype(np.uint8), 1, photometric=3, palette=np.array([[9, 8], [7, 6], [5, 4]])), np.array([[9, 7, 5], [8, 6, 4]], np.uint16)[BITS.astype(int)]),
    "tiff 2-bit": case(lambda: packed(GREY >> 6, 2), (GREY >> 6) * np.uint8(85)),
    "tiff 4-bit, white is lowest": case(lambda: packed(GREY >> 4, 4, photometric=0), (15 - (GREY >> 4)) * np.uint8(17)),
    "tiff 12-bit": case(lambda: packed(GREY16 >> 4, 12), GREY16 >> 4),
    "tiff 12-bit, big-endian": case(lambda: packed(GREY16 >> 4, 12, order=">"), GREY16 >> 4),
    "tiff 24-bit, big-endian": case(lambda: packed(GREY16.astype(np.uint32), 24, order=">"), "undecodable_image"),
    "tifffile jpeg of 12 bits": tiff("undecodable_image", GREY16 >> 4, compression="jpeg", bitspersample=12, tile=(16, 16)),
    # NumPy
    "numpy uint8": case(lambda: by_numpy(GREY), GREY),
    "numpy bool": case(lambda: by_numpy(BITS), BITS),
    "numpy float64, version 2": case(lambda: by_numpy(FLOAT.astype(np.float64), (2, 0)), FLOAT.astype(np.float64)),
    "numpy big-endian": case(lambda: by_numpy(SIGNED.astype(">i2")), SIGNED),
    "numpy fortran order": case(lambda: by_numpy(np.asfortranarray(GREY16)), GREY16),
    "numpy planes": case(lambda: by_numpy(ZYX), "ambiguous_axes"),
    "numpy planes, axes said": case(lambda: by_numpy(ZYX), ZYX, axes="ZYX"),
    "numpy colours": case(lambda: by_numpy(RGB), "ambiguous_axes"),
    "numpy colours, axes said": case(lambda: by_numpy(RGB), RGB, axes="YXS"),
    "numpy channels last": case(lambda: by_numpy(np.moveaxis(CYX, 0, 2)), CYX[2], axes="YXC", channel=2),
    "numpy pickle": case(lambda: by_numpy(np.array([[None, {}]], dtype=object)), "undecodable_image"),
    "numpy complex": case(lambda: by_numpy(GREY.astype(np.complex128)), "unsupported_image"),
    # written by programs, of the pictures that tests/data/formats/make.sh draws
    "imagemagick png interlaced": case(file("imagemagick-interlaced.png"), RGB),
    "imagemagick png interlaced 16-bit": case(file("imagemagick-interlaced-16.png"), DRAWN),
    "imagemagick png 4-bit": case(file("imagemagick-4-bit.png"), GREY // 17 * np.uint8(17)),
    "imagemagick bmp run-length": case(file("imagemagick-rle.bmp"), np.dstack([GREY] * 3)),
    "imagemagick tiff zip": case(file("imagemagick-zip.tif"), DRAWN),
    "imagemagick tiff fax": case(file("imagemagick-fax.tif"), GREY > 60),
    "imagemagick tiff of two pages": case(file("imagemagick-two-pages.tif"), "ambiguous_axes"),
    "imagemagick tiff of two pages, all": case(file("imagemagick-two-pages.tif"), np.stack([DRAWN, DRAWN[::-1]]), page="all"),
    "imagemagick tiff cmyk": case(file("imagemagick-cmyk.tif"), "undecodable_image"),
    "graphicsmagick tiff lzw": case(file("graphicsmagick-lzw.tif"), RGB),
    "libtiff tiles, lzw, differences": case(file("libtiff-tiles.tif"), DRAWN),
    "libtiff bigtiff, big-endian": case(file("libtiff-big.tif"), DRAWN),
    "libtiff colours in separate planes": case(file("libtiff-separate.tif"), RGB),
    "libtiff fax group 3": case(file("libtiff-g3.tif"), GREY > 60),
    "vips tiff": case(file("vips.tif"), DRAWN),
    "vips pyramid of pages": case(file("vips-pyramid.tif"), DRAWN),
    "vips pyramid of pages, level 1": case(file("vips-pyramid.tif"), DRAWN[::2, ::2], level=1),
    "vips pyramid below its page, level 1": case(file("vips-pyramid-below.tif"), DRAWN[::2, ::2], level=1),
    "vips png interlaced": case(file("vips.png"), RGB),
    "simpleitk png": case(file("simpleitk.png"), DRAWN),
    "simpleitk float": case(file("simpleitk-float.tif"), DRAWN.astype(np.float32)),
    "simpleitk volume": case(file("simpleitk-volume.tif"), "ambiguous_axes"),
    "simpleitk volume, axes said": case(file("simpleitk-volume.tif"), DRAWN3, axes="ZYX"),
    "gdal bands beside each other": case(file("gdal-pixel.tif"), "ambiguous_axes"),
    "gdal bands beside each other, one": case(file("gdal-pixel.tif"), DRAWN3[1], channel=1),
    "gdal bands after each other, their mean": case(file("gdal-band.tif"), np.rint(DRAWN3.mean(axis=0)).astype(np.uint16), channel="mean"),
    "gdal with an overview": case(file("gdal-overview.tif"), DRAWN.astype(np.int16)),
    "gdal with an overview, level 1": case(file("gdal-overview.tif"), DRAWN[::2, ::2].astype(np.int16), level=1),
    # none that is read
    "pillow gif": case(lambda: by_pillow(GREY, "GIF"), "undecodable_image"),
    "imagecodecs jpeg 2000": case(lambda: bytes(imagecodecs.jpeg2k_encode(GREY)), "undecodable_image"),
    "opencv pgm": case(lambda: by_cv2(".pgm", GREY), "undecodable_image"),
    "opencv hdr": case(lambda: by_cv2(".hdr", np.dstack([FLOAT] * 3)), "undecodable_image"),
    "imagecodecs jpeg xl": case(lambda: bytes(imagecodecs.jpegxl_encode(RGB)), "undecodable_image"),
    "imagecodecs qoi": case(lambda: bytes(imagecodecs.qoi_encode(RGB)), "undecodable_image"),
}  # fmt: skip


def check(given: Case, data: bytes) -> None:
    if isinstance(given.expected, str):
        with pytest.raises(ImageError) as caught, open_image(data, Selection(**given.query), several=True) as source:
            source.read()
        assert find_answer(caught.value).code == given.expected
        return
    with open_image(data, Selection(**given.query), several=True) as source:
        planes = [source.read(plane) for plane in range(source.n_planes)]
    found = planes[0] if len(planes) == 1 else np.stack(planes)
    expected = given.expected if len(planes) == 1 else given.expected.reshape(found.shape)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if given.close:
        top = 1 if found.dtype == np.uint8 else 257
        assert np.abs(found.astype(int) - expected).mean() < 4 * top
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", CASES)
def test_a_file_of_another_library_is_read_to_the_pixel_or_refused_with_its_code(kind: str) -> None:
    check(CASES[kind], CASES[kind].data())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_no_orientation_moves_a_pixel(kind: str, orientation: int) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    plain = decode_image(by_pillow(RGB, kind, **options)).pixels
    turned = decode_image(by_pillow(RGB, kind, exif=exif(orientation), **options)).pixels
    np.testing.assert_array_equal(turned, plain)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"ZISRAWFILE", "CZI; save it as TIFF"),
        (b"\xda\xce\xbe\x0a", "ND2; save it as TIFF"),
        (b"GIF89a", "GIF"),
        (b"%PDF-1.7", "PDF"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"hello, world", "not an image of a kind that is read"),
    ],
)
def test_a_file_that_is_not_read_is_called_by_its_name(start: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=f"{words}.*PNG, JPEG, WEBP, BMP, TIFF and NPY are read"):
        open_image(start + bytes(200))


@pytest.mark.parametrize(
    ("suffix", "pixels"), [(".tif", GREY16), (".tif", FLOAT), (".png", GREY16), (".bmp", RGB), (".tif", RGB)]
)
def test_scikit_images_files_are_read_to_the_pixel(tmp_path: Path, suffix: str, pixels: Pixels) -> None:
    found = decode_image(by_skimage(tmp_path, suffix, pixels)).pixels
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)


def imagej(unit: str, resolution: tuple[float, float] = (4, 2), **about: Any) -> bytes:
    return by_tifffile(GREY, imagej=True, resolution=resolution, metadata={"axes": "YX", "unit": unit, **about})


def ome(**about: Any) -> bytes:
    return by_tifffile(GREY, ome=True, metadata={"axes": "YX", **about})


def tagged(pixels_a_unit: float, unit: str) -> bytes:
    return by_tifffile(GREY, resolution=(pixels_a_unit, pixels_a_unit), resolutionunit=unit, metadata=None)


SIZES: dict[str, tuple[Callable[[], bytes], PixelSize | None]] = {
    "ome, micrometres where no unit is said": (lambda: ome(PhysicalSizeX=0.25, PhysicalSizeY=0.5), PixelSize(0.25, 0.5)),
    "ome, nanometres": (lambda: ome(PhysicalSizeX=65, PhysicalSizeXUnit="nm", PhysicalSizeY=65, PhysicalSizeYUnit="nm"), PixelSize(0.065, 0.065)),
    "ome, depth and time": (lambda: by_tifffile(ZYX, ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeZ": 3, "TimeIncrement": 2}), PixelSize(1, 1, 3, 2)),
    "ome, units of the stage": (lambda: ome(PhysicalSizeX=1, PhysicalSizeXUnit="reference frame", PhysicalSizeY=1, PhysicalSizeYUnit="pixel"), None),
    "ome, one side alone": (lambda: ome(PhysicalSizeX=1), None),
    "imagej, micron": (lambda: imagej("micron"), PixelSize(0.25, 0.5)),
    "imagej, um": (lambda: imagej("um"), PixelSize(0.25, 0.5)),
    "imagej, its way to write µm": (lambda: imagej("\\u00B5m"), PixelSize(0.25, 0.5)),
    "imagej, mm": (lambda: imagej("mm", (4000, 2000)), PixelSize(0.25, 0.5)),
    "imagej, inch": (lambda: imagej("inch", (25400, 25400)), PixelSize(1, 1)),
    "imagej, pixels": (lambda: imagej("pixel"), None),
    "imagej, depth and time": (lambda: by_tifffile(ZYX, imagej=True, resolution=(4, 4), metadata={"axes": "ZYX", "unit": "um", "spacing": 2.5, "finterval": 30.0}), PixelSize(0.25, 0.25, 2.5, 30)),
    "imagej, height in another unit": (lambda: by_tifffile(GREY, resolution=(4, 4000), description=CALIBRATED, metadata=None), PixelSize(0.25, 0.25)),
    "lsm, metres": (lambda: lsm(ZYX[:, None], scan=0, sizes={"Z": 3}, voxel_um=(0.1, 0.2, 0.5)), PixelSize(0.1, 0.2, 0.5)),
    "stk, calibrated": (lambda: stk(ZYX, z_um=1, pixel_um=0.16), PixelSize(0.16, 0.16)),
    "stk, not calibrated": (lambda: stk(ZYX, z_um=1), None),
    "tags, 20,000 a centimetre": (lambda: tagged(20_000, "centimeter"), PixelSize(0.5, 0.5)),
    "tags, 25,400 an inch": (lambda: tagged(25_400, "inch"), PixelSize(1, 1)),
    "tags, 300 dots an inch are no length": (lambda: tagged(300, "inch"), None),
    "tags, 28 dots a centimetre are no length": (lambda: tagged(28, "centimeter"), None),
    "tags without a unit": (lambda: tagged(20_000, "none"), None),
    "pillow's 72 dots an inch": (lambda: by_pillow(GREY, "TIFF", dpi=(72, 72)), None),
    "slide scanner": (lambda: by_tifffile(RGB, photometric="rgb", tile=(16, 16), description=APERIO, metadata=None), PixelSize(0.499, 0.499)),
    "vips, pixels a centimetre": (file("vips.tif"), PixelSize(0.5, 0.5)),
    "gdal, without a word": (file("gdal-overview.tif"), None),
    "png": (lambda: by_pillow(GREY, "PNG", dpi=(25400, 25400)), None),
    "numpy": (lambda: by_numpy(GREY), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
def test_the_pixel_size_is_the_files_where_it_is_a_real_length(kind: str) -> None:
    write, expected = SIZES[kind]
    with open_image(write(), several=True) as source:
        found = source.pixel_size
    if expected is None or found is None:
        assert found is expected
        return
    assert (found.x_um, found.y_um) == pytest.approx((expected.x_um, expected.y_um), rel=1e-6)
    assert (found.z_um, found.frame_s) == pytest.approx((expected.z_um, expected.frame_s))
