"""Bytes to pixels and back: PNG, JPEG, WebP, BMP and TIFF, within limits that are checked before decoding."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
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
            channel of 16-bit and TIFF images and dropped elsewhere; nothing looks at it.
        max_pixels: height times width above which the image is refused, from its header, without decoding.
        page: which plane of a file that holds several, from 0; None is fine where there is one.

    Raises:
        UndecodableImageError: not a format that is read, cut short or damaged.
        ImageTooLargeError: more pixels than `max_pixels`.
        AmbiguousAxesError: several planes and no `page`.
        ImageError: `page` is not in the file, or its pixels are complex numbers.
    """
    with _decoder_errors(data):
        if data[:4] in TIFF_MAGIC:
            return _decode_tiff(data, max_pixels, page)
        return _decode_picture(data, max_pixels, page)


def inspect_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader:
    """Read the size of a picture from its header, without decoding; arguments and errors as in decode_image."""
    with _decoder_errors(data):
        if data[:4] in TIFF_MAGIC:
            with tifffile.TiffFile(io.BytesIO(data)) as tiff:
                series = _first_series(tiff, max_pixels)
                first = series.keyframe
                return ImageHeader(height=first.imagelength, width=first.imagewidth, format="TIFF")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = _open_picture(data, max_pixels)
            return ImageHeader(height=picture.height, width=picture.width, format=picture.format or "")


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
    description = "\n".join(f"{key}={value}" for key, value in (text or {}).items())
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


def draw_overlay(image: Image, labels: Labels) -> npt.NDArray[np.uint8]:
    """The image in 8 bits with the outline of each cell in yellow.

    Args:
        image: as decoded; stretched from its 1st to its 99.8th percentile for display.
        labels: (H, W), 0 = background.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    from model.preprocess import preprocess  # here, so that plain decoding does not load it

    colour = image.ndim == 3 and image.shape[2] >= 3
    planes = preprocess(image, n_channels=3 if colour else 1, normalisation="percentile")
    grey = np.clip(planes * 255, 0, 255).astype(np.uint8)
    picture = np.ascontiguousarray(np.broadcast_to(grey, (3, *grey.shape[1:])).transpose(1, 2, 0))
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
    try:
        picture = PillowImage.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UndecodableImageError(
            f"not an image of a kind that is read ({', '.join(FORMATS)}, TIFF): it starts with {data[:8]!r}"
        ) from error
    _check_size(picture.height, picture.width, max_pixels)
    return picture


def _first_series(tiff: tifffile.TiffFile, max_pixels: int) -> tifffile.TiffPageSeries:
    if not tiff.series:
        raise UndecodableImageError("the TIFF holds no image")
    series = tiff.series[0]
    first = series.keyframe
    _check_size(first.imagelength, first.imagewidth, max_pixels)
    if first.samplesperpixel > 4:  # before reading: thousands of samples make few pixels many bytes
        raise AmbiguousAxesError(f"{first.samplesperpixel} samples a pixel; allowed are 1 (grey), 3 (RGB) and 4 (RGBA)")
    return series


def _decode_picture(data: bytes, max_pixels: int, page: int | None) -> DecodedImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that nothing here uses
        picture = _open_picture(data, max_pixels)
        kind = picture.format or ""
        n_pages = getattr(picture, "n_frames", 1)
        index = _choose_page(n_pages, page, f"animated {kind}")
        if kind == "PNG" and data[24] == 16:  # bit depth, in the IHDR chunk: Pillow would cut 16-bit colour to 8
            picture.verify()  # OpenCV takes a damaged PNG without a word
            pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is None:
                raise UndecodableImageError("the PNG is damaged or cut short")
            if pixels.ndim == 3:
                pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
            return DecodedImage(np.asarray(pixels), kind)
        picture.seek(index)
        mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
        return DecodedImage(np.asarray(picture.convert(mode)), kind, n_pages)


def _decode_tiff(data: bytes, max_pixels: int, page: int | None) -> DecodedImage:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        series = _first_series(tiff, max_pixels)
        first = series.keyframe
        height, width = first.imagelength, first.imagewidth
        if np.dtype(first.dtype).kind == "c":
            raise ImageError("pixels are complex numbers; allowed are bool, integers and floats")
        samples = first.samplesperpixel
        n_pages = series.size // (height * width * samples)
        index = _choose_page(n_pages, page, f"TIFF with axes {series.axes} of shape {series.shape}")
        if len(series) == n_pages:
            selected = series[index]
            if selected is None:
                raise ImageError(f"page {index} is missing from the file")
            pixels = selected.asarray()
        else:  # several planes in one page; they count against the limit together, for they are read together
            _check_size(height * n_pages, width, max_pixels)
            pixels = series.asarray().reshape(n_pages, *first.shape)[index]
        if samples > 1 and first.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            pixels = np.moveaxis(pixels.reshape(samples, height, width), 0, -1)
        pixels = pixels.reshape((height, width, samples) if samples > 1 else (height, width))
        if first.photometric == tifffile.PHOTOMETRIC.PALETTE and first.colormap is not None:
            pixels = np.moveaxis(np.asarray(first.colormap), 0, -1)[pixels]
        elif first.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = ~pixels if pixels.dtype.kind == "b" else np.iinfo(pixels.dtype).max - pixels
        if samples == 2:  # grey and alpha
            pixels = pixels[:, :, 0]
        return DecodedImage(np.ascontiguousarray(pixels), "TIFF", n_pages)
