"""What an image file holds and which of it is meant: planes, axes, channels, pixel size. Knows no file format.

A reader of a format turns bytes into `Contents`; `ImageSource` picks what a `Selection` asks for and reads it.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from model.errors import (
    AmbiguousAxesError,
    Choices,
    ImageError,
    ImageMemoryError,
    ImageTooLargeError,
    UndecodableImageError,
)
from model.types import Image

DEFAULT_MAX_PIXELS = 8192 * 8192
MAX_PLANES = 10_000
MAX_BYTES_A_PIXEL = 8  # RGBA of 16 bits, which the largest image allowed may have
# What one array of an honest plane may take: RGBA of 64 bits. And of an honest header, whatever it says.
WIDEST_PIXEL_BYTES, HONEST_BYTES = 32, 64 * 1024**2
# Letters that `axes` may hold: time, depth, channel, height, width, and the samples of one colour.
AXES = "TZCYXS"
# Planes along these belong together and are alike, so each is segmented as a picture of its own.
PLANE_AXES = "TZ"
# What readers call an axis that the file does not name.
UNKNOWN_AXES = "IQ"
# An axis as short as this is hardly the width of a picture.
MOST_CHANNELS_LAST = 8
COLOURS = ("red", "green", "blue")

Page = int | Literal["all"]


@dataclass(frozen=True)
class PixelSize:
    """How large a pixel is.

    Attributes:
        x_um, y_um: width and height of a pixel, in micrometres.
        z_um: distance of planes, in micrometres; None if it is not known.
        frame_s: time between frames, in seconds; None if it is not known.
    """

    x_um: float
    y_um: float
    z_um: float | None = None
    frame_s: float | None = None

    def __str__(self) -> str:
        return f"{self.x_um:.7g} x {self.y_um:.7g}"

    def scaled(self, x: float, y: float) -> "PixelSize":
        """That of a picture in which a pixel is as wide as `x` of these and as high as `y`."""
        return PixelSize(self.x_um * x, self.y_um * y, self.z_um, self.frame_s)


@dataclass(frozen=True)
class Selection:
    """Which part of a file is meant; what is left out has to follow from the file.

    Attributes:
        page: number of one plane, from 0, or `all`. It counts the planes that are left once a channel is chosen, in the
            order of the file's axes, the last axis fastest.
        channel: number from 0, or name, or `mean` of all channels. Of a picture in colour: `red`, `green`, `blue`. A
            number beyond the last channel may be a name, such as 488; one that is also the name of another channel is
            refused, and means the number with a zero in front.
        axes: a letter of `AXES` for each axis of the file, where the file does not name them, or wrongly.
        level: of a pyramid; 0 is the full resolution.
    """

    page: Page | None = None
    channel: int | str | None = None
    axes: str | None = None
    level: int = 0


class PlaneStore(Protocol):
    """The planes of a file by their number; an adapter for each format."""

    def shape(self, index: int) -> tuple[int, int, int]:
        """Height, width and samples of a plane: 1 for grey, 3 or 4 for colour."""

    def check(self, index: int, max_pixels: int) -> None:
        """Raise an ImageError if the plane's header already forbids reading it."""

    def read(self, index: int) -> Image:
        """(H, W), or (H, W, samples) where these are 3 or 4; in the machine's byte order."""

    def by_rows(self, index: int) -> bool:
        """Whether `read_rows` does, for a part of the rows, a part of the work of `read`."""

    def read_rows(self, index: int, start: int, stop: int) -> Image:
        """Rows from `start` on and before `stop` of what `read` returns."""

    def close(self) -> None:
        """Let the file go."""


