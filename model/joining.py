"""Join the parts of one cell: a network parts too eagerly, for it does not see how large the cells of a picture are.

Whether two parts are one cell is judged by what the maps say along their seam and by how large they are beside the
usual cell of the picture. So the cores may be chosen with more of them than there are cells.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from model.types import Labels

# Of what `Seams.describe` says, in its order, to the logarithm of the odds that two parts are one cell. By logistic
# regression on the images trained on: `python bench/joining.py`, rounded (decisions/0005).
COEFFICIENTS = (-4.0, 5.9, -0.55, -0.5, -3.8)
# In each round the seams are joined that have no likelier one beside them. A long row of parts, each seam likelier than
# the one before, would take as many rounds as it has parts; images of cells take few.
MOST_ROUNDS = 20

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Seams:
    """Where parts touch over edges, one column for each pair of parts.

    Attributes:
        table: (6, n) int64; its rows are the properties below, in their order.
    """

    table: Numbers

    @classmethod
    def find(
        cls,
        labels: Labels,
        border: npt.NDArray[np.uint8],
        cell: npt.NDArray[np.uint16],
        *,
        least: int,
        n_rows: int | None = None,
        origin: tuple[int, int] = (0, 0),
        width: int,
    ) -> Self:
        """The seams within some rows and columns of an image.

        Args:
            labels: (H, W); numbers from `least` on are parts.
            border, cell: (H, W), the maps there.
            least: the lowest number of a part.
            n_rows: look from the pixels of so many rows to those on their right and below; None from all.
            origin: row and column of the image where they begin.
            width: of the image, in pixels.
        """
        height = len(labels) if n_rows is None else n_rows
        found: list[Numbers] = []
        for vertical in (1, 0):
            here = labels[: min(height, len(labels) - vertical), : labels.shape[1] - 1 + vertical]
            there = labels[vertical : vertical + len(here), 1 - vertical :]
            # edges of all kinds, far fewer than pixels; those between parts are looked for among them alone
            rows, columns = np.divmod(np.flatnonzero(here != there), max(here.shape[1], 1))
            pair = np.stack([here[rows, columns], there[rows, columns]]).astype(np.int64)
            inside = (pair >= least).all(axis=0)
            pair, rows, columns = pair[:, inside], rows[inside], columns[inside]
            low, high = pair.min(axis=0), pair.max(axis=0)
            beside = rows + vertical, columns + 1 - vertical
            sums = [map_[rows, columns].astype(np.int64) + map_[beside] for map_ in (border, cell)]
            places = 2 * ((rows + origin[0]) * width + columns + origin[1]) + vertical
            found.append(np.stack([low, high, np.ones_like(low), *sums, places]))
        return cls(np.concatenate(found, axis=1))._gathered()

    def __len__(self) -> int:
        return int(self.table.shape[1])

    @property
    def one(self) -> Numbers:
        """(n,) number of one of both parts, the lower one."""
        return self._row(0)

    @property
    def other(self) -> Numbers:
        """(n,) number of the other part."""
        return self._row(1)

    @property
    def lengths(self) -> Numbers:
        """(n,) pairs of pixels along the seam."""
        return self._row(2)

    @property
    def border(self) -> Numbers:
        """(n,) sum over both pixels of these pairs, in the steps of `model.postprocess.Maps`."""
        return self._row(3)

    @property
    def cell(self) -> Numbers:
        """(n,) the same of the cell's map."""
        return self._row(4)

    @property
    def places(self) -> Numbers:
        """(n,) of the first pair in the image, which no other seam has.

        It decides between seams that are as likely as each other, so that the numbers of the parts do not.
        """
        return self._row(5)

    def together(self, *others: Self) -> Self:
        """These and more, of other rows of the image."""
        return self.beside(*others)._gathered()

    def beside(self, *others: Self) -> Self:
        """These and more, between other parts."""
        return type(self)(np.concatenate([self.table, *(seams.table for seams in others)], axis=1))

    def only(self, chosen: npt.NDArray[np.bool_]) -> Self:
        """Some of them."""
        return type(self)(self.table[:, chosen])

    def renumbered(self, numbers: Numbers) -> Self:
        """With new numbers of the parts; a seam within one of them is none any more.

        Args:
            numbers: (m,) the new number by the old.
        """
        pair = numbers[self.table[:2]]
        table = np.concatenate([[pair.min(axis=0), pair.max(axis=0)], self.table[2:]])
        return type(self)(table[:, pair[0] != pair[1]])._gathered()

    def describe(self, sizes: Numbers, usual: float) -> npt.NDArray[np.float64]:
        """(5, n) what tells whether both parts are one cell.

        The mean probability along the seam of a border, and of a cell; the sizes of both parts together, and of the
        smaller one, beside the usual one, as logarithms to base 2; and 1.

        Args:
            sizes: (m,) by number, area of the cores of each part, in pixels.
            usual: area of a core in this picture.
        """
        one, other = sizes[self.one] / usual, sizes[self.other] / usual
        pixels = 2.0 * self.lengths
        return np.stack(
            [
                self.border / (255 * pixels),
                self.cell / (65535 * pixels),
                np.log2(one + other),
                np.log2(np.minimum(one, other)),
                np.ones(len(self)),
            ]
        )

    def log_odds(self, sizes: Numbers, usual: float) -> npt.NDArray[np.float64]:
        """(n,) natural logarithm of the odds that both parts are one cell; the arguments are those of `describe`."""
        odds: npt.NDArray[np.float64] = (np.array(COEFFICIENTS)[:, None] * self.describe(sizes, usual)).sum(axis=0)
        return odds

    def _row(self, index: int) -> Numbers:
        row: Numbers = self.table[index]
        return row

    def _gathered(self) -> Self:
        """One column a pair of parts."""
        order = np.lexsort((self.other, self.one))
        table = self.table[:, order]
        new = np.flatnonzero((np.diff(table[:2], axis=1, prepend=-1) != 0).any(axis=0))
        if len(new) == len(order):
            return type(self)(table)
        sums, places = np.add.reduceat(table[2:5], new, axis=1), np.minimum.reduceat(table[5:], new, axis=1)
        return type(self)(np.concatenate([table[:2, new], sums, places]))


