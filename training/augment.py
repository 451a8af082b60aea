"""One random draw for image and truth together: flips, warps, intensity; the transforms are MONAI's."""

from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import Rand2DElasticd

from model.types import Labels, Planes
from training.config import Recipe

# Spacing of the control points of the elastic deformation: about the size of a cell.
ELASTIC_SPACING_PX = (32, 32)


@dataclass(frozen=True)
class Augmenter:
    """Draws an augmented crop from an image.

    Args:
        recipe: its augmentation numbers are used.
    """

    recipe: Recipe

    def __call__(self, planes: Planes, labels: Labels, *, seed: int) -> tuple[Planes, Labels]:
        """Crop, warp, flip and change intensity; the same seed gives the same result.

        Args:
            planes: (C, H, W) float32, normalised.
            labels: (H, W) int32.
            seed: of this one draw.

        Returns:
            (C, S, S) and (S, S) with S = crop_px, or of the size given where crop_px is 0; labels stay whole numbers.
        """
        recipe = self.recipe
        generator = np.random.default_rng(seed)
        warp = generator.random() < recipe.warp_prob
        if recipe.crop_px:
            # a warp looks beyond the crop's corners, so it is given what lies there
            margin = recipe.crop_px // 4 if warp else 0
            planes, labels = _crop(planes, labels, recipe.crop_px + 2 * margin, generator)
        if warp:
            planes, labels = self._warp(planes, labels, int(generator.integers(2**31)))
        if generator.random() < recipe.flip_prob:
            axes = ((-1,), (-2,), (-1, -2))[generator.integers(3)]
            planes, labels = np.flip(planes, axes), np.flip(labels, axes)
        planes = np.ascontiguousarray(planes)
        if recipe.intensity_prob:
            planes = self._change_intensity(planes, int(generator.integers(2**31)))
        return planes, np.ascontiguousarray(labels)

    def _warp(self, planes: Planes, labels: Labels, seed: int) -> tuple[Planes, Labels]:
        recipe = self.recipe
        size = (recipe.crop_px, recipe.crop_px) if recipe.crop_px else labels.shape
        transform = Rand2DElasticd(
            keys=("image", "labels"),
            spacing=ELASTIC_SPACING_PX,
            magnitude_range=(0.0, recipe.elastic_px),
            prob=1.0,
            rotate_range=float(np.deg2rad(recipe.rotate_deg)),
            shear_range=recipe.shear,
            scale_range=recipe.scale,
            spatial_size=size,
            mode=("bilinear", "nearest"),
            padding_mode="reflection",
        ).set_random_state(seed=seed)
        # label numbers are whole in float32 up to 2**24
        warped = transform({"image": planes, "labels": labels[None].astype(np.float32)})
        image = np.asarray(warped["image"], dtype=np.float32)
        return image, np.rint(np.asarray(warped["labels"])[0]).astype(np.int32)

    def _change_intensity(self, planes: Planes, seed: int) -> Planes:
        recipe, keys = self.recipe, ("image",)
        transform = Compose(
            [
                RandAdjustContrastd(keys, prob=recipe.intensity_prob, gamma=(1 / recipe.gamma, recipe.gamma)),
                RandScaleIntensityd(keys, factors=recipe.brightness, prob=recipe.intensity_prob),
                RandShiftIntensityd(keys, offsets=recipe.brightness / 2, prob=recipe.intensity_prob),
                RandGaussianSmoothd(
                    keys, sigma_x=(0.3, recipe.blur_px), sigma_y=(0.3, recipe.blur_px), prob=recipe.intensity_prob
                ),
                RandGaussianNoised(keys, prob=recipe.intensity_prob, std=recipe.noise_std),
            ]
        ).set_random_state(seed=seed)
        return np.asarray(transform({"image": torch.from_numpy(planes)})["image"], dtype=np.float32)


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
