"""Bytes to pixels and back: what reads an image, whatever its format, and what writes PNG and TIFF."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from model import npy, pictures, tiff
from model.errors import AmbiguousAxesError, ImageError, UndecodableImageError
from model.png import inspect_plain_png, write_png
from model.source import DEFAULT_MAX_PIXELS, ImageSource, PixelSize, Selection, check_size, decoder_errors
from model.types import Image, Labels, Levels, Mask, Probability

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".npy",
    ".tif", ".tiff", ".btf", ".tf8", ".lsm", ".stk", ".svs",
)  # fmt: skip


@dataclass(frozen=True)
class DecodedImage:
    """An image as stored in its file.

    Attributes:
        pixels: (H, W) or (H, W, 3 or 4); bool, integer or float. The EXIF orientation is not applied: masks lie on the
            stored pixel grid.
        format: `PNG`, `JPEG`, `WEBP`, `BMP`, `TIFF` or `NPY`.
        n_pages: planes in the file.
        pixel_size: if the file says a real one.
    """

    pixels: Image
    format: str
    n_pages: int = 1
    pixel_size: PixelSize | None = None


@dataclass(frozen=True)
class ImageHeader:
    """What a file's headers say of what was chosen in it: height and width of a plane in pixels, and the format.

    Attributes:
        n_planes: to be segmented.
        n_read: planes of the file that these are made of: more where the mean of channels is asked for.
    """

    height: int
    width: int
    format: str
    n_planes: int = 1
    n_read: int = 1

    @property
    def pixels(self) -> int:
        """Of all planes that have to be decoded."""
        return self.height * self.width * self.n_read


def open_image(
    data: bytes, selection: Selection | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS, several: bool = False
) -> ImageSource:
    """Look into a file and find the planes that are meant; they are decoded when they are read.

    Args:
        data: the file's bytes. 8, 16 and 32 bits, float, 1-bit; grey, RGB, RGBA, palette. Alpha is kept as a fourth
            channel of 16-bit PNG and of TIFF in colour, and dropped elsewhere; nothing looks at it. A TIFF where black
            is the highest value comes inverted, so that higher is brighter in every image.
        selection: which planes, channel and level; None where the file leaves no choice.
        max_pixels: height times width above which a plane is refused, from its header, without decoding.
        several: whether several planes may be meant.

    Raises:
        UndecodableImageError: not a format that is read, cut short or damaged.
        ImageTooLargeError: more pixels than `max_pixels`.
        AmbiguousAxesError: more than one reading is possible, and the selection does not say which one is meant.
        ImageError: page, channel or level are not in the file, or its pixels are complex numbers.
    """
    selection = selection or Selection()
    if not data:
        raise UndecodableImageError("the file is empty (0 bytes)")
    with decoder_errors():
        if data[:4] in tiff.MAGIC:
            contents = tiff.open_tiff(data, selection, max_pixels=max_pixels)
        elif data.startswith(npy.MAGIC):
            contents = npy.open_npy(data, selection)
        else:
            contents = pictures.open_picture(data, selection, max_pixels=max_pixels)
        return ImageSource(contents, selection, max_pixels=max_pixels, several=several)


def decode_image(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    page: int | None = None,
    channel: int | str | None = None,
    axes: str | None = None,
    level: int = 0,
) -> DecodedImage:
    """Decode one picture; arguments as in Selection, errors as in open_image."""
    with open_image(data, Selection(page, channel, axes, level), max_pixels=max_pixels) as source:
        return DecodedImage(source.read(), source.format, source.n_pages, source.pixel_size)


def inspect_image(
    data: bytes, selection: Selection | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS, several: bool = False
) -> ImageHeader:
    """Read the size of a picture from its header, without decoding; arguments and errors as in open_image."""
    with open_image(data, selection, max_pixels=max_pixels, several=several) as source:
        return ImageHeader(source.height, source.width, source.format, source.n_planes, source.n_read)


def inspect_quickly(
    data: bytes, selection: Selection | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> ImageHeader | None:
    """As inspect_image for a plain PNG of which nothing is left to choose, in microseconds; None for whatever else."""
    size = inspect_plain_png(data) if selection is None or selection == Selection() else None
    if size is None:
        return None
    check_size(*size, max_pixels)
    return ImageHeader(*size, "PNG")


def read_image(
    path: Path,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    page: int | None = None,
    channel: int | str | None = None,
    axes: str | None = None,
    level: int = 0,
) -> Image:
    """The pixels of a file; as decode_image, with the file's name before its errors."""
    with file_errors(path):
        data = path.read_bytes()
        return decode_image(data, max_pixels=max_pixels, page=page, channel=channel, axes=axes, level=level).pixels


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn errors on a file into ImageErrors with its name in front."""
    try:
        yield
    except OSError as error:
        raise UndecodableImageError(f"{path}: {error.strerror or error}") from error
    except AmbiguousAxesError as error:
        raise AmbiguousAxesError(f"{path}: {error}", error.choices) from error
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from error


def encode_mask(mask: Mask, text: Mapping[str, str] | None = None) -> bytes:
    """8-bit grey PNG, 0 and 255 only, of an (H, W) mask; `text` goes into its text chunks."""
    return write_png(mask, content="mask", text=text)


def encode_probability(probability: Probability | Levels, text: Mapping[str, str] | None = None) -> bytes:
    """16-bit grey PNG of an (H, W) probability, or of its steps of 1/65535: 0 is 0, 65535 is 1."""
    if probability.dtype != np.uint16:
        probability = np.rint(probability * np.float32(65535)).astype(np.uint16)
    return write_png(probability, text=text)


def encode_labels(labels: Labels, text: Mapping[str, str] | None = None) -> tuple[bytes, str]:
    """16-bit grey PNG of an (H, W) label image, or a 32-bit TIFF where it has more than 65,535 cells.

    Returns:
        The bytes and their media type.
    """
    if int(labels.max(initial=0)) <= np.iinfo(np.uint16).max:
        return write_png(labels, content="labels", text=text), "image/png"
    buffer = io.BytesIO()
    # as bytes: tifffile wants ASCII in a str
    description = "\n".join(f"{key}={value}" for key, value in (text or {}).items()).encode()
    tifffile.imwrite(buffer, labels.view(np.uint32), compression="zlib", description=description, metadata=None)
    return buffer.getvalue(), "image/tiff"


def encode_png(pixels: npt.NDArray[Any], text: Mapping[str, str] | None = None) -> bytes:
    """PNG of (H, W) uint8 or uint16, or (H, W, 3) uint8 pixels."""
    return write_png(pixels, text=text)


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
    # a copy, which ascontiguousarray would not make of a single pixel
    return np.array(np.broadcast_to(grey, (3, *grey.shape[1:])).transpose(1, 2, 0), order="C")


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