@dataclass(frozen=True)
class Contents:
    """What a reader found in a file.

    Attributes:
        format: `PNG`, `JPEG`, `WEBP`, `BMP`, `TIFF` or `NPY`.
        found: for messages, such as `TIFF with axes ZYX of shape (5, 64, 64)`.
        axes: a letter for each axis on which the planes lie: T, Z, C or another; I or Q where the file names none.
        sizes: of these axes. Planes are numbered along them, the last one fastest.
        store: the planes.
        full_axes: all axes, those within a plane too, as `Selection.axes` would name them; empty where it cannot.
        pixel_size: if the file says a real one.
        channel_names: as many as there are channels, or none.
    """

    format: str
    found: str
    axes: str
    sizes: tuple[int, ...]
    store: PlaneStore
    full_axes: str = ""
    pixel_size: PixelSize | None = None
    channel_names: tuple[str, ...] = ()


class ImageSource:
    """An open file and the planes of it that were asked for; a context manager. Threads may share it.

    Args:
        contents: of the file.
        selection: what is meant.
        max_pixels: height times width of a plane above which it is refused.
        several: whether several planes may be meant.

    Attributes:
        format: as in Contents.
        height, width: of a plane, in pixels.
        n_planes: that were asked for.
        n_read: planes of the file that these are made of: more where the mean of channels is asked for.
        n_pages: planes in the file, before any choice.
        axes, sizes: on which the planes lie, T, Z or another letter each; empty for a single plane.
        pixel_size, channel_names: as in Contents.

    Raises:
        AmbiguousAxesError: several planes are there and the selection does not say which are meant, or its axes do not
            fit.
        ImageTooLargeError, ImageError: what was asked for is too large, of a kind that is not read, or not there.
    """

    def __init__(
        self,
        contents: Contents,
        selection: Selection | None = None,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        several: bool = False,
    ) -> None:
        selection = selection or Selection()
        self._contents, self._store = contents, contents.store
        self._lock = threading.Lock()
        self.format = contents.format
        self.pixel_size = contents.pixel_size
        self.channel_names = contents.channel_names
        self.n_pages = math.prod(contents.sizes)
        self.axes, self.sizes = contents.axes, contents.sizes
        self._sample: int | Literal["mean"] | None = None
        # numbers of the planes in the file, (planes, 1), or (planes, channels) where their mean is asked for
        self._planes = np.arange(self.n_pages).reshape(-1, 1)
        if selection.channel is not None:
            self._choose_channel(selection.channel)
        self._choose_page(selection.page, several)
        shapes = {self._store.shape(index) for index in self._planes.ravel().tolist()}
        for index in self._planes.ravel().tolist():
            self._store.check(index, max_pixels)
        if len(shapes) > 1:
            raise AmbiguousAxesError(
                f"{contents.found}, of several sizes: {self.n_pages} planes; {_say_page(len(self))}",
                Choices(len(self), self.axes),
            )
        [(self.height, self.width, self._samples)] = shapes
        if self._sample is not None and self._sample != "mean" and self._sample >= min(self._samples, 3):
            raise ImageError(f"channel {selection.channel}; the image has the channels {_colour_words(self._samples)}")

    @property
    def n_planes(self) -> int:
        """How many planes were asked for."""
        return len(self._planes)

    @property
    def n_read(self) -> int:
        """How many planes of the file these are made of."""
        return int(self._planes.size)

    def __len__(self) -> int:
        return len(self._planes)

    @property
    def by_rows(self) -> bool:
        """Whether `read_rows` reads little more than the rows that it returns, for one plane of one channel."""
        numbers = self._planes.ravel().tolist()
        return len(numbers) == 1 and self._store.by_rows(numbers[0])

    def read(self, plane: int = 0) -> Image:
        """Decode a plane: (H, W), or (H, W, 3 or 4) in colour; bool, integer or float.

        Raises:
            ImageError: it is damaged or missing.
        """
        return self.read_rows(0, self.height, plane=plane)

    def read_rows(self, start: int, stop: int, *, plane: int = 0) -> Image:
        """The rows from `start` on and before `stop` of what `read` returns; errors as there."""
        whole = (start, stop) == (0, self.height)

        def read(index: int) -> Image:
            with self._lock:  # readers seek in one file
                rows = self._store.read(index) if whole else self._store.read_rows(index, start, stop)
            if rows.shape[:2] != (stop - start, self.width):
                raise UndecodableImageError(f"the plane holds {rows.shape[1]} x {rows.shape[0]} px, not as it says")
            samples = 1 if rows.ndim == 2 else rows.shape[2]
            if min(samples, 3) != min(self._samples, 3):  # alpha may be there or not: nothing looks at it
                raise UndecodableImageError(
                    f"the plane holds {samples} samples a pixel, not {self._samples} as it says"
                )
            return rows

        with decoder_errors(WIDEST_PIXEL_BYTES * self.height * self.width):
            numbers = self._planes[plane].tolist()
            if len(numbers) > 1:
                return _mean(map(read, numbers), len(numbers))
            image = read(numbers[0])
            sample = self._sample
            if sample == "mean":
                return _mean((image[..., index] for index in range(3)), 3)
            if sample is not None:
                return np.ascontiguousarray(image[..., sample])
            return image

    def close(self) -> None:
        """Let the file go."""
        self._store.close()

    def __enter__(self) -> "ImageSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _choose_channel(self, channel: int | str) -> None:
        if "C" in self.axes:
            at = self.axes.index("C")
            count = self.sizes[at]
            number = _find_channel(channel, count, self.channel_names)
            planes = np.moveaxis(self._planes.reshape(self.sizes), at, -1).reshape(-1, count)
            self._planes = planes if number == "mean" else planes[:, number : number + 1]
            self.axes = self.axes.replace("C", "")
            self.sizes = self.sizes[:at] + self.sizes[at + 1 :]
        elif all(self._store.shape(index)[2] > 1 for index in self._planes.ravel().tolist()):
            self._sample = _find_channel(channel, 3, COLOURS)
        elif set(self.axes) & set(UNKNOWN_AXES):
            way = (
                f"; if they are, say so by {_say_axes(_suggest_axes(self._contents, 'C'))}"
                if self._contents.full_axes
                else ""
            )
            raise AmbiguousAxesError(
                f"{self._contents.found}: {self.n_pages} planes, and nothing says that they are channels{way}",
                self._choices(),
            )
        else:
            _find_channel(channel, 1, self.channel_names)  # of grey there is one, so any name of it is good

    def _choose_page(self, page: Page | None, several: bool) -> None:
        n = len(self._planes)
        if isinstance(page, int):
            if not 0 <= page < n:
                raise ImageError(f"page {page}; the file has pages 0 to {n - 1}")
            self._planes = self._planes[page : page + 1]
            n = 1
        elif n > 1 and not (several and (page == "all" or set(self.axes) <= set(PLANE_AXES))):
            raise AmbiguousAxesError(f"{self._contents.found}: {n} planes; {self._ways_out(several)}", self._choices())
        if n == 1:
            self.axes, self.sizes = "", ()

    def _choices(self) -> Choices:
        """What `_ways_out` says, for programs."""
        channels = self.sizes[self.axes.index("C")] if "C" in self.axes else 0
        unknown = set(self.axes) & set(UNKNOWN_AXES) and self._contents.full_axes
        readings = _suggest_axes(self._contents, "ZTC") if unknown else ()
        return Choices(
            len(self._planes),
            self.axes,
            channels,
            self.channel_names if channels else (),
            readings,
        )

    def _ways_out(self, several: bool) -> str:
        """How to say what is meant."""
        n = len(self._planes)
        alike = len({self._store.shape(index) for index in self._planes.ravel().tolist()}) == 1
        ways = [_say_page(n) + (", or all of them by page=all" if several and alike else "")]
        if "C" in self.axes:
            count = self.sizes[self.axes.index("C")]
            names = f" ({', '.join(self.channel_names)})" if self.channel_names else ""
            named = ", by its name" if names else ""
            ways.append(
                f"or one of the {count} channels{names} by channel=0 to channel={count - 1}{named}, or channel=mean"
            )
        if set(self.axes) & set(UNKNOWN_AXES) and self._contents.full_axes:
            ways.append(
                "the file does not name all of its axes; say what they are by "
                + _say_axes(_suggest_axes(self._contents, "ZC"))
            )
        return "; ".join(ways)


