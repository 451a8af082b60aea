"""The tutorial's way to predict: eager PyTorch, one file after another into a file. Prints images a second.

PEER_WEIGHTS as in common.py; arguments: the image, a folder for the results, seconds.
"""

import sys
import time
from pathlib import Path

from common import Model


def main() -> None:
    """Go on until the time is over."""
    image, folder, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    model = Model()
    model.segment(image.read_bytes())
    done, started_at = 0, time.perf_counter()
    while time.perf_counter() - started_at < seconds:
        (folder / f"loop_{done % 10}.png").write_bytes(model.segment(image.read_bytes()))
        done += 1
    print(done / (time.perf_counter() - started_at))


if __name__ == "__main__":
    main()
