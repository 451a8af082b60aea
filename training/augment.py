"""One random draw for image and truth together: flips, warps, intensity."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from model.preprocess import preprocess
from model.types import Labels, Planes
from training.config import Recipe
from training.paste import paste_cells

# Spacing of the control points of the elastic deformation: about the size of a cell.
ELASTIC_SPACING_PX = 32
# Side of the smallest part that is taken alone, and how often a place without cells is looked for.
ALONE_PX = 48
ALONE_TRIES = 10
# Channels that differ by more than this share of the range, on average, show colour.
COLOUR_SHARE = 0.03
# Optical densities of red, green and blue, of unit length: Ruifrok and Johnston, "Quantification of histochemical
# staining by color deconvolution", Analytical and Quantitative Cytology and Histology 23, 2001.
HEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)
# The longest side that a JPEG can have.
JPEG_PX = 65_500
# How far stains, scanners and software differ from them; the densities of nuclei and of ground; px between the places
# whose ground is drawn, the finest and the coarsest.
STAIN_STD = 0.15
NUCLEI_DENSITY, GROUND_DENSITY = (0.5, 1.4), (0.05, 0.5)
GROUND_PX = (6, 48)


@dataclass(frozen=True)
class Augmenter:
    """Draws an augmented crop from an image.

    Args:
        recipe: its augmentation numbers are used.
    """

    recipe: Recipe

    def __call__(self, planes: Planes, labels: Labels, *, seed: int, plain: bool = False) -> tuple[Planes, Labels]:
        """Paste cells, crop, warp, flip, change colour and intensity; the same seed gives the same result.

        Args:
            planes: (C, H, W) float32, normalised.
            labels: (H, W) int32.
            seed: of this one draw.
            plain: add the very same crop, pasted cells and all, in the picture's own colours, intensities and scale.

        Returns:
            (C, S, S), or (2 C, S, S) with the plain crop behind the other, and (S, S), with S = crop_px, or of the size
            given where crop_px is 0; labels stay whole numbers.
        """
        recipe, channels = self.recipe, len(planes)
        generator = np.random.default_rng(seed)
        pastes = recipe.paste_prob and generator.random() < recipe.paste_prob
        if pastes and not _has_colour(planes) and not _has_bright_ground(planes):
            planes, labels = paste_cells(planes, labels, generator)
        unchanged = planes
        if channels > 1 and generator.random() < recipe.recolour_prob:
            planes = _recolour(planes, recipe, generator)
        elif channels > 1 and generator.random() < recipe.stain_prob:
            planes = _stain(planes, recipe, generator)
        if generator.random() < recipe.invert_prob:
            planes = _invert(planes, recipe)
        if plain:
            planes = np.concatenate([planes, unchanged])
        if recipe.crop_px and generator.random() < recipe.alone_prob:
            planes, labels = _take_alone(planes, labels, channels, recipe, generator)
            planes, labels = _crop(planes, labels, recipe.crop_px, generator)
        elif generator.random() < recipe.warp_prob:
            planes, labels = _warp(planes, labels, recipe, generator)
        elif recipe.crop_px:
            planes, labels = _crop(planes, labels, recipe.crop_px, generator)
        if generator.random() < recipe.flip_prob:
            axes = ((-1,), (-2,), (-1, -2))[generator.integers(3)]
            planes, labels = np.flip(planes, axes), np.flip(labels, axes)
        planes = np.ascontiguousarray(planes)
        if recipe.intensity_prob:
            planes = np.concatenate([_change_intensity(planes[:channels], recipe, generator), planes[channels:]])
        return planes, np.ascontiguousarray(labels)


def _crop(planes: Planes, labels: Labels, side: int, generator: np.random.Generator) -> tuple[Planes, Labels]:
    """A random square; images that are smaller are mirrored at their edges."""
    short_y, short_x = max(0, side - labels.shape[0]), max(0, side - labels.shape[1])
    if short_y or short_x:
        before = int(generator.integers(short_y + 1)), int(generator.integers(short_x + 1))
        width = ((before[0], short_y - before[0]), (before[1], short_x - before[1]))
        planes = np.pad(planes, ((0, 0), *width), mode="reflect")
        labels = np.pad(labels, width, mode="reflect")
    y = int(generator.integers(labels.shape[0] - side + 1))
    x = int(generator.integers(labels.shape[1] - side + 1))
    return planes[:, y : y + side, x : x + side], labels[y : y + side, x : x + side]


def _take_alone(
    planes: Planes, labels: Labels, channels: int, recipe: Recipe, generator: np.random.Generator
) -> tuple[Planes, Labels]:
    """A part of an image as if it were an image, its first channels with a scale of their own. Half hold no cell."""
    largest = recipe.crop_px
    empty = generator.random() < 0.5
    for _ in range(ALONE_TRIES):
        height, width = (int(generator.integers(min(ALONE_PX, side), min(largest, side) + 1)) for side in labels.shape)
        y = int(generator.integers(labels.shape[0] - height + 1))
        x = int(generator.integers(labels.shape[1] - width + 1))
        part = (slice(y, y + height), slice(x, x + width))
        if not empty or not labels[part].any():
            break
    alone = _rescale(planes[:channels, *part], recipe)
    return np.concatenate([alone, planes[channels:, *part]]), labels[part]


def _warp(planes: Planes, labels: Labels, recipe: Recipe, generator: np.random.Generator) -> tuple[Planes, Labels]:
    """A random place, rotated, zoomed, stretched and bent, in one resampling; mirrored beyond the edges."""
    height, width = (recipe.crop_px, recipe.crop_px) if recipe.crop_px else labels.shape
    angle, across = np.deg2rad(generator.uniform(-1, 1) * recipe.rotate_deg), generator.uniform(0, np.pi)
    zoom = recipe.zoom ** generator.uniform(-1, 1)
    stretch = recipe.stretch ** generator.uniform(-0.5, 0.5)
    # from the crop to the image: a rotation, then a stretch along an axis of any direction
    axes = _rotation(across)
    matrix = _rotation(angle) @ axes.T @ np.diag([stretch, 1 / stretch]) @ axes / zoom
    offsets = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(np.float64)
    offsets -= np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    if recipe.elastic_px:
        offsets += _bend(height, width, recipe.elastic_px, generator)
    # the middle of the crop lies where a crop of this size lies within the image, if it can
    centre = [
        generator.uniform(min(side, crop) / 2, max(side - crop / 2, side / 2)) - 0.5
        for side, crop in zip(labels.shape, (height / zoom, width / zoom), strict=True)
    ]
    ys, xs = np.tensordot(matrix, offsets, axes=1).astype(np.float32) + np.array(centre, np.float32)[:, None, None]
    warped = [cv2.remap(plane, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101) for plane in planes]
    # label numbers are whole in float32 up to 2**24
    moved = cv2.remap(labels.astype(np.float32), xs, ys, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
    return np.stack(warped), np.rint(moved).astype(np.int32)


def _rotation(angle: float) -> npt.NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _bend(height: int, width: int, largest: float, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """(2, H, W) smooth displacements; those of the control points are drawn evenly up to a largest, drawn as well."""
    points = (height // ELASTIC_SPACING_PX + 2, width // ELASTIC_SPACING_PX + 2)
    moves = generator.uniform(-1, 1, (2, *points)) * generator.uniform(0, largest)
    return np.stack([cv2.resize(move, (width, height), interpolation=cv2.INTER_CUBIC) for move in moves])


def _change_intensity(planes: Planes, recipe: Recipe, generator: np.random.Generator) -> Planes:
    """Tint, contrast, brightness, blur, noise and JPEG, each with the same probability."""
    tint, contrast, scale, shift, blur, noise, jpeg = generator.random(7) < recipe.intensity_prob
    if tint and recipe.tint and len(planes) > 1:
        planes = _tint(planes, recipe.tint, generator)
    if contrast:
        low, span = planes.min(), max(float(np.ptp(planes)), 1e-6)
        planes = low + span * ((planes - low) / span) ** (recipe.gamma ** generator.uniform(-1, 1))
    if scale:
        planes = planes * (1 + generator.uniform(-1, 1) * recipe.brightness)
    if shift:
        planes = planes + generator.uniform(-1, 1) * recipe.brightness / 2
    if blur:
        sigma = generator.uniform(0.3, recipe.blur_px)
        planes = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in planes])
    if noise:
        std = generator.uniform(0, recipe.noise_std)
        planes = planes + std * generator.standard_normal(planes.shape, dtype=np.float32)
    if jpeg and max(planes.shape) <= JPEG_PX:
        planes = compress(planes, int(generator.integers(recipe.jpeg_quality, 95, endpoint=True)))
    return np.ascontiguousarray(planes, dtype=np.float32)


def compress(planes: Planes, quality: int) -> Planes:
    """As a JPEG of eight bits keeps it.

    Args:
        planes: (C, H, W) float32 of any range, sides of up to JPEG_PX; one channel, or red, green and blue.
        quality: 1 to 100.

    Returns:
        (C, H, W) float32, within the range of `planes`.
    """
    low, span = planes.min(), max(float(np.ptp(planes)), 1e-6)
    levels = np.rint((planes - low) * (255 / span)).astype(np.uint8)
    # OpenCV has blue first, and JPEG keeps the channels differently well
    _, data = cv2.imencode(".jpg", levels[::-1].transpose(1, 2, 0), [cv2.IMWRITE_JPEG_QUALITY, quality])
    kept = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.float32)
    channels_first = np.atleast_3d(kept).transpose(2, 0, 1)[::-1]
    compressed: Planes = low + channels_first * np.float32(span / 255)
    return compressed


def _recolour(planes: Planes, recipe: Recipe, generator: np.random.Generator) -> Planes:
    """Colour becomes grey, by any mixture of its channels; grey on dark ground becomes a colour, as software shows it.

    Of the whole picture, so that its scale can be that of a picture which came so.
    """
    if _has_colour(planes):
        weights = generator.dirichlet(np.ones(len(planes))).astype(np.float32)
        grey = np.tensordot(weights, planes, axes=1)
        return np.repeat(_rescale(grey[None], recipe), len(planes), axis=0)
    if _has_bright_ground(planes):
        return planes
    # squares make strong colours, one channel alone for example, as frequent as pale ones
    gains = generator.random(len(planes)) ** 2
    coloured: Planes = planes * (gains / gains.max()).astype(np.float32)[:, None, None]
    return coloured


def _stain(planes: Planes, recipe: Recipe, generator: np.random.Generator) -> Planes:
    """Grey on dark ground as stained tissue in transmitted light: nuclei in one stain, an uneven ground in another."""
    if _has_colour(planes) or _has_bright_ground(planes):
        return planes
    nuclei = np.clip(planes.mean(axis=0), 0, 1) ** generator.uniform(0.4, 0.8)
    spacing = generator.uniform(*GROUND_PX)
    points = [int(side / spacing) + 2 for side in nuclei.shape]
    uneven = generator.random(points, dtype=np.float32) ** generator.uniform(0, 2)
    ground = np.maximum(cv2.resize(uneven, nuclei.shape[::-1], interpolation=cv2.INTER_CUBIC), 0)
    density = np.zeros_like(planes)
    for amount, stain, (low, high) in ((nuclei, HEMATOXYLIN, NUCLEI_DENSITY), (ground, EOSIN, GROUND_DENSITY)):
        colour = np.maximum(np.array(stain) + STAIN_STD * generator.standard_normal(len(stain)), 0)
        density += (generator.uniform(low, high) * colour).astype(np.float32)[:, None, None] * amount
    return _rescale(np.power(np.float32(10), -density), recipe)


def _has_colour(planes: Planes) -> bool:
    return bool(np.ptp(planes[:, ::4, ::4], axis=0).mean() > COLOUR_SHARE)


def _has_bright_ground(planes: Planes) -> bool:
    return bool(np.median(planes[:, ::4, ::4]) > 0.5)


def _invert(planes: Planes, recipe: Recipe) -> Planes:
    """Dark and bright exchanged. Of the whole picture, so that its scale is that of a picture which came so."""
    return _rescale(1 - planes, recipe)


def _rescale(planes: Planes, recipe: Recipe) -> Planes:
    """The scale of a picture that came as it is now, where the recipe's depends on the picture."""
    if recipe.normalisation != "percentile":
        return planes
    return preprocess(planes.transpose(1, 2, 0), n_channels=len(planes), normalisation="percentile")


def _tint(planes: Planes, largest: float, generator: np.random.Generator) -> Planes:
    """Change channels against each other, from the ground's end of the scale, so that the ground keeps its colour."""
    gains = generator.uniform(1 - largest, 1 + largest, (len(planes), 1, 1)).astype(np.float32)
    ground = np.float32(np.median(planes) > 0.5)
    tinted: Planes = ground + (planes - ground) * gains
    return tinted
