"""A network on a GPU, captured once for a shape of batch and replayed without Python between its kernels."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from model.types import Batch, Logits

WARM_UP_PASSES = 3  # cuDNN and cuBLAS choose their kernels and take their memory, which must not happen in a capture


class CapturedPass:
    """Copies by way of pinned memory and replays on a stream of its own; one pass at a time.

    Args:
        forward: (N, C, S, S) channels_last on the device to float32 logits; without anything that waits for the device.
        shape: of every batch.
        device: a CUDA device.

    Raises:
        torch.OutOfMemoryError: no room for it.
        RuntimeError: it cannot be captured, or answers other values than `forward` itself.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._host_batch = torch.rand(shape).pin_memory()
        with torch.cuda.device(device), torch.cuda.stream(self._stream):
            self._batch = self._host_batch.to(device).contiguous(memory_format=torch.channels_last)
            for _ in range(WARM_UP_PASSES):
                expected = forward(self._batch)
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # another thread may be loading weights meanwhile; its calls are none of this capture's business
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._logits = forward(self._batch)
            self._host_logits = torch.empty(self._logits.shape, dtype=torch.float32, pin_memory=True)
            self._graph.replay()
            same = torch.equal(self._logits, expected)
        if not same:
            raise RuntimeError("the captured network gives other values than the network itself")

    def run(self, batch: Batch) -> Logits:
        """Logits of a batch of the shape; the caller may keep them."""
        self._host_batch.copy_(torch.from_numpy(np.ascontiguousarray(batch)))
        with torch.cuda.stream(self._stream):
            self._batch.copy_(self._host_batch, non_blocking=True)
            self._graph.replay()
            self._host_logits.copy_(self._logits, non_blocking=True)
        self._stream.synchronize()
        logits: Logits = self._host_logits.numpy().copy()
        return logits
