"""Which images weights were trained on, those that they began from included; told by pixels, in older cards by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.data import Pair
from training.dataset import PairCache, image_digest


@dataclass(frozen=True)
class Seen:
    """Images that were trained on.

    Attributes:
        digests: of their pixels, see image_digest.
        names: of those of which no more is known.
    """

    digests: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    def count(self, cache: PairCache) -> int:
        """How many of a cache's images these are."""
        return sum(
            digest in self.digests or pair.name in self.names
            for pair, digest in zip(cache.pairs, cache.digests, strict=True)
        )

    def and_also(self, digests: Iterable[str]) -> "Seen":
        """These and more."""
        return replace(self, digests=self.digests | set(digests))

    def to_card(self) -> dict[str, list[str]]:
        """As a checkpoint's card keeps them."""
        card = {"seen": sorted(self.digests)}
        return card | {"seen_by_name": sorted(self.names)} if self.names else card


def read_seen(cards: Iterable[Mapping[str, Any]]) -> Seen:
    """What the weights of some cards were trained on, together."""
    digests: set[str] = set()
    names: set[str] = set()
    for card in cards:
        known, split = card.get("seen"), card.get("split")
        names.update(card.get("seen_by_name", ()))
        if isinstance(known, list):
            digests.update(known)
        elif isinstance(split, dict):
            names.update(split.get("train", ()))
    return Seen(frozenset(digests), frozenset(names))


def chosen_on(card: Mapping[str, Any]) -> set[str]:
    """Names of the images on which a card's weights had their epoch, their threshold or their cores chosen."""
    split, tuned = card.get("split"), card.get("tuned")
    validation = split.get("validation", ()) if isinstance(split, dict) else ()
    return {*validation, *(tuned.get("images", ()) if isinstance(tuned, dict) else ())}


def unseen_pairs(pairs: Sequence[Pair], card: Mapping[str, Any]) -> list[Pair]:
    """Those that the weights of a card were not trained on.

    Raises:
        DataError: an image cannot be read.
    """
    seen = read_seen([card])
    left = [pair for pair in pairs if pair.name not in seen.names]
    if not seen.digests:
        return left
    return [pair for pair in left if image_digest(pair.read_image()) not in seen.digests]
