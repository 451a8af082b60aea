"""What every peer serves: the bytes of an image in, the PNG of its mask out, by eager PyTorch.

The peers run in an environment of their own, so nothing of Maskwell is imported but the file of the network.
PEER_WEIGHTS names the file that bench/peers.py wrote; without it the model costs nothing: grey levels are thresholded.
"""

import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PORT = int(os.environ.get("PEER_PORT", "8391"))
# Processes that a peer which has workers is given.
WORKERS = int(os.environ.get("PEER_WORKERS", "1"))


class Model:
    """The network and what is done before and after it, as simply as a tutorial would write it."""

    def __init__(self) -> None:
        path = os.environ.get("PEER_WEIGHTS", "")
        self.network: torch.nn.Module | None = None
        if path:
            weights = torch.load(path, weights_only=True)
            spec = importlib.util.spec_from_file_location("unet", ROOT / "model" / "unet.py")
            if spec is None or spec.loader is None:
                raise RuntimeError("model/unet.py is not there")
            module: Any = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self.network = module.UNet(**weights["architecture"]).eval()
            self.network.load_state_dict(weights["state"])
            self.channels = weights["architecture"]["n_channels"]
            self.normalisation, self.threshold = weights["normalisation"], weights["threshold"]

    @torch.inference_mode()
    def segment(self, data: bytes) -> bytes:
        """Decode, run, threshold, encode."""
        image = np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=np.float32)
        if self.network is None:
            mask = image >= 100
        else:
            if self.normalisation == "percentile":
                low, high = np.percentile(image, (1, 99.8))
                image = np.clip((image - low) / (high - low), -1, 3).astype(np.float32)
            batch = torch.from_numpy(image)[None, None].expand(1, self.channels, -1, -1)
            mask = (torch.sigmoid(self.network(batch)[0, 0]) >= self.threshold).numpy()
        buffer = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG")
        return buffer.getvalue()