class ArrayStore:
    """Planes of one array in memory, its axes in any order.

    Args:
        load: returns the array when its pixels are asked for.
        axes: a letter for each of its axes; Y and X among them, and maybe S.
        sizes: of its axes.
        dtype: of its numbers.

    Raises:
        ImageError: S is there and is not 3 or 4 long.
    """

    def __init__(
        self, load: Callable[[], npt.NDArray[Any]], axes: str, sizes: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._load, self._axes, self._sizes, self._dtype = load, axes, sizes, dtype
        by_letter = dict(zip(axes, sizes, strict=True))
        self._shape = by_letter["Y"], by_letter["X"], by_letter.get("S", 1)
        if "S" in axes and self._shape[2] not in (3, 4):
            raise ImageError(f"S is the axis of colour, 3 or 4 long, and not {self._shape[2]}; C is that of channels")
        self.outer_axes = "".join(letter for letter in axes if letter not in "YXS")
        self.outer_sizes = tuple(by_letter[letter] for letter in self.outer_axes)
        self._array: npt.NDArray[Any] | None = None

    def shape(self, index: int) -> tuple[int, int, int]:
        return self._shape

    def check(self, index: int, max_pixels: int) -> None:
        check_plane(*self._shape, self._dtype, max_pixels)

    def read(self, index: int) -> Image:
        return self.read_rows(index, 0, self._shape[0])

    def by_rows(self, index: int) -> bool:
        return True  # what is loaded is kept

    def read_rows(self, index: int, start: int, stop: int) -> Image:
        if self._array is None:
            array = self._load()
            order = [
                self._axes.index(letter) for letter in (*self.outer_axes, *"YX", *("S" if "S" in self._axes else ""))
            ]
            self._array = array.transpose(order)
        plane: Image = self._array
        for place in np.unravel_index(index, self.outer_sizes) if self.outer_sizes else ():
            plane = plane[int(place)]
        rows = plane[start:stop]
        return np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("="))

    def close(self) -> None:
        self._array = None


