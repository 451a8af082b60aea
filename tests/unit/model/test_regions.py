"""What is counted by runs against the same counted pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from model import regions
from model.parting import CORE_AREA_PX
from model.regions import Regions
from model.runs import Runs
from model.types import Labels, Mask


def drawn(seed: int, shape: tuple[int, int]) -> tuple[Mask, Mask]:
    """A mask, and cores in it: many, of all sizes, side by side and at the edges."""
    generator = np.random.default_rng(seed)
    mask = np.ones(shape, np.bool_) if min(shape) < 3 else ndimage.gaussian_filter(generator.random(shape), 2) > 0.49
    core = np.zeros(shape, np.bool_)
    for _ in range(max(2, mask.size // 40)):
        y, x = (int(generator.integers(0, side)) for side in shape)
        down, across = generator.integers(1, 14, 2)
        core[y : y + down, x : x + across] = True
    core &= (generator.random(shape) > 0.04) & mask
    return np.asarray(mask), np.asarray(core)


def count_by_pixels(mask: Mask, cores: Labels) -> dict[tuple[int, int], int]:
    """By the first pixel of each core that counts, how many pixels of the mask touch it and no other such core."""
    sizes = np.bincount(cores.reshape(-1))
    seeds = np.where(sizes[cores] >= CORE_AREA_PX, cores, 0)
    found = {int(number): 0 for number in np.unique(seeds[seeds > 0])}
    padded = np.pad(seeds, 1)
    for y, x in np.argwhere(mask & (seeds == 0)):
        beside = {padded[y, x + 1], padded[y + 2, x + 1], padded[y + 1, x], padded[y + 1, x + 2]} - {0}
        if len(beside) == 1:
            found[int(beside.pop())] += 1
    return {tuple(np.argwhere(cores == number)[0].tolist()): count for number, count in found.items()}


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1, 90), (90, 1), (2, 60), (20, 30), (40, 40)]),
)
def test_the_neighbours_of_a_core_alone_are_counted(seed: int, shape: tuple[int, int]) -> None:
    mask, core = drawn(seed, shape)
    if not mask.any():
        return
    found = Regions.find(Runs.find(mask), Runs.find(core))
    counts = found._count_own_neighbours(found._are_seeds)
    by_first_pixel = {}
    for run, number in zip(found.core_runs.starts[::-1].tolist(), found.core[::-1].tolist(), strict=True):
        by_first_pixel[number] = divmod(run, shape[1] + 1)  # of several runs of a core the first
    expected = count_by_pixels(mask, ndimage.label(core)[0].astype(np.int32))
    assert {by_first_pixel[number]: int(counts[number]) for number in np.flatnonzero(found._are_seeds)} == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), below_px=st.integers(9, 60))
def test_a_region_is_flooded_unless_counting_shows_that_all_its_cells_are_large_enough(
    seed: int, below_px: int
) -> None:
    mask, core = drawn(seed, (40, 40))
    if not mask.any():
        return
    found = Regions.find(Runs.find(mask), Runs.find(core))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "COUNTED_SHARE", 0)
        doubtful = found.are_doubtful(below_px)
    least = found.core_areas + found._count_own_neighbours(found._are_seeds)
    for region in range(len(found)):
        of_region = found._are_seeds & (found.region_of == region)
        crowded = of_region.sum() > 1 and found.areas[region] >= below_px
        assert doubtful[region] == (crowded and (least[of_region] < below_px).any())
    assert not (doubtful & ~found.are_doubtful(below_px)).any()  # what is not counted stays in doubt
