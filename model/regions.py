"""The regions of a mask and the cores in them, by runs: which have to be flooded to know how large their cells are."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from model.parting import CORE_AREA_PX, are_crowded
from model.runs import Box, Places, Runs, label_runs
from model.types import Labels, Mask

# No more regions than these are flooded each in a box of its own.
ALONE_REGIONS = 16
# Neighbours are counted of cores that are at most this part, one over it, of their region.
COUNTED_SHARE = 4

Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Regions:
    """Regions and cores are numbered in one sequence, 0..k-1, so a number is either a region's or a core's.

    Attributes:
        runs, core_runs: of the mask, and of the cores, which lie within it.
        region: (n,) the region of each run of the mask.
        core: (m,) the core of each run of the cores.
        areas: (k,) of the regions, in pixels; 0 of a core.
        core_areas: (k,) of the cores; 0 of a region.
        region_of: (k,) the region of each core; 0 of a region, which has no area as a core and so counts for nothing.
    """

    runs: Runs
    core_runs: Runs
    region: Numbers
    core: Numbers
    areas: Places
    core_areas: Places
    region_of: Numbers

    @classmethod
    def find(cls, runs: Runs, core_runs: Runs) -> Self:
        """Of a mask with one run at least."""
        (region, core), count = label_runs(runs, core_runs)
        areas, core_areas = (
            np.bincount(number, weights=found.lengths, minlength=count).astype(np.int64)
            for number, found in ((region, runs), (core, core_runs))
        )
        region_of = np.zeros(count, dtype=np.int32)
        region_of[core] = region[runs.holding(core_runs)]
        return cls(runs, core_runs, region, core, areas, core_areas, region_of)

    def __len__(self) -> int:
        return len(self.areas)

    def reaching(self, chosen: Mask) -> Self:
        """The regions of which at least one run is chosen; the others lose their area and their cores.

        Args:
            chosen: (n,) of the runs of the mask.
        """
        kept = np.bincount(self.region[chosen], minlength=len(self)) > 0
        areas = np.where(kept, self.areas, 0)
        return replace(self, areas=areas, core_areas=np.where(kept[self.region_of], self.core_areas, 0))

    def are_doubtful(self, below_px: int) -> Mask:
        """(k,) bool: in which regions of at least that area a cell may be smaller, so that they have to be flooded."""
        crowded = are_crowded(self.region_of, self.core_areas, len(self), below_px=below_px) & (self.areas >= below_px)
        if not crowded.any():
            return crowded
        small = self._are_seeds & (self.core_areas < below_px) & crowded[self.region_of]
        # A core of n pixels has at most 2 n + 2 neighbours. And to count takes longer for a pixel than to flood does.
        too_small = self._holding(small & (3 * self.core_areas + 2 < below_px))
        asked_px = np.bincount(self.region_of[small], weights=self.core_areas[small], minlength=len(self))
        counted = crowded & ~too_small & (asked_px * COUNTED_SHARE <= self.areas)
        asked = small & counted[self.region_of]
        if asked.any():
            asked &= self.core_areas + self._count_own_neighbours(asked) < below_px
        return (crowded & ~counted) | self._holding(asked)

    def to_floods(self, chosen: Mask) -> list[Mask]:
        """Which of the (k,) chosen regions are flooded in one go: all of them, or each alone.

        A flood's time follows its box, and few regions far apart have a large one.
        """
        numbers = np.flatnonzero(chosen)
        if not len(numbers):
            return []
        if len(numbers) > ALONE_REGIONS:
            return [chosen]
        alone = [np.arange(len(self)) == number for number in numbers]
        boxes = [self.runs.box(some[self.region]) for some in (chosen, *alone)]
        whole, *single = ((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in boxes)
        return alone if sum(single) < whole else [chosen]

    def cut_out(self, chosen: Mask) -> tuple[Box, Labels, Mask]:
        """The box around the (k,) chosen regions; in it the numbers of their cores, each one more, and their pixels."""
        of_chosen = chosen[self.region]
        box = self.runs.box(of_chosen)
        shape = box[0].stop - box[0].start, box[1].stop - box[1].start
        pixels, seeds = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.int32)
        pixels.reshape(-1)[self.runs.pixels(of_chosen, box)] = True
        seeding = (self._are_seeds & chosen[self.region_of])[self.core]
        lengths = self.core_runs.lengths[seeding]
        seeds.reshape(-1)[self.core_runs.pixels(seeding, box)] = np.repeat(self.core[seeding] + 1, lengths)
        return box, seeds, pixels

    @property
    def _are_seeds(self) -> Mask:
        """(k,) which cores a flood begins from."""
        return self.core_areas >= CORE_AREA_PX

    def _holding(self, cores: Mask) -> Mask:
        """(k,) which regions hold any of the (k,) chosen cores."""
        holding: Mask = np.bincount(self.region_of[cores], minlength=len(self)) > 0
        return holding

    def _count_own_neighbours(self, chosen: Mask) -> Places:
        """(k,) how many pixels of the mask touch a chosen core, over edges, and no other; 0 for the rest.

        model.parting.flood takes the rims of all cores before anything else, and what it takes gives its number to all
        that touches it and has none, so these fall to that core whatever else happens.
        """
        are_seeds = self._are_seeds

        def seed_at(places: Places) -> Numbers:
            run = self.core_runs.at(places)
            return np.where((run >= 0) & are_seeds[self.core[run]], self.core[run], np.int32(-1))

        asked = chosen[self.core]
        places, first = np.unique(self.core_runs.beside(self.core_runs.places(asked)), return_index=True)
        owner = np.repeat(self.core[asked], self.core_runs.lengths[asked])[first // 4]  # four places for each pixel
        free = (self.runs.at(places) >= 0) & (seed_at(places) < 0)
        places, owner = places[free], owner[free]
        beside = seed_at(self.core_runs.beside(places))
        own = ((beside < 0) | (beside == owner[:, None])).all(axis=1)
        return np.bincount(owner[own], minlength=len(self))
