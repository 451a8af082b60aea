"""From a decoded image to the float planes that the network takes: the one function for training and serving."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from model.bands import cut_rows
from model.errors import ImageError
from model.types import Image, Planes

LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.8
# Far outside what training shows the network; a few hot pixels must not reach it as values in the hundreds.
CLIP_LOW, CLIP_HIGH = -1.0, 3.0
# Pixels that are looked at in one go: few enough for the caches, and for counts in float32.
BAND_PX = 1 << 20

Normalisation = Literal["percentile", "raw", "unit"]


class RowReader(Protocol):
    """An image whose rows are read when they are needed.

    Attributes:
        height, width: in pixels.
    """

    height: int
    width: int

    def read_rows(self, start: int, stop: int) -> Image:
        """(stop - start, W) or (stop - start, W, C): the rows from `start` on and before `stop`; from any thread."""
        ...


class Preprocessor:
    """Brings parts of one image to the channels and the scale that a network was trained with.

    The scale is that of the whole image, found by bands of rows when this is made; after that any part can be read, and
    has the very numbers that it has in the whole.

    Args:
        image, n_channels, normalisation: as in preprocess; an image in memory or one that is read by rows.

    Attributes:
        shape: (n_channels, H, W) of the whole.

    Raises:
        ImageError: as in preprocess, or from the image's reader.
    """

    def __init__(self, image: Image | RowReader, *, n_channels: int, normalisation: Normalisation) -> None:
        self._rows: RowReader = _ArrayRows(image) if isinstance(image, np.ndarray) else _KeptRows(image)
        self.shape = (n_channels, self._rows.height, self._rows.width)
        self._normalisation = normalisation
        self._range: tuple[float, float] | None = None  # of finite pixels, where some are not
        self._scale: tuple[float, float] = (0.0, 0.0)
        first = self._rows.read_rows(0, 1)
        # by dtype, never by a look at the pixels: a dark 16-bit image is no 8-bit image
        self._levels = None if normalisation == "percentile" else _levels(first.dtype, normalisation)
        if first.dtype.kind == "f":
            self._range = _finite_range(self._bands())
        if normalisation == "percentile":
            self._scale = _percentiles(lambda: (self._channels(band) for band in self._bands()))

    def planes(self, top: int, bottom: int, left: int, right: int) -> Planes:
        """(n_channels, bottom - top, right - left): a part of the image, rows from `top`, columns from `left` on."""
        planes = self._channels(self._rows.read_rows(top, bottom)[:, left:right])
        repeated = len(planes) > 1 and planes.strides[0] == 0  # grey for a network of several channels: scaled once
        scaled = self._scaled(planes[:1] if repeated else planes)
        return np.broadcast_to(scaled, planes.shape) if repeated else scaled

    def _scaled(self, planes: npt.NDArray[Any]) -> Planes:
        if self._normalisation == "percentile":
            low, high = self._scale
            span = np.float32(high - low)
            if span == 0:
                return np.zeros(planes.shape, dtype=np.float32)
            scaled = planes.astype(np.float32)
            scaled -= np.float32(low)
            with np.errstate(over="ignore"):  # a hot pixel over a span of next to nothing is infinite until clipped
                scaled /= span
            return np.clip(scaled, CLIP_LOW, CLIP_HIGH, out=scaled)
        if self._levels is None:
            return np.ascontiguousarray(planes, dtype=np.float32)
        factor = np.float32((255.0 if self._normalisation == "raw" else 1.0) / self._levels)
        return planes.astype(np.float32) if factor == 1 else planes.astype(np.float32) * factor

    def _bands(self) -> Iterator[Image]:
        return (self._rows.read_rows(band.start, band.stop) for band in cut_rows(self.shape[1:], BAND_PX))

    def _channels(self, band: Image) -> npt.NDArray[Any]:
        return _to_channels(band, self.shape[0], self._range)


def preprocess(image: Image, *, n_channels: int, normalisation: Normalisation) -> Planes:
    """Bring an image to the channels and the scale that a network was trained with.

    Args:
        image: (H, W) or (H, W, C) with C of 1, 3 (R, G, B) or 4 (R, G, B, alpha); bool, integer or float. Alpha is
            ignored. Colour becomes grey by the weights of ITU-R BT.601 for a network of one channel; grey is repeated
            for one of three.
        n_channels: of the network, 1 or 3.
        normalisation: `percentile`: the image's 1st percentile becomes 0 and its 99.8th 1; where these coincide its
            minimum and maximum do; a constant image becomes all 0. `raw`: 8-bit grey levels as they are, 16-bit ones
            over 257, signed ones as a share of their type's largest times 255, floats as they are. `unit`: `raw` over
            255, floats as they are. For both, integers of more bits are refused, for nobody can say what is white.

    Returns:
        (n_channels, H, W) float32, finite. NaN counts as the lowest finite value, infinities as the nearest.

    Raises:
        ImageError: another shape or dtype, no pixels, colour for a network of neither 1 nor 3 channels, or integers of
            32 or 64 bits for `raw` and `unit`.
    """
    preprocessor = Preprocessor(image, n_channels=n_channels, normalisation=normalisation)
    return np.ascontiguousarray(preprocessor.planes(0, image.shape[0], 0, image.shape[1]))


class _ArrayRows:
    def __init__(self, image: Image) -> None:
        if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise ImageError(f"an image of shape {image.shape}; allowed are (H, W), (H, W, 1), (H, W, 3) and (H, W, 4)")
        self.height, self.width = image.shape[:2]
        self._image = image

    def read_rows(self, start: int, stop: int) -> Image:
        return self._image[start:stop]


class _KeptRows:
    """Keeps what it read last: all tiles of a row need the same rows, and the next row of tiles may have begun."""

    def __init__(self, rows: RowReader) -> None:
        self.height, self.width = rows.height, rows.width
        self._rows = rows
        self._kept: OrderedDict[tuple[int, int], Image] = OrderedDict()
        self._lock = threading.Lock()

    def read_rows(self, start: int, stop: int) -> Image:
        with self._lock:
            key = start, stop
            if key not in self._kept:
                if len(self._kept) > 1:
                    self._kept.popitem(last=False)
                self._kept[key] = self._rows.read_rows(start, stop)
            self._kept.move_to_end(key)
            return self._kept[key]


def _levels(dtype: np.dtype[Any], normalisation: Normalisation) -> float | None:
    """What is white in an image of that type; None for floats, which are as they are."""
    if dtype.kind not in "iu":
        return 255.0 if dtype.kind == "b" else None
    if dtype.itemsize > 2:
        raise ImageError(
            f"pixels of type {dtype}, of which nobody can say what is white; these weights take grey levels as they "
            f"are: send 8 or 16 bits, or floats of 0 to {255 if normalisation == 'raw' else 1}"
        )
    return float(np.iinfo(dtype).max)


def _to_channels(image: Image, n_channels: int, finite_range: tuple[float, float] | None) -> npt.NDArray[Any]:
    """(n_channels, H, W) uint8, uint16 or finite float32, of a part of an image and the whole's finite range."""
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype not in (np.uint8, np.uint16):
        if image.dtype.kind not in "iuf":
            raise ImageError(f"pixels of type {image.dtype}; allowed are bool, integers and floats")
        if finite_range is not None:
            low, high = np.array(finite_range, dtype=image.dtype)
            image = np.clip(np.where(np.isnan(image), low, image), low, high)
        image = image.astype(np.float32)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2:
        return np.broadcast_to(image, (n_channels, *image.shape))
    image = image[:, :, :3]
    if n_channels == 1 and image.dtype == np.float32:
        # by NumPy: OpenCV's last bit depends on where in a row a pixel lies, and so on how an image is cut
        red, green, blue = np.moveaxis(image, -1, 0)
        grey: npt.NDArray[np.float32] = red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
        return grey[None]
    if n_channels == 1:
        # OpenCV's fixed-point weights add up to one, so a grey picture stored as RGB gives the very grey levels
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[None]
    if n_channels == 3:
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    raise ImageError(f"the network takes {n_channels} channels; images have 1 or 3")


