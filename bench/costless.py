"""Serve with a network that costs nothing: `python bench/costless.py`, with the settings of `python -m app`.

It calls bright pixels cell, so what is left is all else: HTTP, decoding, tiles, thresholds, encoding.
MASKWELL_WEIGHTS_DIR may hold any weights; those that bench/peers.py --costless writes say `raw`, so that all servers
cut at a grey level of 100.
"""

import sys
from typing import Any

import numpy as np

import model.segmenter
from model.checkpoint import Checkpoint
from model.types import Batch, Logits


class CostlessRuntime:
    """Calls bright pixels cell by the first channel, and the brighter the deeper in it; no borders."""

    name, device, precision = "costless", "cpu", "fp32"
    batch_tiles = 1
    streams = 1

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self._outputs = config.outputs
        # of grey levels 0..255 as they are, or of about 0..1
        self._middle, self._slope = (100.0, 1.0) if config.normalisation == "raw" else (0.4, 10.0)

    def run(self, batch: Batch, *, alone: bool = False) -> Logits:
        """(N, outputs, H, W)."""
        cell: Logits = batch[:, :1] - np.float32(self._middle)
        if self._slope != 1:
            cell *= np.float32(self._slope)
        if len(self._outputs) == 1:
            return cell
        maps = {"cell": cell, "distance": cell - np.float32(2), "border": np.full_like(cell, -6)}
        return np.concatenate([maps.get(name, -cell) for name in self._outputs], axis=1)


def use_costless_runtime() -> None:
    """From now on every checkpoint gets it."""

    def make(checkpoint: Checkpoint, **_: Any) -> CostlessRuntime:
        return CostlessRuntime(checkpoint)

    model.segmenter.make_runtime = make  # type: ignore[assignment]  # a measurement, not a feature


if __name__ in ("__main__", "__mp_main__"):  # the latter in the workers of MASKWELL_WORKERS
    use_costless_runtime()
if __name__ == "__main__":
    from app.__main__ import main

    sys.exit(main())
