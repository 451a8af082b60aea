"""Which image a sample shows."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from training.config import Recipe
from training.data import find_pairs
from training.dataset import CropDataset, PairCache
from training.train import model_config


def save(folder: Path, name: str, image: np.ndarray) -> None:
    for place, content in (("image", image), ("instances", np.ones(image.shape[:2], np.uint16))):
        (folder / place).mkdir(exist_ok=True)
        assert cv2.imwrite(str(folder / place / f"{name}.png"), content)


def mixed(folder: Path) -> PairCache:
    """Nine small grey pictures on dark ground, one of these four times as large, and one stained one."""
    generator = np.random.default_rng(0)
    for index in range(9):
        side = 256 if index == 8 else 128
        grey = np.where(generator.random((side, side)) < 0.1, 200, 10).astype(np.uint8)
        # a colour file of a grey picture is no colour picture
        save(folder, f"grey{index}", np.repeat(grey[..., None], 3, axis=2) if index % 2 else grey)
    stained = np.full((128, 128, 3), 240, np.uint8)
    stained[:20] = (180, 60, 120)
    save(folder, "stained", stained)
    return PairCache(find_pairs(folder), quiet=True)


def test_rare_kinds_and_large_images_are_drawn_more_often_than_their_number(tmp_path: Path) -> None:
    cache = mixed(tmp_path)
    shares = dict(zip([pair.name for pair in cache.pairs], cache.shares(), strict=True))
    # nine grey and one stained: 3 to 1 by the roots
    np.testing.assert_allclose(shares["stained"], 1 / 4)
    np.testing.assert_allclose(shares["grey0"], 3 / 4 / 10)
    np.testing.assert_allclose(shares["grey8"], 3 / 4 / 10 * 2)


def test_draws_follow_the_shares_and_depend_on_seed_and_place_alone(tmp_path: Path, tiny_recipe: Recipe) -> None:
    cache = mixed(tmp_path)
    recipe = replace(tiny_recipe, crops_per_epoch=2000)
    dataset = CropDataset(cache, recipe, model_config(recipe, cache.pairs, 256))
    drawn = [dataset._image_index(0, position) for position in range(2000)]
    np.testing.assert_allclose(np.bincount(drawn) / 2000, cache.shares(), atol=0.03)
    assert drawn == [dataset._image_index(0, position) for position in range(2000)]
    assert drawn != [dataset._image_index(1, position) for position in range(2000)]


def test_without_balance_each_image_comes_once_a_lap(tmp_path: Path, tiny_recipe: Recipe) -> None:
    cache = mixed(tmp_path)
    recipe = replace(tiny_recipe, balance=False, crops_per_epoch=20)
    dataset = CropDataset(cache, recipe, model_config(recipe, cache.pairs, 256))
    drawn = [dataset._image_index(0, position) for position in range(20)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
