"""Images that weights were trained on: known by their pixels, those of older cards by their names, through averages."""

from pathlib import Path

from model.checkpoint import Architecture, ModelConfig, read_checkpoint
from tests.files import write_seeded_weights
from training.average import average
from training.data import find_pairs
from training.dataset import image_digest
from training.seen import read_seen, unseen_pairs


def test_an_average_with_weights_of_an_older_card_has_not_forgotten_their_images(cells: Path, tmp_path: Path) -> None:
    pairs = find_pairs(cells)
    config = ModelConfig(architecture=Architecture(width=4))
    old = {"split": {"train": [pair.name for pair in pairs[:3]]}}
    new = {"seen": [image_digest(pairs[3].read_image())], "split": {"train": ["of another data set"]}}
    for name, card in (("old.pth", old), ("new.pth", new)):
        write_seeded_weights(tmp_path / name, config, card, seed=0)
    average([tmp_path / "old.pth", tmp_path / "new.pth"], to=tmp_path / "mean.pth")
    card = read_checkpoint(tmp_path / "mean.pth").card
    assert unseen_pairs(pairs, card) == pairs[4:]
    average([tmp_path / "mean.pth", tmp_path / "new.pth"], to=tmp_path / "again.pth")
    assert unseen_pairs(pairs, read_checkpoint(tmp_path / "again.pth").card) == pairs[4:]


def test_names_count_where_no_pixels_are_known_and_nowhere_else(cells: Path) -> None:
    pairs = find_pairs(cells)
    names = [pair.name for pair in pairs[:2]]
    assert unseen_pairs(pairs, {}) == pairs
    assert unseen_pairs(pairs, {"split": {"train": names}}) == pairs[2:]
    assert unseen_pairs(pairs, {"split": {"train": names}, "seen": []}) == pairs
    assert unseen_pairs(pairs, {"seen": ["0" * 16], "seen_by_name": names}) == pairs[2:]


def test_a_card_says_what_it_was_told() -> None:
    assert read_seen([]).to_card() == {"seen": []}
    seen = read_seen([{"seen": ["b"]}, {"split": {"train": ["x"]}}]).and_also(["a"])
    assert seen.to_card() == {"seen": ["a", "b"], "seen_by_name": ["x"]}
    assert read_seen([seen.to_card()]) == seen
