"""Seconds a megapixel and peak memory, from small images to 400 megapixels; each in a process of its own.

    python bench/megapixels.py                    the default weights, up to 4 megapixels
    python bench/megapixels.py --sides 512 1024 20000
    python bench/megapixels.py --costless         a network that costs nothing: what all else takes

The image is a grey 8-bit TIFF in tiles, drawn cells again and again; timed is from its bytes to the PNG of the mask.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import tifffile
from costless import use_costless_runtime
from kit import ROOT, draw_image, machine, plot_lines, report

from model.images import open_image
from model.outputs import encode_output
from model.segmenter import load_segmenter
from model.source import Selection

PATTERN_PX = 1024
WEIGHTS = ROOT / "weights" / "best_model.pth"


def main() -> int:
    """Run the sizes, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[250, 512, 1024, 2048], help="of the images, in pixels")
    parser.add_argument("--costless", action="store_true")
    parser.add_argument("--output", default="mask")
    parser.add_argument("--repeats", type=int, default=3, help="the median counts; images above 16 megapixels: 1")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return 0
    rows: list[dict[str, Any]] = []
    for side in sorted(options.sides):
        command = [sys.executable, __file__, "--one", str(side), "--output", options.output]
        command += ["--repeats", str(options.repeats)] + ["--costless"] * options.costless
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr, flush=True)
    mib = 1024**2
    lines = [
        "| image | s | s a megapixel | peak memory | over the decoded image | before it came |",
        "|---" * 6 + "|",
    ]
    lines += [
        f"| {row['side']} x {row['side']} px | {row['s']:.2f} | {row['s'] / row['mp']:.3f} "
        f"| {row['peak'] / mib:,.0f} MiB | {(row['peak'] - row['image']) / mib:,.0f} MiB "
        f"| {row['before'] / mib:,.0f} MiB |"
        for row in rows
    ]
    what = "a network that costs nothing" if options.costless else f"{WEIGHTS.stem}, {rows[0]['runtime']}"
    section = "megapixels-costless" if options.costless else "megapixels"
    report(section, [f"{what}; {options.output}. {machine()}", "", *lines], write=options.write)
    if options.write:
        points = {what: ([row["mp"] for row in rows], [row["s"] / row["mp"] for row in rows])}
        plot_lines(section, f"time a megapixel, {what}", "megapixels", "s a megapixel", points)
    return 0


def measure(side: int, options: argparse.Namespace) -> dict[str, Any]:
    """One size, in this process."""
    if options.costless:
        use_costless_runtime()
    segmenter = load_segmenter(WEIGHTS)
    segmenter.warm_up()
    before = peak_bytes()
    data = draw_tiff(side)
    seconds = []
    for _ in range(1 if side * side > 1 << 24 else options.repeats):
        started_at = time.perf_counter()
        with open_image(data, Selection(), max_pixels=max(side, 256) ** 2) as source:
            # as app.service does
            by_rows = source.by_rows and side * side > 1 << 24
            result = segmenter.segment(source if by_rows else source.read())
            body, _ = encode_output(options.output, result, None, {})
        seconds.append(time.perf_counter() - started_at)
    peak = peak_bytes()
    return {
        "side": side,
        "mp": side * side / 1e6,
        "s": float(np.median(seconds)),
        "peak": peak,
        "before": before,
        "image": side * side,
        "bytes": len(body),
        "runtime": f"{segmenter.runtime.name} {segmenter.runtime.precision}",
    }


def draw_tiff(side: int) -> bytes:
    """Tiles of 256 px, packed by zlib; written from rows, so that it is never there as a whole but packed."""
    pattern = draw_image(PATTERN_PX)

    def tiles() -> Any:
        for y in range(0, side, 256):
            for x in range(0, side, 256):
                tile = pattern[y % PATTERN_PX : y % PATTERN_PX + 256, x % PATTERN_PX : x % PATTERN_PX + 256]
                yield tile[: min(256, side - y), : min(256, side - x)]

    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(
            tiles(), shape=(side, side), dtype=np.uint8, tile=(256, 256), compression="zlib", metadata=None,
            photometric="minisblack",
        )  # fmt: skip
    return buffer.getvalue()


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
