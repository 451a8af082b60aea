"""Cross-validation of a recipe by blocks of neighbouring sections: each block validates what the others trained.

    python bench/crossval.py DATA [--blocks 4] [--recipe membranes] [--out runs/crossval]

For a stack of sections, whose neighbours look alike: a random draw would flatter. Names in order are the order in the
tissue. Epoch and threshold are chosen on the very block that is scored, so the figures flatter a little; what they are
for is to compare recipes, and to show how much the blocks differ. What has been trained already, with the same
arguments on the same sections, is not trained again.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ablation import Run, fit

from model.segmenter import load_segmenter
from training.data import Pair, find_pairs
from training.evaluate import Scores, evaluate

# how the shipped weights began: their first training, see weights/membranes.md
ARGUMENTS = ("--epochs", "3", "--warmup-steps", "50", "--precision", "bf16-mixed")
COLUMNS: dict[str, Callable[[Scores], float]] = {
    "Dice": lambda scores: scores.dice,
    "pixel error, best": lambda scores: scores.regions.best_pixel_error if scores.regions else float("nan"),
    "V_rand, best": lambda scores: scores.regions.best_v_rand if scores.regions else float("nan"),
    "V_info, best": lambda scores: scores.regions.best_v_info if scores.regions else float("nan"),
}


def main() -> int:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/crossval"))
    parser.add_argument("--recipe", default="membranes")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a core each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pairs = sorted(find_pairs(options.data), key=lambda pair: pair.name)
    if not 2 <= options.blocks <= len(pairs):
        parser.error(f"{options.blocks} blocks of {len(pairs)} images; allowed are 2 to {len(pairs)}")
    edges = [round(len(pairs) * block / options.blocks) for block in range(options.blocks + 1)]
    blocks = [pairs[start:end] for start, end in itertools.pairwise(edges)]

    names = tuple(pair.name for pair in pairs)

    def score(number: int, block: list[Pair]) -> Scores:
        validation = tuple(pair.name for pair in block)
        run = Run(f"block {number}", ("--recipe", options.recipe, *ARGUMENTS), 0, names, validation)
        fit(options.data, options.out, run)
        segmenter = load_segmenter(options.out / f"{run.stem}.pth", device="cpu")
        return evaluate(segmenter, block, regions=True, quiet=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        scores = list(pool.map(score, range(1, options.blocks + 1), blocks))
    print(f"{options.recipe}; epoch and threshold chosen on the sections that are scored\n")
    print(f"| sections that validate | {' | '.join(COLUMNS)} |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for block, found in zip(blocks, scores, strict=True):
        values = " | ".join(f"{get(found):.4f}" for get in COLUMNS.values())
        print(f"| {block[0].name} to {block[-1].name} | {values} |")
    means = []
    for get in COLUMNS.values():
        values = [get(found) for found in scores]
        means.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
    print(f"| **mean and spread** | {' | '.join(means)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
