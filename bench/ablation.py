"""What each step of the recipe gains: short trainings without it, several seeds each, scored on the validation images.

    python bench/ablation.py DATA --val-list docs/splits/dsb2018.txt [--out runs/ablation] [--seeds 0 1 2]

A smaller network on smaller crops than the shipped one, for fewer steps, so that the whole table takes about an hour on
two cores. What has been trained already is not trained again, so the command can be stopped and started as one likes.
A run's files are named for its variant, its seed, and a digest of its arguments and of the images that it trains on and
is scored on: with other steps, data or lists another one begins.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import read_checkpoint, write_atomically
from training.data import find_pairs

SMALL = ("--width", "16", "--crop-px", "128", "--batch-size", "8", "--epochs", "1", "--lr", "3e-4")
VARIANTS: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "no warp": ("--warp-prob", "0"),
    "no elastic bending": ("--elastic-px", "0"),
    "no change of intensity": ("--intensity-prob", "0"),
    "no recolouring, stains, inversion or parts alone": (
        *("--recolour-prob", "0", "--stain-prob", "0", "--invert-prob", "0", "--alone-prob", "0"),
    ),
    "no stains": ("--stain-prob", "0"),
    "no pasted cells": ("--paste-prob", "0"),
    "each image as often as any other": ("--no-balance",),
    "no distance output": ("--distance", "no"),
    "neither border nor distance output": ("--distance", "no", "--border", "no"),
    "cross-entropy alone, no soft Dice": ("--dice-weight", "0"),
    "learning rate 1e-3": ("--lr", "1e-3"),
    "learning rate 1e-4": ("--lr", "1e-4"),
    "learning rate 3e-5": ("--lr", "3e-5"),
    "constant learning rate": ("--schedule", "constant"),
    "no average of the weights": ("--ema-decay", "0"),
    "grey levels over 255, no percentiles": ("--normalisation", "unit"),
    "one channel: grey": ("--n-channels", "1"),
}


@dataclass(frozen=True)
class Run:
    """One training of one variant.

    Attributes:
        name: of the variant.
        arguments: of `python -m training fit`, without the data, the seed and the validation list.
        seed: of the run.
        data: names of all images of the data, sorted.
        validation: names of those that it is scored on, sorted; it trains on the others.
    """

    name: str
    arguments: tuple[str, ...]
    seed: int
    data: tuple[str, ...]
    validation: tuple[str, ...]

    @property
    def stem(self) -> str:
        """Of its files: another one for other arguments or images, and the same wherever the data lie."""
        key = json.dumps([self.arguments, self.seed, self.data, self.validation])
        readable = self.name.replace(" ", "-").replace(",", "").replace(":", "")
        return f"{readable}-{self.seed}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def main() -> int:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--val-list", type=Path, required=True, help="file of image names, a line each")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="beside the recipe")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a core each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = tuple(pair.name for pair in find_pairs(options.data))
    validation = tuple(sorted({line.strip() for line in options.val_list.read_text().splitlines()} - {""}))
    shared = (*SMALL, "--crops-per-epoch", str(8 * options.steps))
    # seed by seed, so that a table of fewer seeds is there early
    runs = [
        Run(name, (*shared, *extra), seed, data, validation)
        for seed in options.seeds
        for name, extra in VARIANTS.items()
        if name in (next(iter(VARIANTS)), *options.only)
    ]

    with ThreadPoolExecutor(options.jobs) as pool:
        scores = list(pool.map(lambda run: fit(options.data, options.out, run), runs))
    print(f"{options.steps} steps of eight 128 px crops, width 16; {len(options.seeds)} seeds: mean and spread\n")
    print("\n".join(table(runs, scores)))
    return 0


def fit(data: Path, out: Path, run: Run) -> dict[str, Any]:
    """Scores of a run on its validation images; trains it if that has not been done."""
    found = out / f"{run.stem}.json"
    if not found.exists():
        weights, names = out / f"{run.stem}.pth", out / f"{run.stem}.txt"
        names.write_text("".join(f"{name}\n" for name in run.validation))
        command = [sys.executable, "-m", "training", "fit", str(data), "--out", str(weights), "--quiet"]
        command += ["--run-folder", str(out / run.stem), "--seed", str(run.seed), "--workers", "1"]
        command += ["--val-list", str(names), *run.arguments]
        # a core each; threads that wait for each other would cost more than they bring
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        scores = read_checkpoint(weights).card["scores"]["validation"]
        write_atomically(found, json.dumps(scores).encode())
        print(run.name, run.seed, f"Dice {scores['dice']}", file=sys.stderr, flush=True)
    result: dict[str, Any] = json.loads(found.read_text())
    return result


def table(runs: Sequence[Run], scores: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table; what is lost without a step is the difference to the recipe, seed by seed."""
    keys = {"Dice": lambda s: s["dice"], "AP at 0.5": lambda s: s["cells"]["ap"]["0.5"]}
    keys["mean AP"] = lambda s: s["cells"]["ap"]["mean"]
    by = {(run.name, run.seed): score for run, score in zip(runs, scores, strict=True)}
    seeds = sorted({run.seed for run in runs})
    first = next(iter(VARIANTS))
    heads = " | ".join(f"{key} | to the recipe" for key in keys)
    lines = [f"| | {heads} |", "|---" * (1 + 2 * len(keys)) + "|"]
    for name in dict.fromkeys(run.name for run in runs):
        cells = []
        for get in keys.values():
            values = [get(by[name, seed]) for seed in seeds]
            gains = [get(by[name, seed]) - get(by[first, seed]) for seed in seeds]
            cells += [spread(values, ".3f"), "" if name == first else spread(gains, "+.3f")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float], form: str) -> str:
    """Mean and sample standard deviation, which a single value has none of."""
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
