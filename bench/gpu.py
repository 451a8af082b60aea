"""Tiles a second on a GPU, by tiles a pass, side and precision: `python bench/gpu.py [--write]`.

Without a GPU it says so and writes nothing. Copies to and from the GPU are included: the runtime that serves, with as
many passes under way as it has streams.
"""

import argparse
import sys
from typing import Literal

import numpy as np
import torch
from kit import machine, report
from overhead import time_engine

from model.checkpoint import Architecture, Checkpoint, ModelConfig
from model.runtime import TorchRuntime

PRECISIONS: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")


def main() -> int:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device: not measured", file=sys.stderr)
        return 1
    heads = [f"{side} px, {tiles} a pass" for side in options.sides for tiles in options.tiles]
    lines = [f"| width | precision | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for width in options.widths:
        architecture = Architecture(width=width, align_corners=False)
        checkpoint = Checkpoint(architecture.build().state_dict(), ModelConfig(architecture=architecture), {}, "")
        for precision in PRECISIONS:
            cells = []
            for side in options.sides:
                for tiles in options.tiles:
                    runtime = TorchRuntime(checkpoint, device="cuda", precision=precision, batch_tiles=tiles)
                    batch = np.random.default_rng(0).random((tiles, 1, side, side), dtype=np.float32)
                    time_engine(runtime, batch, options.seconds / 4)
                    cells.append(f"{tiles * time_engine(runtime, batch, options.seconds):.0f}")
            lines.append(f"| {width} | {precision} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    report("gpu", [f"Tiles a second. {torch.cuda.get_device_name()}; {machine()}", "", *lines], write=options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
