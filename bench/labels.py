"""Time the steps from logits to labelled cells on one large drawn picture: `python bench/labels.py [--side 4096]`."""

import argparse
import time

import numpy as np

from model.parting import label_regions
from model.postprocess import Maps, label_cells, mask_cells, threshold_mask, to_maps


def main() -> None:
    """Print milliseconds for each step; the best of three runs, of nine up to 1024 px."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=4096, help="of the picture, in pixels")
    side = parser.parse_args().side
    # discs of 20 px radius on a grid 48 px high and 36 wide: they touch along each row, with a border where they do
    ys, xs = np.ogrid[:side, :side]
    distance = np.hypot(ys % 48 - 24, xs % 36 - 18)
    cell = np.where(distance < 20, 3.0, -3.0).astype(np.float32)
    border = np.where((distance < 20) & ((xs % 36 < 2) | (xs % 36 > 33)), 3.0, -3.0).astype(np.float32)
    logits = np.stack([cell, border])
    maps = to_maps(logits, ("cell", "border"), "sigmoid")

    def best(work: object, *arguments: object, **options: object) -> float:
        assert callable(work)
        times = []
        for _ in range(9 if side <= 1024 else 3):
            start = time.perf_counter()
            work(*arguments, **options)
            times.append(time.perf_counter() - start)
        return 1000 * min(times)

    mask = threshold_mask(maps.cell, 0.5)
    alone = Maps(cell=maps.cell)
    n_alone = int(label_cells(alone, threshold=0.5).max())
    n_parted = int(label_cells(maps, threshold=0.5).max())
    print(f"{side} x {side} px")
    print(f"probabilities of two maps      {best(to_maps, logits, ('cell', 'border'), 'sigmoid'):8.1f} ms")
    print(f"threshold                      {best(threshold_mask, maps.cell, 0.5):8.1f} ms")
    print(f"connected regions              {best(label_regions, mask):8.1f} ms")
    print(f"label_cells, {n_alone:6,} regions   {best(label_cells, alone, threshold=0.5):8.1f} ms")
    print(f"label_cells, {n_parted:6,} parted    {best(label_cells, maps, threshold=0.5):8.1f} ms")
    for name, asked in {
        "their mask": {},
        "that, from 20 px on": {"min_area_px": 20},
        "that, with 0.9 somewhere": {"min_area_px": 20, "high_threshold": 0.9},
        "that, of any area": {"high_threshold": 0.9},
    }.items():
        print(f"{name:30} {best(mask_cells, maps, threshold=0.5, **asked):8.2f} ms")


if __name__ == "__main__":
    main()
