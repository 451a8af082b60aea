"""Time a tile through each engine on the CPU, in turns within one run; prints seconds, GFLOP/s and the ratio.

python bench/engine.py [--width 32] [--side 512] [--repeats 5]
"""

import argparse
import statistics
import time

import numpy as np

from model.checkpoint import Architecture, Checkpoint, ModelConfig
from model.openvino_runtime import OpenVinoRuntime
from model.runtime import TorchRuntime

# of a 512 x 512 image through a U-Net of width 64; goes with the square of the width and with the pixels
GFLOP = 246.8


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--side", type=int, default=512, help="of the tile, in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    architecture = Architecture(width=options.width, align_corners=False)
    checkpoint = Checkpoint(architecture.build().state_dict(), ModelConfig(architecture=architecture), {}, "")
    engines = {"torch": TorchRuntime(checkpoint, device="cpu"), "openvino": OpenVinoRuntime(checkpoint)}
    tile = np.random.default_rng(0).random((1, 1, options.side, options.side), dtype=np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(options.repeats + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(tile)
            if repeat:  # the first pass compiles
                seconds[name].append(time.perf_counter() - start)
    gflop = GFLOP * (options.width / 64) ** 2 * (options.side / 512) ** 2
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:9} {value:.4f} s a tile of {options.side} px, width {options.width}: {gflop / value:.0f} GFLOP/s")
    ratios = [slow / fast for slow, fast in zip(seconds["torch"], seconds["openvino"], strict=True)]
    print(f"torch over openvino: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
