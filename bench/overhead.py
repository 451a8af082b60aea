"""Images a second of the service over those of its bare engine, in turns within one run.

    python bench/overhead.py [--weights weights/best_model.pth] [--clients 16] [--rounds 3] [--write]

The engine gets a tile in memory, again and again, as many at a time as it runs streams. The service gets a PNG of the
same size from wrk, which has to be installed, and returns the mask as PNG.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from kit import ROOT, draw_image, draw_png, machine, report
from peers import MASKWELL, Cell, load, running

from model.preprocess import preprocess
from model.runtime import Runtime
from model.segmenter import load_segmenter
from model.types import Batch


def time_engine(runtime: Runtime, tile: Batch, seconds: float) -> float:
    """Passes a second with as many passes under way as the engine has streams."""
    started_at = time.perf_counter()

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() - started_at < seconds:
            runtime.run(tile)
            count += 1
        return count

    with ThreadPoolExecutor(runtime.streams) as threads:
        passes = sum(threads.map(work, range(runtime.streams)))
    return passes / (time.perf_counter() - started_at)


def main() -> int:
    """Run the turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "best_model.pth")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--side", type=int, default=512, help="of the picture and the tile, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each turn; short ones miss what is on its way")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("error: wrk is not installed (Debian: apt install wrk)", file=sys.stderr)
        return 2
    options.costless = False
    segmenter = load_segmenter(options.weights, device="cpu")
    segmenter.warm_up()
    config = segmenter.config
    planes = preprocess(
        draw_image(options.side), n_channels=config.architecture.n_channels, normalisation=config.normalisation
    )
    tile = np.ascontiguousarray(planes[None])
    engine: list[float] = []
    service: list[Cell] = []
    with tempfile.TemporaryDirectory(prefix="maskwell-bench-") as temporary:
        folder = Path(temporary)
        (folder / "image.png").write_bytes(draw_png(options.side))
        with running(MASKWELL, folder, options) as port:
            load(MASKWELL, port, folder, clients=options.clients, seconds=3)
            time_engine(segmenter.runtime, tile, 2)
            for _ in range(options.rounds):
                engine.append(time_engine(segmenter.runtime, tile, options.seconds))
                service.append(load(MASKWELL, port, folder, clients=options.clients, seconds=options.seconds))
    ratios = [cell.per_s / bare for cell, bare in zip(service, engine, strict=True)]
    precision = segmenter.runtime.precision
    lines = [
        f"{options.weights.stem}, {precision}, {options.side} px, {options.clients} clients. {machine()}",
        "",
        "| turn | engine, tiles/s | service, images/s | service over engine | p50, p99 ms | p99/p50 | failed |",
        "|---" * 7 + "|",
    ]
    for turn, (bare, cell, ratio) in enumerate(zip(engine, service, ratios, strict=True), start=1):
        lines.append(
            f"| {turn} | {bare:.2f} | {cell.per_s:.2f} | {ratio:.3f} | {cell.p50_ms:.0f}, {cell.p99_ms:.0f} "
            f"| {cell.p99_ms / cell.p50_ms:.2f} | {cell.failed} |"
        )
    lines.append(f"| **median** | | | **{statistics.median(ratios):.3f}** | | | |")
    report("overhead", lines, write=options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
