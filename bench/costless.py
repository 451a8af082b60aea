"""Serve with a network that costs nothing: `python bench/costless.py`, with the settings of `python -m app`.

Its logits are the grey levels less 100, so what is left is all else: HTTP, decoding, tiles, thresholds, encoding.
MASKWELL_WEIGHTS_DIR needs weights that say `raw`; bench/peers.py --costless writes some.
"""

import sys
from typing import Any

import numpy as np

import model.segmenter
from app.__main__ import main
from model.checkpoint import Checkpoint
from model.types import Batch, Logits


class CostlessRuntime:
    """Takes the first channel for the answer."""

    name, device, precision = "costless", "cpu", "fp32"
    batch_tiles = 1
    streams = 1

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._n_classes = checkpoint.config.architecture.n_classes

    def run(self, batch: Batch, *, alone: bool = False) -> Logits:
        """The batch less 100, once a class."""
        logits: Logits = batch[:, :1] - np.float32(100)
        return logits if self._n_classes == 1 else np.repeat(logits, self._n_classes, axis=1)


def use_costless_runtime() -> None:
    """From now on every checkpoint gets it."""

    def make(checkpoint: Checkpoint, **_: Any) -> CostlessRuntime:
        return CostlessRuntime(checkpoint)

    model.segmenter.make_runtime = make  # type: ignore[assignment]  # a measurement, not a feature


if __name__ in ("__main__", "__mp_main__"):  # the latter in the workers of MASKWELL_WORKERS
    use_costless_runtime()
if __name__ == "__main__":
    sys.exit(main())
