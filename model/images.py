"""Bytes to pixels and back: PNG, JPEG, WebP, BMP and TIFF, within limits that are checked before decoding."""

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as PillowImage
from PIL import PngImagePlugin, UnidentifiedImageError

from model.errors import AmbiguousAxesError, ImageError, ImageTooLargeError, UndecodableImageError
from model.types import Image, Labels, Mask, Probability

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # read by Pillow; TIFF by tifffile
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DEFAULT_MAX_PIXELS = 8192 * 8192
# zlib's level 1: masks and labels are long runs, where higher levels cost several times as much for a few per cent
PNG_LEVEL = 1

MAX_TIFF_PAGES = 10_000
MAX_BYTES_A_PIXEL = 8  # RGBA of 16 bits, which the largest image allowed may have
_JPEG: tuple[int, ...] = (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG)
_PICTURES_IN_TIFF: tuple[int, ...] = (
    *_JPEG,
    tifffile.COMPRESSION.WEBP,
    tifffile.COMPRESSION.JPEG2000,
    tifffile.COMPRESSION.APERIO_JP2000_RGB,
)
# Those whose memory is bounded by the size of the tile, or can be checked (_check_segments).
TIFF_COMPRESSIONS: tuple[int, ...] = (
    *_PICTURES_IN_TIFF,
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.PACKBITS,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
    tifffile.COMPRESSION.LZMA,
    tifffile.COMPRESSION.ZSTD,
    tifffile.COMPRESSION.CCITTRLE,
    tifffile.COMPRESSION.CCITT_T4,
    tifffile.COMPRESSION.CCITT_T6,
)
_TIFF_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # others: 1

PillowImage.MAX_IMAGE_PIXELS = None  # the limit below is ours, and applies to every format alike


@dataclass(frozen=True)
class DecodedImage:
    """An image as stored in its file.

    Attributes:
        pixels: (H, W) or (H, W, 3 or 4); bool, integer or float. The EXIF orientation is not applied: masks lie on the
            stored pixel grid.
        format: `PNG`, `JPEG`, `WEBP`, `BMP` or `TIFF`.
        n_pages: planes in the file.
    """

    pixels: Image
    format: str
    n_pages: int = 1


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of a file say of its picture: height and width of one plane in pixels, and its format."""

    height: int
    width: int
    format: str


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, page: int | None = None) -> DecodedImage:
    """Decode one picture.

    Args:
        data: the file's bytes. 8 and 16 bits, float, 1-bit; grey, RGB, RGBA, palette. Alpha is kept as a fourth
            channel of 16-bit PNG and TIFF images in colour and dropped elsewhere; nothing looks at it. A TIFF where
            black is the highest value comes inverted, so that higher is brighter in every image.
        max_pixels: height times width above which the image is refused, from its header, without decoding.
        page: which plane of a file that holds several, from 0; None is fine where there is one. Frames of an
            animation, pages and planes of a TIFF, and channels of a pixel that are not said to be colours, all count.

    Raises:
        UndecodableImageError: not a format that is read, cut short or damaged.
        ImageTooLargeError: more pixels than `max_pixels`.
        AmbiguousAxesError: several planes and no `page`.
        ImageError: `page` is not in the file or is missing from it, or its pixels are complex numbers.
    """
    with _decoder_errors(data):
        if data[:4] in TIFF_MAGIC:
            return _decode_tiff(data, max_pixels, page)
        return _decode_picture(data, max_pixels, page)


def inspect_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader:
    """Read the size of a picture from its header, without decoding; arguments and errors as in decode_image."""
    with _decoder_errors(data):
        if data[:4] in TIFF_MAGIC:
            with _open_tiff(data) as tiff:
                first = _main_series(tiff, max_pixels)[0].keyframe
                return ImageHeader(height=first.imagelength, width=first.imagewidth, format="TIFF")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = _open_picture(data, max_pixels)
            return ImageHeader(height=picture.height, width=picture.width, format=_pillow_format(picture))


def read_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS, page: int | None = None) -> Image:
    """The pixels of a file; errors as in decode_image, with the file's name in front."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UndecodableImageError(f"{path}: {error.strerror or error}") from error
    try:
        return decode_image(data, max_pixels=max_pixels, page=page).pixels
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from error


