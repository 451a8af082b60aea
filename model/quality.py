"""Signs that an answer may not be trusted: what is wrong with the image, or with what the network made of it.

Cheap, a few milliseconds whatever the image's size: large images are looked at in samples. They are signs, not
verdicts; `bench/quality.py` prints how many good images each flags, and how many spoilt ones it finds.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from model.postprocess import PROBABILITY_LEVELS
from model.types import Image, Levels

Flag = Literal["saturated", "out_of_focus", "empty", "low_confidence", "unusual_intensity"]
FLAGS: tuple[Flag, ...] = ("saturated", "out_of_focus", "empty", "low_confidence", "unusual_intensity")

# Of an image this much is looked at: every n-th pixel for its intensities, and four windows for its sharpness, with
# larger ones to make sure where the small ones find it wanting, which is rare.
SAMPLE_PX = 1 << 16
WINDOWS_PX = (128, 256)
BAND_ROWS = 64  # that are read at a time

# Thresholds, chosen on images of DSB 2018 that are not in docs/splits/dsb2018.txt (bench/quality.py).
# Share of pixels at the very highest value, where that is a value at which detectors and files clip.
SATURATED_SHARE = 0.01
# Detail of 1 to 2 px over detail of 2 to 4 px, noise taken off. Light blurs edges, so in focus it is 0.2 to 0.6.
SHARPNESS = 0.19
# What of that detail is there if there is noise alone, for a noise of one (Gaussian filters of 1, 2 and 4 px).
_NOISE_FINE, _NOISE_COARSE = 0.0358, 0.0090
# Detail below so many times the noise's own is too little to say anything.
_FAINT = 2.0
# Pixels that are neither cell nor ground (probability 0.2 to 0.8), over those that are cell.
UNSURE_LOW, UNSURE_HIGH = 0.2, 0.8
UNSURE_SHARE = 0.7

# An intensity profile: quantiles of an image that is scaled from its 1st to its 99.8th percentile, as the network sees
# it; and how far its colours are from grey.
PROFILE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PROFILE_IMAGES = 64
LEAST_LIMIT = 0.02  # images all alike do not make others strange
PROFILE_KEY = "intensity"  # in a card


def assess_image(image: Image, profile: Any = None) -> set[Flag]:
    """Signs that the image itself shows.

    Args:
        image: as decoded, (H, W) or (H, W, C), any type that is read.
        profile: of the training images, from the checkpoint's card (`make_profile`); None skips that sign.
    """
    flags: set[Flag] = set()
    if is_saturated(image):
        flags.add("saturated")
    if is_blurred(image):
        flags.add("out_of_focus")
    if profile is not None and _is_unlike(image, profile):
        flags.add("unusual_intensity")
    return flags


def sample_rows(read_rows: Callable[[int, int], Image], height: int) -> Image:
    """As much as the signs need of an image that is read by rows: some bands of it, one below the other.

    Args:
        read_rows: the rows from one number on and before another.
        height: of the image, in pixels.
    """
    tops = list(range(0, height, BAND_ROWS))
    window = WINDOWS_PX[-1]
    if height > 2 * window:
        tops = [top + row for top in _starts(height, window) for row in range(0, window, BAND_ROWS)]
    return np.concatenate([read_rows(top, min(top + BAND_ROWS, height)) for top in tops])


def assess_answer(cell: Levels, *, threshold: float, n_foreground: int) -> set[Flag]:
    """Signs that the answer shows.

    Args:
        cell: (H, W) uint16, the cell probability in steps of 1/65535.
        threshold: in [0, 1], from which a pixel is cell.
        n_foreground: pixels of the mask.
    """
    if n_foreground == 0:
        return {"empty"}
    sample = _sample(cell)
    unsure = np.count_nonzero(
        (sample > round(UNSURE_LOW * PROBABILITY_LEVELS)) & (sample < round(UNSURE_HIGH * PROBABILITY_LEVELS))
    )
    sure = np.count_nonzero(sample >= threshold * PROBABILITY_LEVELS)
    return {"low_confidence"} if unsure > UNSURE_SHARE * sure else set()


def in_order(flags: Iterable[Flag]) -> tuple[Flag, ...]:
    """Each once, in the order of FLAGS."""
    given = set(flags)
    return tuple(flag for flag in FLAGS if flag in given)


def describe_quality(flags: Iterable[Flag]) -> str:
    """As it stands in the header and the table: `ok`, or the flags by commas."""
    return ", ".join(in_order(flags)) or "ok"


def is_saturated(image: Image) -> bool:
    """Whether many pixels lie at the highest value, and that is one at which detectors clip.

    Those are the ends of the types of 8 to 16 bits, as 4,095 in a file of 16, and for other types any value: without
    clipping hardly two pixels of a measured image share the highest.
    """
    grey = _grey(_sample(image))
    if grey.size == 0 or grey.dtype == np.bool_:
        return False
    top = grey.max()
    if not np.isfinite(top) or top == grey.min():
        return False
    if grey.dtype.kind in "iu" and int(top) < 4096 and int(top) not in (255, 1023, 4095):
        return False
    if grey.dtype.kind in "iu" and int(top) >= 4096 and int(top) not in (16383, 32767, 65535):
        return False
    return float(np.count_nonzero(grey == top)) > SATURATED_SHARE * grey.size


def is_blurred(image: Image) -> bool:
    """Whether the finest detail is missing that an image in focus has; False where there is too little to tell."""
    return all(_lacks_detail(image, side) for side in WINDOWS_PX)


def _lacks_detail(image: Image, side: int) -> bool:
    fine = coarse = noise = 0.0
    for window in _windows(image, side):
        grey = _grey(window).astype(np.float32)
        if window.dtype.kind == "f" and not np.isfinite(grey).all():
            continue
        # to filters of 1, 2 and 4 px in steps, the last at half the size, where it says the same
        first = _smooth(grey, 1.0)
        second = _smooth(first, 3.0**0.5)
        half = second[::2, ::2]
        fine += _variance(first - second) * grey.size
        coarse += _variance(half - _smooth(half, 3.0**0.5)) * grey.size
        noise += _noise(grey) ** 2 * grey.size
    fine, rest = fine - _NOISE_FINE * noise, coarse - _NOISE_COARSE * noise
    if rest <= _FAINT * _NOISE_COARSE * noise or rest <= 0:
        return False
    return fine < SHARPNESS * rest


def describe_intensity(image: Image) -> npt.NDArray[np.float64]:
    """Quantiles of the grey levels between the 1st and 99.8th percentile, and how far the colours are from grey."""
    sample = _sample(image)
    grey = _grey(sample).reshape(-1)
    if grey.dtype not in (np.uint8, np.uint16):
        grey = grey.astype(np.float32)
        grey = grey[np.isfinite(grey)]
    if grey.size == 0:
        return np.zeros(len(PROFILE_QUANTILES) + 1)
    low, high, *quantiles = _quantiles(grey, (0.01, 0.998, *PROFILE_QUANTILES))
    span = max(float(high - low), 1e-9)
    scaled = np.clip((np.array(quantiles) - low) / span, 0, 1)
    colour = 0.0
    if sample.ndim == 3 and sample.shape[2] >= 3:
        red, green, blue = (sample[..., index].astype(np.float32) for index in range(3))
        darkest = np.minimum(np.minimum(red, green), blue)
        colour = float(np.nan_to_num(np.mean(_grey(sample).astype(np.float32) - darkest))) / span
    return np.array([*scaled, min(colour, 1.0)])


def _quantiles(values: npt.NDArray[Any], shares: Sequence[float]) -> list[float]:
    """As numpy.quantile does; 8 and 16 bits are put in order, which NumPy does by counting: several times as quick."""
    if values.dtype not in (np.uint8, np.uint16):
        return list(map(float, np.quantile(values, shares)))
    ranked = np.sort(values, kind="stable")
    places = np.array(shares) * (len(ranked) - 1)
    below = places.astype(np.intp)
    first = ranked[below].astype(np.float64)
    last = ranked[np.minimum(below + 1, len(ranked) - 1)].astype(np.float64)
    return list(map(float, first + (places - below) * (last - first)))


def make_profile(described: Iterable[npt.NDArray[np.float64]]) -> dict[str, Any] | None:
    """What the intensities of training images are like, for their checkpoint's card.

    Args:
        described: `describe_intensity` of each image.

    Returns:
        `quantiles`, at most PROFILE_IMAGES rows spread over the images, and `limit`: the distance to the nearest row
        that 99 of 100 of the images keep within. None for fewer than three images.
    """
    rows = np.array(list(described))
    if len(rows) < 3:
        return None
    chosen = _spread(rows, PROFILE_IMAGES)
    distances = [
        min((float(np.abs(rows[index] - rows[other]).max()) for other in chosen if other != index), default=0.0)
        for index in range(len(rows))
    ]
    limit = max(float(np.quantile(distances, 0.99)), LEAST_LIMIT)
    return {"quantiles": np.round(rows[chosen], 4).tolist(), "limit": round(limit, 4)}


def _is_unlike(image: Image, profile: Any) -> bool:
    """Whether no training image has intensities like these; False for a profile that is none."""
    try:
        rows = np.asarray(profile["quantiles"], dtype=np.float64).reshape(-1, len(PROFILE_QUANTILES) + 1)
        limit = float(profile["limit"])
    except (KeyError, TypeError, ValueError):  # a card is what somebody else wrote
        return False
    return bool(len(rows)) and float(np.abs(rows - describe_intensity(image)).max(axis=1).min()) > limit


def _spread(rows: npt.NDArray[np.float64], count: int) -> Sequence[int]:
    """Indices of rows that are far from each other: each time the one farthest from those chosen."""
    chosen = [0]
    nearest = np.abs(rows - rows[0]).max(axis=1)
    while len(chosen) < min(count, len(rows)) and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.abs(rows - rows[chosen[-1]]).max(axis=1))
    return chosen


def _noise(grey: npt.NDArray[np.float32]) -> float:
    """Standard deviation of the noise. Source: Immerkaer 1996, with a median, which edges do not move."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
    response = np.abs(cv2.filter2D(grey, -1, kernel)[::3, ::3]).ravel()
    middle = response.size // 2
    return float(np.partition(response, middle)[middle]) / 0.6745 / 6


def _smooth(grey: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), dtype=np.float32)


def _variance(detail: npt.NDArray[np.float32]) -> float:
    """About zero, which is the mean of what a filter leaves."""
    return float(np.vdot(detail, detail)) / detail.size


def _windows(image: Image, side: int) -> list[Image]:
    """Windows spread evenly over the image; all of it where it is small."""
    height, width = image.shape[:2]
    tops, lefts = (_starts(length, side) for length in (height, width))
    return [image[top : top + side, left : left + side] for top in tops for left in lefts]


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    free = length - side
    edge = free // 4 if free > side else 0  # so that they do not overlap, and none crosses a seam of sample_rows
    return [edge, free - edge]


def _sample(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every n-th pixel of every n-th row, SAMPLE_PX at the most."""
    step = max(1, int(np.ceil(np.sqrt(pixels.shape[0] * pixels.shape[1] / SAMPLE_PX))))
    return pixels[::step, ::step]


def _grey(image: Image) -> npt.NDArray[Any]:
    """(H, W): the brightest of the colours, which is the one that clips."""
    if image.ndim == 2:
        return image
    if image.shape[2] < 3:
        return image[..., 0]
    # several times as quick as a maximum over the last axis
    brightest: npt.NDArray[Any] = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    return brightest