@contextmanager
def decoder_errors(honest_bytes: int = HONEST_BYTES) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError.

    Args:
        honest_bytes: as much as one array of an image may need that is what its header says. Where there is no memory
            for that, it is the machine that is short of it; where a decoder asks for more, the file lies.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        if _asked_bytes(error) <= max(honest_bytes, HONEST_BYTES):
            raise ImageMemoryError("there is no memory for the image now") from error
        raise ImageTooLargeError("the image does not fit into memory") from error
    except Exception as error:  # decoders raise whatever their depths raise; the sender sees one kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UndecodableImageError(f"the image is damaged or cut short: {reason}") from error


def _asked_bytes(error: MemoryError) -> float:
    """How much was asked for in vain, as NumPy says; infinite where nobody does."""
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    return math.inf if shape is None or dtype is None else math.prod(shape) * np.dtype(dtype).itemsize


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse more than `max_pixels`."""
    if height * width > max_pixels:
        raise ImageTooLargeError(f"{width} x {height} px = {height * width:,} pixels; at most {max_pixels:,}")


def check_plane(height: int, width: int, samples: int, dtype: np.dtype[Any] | None, max_pixels: int) -> None:
    """Refuse planes that are too large, empty, or not of numbers that can be brightness."""
    check_size(height, width, max_pixels)
    if height * width * samples == 0 or dtype is None:
        raise UndecodableImageError("the image holds no pixels")
    if dtype.kind == "c":
        raise ImageError("pixels are complex numbers; allowed are bool, integers and floats")
    if dtype.kind not in "buif":
        raise ImageError(f"pixels of type {dtype}; allowed are bool, integers and floats")
    # thousands of samples make few pixels many bytes
    n_bytes = height * width * samples * dtype.itemsize
    if n_bytes > max_pixels * MAX_BYTES_A_PIXEL:
        raise ImageTooLargeError(f"{n_bytes:,} bytes once decoded; at most {max_pixels * MAX_BYTES_A_PIXEL:,}")


def check_axes(axes: str) -> str:
    """The same letters in capitals.

    Raises:
        ValueError: they are not letters of `AXES`, each once, with Y and X.
    """
    letters = axes.upper()
    if not set("YX") <= set(letters) <= set(AXES) or len(set(letters)) < len(letters):
        raise ValueError(f"axes are letters of {AXES}, each at most once, with Y and X")
    return letters


def fit_axes(axes: str, shape: tuple[int, ...], found: str) -> str:
    """Check the letters that a user gave against the shape that they are for."""
    try:
        letters = check_axes(axes)
    except ValueError as error:
        raise AmbiguousAxesError(f"axes={axes}: {error}") from error
    if len(letters) != len(shape):
        raise AmbiguousAxesError(f"axes={letters} names {len(letters)} axes; this is a {found}, which has {len(shape)}")
    return letters


def _find_channel(channel: int | str, count: int, names: tuple[str, ...]) -> int | Literal["mean"]:
    given = str(channel)
    if given == "mean":
        return "mean"
    number = int(given) if given.isascii() and given.isdecimal() else count
    if number < count:
        others = [index for index, name in enumerate(names) if name == given and index != number]
        if others:  # names such as 1, 2, 3: neither reading is the likelier
            ways = [f"channel={_say_number(index, names)} for number {index}" for index in (number, *others)]
            raise AmbiguousAxesError(
                f"channel {given!r} is a number, of the channel named {names[number]!r}, and the name of number "
                f"{others[0]}; say {' or '.join(ways)}"
            )
        return number
    for key in (str, str.casefold):
        matches = [index for index, name in enumerate(names) if key(name) == key(given)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise AmbiguousAxesError(f"channel {given!r}: {len(matches)} channels have that name; say its number")
    numbers = "0" if count == 1 else f"0 to {count - 1}"
    named = f" ({', '.join(names)})" if names else ""
    raise ImageError(f"channel {channel!r}; the image has the channels {numbers}{named}, and their mean")


def _say_number(number: int, names: tuple[str, ...]) -> str:
    """The number of a channel as no other channel is named: with zeros in front where it has to be."""
    text = str(number)
    while any(name == text and index != number for index, name in enumerate(names)):
        text = f"0{text}"
    return text


def _colour_words(samples: int) -> str:
    return ", ".join(f"{index} ({COLOURS[index]})" for index in range(min(samples, 3)))


def _say_page(n: int) -> str:
    return f"say which one is meant by page=0 to page={n - 1}"


def _suggest_axes(contents: Contents, letters: str) -> tuple[str, ...]:
    """All axes as a user could name them, with each of `letters` in turn for the first that has no name.

    Where the last axis is too short for a width it may be that of channels or colours, which readers cannot know.
    """

    def fill(axes: str, letter: str) -> str:
        left = [other for other in dict.fromkeys((letter, *"TZC")) if other not in axes]
        return "".join(left.pop(0) if axis in UNKNOWN_AXES and left else axis for axis in axes)

    axes = contents.full_axes
    ways = [fill(axes, letter) for letter in letters]
    width = contents.store.shape(0)[1]
    if axes[-2:] == "YX" and axes[-3:-2] in tuple(UNKNOWN_AXES) and width <= MOST_CHANNELS_LAST and "C" in letters:
        ways += [fill(f"{axes[:-3]}YX{last}", "T") for last in ("CS" if width in (3, 4) else "C") if last not in axes]
    return tuple(dict.fromkeys(ways))


def _say_axes(ways: tuple[str, ...]) -> str:
    return " or ".join(f"axes={axes}" for axes in ways)


def _mean(images: Iterator[Image], count: int) -> Image:
    """The mean, in the type of the images; integers are rounded."""
    total: npt.NDArray[np.float64] | None = None
    dtype = np.dtype(np.uint8)
    for image in images:
        part = image * np.uint8(255) if image.dtype == np.bool_ else image
        dtype = part.dtype
        if total is None:
            total = part.astype(np.float64)
        else:
            total += part
    if total is None:
        raise ImageError("no channels")
    total /= count
    return (np.rint(total, out=total) if dtype.kind in "iu" else total).astype(dtype)