def encode_mask(mask: Mask, text: Mapping[str, str] | None = None) -> bytes:
    """8-bit grey PNG, 0 and 255 only, of an (H, W) mask; `text` goes into its text chunks."""
    return encode_png(mask.astype(np.uint8) * np.uint8(255), text)


def encode_probability(probability: Probability, text: Mapping[str, str] | None = None) -> bytes:
    """16-bit grey PNG of an (H, W) probability: 0 is 0, 65535 is 1."""
    return encode_png(np.rint(probability * np.float32(65535)).astype(np.uint16), text)


def encode_labels(labels: Labels, text: Mapping[str, str] | None = None) -> tuple[bytes, str]:
    """16-bit grey PNG of an (H, W) label image, or a 32-bit TIFF where it has more than 65,535 cells.

    Returns:
        The bytes and their media type.
    """
    if int(labels.max(initial=0)) <= np.iinfo(np.uint16).max:
        return encode_png(labels.astype(np.uint16), text), "image/png"
    buffer = io.BytesIO()
    # as bytes: tifffile wants ASCII in a str
    description = "\n".join(f"{key}={value}" for key, value in (text or {}).items()).encode()
    tifffile.imwrite(buffer, labels.astype(np.uint32), compression="zlib", description=description, metadata=None)
    return buffer.getvalue(), "image/tiff"


def encode_png(pixels: npt.NDArray[Any], text: Mapping[str, str] | None = None) -> bytes:
    """PNG of (H, W) uint8 or uint16, or (H, W, 3) uint8 pixels."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, format="PNG", compress_level=PNG_LEVEL, pnginfo=info)
    return buffer.getvalue()


def to_display(image: Image) -> npt.NDArray[np.uint8]:
    """The image in 8 bits, stretched from its 1st to its 99.8th percentile.

    Args:
        image: as decoded, (H, W) or (H, W, C).

    Returns:
        (H, W, 3) uint8, RGB.
    """
    from model.preprocess import preprocess  # here, so that plain decoding does not load it

    colour = image.ndim == 3 and image.shape[2] >= 3
    planes = preprocess(image, n_channels=3 if colour else 1, normalisation="percentile")
    grey = np.clip(planes * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(grey, (3, *grey.shape[1:])).transpose(1, 2, 0))


def draw_overlay(image: Image, labels: Labels) -> npt.NDArray[np.uint8]:
    """The image as in to_display, with the outline of each cell in yellow.

    Args:
        image: as decoded.
        labels: (H, W), 0 = background.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    picture = to_display(image)
    # the inner outline: pixels of a cell with a neighbour that is not of it; beyond the edge counts as the same cell
    edge = np.zeros(labels.shape, dtype=np.bool_)
    for axis in (0, 1):
        near = np.diff(labels, axis=axis) != 0
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= near
        edge[tuple(after)] |= near
    picture[edge & (labels > 0)] = (255, 220, 0)
    return picture


