"""Draw a small data set of cells with truth, for tests and first tries; nothing in it is real."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.draw import polygon

from model.checkpoint import write_atomically
from model.images import encode_png
from model.types import Labels
from training.errors import DataError


def synthesize(folder: Path, *, count: int, size_px: int = 256, seed: int = 0) -> None:
    """Write `count` images to folder/image and their label images to folder/instances, as PNG.

    Args:
        folder: made if needed; holds no data set yet.
        count: images, >= 1.
        size_px: their height and width, >= 32.
        seed: the same seed draws the same images.

    Raises:
        DataError: count or size is not allowed, or there are images or a truth in the folder.
    """
    if count < 1 or size_px < 32:
        raise DataError(f"count {count}, size {size_px} px; allowed are 1 or more, and 32 px or more")
    for part in (folder / "image", folder / "instances"):
        if part.is_dir() and any(part.iterdir()):
            raise DataError(f"{part} holds files already; name another folder")
    for index in range(count):
        image, labels = draw_cells(size_px, np.random.default_rng([seed, index]))
        write_atomically(folder / "image" / f"{index:04d}.png", encode_png(image))
        write_atomically(folder / "instances" / f"{index:04d}.png", encode_png(labels.astype(np.uint16)))


def draw_cells(size_px: int, generator: np.random.Generator) -> tuple[npt.NDArray[np.uint8], Labels]:
    """One fluorescence-like picture: bright textured cells, some touching, on a dim uneven background, with noise.

    Returns:
        (S, S) uint8 image and (S, S) int32 labels, 0 = background.
    """
    labels = np.zeros((size_px, size_px), dtype=np.int32)
    light = np.zeros((size_px, size_px))
    radius = generator.uniform(0.035, 0.07) * max(size_px, 128)
    for number in range(1, max(2, int(generator.integers(4, 10) * (size_px / 128) ** 2)) + 1):
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        wobble = sum(
            generator.normal(0, 0.06 / order) * np.cos(order * angles + generator.uniform(0, 2 * np.pi))
            for order in range(1, 4)
        )
        distance = radius * generator.uniform(0.75, 1.3) * (1 + wobble)
        stretch, turn = generator.uniform(0.7, 1.0), generator.uniform(0, np.pi)
        y, x = distance * np.sin(angles) * stretch, distance * np.cos(angles)
        centre_y, centre_x = generator.uniform(0, size_px, 2)
        rows, columns = polygon(  # type: ignore[no-untyped-call]  # the library is partly typed
            centre_y + y * np.cos(turn) + x * np.sin(turn),
            centre_x - y * np.sin(turn) + x * np.cos(turn),
            labels.shape,
        )
        free = labels[rows, columns] == 0
        if free.mean() < 0.8 if free.size else True:  # cells touch, they don't hide each other
            continue
        labels[rows[free], columns[free]] = number
        light[rows[free], columns[free]] = generator.uniform(0.45, 1.0)
    numbers = np.unique(labels)
    labels = np.searchsorted(numbers, labels).astype(np.int32)
    texture = ndimage.gaussian_filter(generator.normal(size=labels.shape), 2.5)
    light *= 1 + 0.8 * texture
    light = ndimage.gaussian_filter(light, 1.0)
    slope = np.linspace(0, generator.uniform(0, 0.15), size_px)
    light = light + 0.08 + (slope[:, None] if generator.random() < 0.5 else slope[None, :])
    photons = generator.poisson(np.clip(light, 0, None) * 120)
    image = np.clip(photons * 1.6 + generator.normal(0, 3, labels.shape), 0, 255).astype(np.uint8)
    return image, labels