def join_parts(seams: Seams, sizes: Numbers, usual: float, *, probability: float) -> npt.NDArray[np.int32]:
    """Which parts are one cell.

    The likeliest seams are joined first, and what they join is judged anew by its size: a row of usual cells without
    any border between them becomes cells of several, and not one. After MOST_ROUNDS rounds no more are joined.

    Args:
        seams: between the parts.
        sizes: (m,) by number, area of the part's core in pixels, above 0 for each part.
        usual: area of a core in this picture.
        probability: in [0, 1]; two parts are joined where that of being one cell is above it; 1 joins none.

    Returns:
        (m,) int32: for each number that of the cell which it is part of, the lowest of its parts; its own where it is
        joined to nothing.
    """
    number = np.arange(len(sizes), dtype=np.int32)
    if probability >= 1 or not len(seams):
        return number
    least = math.log(probability / (1 - probability)) if probability > 0 else -math.inf
    # few of all the numbers have a seam
    names = np.unique(np.concatenate([seams.one, seams.other]))
    local = np.zeros(len(sizes), dtype=np.int64)
    local[names] = np.arange(len(names))
    seams = seams.renumbered(local)
    sizes = sizes[names]
    joined = np.arange(len(names))
    odds = seams.log_odds(sizes, usual)
    for _ in range(MOST_ROUNDS):
        likely = np.flatnonzero(odds > least)
        if not len(likely):
            break
        one, other = seams.one[likely], seams.other[likely]
        best = _are_best(one, other, odds[likely], _scattered(seams.places[likely]), len(names))
        one, other = one[best], other[best]
        into, changed = np.arange(len(names)), np.zeros(len(names), dtype=np.bool_)
        into[other] = one
        sizes[one] += sizes[other]
        changed[one] = changed[other] = True
        joined = into[joined]
        # most of the others are as they were
        touched = changed[seams.one] | changed[seams.other]
        anew = seams.only(touched).renumbered(into)
        odds = np.concatenate([odds[~touched], anew.log_odds(sizes, usual)])
        seams = seams.only(~touched).beside(anew)
    number[names] = names[joined]
    return number


def _are_best(
    one: Numbers, other: Numbers, odds: npt.NDArray[np.float64], ties: Numbers, n_parts: int
) -> npt.NDArray[np.bool_]:
    """Which seams have no likelier one beside them, at either part; of equally likely ones that of the lowest tie.

    So no part is in two of them.
    """
    best = np.full(n_parts, -np.inf)
    np.maximum.at(best, one, odds)
    np.maximum.at(best, other, odds)
    is_best = (odds == best[one]) & (odds == best[other])
    first = np.full(n_parts, np.iinfo(np.int64).max)
    for part in (one, other):
        equal = odds == best[part]
        np.minimum.at(first, part[equal], ties[equal])
    alone: npt.NDArray[np.bool_] = is_best & (ties == first[one]) & (ties == first[other])
    return alone


def _scattered(places: Numbers) -> Numbers:
    """The same places in an order that has no direction, or of a long row of equal seams only the first would be best.

    Source: multiplicative hashing, Knuth, The Art of Computer Programming, volume 3.
    """
    return (places * 2654435761) % (1 << 32)
