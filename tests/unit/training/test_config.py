"""Recipes: the tutorial's numbers, and what is refused."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from training.__main__ import main
from training.config import CLASSIC, Recipe, make_recipe
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
        ({"width": 2000}, "width 2000; allowed is 1 to 1024"),
        ({"crops_per_epoch": -5}, "crops_per_epoch -5"),
        ({"lr": float("nan")}, "lr nan"),
        ({"lr": float("inf")}, "lr inf"),
        ({"gamma": 0.0}, "gamma 0.0"),
        ({"zoom": 0.5}, "zoom 0.5; allowed is 1 to 8"),
        ({"patience": -1}, "patience -1"),
        ({"seed": -1}, "seed -1"),
        ({"n_channels": 2}, "n_channels 2"),
    ],
)
def test_what_is_not_allowed_is_named(overrides: dict[str, float], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        make_recipe("default", overrides)


def test_every_number_has_its_range() -> None:
    for field in fields(Recipe):
        if (
            isinstance(field.default, int | float)
            and not isinstance(field.default, bool)
            and field.name != "n_channels"
        ):
            with pytest.raises(TrainingError, match=f"{field.name} .*allowed"):
                make_recipe("default", {field.name: float("nan")})


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(TrainingError, match="default, classic, membranes"):
        make_recipe("best", {})


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "training.synthesize", None)  # as an import that fails leaves it
    assert main(["synthesize", str(tmp_path)]) == 2
    assert "training.synthesize is not installed" in (said := capsys.readouterr().err)
    assert "make .venv/training" in said


def test_changes_that_are_shares_of_a_range_are_refused_where_there_is_none() -> None:
    names = ("alone_prob", "intensity_prob", "recolour_prob", "stain_prob", "invert_prob", "paste_prob")
    for name in names:
        none = dict.fromkeys(names, 0.0)
        make_recipe("default", none | {"normalisation": "raw"})
        with pytest.raises(TrainingError, match=f"normalisation raw needs .*{name}"):
            make_recipe("default", none | {"normalisation": "raw", name: 0.1})
