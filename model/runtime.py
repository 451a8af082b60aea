"""Run a network on a device: a batch of tiles in, logits out. The one place that knows CPU from GPU."""

import logging
import os
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.checkpoint import Checkpoint
from model.compiled_cache import CompiledCache
from model.cuda_graph import CapturedPass, free_memory
from model.errors import WeightsError
from model.twin import Twin
from model.types import Batch, Logits, Planes
from model.unet import DoubleConv

logger = logging.getLogger("model.torch")

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


class Runtime(Protocol):
    """What Segmenter and the server's batcher need of an engine.

    Attributes:
        name: of the engine.
        device: `cpu`, `cuda:0`, ...
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        batch_tiles: tiles that go into one pass. A smaller batch is filled up, so that the arithmetic, and so every
            byte of an answer, is the same alone and in company.
        streams: passes that are worth having under way at the same time, each from a thread of its own.
    """

    name: str
    device: str
    precision: str
    batch_tiles: int
    streams: int

    def run(self, batch: Batch, *, alone: bool = False) -> Logits:
        """Map (N, C, S, S) float32, N <= batch_tiles, to (N, K, S, S) float32 logits; from any thread.

        Args:
            batch: the tiles.
            alone: no other pass is under way or due, so this one may take every core. Changes no byte of the answer.

        Raises:
            MemoryError: the device has no room for it; fewer batch_tiles may fit.
        """
        ...


class TorchRuntime:
    """PyTorch, channels_last; on a GPU all in the precision asked for, and a captured pass for each shape of batch.

    On a CPU it is eager and the reference for what else runs there.
    """

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_tiles: int = 0,
        streams: int = 0,
    ) -> None:
        if precision == "int8":
            raise WeightsError("precision 'int8' by PyTorch; it is there on a CPU by OpenVINO alone")
        self._device = choose_device(device)
        self.device = str(self._device)
        self._on_gpu = self._device.type == "cuda"
        self.precision: str = ("fp16" if self._on_gpu else "fp32") if precision == "auto" else precision
        # On a CPU a larger batch only falls out of the caches (decisions/0004).
        self.batch_tiles = batch_tiles or (8 if self._on_gpu else 1)
        # On a GPU one pass computes while another's tiles are on their way.
        self.streams = (streams or 2) if self._on_gpu else 1
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.precision]
        if self._on_gpu:
            torch.backends.cudnn.deterministic = True  # the same bytes each time
            if self.precision == "fp32":
                torch.backends.cudnn.allow_tf32 = False  # which has the mantissa of float16
        network = _fold_batch_norms(checkpoint.build()).to(self._device, self._dtype)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
        self._captured: dict[tuple[int, ...], CapturedPass] = {}
        self._may_capture = self._on_gpu
        self._lock = threading.Lock()

    @torch.inference_mode()
    def run(self, batch: Batch, *, alone: bool = False) -> Logits:  # a pass has the whole device anyway
        n = batch.shape[0]
        batch = fill_batch(batch, self.batch_tiles)
        try:
            with self._lock:
                captured = self._capture(batch.shape)
                if captured is None:
                    return self._run_eagerly(batch)[:n]
            return captured.run(batch)[:n]
        except RuntimeError as error:
            if not _is_no_room(error):
                raise
            traceback.clear_frames(error.__traceback__)  # what did not fit would stay while less is tried
            with self._lock:
                self._captured.clear()
                free_memory()  # nothing on a CPU
            raise MemoryError(f"no room for {batch.shape[0]} tiles on {self.device}") from error

    def _capture(self, shape: tuple[int, ...]) -> CapturedPass | None:
        """The captured pass for a shape; None where the network runs eagerly."""
        if self._may_capture and shape not in self._captured:
            # batch_tiles may go down where memory is short; what was captured for more is of no use then
            self._captured = {old: kept for old, kept in self._captured.items() if old[0] == shape[0]}
            try:
                self._captured[shape] = CapturedPass(self._forward, shape, self._device, ways=self.streams)
            except RuntimeError as error:
                if _is_no_room(error):
                    raise
                logger.warning("the network runs eagerly on %s: it cannot be captured", self.device, exc_info=True)
                self._may_capture = False
        return self._captured.get(shape)

    def _run_eagerly(self, batch: Batch) -> Logits:
        tensor = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
        logits: Logits = self._forward(tensor.contiguous(memory_format=torch.channels_last)).cpu().numpy()
        return logits

    def _forward(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, self._network(tensor.to(self._dtype))).float()


