"""Seconds from `python -m app` to a 200 of /readyz, in turns: no cache, an empty one, a warm one.

python bench/start.py [--weights-dir weights] [--rounds 3] [--write]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import openvino as ov
from kit import free_port, machine, report

GIVE_UP_S = 120


def main() -> None:
    """Print a line of a Markdown table for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, default=Path("weights"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "auto"])
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for precision in options.precisions:
            with tempfile.TemporaryDirectory() as folder:
                for way, cache in (("no cache", "off"), ("empty cache", folder), ("warm cache", folder)):
                    taken = time_start(options.weights_dir, precision, cache)
                    seconds.setdefault((precision, way), []).append(taken)
    lines = ["| MASKWELL_PRECISION | cache | seconds to ready, median | all |", "|---|---|---|---|"]
    for (precision, way), taken in seconds.items():
        each = ", ".join(f"{one:.2f}" for one in taken)
        lines.append(f"| {precision} | {way} | {statistics.median(taken):.2f} | {each} |")
    title = f"{machine()} OpenVINO {ov.__version__.split('-')[0]}."
    report("start", [title, "", *lines], write=options.write)


def time_start(weights_dir: Path, precision: str, cache: str) -> float:
    """Start the service, wait until it is ready, stop it."""
    port = free_port()
    settings = {
        "MASKWELL_PORT": str(port),
        "MASKWELL_WEIGHTS_DIR": str(weights_dir),
        "MASKWELL_PRECISION": precision,
        "MASKWELL_CACHE_DIR": cache,
        "MASKWELL_DRAIN_GRACE_S": "0",
        "MASKWELL_LOG_LEVEL": "error",
    }
    started_at = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "app"], env=os.environ | settings)
    try:
        while time.perf_counter() - started_at < GIVE_UP_S:
            if process.poll() is not None:
                raise SystemExit(f"error: the service left with {process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                    return time.perf_counter() - started_at
            except (urllib.error.URLError, OSError):
                time.sleep(0.01)
        raise SystemExit(f"error: not ready within {GIVE_UP_S} s")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
