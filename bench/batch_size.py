"""Time per tile for several tiles in one pass of the network, on this machine: `python bench/batch_size.py`.

Rounds go through all the sizes in turn, so that other work on the machine hits them alike; the median counts.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from model.checkpoint import Architecture, Checkpoint, ModelConfig
from model.runtime import TorchRuntime

BATCHES = (1, 2, 4, 8)


def main() -> None:
    """Print seconds per tile, and the ratio to one tile a pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = ModelConfig(architecture=Architecture(width=options.width))
    checkpoint = Checkpoint(state=config.architecture.build().state_dict(), config=config, card={}, version="")
    runtimes = {n: TorchRuntime(checkpoint, device=options.device, batch_tiles=n) for n in BATCHES}
    print(f"{options.device}, {torch.get_num_threads()} threads, width {options.width}")
    for side in options.sides:
        batch = np.random.default_rng(0).random((max(BATCHES), 1, side, side), dtype=np.float32)
        times: dict[int, list[float]] = {n: [] for n in BATCHES}
        for n, runtime in runtimes.items():
            runtime.run(batch[:n])
        for _ in range(options.rounds):
            for n, runtime in runtimes.items():
                start = time.perf_counter()
                runtime.run(batch[:n])
                times[n].append((time.perf_counter() - start) / n)
        one = statistics.median(times[1])
        for n in BATCHES:
            median = statistics.median(times[n])
            print(f"tile {side} px, {n} a pass: {median:.4f} s a tile, {median / one:.2f} of one a pass")


if __name__ == "__main__":
    main()