def _fold_batch_norms(network: nn.Module) -> nn.Module:
    """Each convolution with the batch norm behind it as one, which on a GPU spares reading and writing all maps anew.

    Nor do values before a batch norm, of whatever size, have to fit float16.
    """
    for block in network.modules():
        if isinstance(block, DoubleConv):
            layers = block.double_conv
            for conv, norm in ((0, 1), (3, 4)):
                layers[conv] = fuse_conv_bn_eval(cast(nn.Conv2d, layers[conv]), cast(nn.BatchNorm2d, layers[norm]))
                layers[norm] = nn.Identity()
    return network


def _is_no_room(error: RuntimeError) -> bool:
    """Whether it says that memory is short; not all that does has a type of its own.

    The CPU's allocator has none, the driver's own words come as AcceleratorError, and cuDNN, where the workspace of no
    method fits, says that it has no engine.
    """
    words = "DefaultCPUAllocator", "out of memory", "unable to find an engine"
    return isinstance(error, torch.OutOfMemoryError) or any(each in str(error) for each in words)


def stack_tiles(tiles: Sequence[Planes]) -> Batch:
    """(N, C, S, S) in C order.

    Of grey tiles, whose channels are one plane again and again, numpy.stack alone makes another order, and takes ten
    times as long.
    """
    return np.stack(tiles, out=np.empty((len(tiles), *tiles[0].shape), dtype=np.float32))


def fill_batch(batch: Batch, batch_tiles: int) -> Batch:
    """(batch_tiles, C, S, S): the batch with empty tiles behind it, so that every pass has the same shape.

    Raises:
        ValueError: it has more than `batch_tiles`.
    """
    missing = batch_tiles - batch.shape[0]
    if missing < 0:
        raise ValueError(f"{batch.shape[0]} tiles in a batch; at most {batch_tiles}")
    return np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), dtype=np.float32)]) if missing else batch


def make_runtime(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    batch_tiles: int = 0,
    streams: int = 0,
    threads: int = 0,
    twin: Twin | None = None,
    cache: CompiledCache | None = None,
) -> Runtime:
    """The engine that suits a device: PyTorch on a GPU, OpenVINO on a CPU (decisions/0008).

    Args:
        checkpoint: whose weights to run.
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `auto` (fp16 on a GPU; on a CPU int8 with a twin, else fp32), `fp32`, `fp16` (GPU alone), `bf16` or
            `int8` (CPU alone).
        batch_tiles: tiles in a pass; 0 takes what suits the device.
        streams: passes under way at a time, which share a CPU's cores; on a GPU one computes while the others' tiles
            and logits are copied. 0 takes what suits the device.
        threads: cores of a CPU to use; 0 takes all that the process may use.
        twin: of the checkpoint, for int8.
        cache: keeps compiled networks from one start to the next.

    Raises:
        WeightsError: the device is not there, or cannot do that precision; or the twin answers wrongly here.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        return TorchRuntime(
            checkpoint, device=str(chosen), precision=precision, batch_tiles=batch_tiles, streams=streams
        )
    from model.openvino_runtime import OpenVinoRuntime  # here, so that a GPU host does not load it

    if precision == "int8" and twin is None:
        raise WeightsError("precision 'int8' needs an int8 twin beside the weights; there is none")
    return OpenVinoRuntime(
        checkpoint,
        precision="fp32" if precision in ("auto", "int8") else precision,
        twin=twin if precision in ("auto", "int8") else None,
        cache=cache,
        threads=threads or available_cpus(),
        batch_tiles=batch_tiles or 1,
        streams=streams,
    )


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        WeightsError: the device is not there; never another one in its place.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WeightsError(f"device {name!r}; allowed are auto, cpu, cuda and cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise WeightsError(f"device {name!r}; allowed are auto, cpu, cuda and cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise WeightsError(f"device {name!r} was asked for; this machine has {count} CUDA devices")
    return device


def available_cpus() -> int:
    """Cores that this process may use: those that it may run on, or fewer where its container's share is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    share = _container_cpus(Path("/sys/fs/cgroup"))
    return cores if share is None else max(1, min(cores, round(share)))


def _container_cpus(folder: Path) -> float | None:
    """The processor time that a control group (version 2, or 1) allows, in cores; None where it is not limited."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((folder / name).read_text() for name in files).split()
            cpus = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # not there, or "max"
            continue
        return cpus if cpus > 0 else None  # -1: no limit
    return None
