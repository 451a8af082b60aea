"""The threshold and the cores that fit the images, written into a checkpoint that is otherwise the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import Architecture, ModelConfig, read_checkpoint, write_checkpoint
from model.images import encode_png
from model.postprocess import HIGH_THRESHOLD, JOIN_PROBABILITY
from model.twin import twin_path
from training.__main__ import main
from training.data import find_pairs
from training.lock import publishing
from training.tune import EQUALLY_GOOD, Rule, choose_rule, middle_of_best, tune


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs of touching cells at grey 0.9 with 0.55 between them; a ground of 0.42 is none."""
    image, mask = np.full((64, 96), 107, np.uint8), np.zeros((64, 96), np.uint8)
    for top in (8, 36):
        image[top : top + 16, 10:80], mask[top : top + 16, 10:80] = 140, 255
        image[top : top + 16, 10:40], image[top : top + 16, 50:80] = 230, 230
        mask[top : top + 16, 44:46] = 0
    for name, pixels in (("image", image), ("label", mask)):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.png").write_bytes(encode_png(pixels))
    return tmp_path / "data"


def test_threshold_and_cores_are_chosen_and_the_network_stays(
    level_weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "tuned.pth"
    assert main(["tune", str(level_weights), str(folder), "--to", str(tuned), "--device", "cpu", "--quiet"]) == 0
    before, after = read_checkpoint(level_weights), read_checkpoint(tuned)

    # the ground's probability is 0.31, that between the cells 0.61, that of the cells 0.98
    assert 0.31 < after.config.threshold < 0.61
    assert after.config.core_threshold == 0.8  # 0.7, 0.8 and 0.9 part them alike, and this is the middle
    assert "-> 1.0000" in capsys.readouterr().out  # all four cells apart
    assert after.card["data"] == "by hand"
    assert after.card["tuned"]["images"] == ["a"]
    assert after.card["scores"]["validation"]["threshold"] == after.config.threshold
    assert after.card["scores"]["validation"]["n_images"] == 1
    for name, value in before.state.items():
        assert torch.equal(value, after.state[name])


def test_of_rules_as_good_as_each_other_the_middle_is_taken() -> None:
    base, little = 0.5, EQUALLY_GOOD / 2
    low, middle, high, far = (0.3, 0.0, 0.4, 0.9), (0.3, 0.15, 0.4, 0.9), (0.3, 0.25, 0.4, 0.9), (0.9, 0.0, 0.4, 0.9)
    flat = {low: base + little, middle: base, high: base, (0.4, 0.15, 0.4, 0.9): base, far: base - 0.01}
    assert middle_of_best(flat) == middle
    # with none of them in the middle the best of them
    assert middle_of_best({low: base, high: base + little, far: base - 0.01}) == high
    # and a summit stays one
    assert middle_of_best({low: base, middle: base, high: base + 2 * EQUALLY_GOOD}) == high


def test_how_parts_are_joined_and_what_is_dropped_is_chosen_after_the_cores() -> None:
    best = (0.5, 0.25, 0.4, 0.8)

    asked: list[Rule] = []

    def score(rule: Rule) -> float:
        asked.append(rule)
        return 1 - sum(abs(one - other) for one, other in zip(rule, best, strict=True))

    config = ModelConfig(architecture=Architecture(n_classes=3), outputs=("cell", "border", "distance"))
    assert choose_rule(config, score) == (best, 1)
    assert asked[0][2:] == (JOIN_PROBABILITY, HIGH_THRESHOLD)  # as after training, and as most networks will have it
    # without a border there is nothing to join parts by, and what is dropped stays as it is
    config = ModelConfig(join_probability=1, high_threshold=0.3)
    assert choose_rule(config, score) == ((0.5, config.core_distance, 1, 0.3), score((0.5, 0.25, 1, 0.3)))


def test_rules_are_scored_without_what_they_drop(level_weights: Path, folder: Path) -> None:
    checkpoint = read_checkpoint(level_weights)
    before = []
    for high in (0.9, 0.999):  # the cells' probability is 0.98
        config = checkpoint.config.model_copy(update={"high_threshold": high})
        write_checkpoint(level_weights, checkpoint.state, config, checkpoint.card)
        before.append(tune(level_weights, find_pairs(folder), to=level_weights, device="cpu", quiet=True).before)
    assert before[1] < before[0]


def test_a_rule_that_gains_nothing_is_not_taken(level_weights: Path, folder: Path) -> None:
    for path in (folder / "image" / "a.png", folder / "label" / "a.png"):
        one = np.zeros((64, 96), np.uint8)
        one[10:30, 10:60] = 255
        path.write_bytes(encode_png(one))
    assert (
        main(["tune", str(level_weights), str(folder), "--to", str(level_weights), "--device", "cpu", "--quiet"]) == 0
    )
    assert read_checkpoint(level_weights).config.core_threshold is None


def test_nobody_else_publishes_meanwhile_and_a_twin_of_before_is_told(
    level_weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", str(level_weights), str(folder), "--to", str(level_weights), "--device", "cpu", "--quiet"]
    with publishing(level_weights):
        assert main(command) == 2
    assert "another process publishes" in capsys.readouterr().err
    assert main(command) == 0
    assert "twin" not in capsys.readouterr().out
    twin_path(level_weights).write_text("of before")
    assert main(command) == 0
    assert "make it anew by quantise" in capsys.readouterr().out
