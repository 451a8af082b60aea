"""A network on a GPU, captured once for a shape of batch and replayed without Python between its kernels."""

import functools
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from model.types import Batch, Logits

WARM_UP_PASSES = 3  # cuDNN and cuBLAS choose their kernels and take their memory, which must not happen in a capture

# Captures wait for the whole device, which breaks another one that is under way.
_capturing = threading.Lock()


def free_memory() -> None:
    """Give the memory that PyTorch keeps back to the device, between captures."""
    with _capturing, suppress(RuntimeError):  # older releases refuse it once a capture has failed
        torch.cuda.empty_cache()


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures, of a priority of its own.

    PyTorch hands out some 32 streams of a priority in turn, so another's copies might come into a capture.
    """
    return torch.cuda.Stream(device, priority=-1)


class CapturedPass:
    """One pass computes at a time, on a stream of its own; others' tiles and logits are copied meanwhile.

    Args:
        forward: (N, C, S, S) channels_last on the device to float32 logits; without anything that waits for the device.
        shape: of every batch.
        device: a CUDA device.
        ways: batches that may be on their way at a time, each from a thread of its own.

    Raises:
        torch.OutOfMemoryError: no room for it.
        RuntimeError: it cannot be captured, or answers other values than `forward` itself.
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device, *, ways: int = 1
    ) -> None:
        self._lock = threading.Lock()
        with _capturing, torch.cuda.device(device):
            capturing = _capture_stream(device)
            capturing.wait_stream(torch.cuda.default_stream(device))  # on which the weights came
            with torch.cuda.stream(capturing):
                # drawn on the CPU: a GPU's generator may belong to somebody's capture
                self._batch = torch.rand(shape).to(device).contiguous(memory_format=torch.channels_last)
                for _ in range(WARM_UP_PASSES):
                    expected = forward(self._batch)
                capturing.synchronize()
                self._graph = torch.cuda.CUDAGraph()
                # another thread may be working meanwhile; its calls are none of this capture's business
                with torch.cuda.graph(self._graph, stream=capturing, capture_error_mode="thread_local"):
                    self._logits = forward(self._batch)
                self._graph.replay()
                if not torch.equal(self._logits, expected):  # waits until all is done
                    raise RuntimeError("the captured network gives other values than the network itself")
                self._ways: queue.SimpleQueue[_Way] = queue.SimpleQueue()
                for _ in range(ways):
                    self._ways.put(_Way(shape, self._logits))
            self._stream = torch.cuda.Stream(device)

    def run(self, batch: Batch) -> Logits:
        """Logits of a batch of the shape; the caller may keep them. From any thread."""
        way = self._ways.get()
        try:
            way.send(batch)
            with self._lock:  # or another's batch would come between this one and its logits
                self._stream.wait_stream(way.stream)
                with torch.cuda.stream(self._stream):
                    self._batch.copy_(way.batch)
                    self._graph.replay()
                    way.logits.copy_(self._logits)
                way.stream.wait_stream(self._stream)
            return way.fetch()
        finally:
            self._ways.put(way)


class _Way:
    """To the device and back: pinned memory, room on the device, and a stream for the copies between them.

    Args:
        shape: of a batch.
        logits: what its logits are like.
    """

    def __init__(self, shape: tuple[int, ...], logits: Tensor) -> None:
        self.stream = torch.cuda.Stream(logits.device)
        self.batch = torch.empty(shape, device=logits.device)
        self.logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
        self._host_batch = torch.empty(shape, pin_memory=True)
        self._host_logits = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)

    def send(self, batch: Batch) -> None:
        """Begin the copy to the device."""
        self._host_batch.copy_(torch.from_numpy(np.ascontiguousarray(batch)))
        with torch.cuda.stream(self.stream):
            self.batch.copy_(self._host_batch, non_blocking=True)

    def fetch(self) -> Logits:
        """Copy the logits from the device, once they are there."""
        with torch.cuda.stream(self.stream):
            self._host_logits.copy_(self.logits, non_blocking=True)
        self.stream.synchronize()
        logits: Logits = self._host_logits.numpy().copy()
        return logits
