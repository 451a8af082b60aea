"""Pictures as TIFF that ImageJ reads: one plane or a hyperstack, with pixel size, display range and provenance."""

import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from model.errors import ImageError
from model.source import PixelSize
from model.types import Labels

ZLIB_LEVEL = 1  # as for PNG: masks and labels are long runs
UINT16_MAX = 65_535
FLOAT32_EXACT_MAX = 2**24  # whole numbers up to here are exact in float32
IMAGEJ_AXES = "TZC"  # in ImageJ's order, before Y and X


@dataclass(frozen=True)
class PackedPlane:
    """A plane, compressed, so that a stack's planes can wait for each other.

    Attributes:
        data: zlib stream of the pixels, row by row, little-endian.
        dtype: uint8, uint16 or float32.
        shape: (H, W), or (H, W, 3) for colour.
        highest: largest value in it.
    """

    data: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    highest: int


@dataclass(frozen=True)
class Places:
    """Where planes lie in a hyperstack of ImageJ's.

    Attributes:
        axes: those of T, Z and C that there are, in this order.
        sizes: of these.
        order: for each place, in ImageJ's order, the number of the plane that belongs there.
    """

    axes: str
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    def position(self, plane: int) -> dict[str, int]:
        """T, Z and C of a plane, each from 0; those that there are."""
        place = np.unravel_index(self.order.index(plane), self.sizes) if self.sizes else ()
        return dict(zip(self.axes, map(int, place), strict=True))


def find_places(axes: str, sizes: tuple[int, ...]) -> Places:
    """Bring axes into ImageJ's order.

    ImageJ knows time, slices and channels alone: axes of other names, or of none, become the first of Z, T and C that
    is free, and where these do not suffice all planes become slices, in their order.
    """
    free = [letter for letter in "ZTC" if letter not in axes]
    letters = ""
    for axis in axes:
        known = axis in IMAGEJ_AXES and axis not in letters
        letters += axis if known else free.pop(0) if free else "?"
    count = math.prod(sizes)
    if "?" in letters:
        return Places("Z", (count,), tuple(range(count)))
    order = sorted(range(len(letters)), key=lambda index: IMAGEJ_AXES.index(letters[index]))
    planes = np.arange(count).reshape(sizes).transpose(order)
    return Places("".join(letters[index] for index in order), planes.shape, tuple(planes.ravel().tolist()))


def pack(pixels: npt.NDArray[Any]) -> PackedPlane:
    """Compress (H, W) uint8, uint16 or float32, or (H, W, 3) uint8 pixels."""
    stored = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    return PackedPlane(zlib.compress(stored.data, ZLIB_LEVEL), pixels.dtype, pixels.shape, int(pixels.max(initial=0)))


def pack_labels(labels: Labels) -> PackedPlane:
    """Compress a label image: uint16, or float32 above 65,535 cells, for ImageJ has no wider integers.

    Raises:
        ImageError: more cells than float32 can number.
    """
    highest = int(labels.max(initial=0))
    if highest > FLOAT32_EXACT_MAX:
        raise ImageError(f"{highest:,} cells; ImageJ can number {FLOAT32_EXACT_MAX:,}: leave out format=tiff")
    return pack(labels.astype(np.uint16 if highest <= UINT16_MAX else np.float32))


def encode_tiff(
    planes: Sequence[PackedPlane],
    *,
    axes: str = "",
    sizes: tuple[int, ...] = (),
    pixel_size: PixelSize | None = None,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """A TIFF that ImageJ opens with its axes, its pixel size and its full range of values on show.

    Args:
        planes: of one shape; of uint16 and float32 together, all become float32.
        axes, sizes: on which they lie, the last one fastest; empty for one plane.
        pixel_size: in ImageJ's own terms: unit, spacing and frame interval.
        text: what made it; ImageJ shows it by Image > Show Info.
    """
    places = find_places(axes, sizes)
    shape = planes[0].shape
    dtype = np.result_type(*{plane.dtype for plane in planes})
    colour = len(shape) == 3
    # all six axes, for of fewer tifffile takes a width of 1 for the samples of one colour
    lengths = dict(zip(places.axes, places.sizes, strict=True))
    stack = tuple(lengths.get(axis, 1) for axis in IMAGEJ_AXES)
    metadata: dict[str, Any] = {
        "axes": f"{IMAGEJ_AXES}YXS",
        "Info": "\n".join(f"{key}={value}" for key, value in (text or {}).items()),
    }
    if not colour:
        # Without these ImageJ would show 300 cells of 65,535 as black.
        metadata |= {"min": 0.0, "max": 255.0 if dtype == np.uint8 else float(max(plane.highest for plane in planes))}
    resolution = None
    if pixel_size is not None:
        resolution = (1 / pixel_size.x_um, 1 / pixel_size.y_um)
        metadata["unit"] = "um"
        if pixel_size.z_um is not None:
            metadata["spacing"] = pixel_size.z_um
        if pixel_size.frame_s is not None:
            metadata["finterval"] = pixel_size.frame_s
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, imagej=True, byteorder="<") as writer:
        writer.write(
            _as_dtype((planes[number] for number in places.order), dtype),
            shape=(*stack, *shape) if colour else (*stack, *shape, 1),
            dtype=dtype,
            photometric="rgb" if colour else "minisblack",
            compression="zlib",
            rowsperstrip=shape[0],
            resolution=resolution,
            software="Maskwell",
            metadata=metadata,
        )
    return buffer.getvalue()


def _as_dtype(planes: Iterator[PackedPlane], dtype: np.dtype[Any]) -> Iterator[bytes]:
    for plane in planes:
        if plane.dtype == dtype:
            yield plane.data
        else:
            stored = np.frombuffer(zlib.decompress(plane.data), plane.dtype.newbyteorder("<"))
            yield pack(stored.astype(dtype)).data
