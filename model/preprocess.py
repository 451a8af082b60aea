"""From a decoded image to the float planes that the network takes: the one function for training and serving."""

from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from model.errors import ImageError
from model.types import Image, Planes

LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.8
# Far outside what training shows the network; a few hot pixels must not reach it as values in the hundreds.
CLIP_LOW, CLIP_HIGH = -1.0, 3.0

Normalisation = Literal["percentile", "raw", "unit"]


def preprocess(image: Image, *, n_channels: int, normalisation: Normalisation) -> Planes:
    """Bring an image to the channels and the scale that a network was trained with.

    Args:
        image: (H, W) or (H, W, C) with C of 1, 3 (R, G, B) or 4 (R, G, B, alpha); bool, integer or float. Alpha is
            ignored. Colour becomes grey by the weights of ITU-R BT.601 for a network of one channel; grey is repeated
            for one of three.
        n_channels: of the network, 1 or 3.
        normalisation: `percentile`: the image's 1st percentile becomes 0 and its 99.8th 1; where these coincide its
            minimum and maximum do; a constant image becomes all 0. `raw`: 8-bit grey levels as they are, 16-bit ones
            over 257, floats as they are. `unit`: `raw` over 255, floats as they are.

    Returns:
        (n_channels, H, W) float32, finite. NaN counts as the lowest finite value, infinities as the nearest.

    Raises:
        ImageError: another shape or dtype, no pixels, or colour for a network of neither 1 nor 3 channels.
    """
    planes = _to_channels(image, n_channels)
    if normalisation == "percentile":
        low, high = _percentiles(planes)
        span = np.float32(high - low)
        if span == 0:
            return np.zeros(planes.shape, dtype=np.float32)
        scaled = planes.astype(np.float32)
        scaled -= np.float32(low)
        with np.errstate(over="ignore"):  # a hot pixel over a span of next to nothing is infinite until it is clipped
            scaled /= span
        return np.clip(scaled, CLIP_LOW, CLIP_HIGH, out=scaled)
    if planes.dtype == np.float32:
        return np.ascontiguousarray(planes, dtype=np.float32)
    # by dtype, never by a look at the pixels: a dark 16-bit image is no 8-bit image
    levels = 255.0 if planes.dtype == np.uint8 else 65535.0
    return planes.astype(np.float32) * np.float32((255.0 if normalisation == "raw" else 1.0) / levels)


def _to_channels(image: Image, n_channels: int) -> npt.NDArray[Any]:
    """(n_channels, H, W) uint8, uint16 or finite float32."""
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ImageError(f"an image of shape {image.shape}; allowed are (H, W), (H, W, 1), (H, W, 3) and (H, W, 4)")
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype not in (np.uint8, np.uint16):
        if image.dtype.kind not in "iuf":
            raise ImageError(f"pixels of type {image.dtype}; allowed are bool, integers and floats")
        image = (_finite(image) if image.dtype.kind == "f" else image).astype(np.float32)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2:
        return np.broadcast_to(image, (n_channels, *image.shape))
    image = image[:, :, :3]
    if n_channels == 1:
        # OpenCV's fixed-point weights add up to one, so a grey picture stored as RGB gives the very grey levels
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[None]
    if n_channels == 3:
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    raise ImageError(f"the network takes {n_channels} channels; images have 1 or 3")


def _finite(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Beyond the range of float32 is as good as infinite. A quarter of it, so that a difference stays within as well.
    limit = min(float(np.finfo(np.float32).max) / 4, float(np.finfo(image.dtype).max))
    finite = np.abs(image) <= limit  # False for NaN
    if finite.all():
        return image
    if not finite.any():
        return np.zeros_like(image)
    low, high = image[finite].min(), image[finite].max()
    clipped: npt.NDArray[Any] = np.clip(np.where(np.isnan(image), low, image), low, high)
    return clipped


def _percentiles(planes: npt.NDArray[Any]) -> tuple[float, float]:
    """The two percentiles, interpolated linearly as numpy.percentile does; minimum and maximum where they coincide."""
    if planes.dtype in (np.uint8, np.uint16):
        # a histogram instead of a partial sort: several times quicker on large images
        repeats = planes.shape[0] if planes.strides[0] == 0 else 1  # grey repeated: one copy tells all
        counts = np.bincount((planes[0] if repeats > 1 else planes).ravel(), minlength=256) * repeats
        ranks = np.cumsum(counts)
        low, high = (_rank(ranks, percent / 100 * (planes.size - 1)) for percent in (LOW_PERCENTILE, HIGH_PERCENTILE))
    else:
        low, high = np.percentile(planes, (LOW_PERCENTILE, HIGH_PERCENTILE)).tolist()
    if high > low:
        return low, high
    return float(planes.min()), float(planes.max())


def _rank(ranks: npt.NDArray[np.int64], position: float) -> float:
    below = int(position)
    values = np.searchsorted(ranks, (below, below + 1), side="right")
    first = int(values[0])
    fraction = position - below
    return first + fraction * (int(values[1]) - first) if fraction else float(first)