def _finite_range(bands: Iterable[Image]) -> tuple[float, float] | None:
    """The lowest and the highest finite value of an image of floats; None if all are finite, 0 and 0 if none is."""
    lows, highs, whole = [], [], True
    for band in bands:
        # Beyond the range of float32 is as good as infinite. A quarter of it, so that a difference stays within too.
        limit = min(float(np.finfo(np.float32).max) / 4, float(np.finfo(band.dtype).max))
        finite = np.abs(band) <= limit  # False for NaN
        if not finite.all():
            whole = False
            band = band[finite]
        if band.size:
            lows.append(float(band.min()))
            highs.append(float(band.max()))
    if whole:
        return None
    return (min(lows), max(highs)) if lows else (0.0, 0.0)


def _percentiles(bands: Callable[[], Iterable[npt.NDArray[Any]]]) -> tuple[float, float]:
    """The two percentiles, interpolated linearly as numpy.percentile does; minimum and maximum where they coincide.

    By counting, so that no copy of the image is sorted: of 8 and 16 bits each value, of floats first the upper half of
    their bits and then, within the few bins that matter, the lower.

    Args:
        bands: gives (C, rows, W) uint8, uint16 or float32 parts of the image, each time anew.
    """
    counts = np.zeros(1 << 16, dtype=np.int64)
    dtype = np.dtype(np.uint8)
    for planes in bands():
        distinct, repeats = _distinct(planes)
        counts += _count(_keys(distinct) >> np.uint32(16) if planes.dtype == np.float32 else distinct) * repeats
        dtype = planes.dtype
    ranks = np.cumsum(counts)
    size = int(ranks[-1])
    places = [percent / 100 * (size - 1) for percent in (LOW_PERCENTILE, HIGH_PERCENTILE)]
    wanted = sorted({0, size - 1, *(min(int(place) + step, size - 1) for place in places for step in (0, 1))})
    bins = np.searchsorted(ranks, wanted, side="right")
    if dtype == np.float32:
        lower = {int(bin_): np.zeros(1 << 16, dtype=np.int64) for bin_ in set(bins.tolist())}
        for planes in bands():
            distinct, repeats = _distinct(planes)
            keys = _keys(distinct)
            upper = keys >> np.uint32(16)
            for bin_, into in lower.items():
                into += np.bincount(keys[upper == bin_] & np.uint32(0xFFFF), minlength=1 << 16) * repeats
        values = {}
        for rank, bin_ in zip(wanted, bins.tolist(), strict=True):
            before = int(ranks[bin_ - 1]) if bin_ else 0
            low_bits = int(np.searchsorted(np.cumsum(lower[bin_]), rank - before, side="right"))
            values[rank] = _from_key(bin_ << 16 | low_bits)
    else:
        values = dict(zip(wanted, map(float, bins), strict=True))
    low, high = (_interpolate(values, place, size) for place in places)
    return (low, high) if high > low else (values[0], values[size - 1])


def _interpolate(values: Mapping[int, float], place: float, size: int) -> float:
    first = values[int(place)]
    return first + (place - int(place)) * (values[min(int(place) + 1, size - 1)] - first)


def _distinct(planes: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """The planes and 1, or of grey that is repeated the one plane and how often it is."""
    return (planes[0], len(planes)) if planes.strides[0] == 0 else (planes, 1)


def _count(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """(65536,) how often each is there."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype == np.uint8:  # several times quicker than bincount; exact up to 2**24 of one value
        counted = cv2.calcHist([flat], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
        return np.pad(counted, (0, (1 << 16) - 256))
    return np.bincount(flat, minlength=1 << 16)


def _keys(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Whole numbers in the order of float32: the bits, with negative numbers turned round."""
    bits = np.ascontiguousarray(values + np.float32(0)).view(np.uint32)  # adding 0 makes -0 and 0 one
    keys: npt.NDArray[np.uint32] = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    return keys


def _from_key(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, dtype=np.uint32).view(np.float32))