@contextmanager
def _decoder_errors(data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError."""
    if not data:
        raise UndecodableImageError("the file is empty (0 bytes)")
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError("the image does not fit into memory") from error
    except Exception as error:  # decoders raise whatever their depths raise; the sender sees one kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UndecodableImageError(f"the image is damaged or cut short: {reason}") from error


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageTooLargeError(f"{width} x {height} px = {height * width:,} pixels; at most {max_pixels:,}")


def _choose_page(n_pages: int, page: int | None, found: str) -> int:
    if page is None:
        if n_pages > 1:
            raise AmbiguousAxesError(
                f"{found}: {n_pages} planes; say which one is meant by page=0 to page={n_pages - 1}"
            )
        return 0
    if not 0 <= page < n_pages:
        raise ImageError(f"page {page}; the file has pages 0 to {n_pages - 1}")
    return page


def _open_picture(data: bytes, max_pixels: int) -> PillowImage.Image:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_size(*_webp_size(data), max_pixels)  # Pillow sets memory aside for two canvases as it opens one
    try:
        picture = PillowImage.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UndecodableImageError(
            f"not an image of a kind that is read ({', '.join(FORMATS)}, TIFF), or its header is damaged: "
            f"it starts with {data[:8]!r}"
        ) from error
    _check_size(picture.height, picture.width, max_pixels)
    return picture


def _webp_size(data: bytes) -> tuple[int, int]:
    """Height and width in the first chunk of a WebP file, of whichever of its three kinds; 0, 0 for another."""

    def number(start: int, n_bytes: int) -> int:
        return int.from_bytes(data[start : start + n_bytes], "little")

    kind = data[12:16]
    if kind == b"VP8X":
        return number(27, 3) + 1, number(24, 3) + 1
    if kind == b"VP8L":
        return (number(21, 4) >> 14 & 0x3FFF) + 1, (number(21, 4) & 0x3FFF) + 1
    if kind == b"VP8 ":
        return number(28, 2) & 0x3FFF, number(26, 2) & 0x3FFF
    return 0, 0


def _pillow_format(picture: PillowImage.Image) -> str:
    # MPO is a JPEG of a camera or telephone with a preview of itself behind it
    return "JPEG" if picture.format == "MPO" else picture.format or ""


def _decode_picture(data: bytes, max_pixels: int, page: int | None) -> DecodedImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that nothing here uses
        picture = _open_picture(data, max_pixels)
        kind = _pillow_format(picture)
        n_pages = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)
        index = _choose_page(n_pages, page, f"animated {kind}")
        if kind == "PNG" and n_pages == 1 and _is_16_bit_png(data):  # Pillow would cut colour to 8 bits
            pixels = np.asarray(imagecodecs.png_decode(data))
            if pixels.ndim == 3 and pixels.shape[2] in (1, 2):  # grey, or grey and alpha
                pixels = pixels[:, :, 0]
            if pixels.shape[:2] != (picture.height, picture.width):
                raise UndecodableImageError("the PNG has two headers that contradict each other")
            return DecodedImage(np.ascontiguousarray(pixels), kind)
        picture.seek(index)
        mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
        return DecodedImage(np.asarray(picture.convert(mode)), kind, n_pages)


def _is_16_bit_png(data: bytes) -> bool:
    """Whether the first chunk says so: after the signature length, IHDR, width, height, bit depth."""
    return len(data) > 24 and data[12:16] == b"IHDR" and data[24] == 16


@dataclass(frozen=True)
class _Plane:
    """One plane of a TIFF: which series, which plane in it, and of several channels in that plane which."""

    series: tifffile.TiffPageSeries
    index: int
    n_in_series: int
    sample: int | None


def _decode_tiff(data: bytes, max_pixels: int, page: int | None) -> DecodedImage:
    with _open_tiff(data) as tiff:
        all_series = _main_series(tiff, max_pixels)
        planes = [plane for series in all_series for plane in _planes(series)]
        if len(all_series) == 1:
            found = f"TIFF with axes {all_series[0].axes} of shape {all_series[0].shape}"
        else:
            found = f"TIFF with {len(all_series)} images"
        chosen = planes[_choose_page(len(planes), page, found)]
        return DecodedImage(_read_plane(chosen, len(data), max_pixels), "TIFF", len(planes))


def _open_tiff(data: bytes) -> tifffile.TiffFile:
    _check_tiff_directories(data)
    # Of the formats that spread an image over several files only what is in this one is read: a path that an upload
    # names is not to be opened.
    return tifffile.TiffFile(io.BytesIO(data), _multifile=False, is_mmstack=False, is_ndtiff=False)


def _main_series(tiff: tifffile.TiffFile, max_pixels: int) -> list[tifffile.TiffPageSeries]:
    """The images in the file but for thumbnails and masks of transparency; each within the limit."""
    if tiff.is_ome:
        try:
            elements = list(ElementTree.fromstring(tiff.pages.first.description).iter())
        except ElementTree.ParseError:
            tiff.is_ome = False  # the pages speak for themselves
            elements = []
        sizes = [[int(e.get(f"Size{axis}", 1)) for axis in "CZT"] for e in elements if e.tag.endswith("Pixels")]
        if sum(map(math.prod, sizes)) > MAX_TIFF_PAGES:
            raise ImageTooLargeError(f"a TIFF of more than {MAX_TIFF_PAGES:,} planes, as its OME-XML says")
    main = [series for series in tiff.series if not series.keyframe.subfiletype & 0b101]
    if not main:
        raise UndecodableImageError("the TIFF holds no image")
    for series in main:
        first = series.keyframe
        height, width, samples = first.imagelength, first.imagewidth, first.samplesperpixel
        _check_size(height, width, max_pixels)
        if first.is_tiled:  # each is unpacked whole, however little of it lies in the image
            _check_size(first.tilelength, first.tilewidth, max_pixels)
        if height * width * samples == 0 or first.dtype is None:
            raise UndecodableImageError("the TIFF holds no pixels")
        # thousands of samples make few pixels many bytes
        n_bytes = height * width * samples * np.dtype(first.dtype).itemsize
        if n_bytes > max_pixels * MAX_BYTES_A_PIXEL:
            raise ImageTooLargeError(f"{n_bytes:,} bytes once decoded; at most {max_pixels * MAX_BYTES_A_PIXEL:,}")
    if (
        sum(series.size // (series.keyframe.imagelength * series.keyframe.imagewidth) for series in main)
        > MAX_TIFF_PAGES
    ):
        raise ImageTooLargeError(f"a TIFF of more than {MAX_TIFF_PAGES:,} planes")
    return main


def _planes(series: tifffile.TiffPageSeries) -> list[_Plane]:
    first = series.keyframe
    height, width, samples = first.imagelength, first.imagewidth, first.samplesperpixel
    if np.dtype(first.dtype).kind == "c":
        raise ImageError("pixels are complex numbers; allowed are bool, integers and floats")
    if first.imagedepth > 1:
        raise AmbiguousAxesError(f"a TIFF volume {first.imagedepth} px deep in one page; one page a plane is needed")
    if first.compression not in TIFF_COMPRESSIONS:
        raise UndecodableImageError(f"TIFF compression {_name(first.compression)} is not read")
    colour, kind = tifffile.PHOTOMETRIC, first.photometric
    # JPEG's own colours are RGB once decoded
    is_colour = kind == colour.RGB or (kind == colour.YCBCR and first.compression in _JPEG)
    if not is_colour and kind not in (colour.MINISBLACK, colour.MINISWHITE, colour.PALETTE, colour.MASK):
        raise UndecodableImageError(f"TIFF colours {_name(kind)} are not read; grey, RGB and palette are")
    if is_colour and samples not in (3, 4):
        raise AmbiguousAxesError(f"{samples} samples a pixel, called RGB; allowed are 3 (RGB) and 4 (RGBA)")
    n_in_series = series.size // (height * width * samples)
    n_alpha = sum(int(extra) in (1, 2) for extra in first.extrasamples)
    # samples beside each other that are neither colours nor alpha are channels, each a plane of its own
    n_channels = 1 if is_colour else max(samples - n_alpha, 1)
    channels: list[int | None] = [None] if is_colour else list(range(n_channels))
    return [_Plane(series, index, n_in_series, sample) for index in range(n_in_series) for sample in channels]


def _read_plane(plane: _Plane, n_bytes: int, max_pixels: int) -> Image:
    series, first = plane.series, plane.series.keyframe
    height, width, samples = first.imagelength, first.imagewidth, first.samplesperpixel
    if len(series) == plane.n_in_series:
        selected = series[plane.index]
        if selected is None:
            raise ImageError(f"plane {plane.index} is missing from the file")
        _check_segments(selected, n_bytes)
        pixels = selected.asarray()
    else:  # several planes in one page; they count against the limit together, for they are read together
        _check_size(height * plane.n_in_series, width, max_pixels)
        _check_segments(first, n_bytes)
        pixels = series.asarray().reshape(plane.n_in_series, *first.shape)[plane.index]
    if samples > 1 and first.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        pixels = np.moveaxis(pixels.reshape(samples, height, width), 0, -1)
    pixels = pixels.reshape(height, width, samples)
    if plane.sample is not None:
        pixels = pixels[:, :, plane.sample]
    if first.photometric == tifffile.PHOTOMETRIC.PALETTE and first.colormap is not None:
        return np.ascontiguousarray(np.moveaxis(np.asarray(first.colormap), 0, -1)[pixels])
    if first.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = -pixels if pixels.dtype.kind == "f" else ~pixels
    if first.bitspersample < 8 and pixels.dtype == np.uint8:  # 2 or 4 bits to the full range, as in other formats
        top = 2**first.bitspersample - 1
        pixels = (pixels & top) * np.uint8(255 // top)
    return np.ascontiguousarray(pixels)


def _check_segments(page: tifffile.TiffPage | tifffile.TiffFrame, n_bytes: int) -> None:
    """Refuse a page whose strips or tiles lie beyond the end of the file, or unpack to more than they are to hold."""
    keyframe = page.keyframe
    if keyframe is None:
        raise UndecodableImageError("the TIFF has a page of no known size")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + count > n_bytes:
            raise UndecodableImageError(f"the TIFF is cut short: it needs {offset + count:,} bytes, found {n_bytes:,}")
        if keyframe.compression in _PICTURES_IN_TIFF and count:
            # these have a header of their own, and it is what the decoder sets memory aside by
            page.parent.filehandle.seek(offset)
            segment = io.BytesIO(page.parent.filehandle.read(count))
            with PillowImage.open(segment, formats=("JPEG", "WEBP", "JPEG2000")) as picture:
                width, height = picture.size
            allowed = max(keyframe.chunks[-2:]) if keyframe.is_tiled else max(keyframe.shape)
            if max(width, height) > max(allowed, 16):
                raise UndecodableImageError(f"a tile of the TIFF holds {width} x {height} px, more than it should")


def _check_tiff_directories(data: bytes) -> None:
    """Walk the chain of pages: no loops, and no more pages, tags and bytes in tags than an honest file has.

    tifffile takes the word of a file for all of these, and a small one can keep it busy for hours.
    """
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    big = int.from_bytes(data[2:4], order) == 43
    count_size, entry_size, offset_size = (8, 20, 8) if big else (2, 12, 4)

    def number(position: int, size: int) -> int:
        if position + size > len(data):
            raise UndecodableImageError(f"the TIFF is cut short: it needs {position + size:,} bytes, has {len(data):,}")
        return int.from_bytes(data[position : position + size], order)

    offset, seen, n_tags, tag_bytes, n_sub = number(8 if big else 4, offset_size), set[int](), 0, 0, 0
    while offset:
        if offset in seen:
            raise UndecodableImageError("the pages of the TIFF form a loop")
        seen.add(offset)
        n = number(offset, count_size)
        n_tags += n
        end = offset + count_size + n * entry_size
        next_offset = number(end, offset_size)
        if len(seen) > MAX_TIFF_PAGES or n_tags > MAX_TIFF_PAGES * 50:
            raise ImageTooLargeError(f"a TIFF of more than {MAX_TIFF_PAGES:,} pages")
        for entry in range(offset + count_size, end, entry_size):
            count = number(entry + 4, offset_size)
            size = count * _TIFF_TYPE_BYTES.get(number(entry + 2, 2), 1)
            tag_bytes += size
            if offset_size < size <= len(data):  # of more the limit below speaks
                number(number(entry + entry_size - offset_size, offset_size) + size - 1, 1)
            n_sub += count if number(entry, 2) == 330 else 0  # SubIFDs
        if tag_bytes > 2 * len(data) + 2**16 or n_sub > MAX_TIFF_PAGES:
            raise UndecodableImageError("the TIFF is damaged: its tags claim more bytes than it has")
        offset = next_offset


def _name(value: object) -> str:
    return getattr(value, "name", None) or str(value)
