"""Recipes: the tutorial's numbers, and what is refused."""

import pytest

from training.config import CLASSIC, make_recipe
from training.errors import TrainingError


def test_classic_is_the_tutorials_numbers() -> None:
    assert (CLASSIC.lr, CLASSIC.momentum, CLASSIC.weight_decay) == (1e-5, 0.9, 1e-8)
    assert (CLASSIC.batch_size, CLASSIC.epochs, CLASSIC.width, CLASSIC.normalisation) == (1, 40, 64, "raw")
    assert (CLASSIC.dice_weight, CLASSIC.ema_decay, CLASSIC.clip_norm, CLASSIC.schedule) == (0, 0, 0, "constant")


def test_each_number_can_be_overridden() -> None:
    recipe = make_recipe("classic", {"lr": 3e-4, "width": 16})
    assert (recipe.name, recipe.lr, recipe.width, recipe.momentum) == ("classic", 3e-4, 16, 0.9)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"learning_rate": 1}, "learning_rate"),
        ({"crop_px": 100}, "multiples of 64"),
        ({"crop_px": 0}, "batch_size"),
        ({"flip_prob": 1.5}, "flip_prob 1.5"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"width": 0}, "width 0"),
        ({"n_channels": 2}, "n_channels 2"),
    ],
)
def test_what_is_not_allowed_is_named(overrides: dict[str, float], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        make_recipe("default", overrides)


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(TrainingError, match="default, classic"):
        make_recipe("best", {})
