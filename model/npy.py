"""NumPy's .npy files: the header checked before anything else is believed, and never a pickle."""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import AmbiguousAxesError, Choices, ImageError, UndecodableImageError
from model.source import ArrayStore, Contents, Selection, fit_axes

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # as numpy.load allows; a longer one is slow to parse


def open_npy(data: bytes, selection: Selection) -> Contents:
    """Look into a .npy file without copying it.

    An array of two axes longer than 1 is a picture, Y and X. Of any other nothing in the file says what its axes are,
    so `selection.axes` has to: also for (H, W, 3), which may be colours as well as channels.
    """
    shape, fortran, dtype, start = _read_header(data)
    found = f"NumPy array of shape {shape}"
    if selection.level:
        raise ImageError(f"level {selection.level}; a NumPy file has level 0 alone")
    axes = _find_axes(shape, selection.axes, found)
    sizes = shape
    if len(axes) != len(shape):  # axes of length 1 were left out
        sizes = tuple(size for size in shape if size > 1)

    def load() -> npt.NDArray[Any]:
        array = np.frombuffer(data, dtype, count=math.prod(shape), offset=start)
        return array.reshape(shape, order="F" if fortran else "C").reshape(sizes, order="A")

    store = ArrayStore(load, axes, sizes, dtype)
    return Contents("NPY", found, store.outer_axes, store.outer_sizes, store)


def _read_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    stream = io.BytesIO(data[: 12 + MAX_HEADER_BYTES])
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for names of fields that are not ASCII, and pixels have no fields
        raise UndecodableImageError(f"NumPy file of version {version[0]}.{version[1]}; 1.0 and 2.0 are read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    if dtype.hasobject:
        raise UndecodableImageError("a NumPy file of Python objects, which is a pickle; arrays of numbers are read")
    n_bytes, held = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if held != n_bytes:
        problem = "cut short" if held < n_bytes else "longer than it says"
        raise UndecodableImageError(
            f"the NumPy file is {problem}: {dtype} of shape {shape} is {n_bytes:,} bytes, found {held:,}"
        )
    return shape, fortran, dtype, stream.tell()


def _find_axes(shape: tuple[int, ...], given: str | None, found: str) -> str:
    longer = tuple(size for size in shape if size > 1)
    if given is not None:
        return fit_axes(given, longer if len(given) == len(longer) else shape, found)
    if len(shape) == 2 or len(longer) == 2:
        return "YX"
    if len(shape) < 2:
        raise ImageError(f"{found}; an image has two axes or more")
    if len(shape) == 3:
        colour = "axes=YXS for colour, " if shape[2] in (3, 4) else ""
        ways = f"{colour}axes=CYX or axes=YXC for channels, axes=ZYX or axes=TYX for planes"
        readings = (*(("YXS",) if colour else ()), "CYX", "YXC", "ZYX", "TYX")
    else:
        ways = "for instance axes=TZCYX for time, depth, channel, height and width"
        readings = ("TZCYX",) if len(shape) == 5 else ("TZYX", "ZCYX", "TCYX") if len(shape) == 4 else ()
    raise AmbiguousAxesError(
        f"{found}; a NumPy file does not name its axes; say what they are: {ways}", Choices(0, axes=readings)
    )
