"""Run a network by OpenVINO on a CPU: the U-Net as a graph of fixed shapes, a compiled one for each tile size.

The graph is built from the tensors, not traced from the module: tracing takes seconds at each start and each refresh
of the weights, and OpenVINO's converter reports home unless it is told not to (decisions/0008).
"""

import hashlib
import logging
import platform
import queue
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset15 as ops
from openvino import Node

from model.checkpoint import Architecture, Checkpoint, ModelConfig
from model.compiled_cache import CompiledCache
from model.errors import WeightsError
from model.runtime import available_cpus, fill_batch
from model.twin import PROBE_STEP, PROBE_TOLERANCE, Twin, probe_batch
from model.types import Batch, Logits
from model.unet import STRIDE

logger = logging.getLogger("model.openvino")

# Weights in int8 go from -127 to 127: without -128 they are symmetrical.
WEIGHT_LEVELS = 127
# torch.nn.BatchNorm2d's own
BATCH_NORM_EPSILON = 1e-5
# More passes beside each other than this were not measured, and a single image has few tiles to share among them.
MAX_STREAMS = 4
HINTS = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}


class OpenVinoRuntime:
    """OpenVINO on the CPU: passes beside each other, each on its share of the cores, or one on all of them.

    Args:
        checkpoint: whose weights to run.
        precision: `fp32`, or `bf16` where the processor has the instructions for it; unused with a twin.
        twin: runs the network in int8.
        cache: keeps compiled networks, those in int8 alone: float32 is compiled as quickly as it would be read.
        check: see first whether the twin answers here as it did where it was made.
        threads: cores to use; 0 takes all that the process may use.
        batch_tiles: tiles in a pass.
        streams: passes under way at the same time; 0 takes one a core, four at most (decisions/0004).

    Raises:
        WeightsError: another precision; or the twin does not fit the network, or gives other answers here than where it
            was checked.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "fp32",
        threads: int = 0,
        batch_tiles: int = 1,
        streams: int = 0,
        twin: Twin | None = None,
        cache: CompiledCache | None = None,
        check: bool = True,
    ) -> None:
        if precision not in HINTS:
            raise WeightsError(f"precision {precision!r} on a CPU; allowed are {' and '.join(HINTS)}")
        self.precision = "int8" if twin else precision
        self._hint = HINTS[precision]
        self._twin = twin
        self._cache = cache
        self._version = checkpoint.version
        self.batch_tiles = batch_tiles
        self._threads = threads or available_cpus()
        self.streams = min(streams or MAX_STREAMS, self._threads)
        self._architecture = checkpoint.config.architecture
        self._state = state_arrays(checkpoint)
        self._core = ov.Core()
        self._engines: dict[tuple[int, int, int], _Engine] = {}
        self._lock = threading.Lock()
        if twin and check:
            self._check(checkpoint.config, twin)

    def run(self, batch: Batch, *, alone: bool = False) -> Logits:
        """As model.runtime.Runtime says."""
        n = batch.shape[0]
        batch = np.ascontiguousarray(fill_batch(batch, self.batch_tiles), dtype=np.float32)
        try:
            return self._engine(batch.shape).infer(batch, alone=alone)[:n]
        except RuntimeError as error:
            if "alloc" in str(error).lower() or "memory" in str(error).lower():
                raise MemoryError(f"no room for {batch.shape[0]} tiles on the CPU") from error
            raise

    def _engine(self, shape: tuple[int, ...]) -> "_Engine":
        key = shape[0], shape[2], shape[3]
        if shape[2] % STRIDE or shape[3] % STRIDE:
            raise ValueError(f"tiles of {shape[3]} x {shape[2]} px; sides must divide by {STRIDE}")
        with self._lock:
            engine = self._engines.get(key)
            if engine is None:
                # batch_tiles may go down where memory is short; what was compiled for more is of no use then
                self._engines = {old: engine for old, engine in self._engines.items() if old[0] == shape[0]}
                engine = self._engines[key] = self._compile(key)
        return engine

    def _check(self, config: ModelConfig, twin: Twin) -> None:
        """Whether the twin answers here as it did where it was checked: some processors' int8 products saturate."""
        expected = np.array(twin.probe, dtype=np.float32)
        found = probe(self, config)
        if found.shape != expected.shape:
            raise WeightsError(f"the int8 twin was made for {expected.size} values of a test picture, not {found.size}")
        off = float(np.abs(found - expected).mean()) / max(float(expected.std()), 1e-6)
        if not off <= PROBE_TOLERANCE:  # true for NaN
            raise WeightsError(f"the int8 twin is off by {off:.1%} of the logits' spread on this processor")

    def _compile(self, shape: tuple[int, int, int]) -> "_Engine":
        key = self._key(shape) if self._cache and self._twin and self._version else None
        blob = self._cache.load(key) if self._cache and key else None
        shared = self._import(blob, self.streams) if blob else None
        if shared is None:
            shared = self._core.compile_model(self._graph(shape), "CPU", self._options(self.streams))
            blob = None
            if self._cache and key:
                blob = shared.export_model().getvalue()
                self._cache.store(key, blob)
        whole = None
        if self.streams > 1:
            whole = self._import(blob, 1) if blob else None
            whole = whole or self._core.compile_model(self._graph(shape), "CPU", self._options(1))
        sample = np.random.default_rng(0).normal(size=shared.input(0).shape).astype(np.float32)
        return _Engine(_Requests(shared, self.streams), _Requests(whole, 1) if whole else None, sample)

    def _graph(self, shape: tuple[int, int, int]) -> ov.Model:
        graph = build_graph(self._architecture, self._state, shape)
        if self._twin:
            quantise_graph(graph, self._twin)
        return graph

    def _options(self, streams: int) -> dict[str, object]:
        return {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": self._hint,
            # else the threads of two models, or of two processes, are bound to the same cores
            "ENABLE_CPU_PINNING": False,
        }

    def _import(self, blob: bytes, streams: int) -> ov.CompiledModel | None:
        try:
            return self._core.import_model(blob, "CPU", self._options(streams))
        except RuntimeError as error:  # OpenVINO's only kind
            logger.warning("a compiled network that was kept cannot be used: %s", str(error).splitlines()[0])
            return None

    def _key(self, shape: tuple[int, int, int]) -> str:
        """All that a compiled network depends on: weights, twin, shape, this code, OpenVINO, and the processor."""
        twin = self._twin.model_dump_json() if self._twin else ""
        parts = (
            self._version,
            twin,
            self._architecture.model_dump_json(),
            str(shape),
            ov.__version__,
            _processor(),
            Path(__file__).read_text(encoding="utf-8"),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class _Engine:
    """The network compiled for one shape, in two ways.

    Args:
        shared: for several passes at a time, each on a share of the cores.
        whole: for one pass on all of them; None where a share is all of them.
        sample: a batch.
    """

    def __init__(self, shared: "_Requests", whole: "_Requests | None", sample: Batch) -> None:
        self._shared = shared
        # Some kernel may sum in another order on another number of threads. Then an answer would depend on its
        # company, and being quicker alone is not worth that.
        if whole is not None and shared.infer(sample).tobytes() != whole.infer(sample).tobytes():
            logger.warning("one pass on all cores gives other bytes than on a share of them, and is not used")
            whole = None
        self._whole = whole

    def infer(self, batch: Batch, *, alone: bool) -> Logits:
        return (self._whole if alone and self._whole is not None else self._shared).infer(batch)


class _Requests:
    """Inference requests of a compiled network; each does one thing at a time."""

    def __init__(self, compiled: ov.CompiledModel, count: int) -> None:
        self._free: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(compiled.create_infer_request())

    def infer(self, batch: Batch) -> Logits:
        """(N, K, S, S) float32; waits while all requests are busy."""
        request = self._free.get()
        try:
            # copied out of the request's memory, which its next pass writes to
            logits: Logits = np.array(request.infer([batch], share_inputs=True)[0])
        finally:
            self._free.put(request)
        return logits


def build_graph(
    architecture: Architecture, state: dict[str, npt.NDArray[np.float32]], shape: tuple[int, int, int]
) -> ov.Model:
    """The U-Net of model.unet in OpenVINO's operations, batch norms folded into the convolutions.

    Args:
        architecture: says which U-Net.
        state: parameter name to array.
        shape: tiles, height and width, fixed; height and width divide by 16.
    """

    def named(x: Node, name: str) -> Node:
        x.set_friendly_name(name)
        return x

    def with_bias(x: Node, bias: npt.NDArray[np.float32], name: str) -> Node:
        return named(ops.add(x, ops.constant(bias.reshape(1, -1, 1, 1))), f"{name}.bias")

    def convolution(x: Node, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], name: str) -> Node:
        pad = [weight.shape[2] // 2] * 2
        return with_bias(named(ops.convolution(x, ops.constant(weight), [1, 1], pad, pad, [1, 1]), name), bias, name)

    def double_conv(x: Node, prefix: str) -> Node:
        for conv, norm in ((0, 1), (3, 4)):
            name = f"{prefix}.double_conv.{conv}"
            weight, bias = _fold(state, name, f"{prefix}.double_conv.{norm}")
            x = named(ops.relu(convolution(x, weight, bias, name)), f"{name}.relu")
        return x

    def down(x: Node, prefix: str) -> Node:
        pooled = named(ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]), f"{prefix}.pool").output(0)
        return double_conv(pooled, f"{prefix}.maxpool_conv.1")

    def up(below: Node, skip: Node, prefix: str) -> Node:
        name = f"{prefix}.up"
        if architecture.bilinear:
            mode = "align_corners" if architecture.align_corners else "half_pixel"
            x = ops.interpolate(
                below,
                ops.constant(np.array([2, 2], dtype=np.float32)),
                mode="linear_onnx",
                shape_calculation_mode="scales",
                coordinate_transformation_mode=mode,
                axes=ops.constant(np.array([2, 3], dtype=np.int64)),
            )
            x = named(x, name)
        else:
            kernel, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            x = ops.convolution_backprop_data(below, ops.constant(kernel), [2, 2], None, [0, 0], [0, 0], [1, 1])
            x = with_bias(named(x, name), bias, name)
        return double_conv(named(ops.concat([skip, x], 1), f"{prefix}.concat"), f"{prefix}.conv")

    image = ops.parameter([shape[0], architecture.n_channels, shape[1], shape[2]], np.float32, name="image")
    x1 = double_conv(image, "inc")
    x2 = down(x1, "down1")
    x3 = down(x2, "down2")
    x4 = down(x3, "down3")
    x = up(down(x4, "down4"), x4, "up1")
    x = up(x, x3, "up2")
    x = up(x, x2, "up3")
    x = up(x, x1, "up4")
    logits = convolution(x, state["outc.conv.weight"], state["outc.conv.bias"], "outc.conv")
    return ov.Model([logits], [image], "unet")


def quantise_graph(graph: ov.Model, twin: Twin) -> None:
    """Put a twin's rounding into a graph of `build_graph`; OpenVINO then runs what lies between in int8.

    Raises:
        WeightsError: the twin names what the network does not have, or does not fit it.
    """
    operations = {operation.get_friendly_name(): operation for operation in graph.get_ordered_ops()}
    try:
        for quantiser in twin.quantisers:
            inputs = [operations[name].input(port) for name, port in quantiser.inputs]
            low, high = (ops.constant(np.float32(end)) for end in (quantiser.low, quantiser.high))
            source = inputs[0].get_source_output()
            if any(other.get_source_output() != source for other in inputs):
                raise WeightsError("the int8 twin does not fit: it rounds different values alike")
            rounded = ops.fake_quantize(source, low, high, low, high, quantiser.levels)
            for other in inputs:
                other.replace_source_output(rounded.output(0))
        for name, steps in twin.scales.items():
            weight = operations[name].input(1)
            values = weight.get_source_output().get_node().get_data()
            # the channels that are made come first in a convolution, second in a transposed one
            axis = 0 if operations[name].get_type_name() == "Convolution" else 1
            scale = np.array(steps, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
            if scale.size != values.shape[axis]:
                raise WeightsError(f"the int8 twin does not fit: {scale.size} scales for {name}")
            whole = np.clip(np.rint(values / scale), -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
            restored = ops.multiply(ops.convert(ops.constant(whole), "f32"), ops.constant(scale))
            weight.replace_source_output(restored.output(0))
        for name, values in twin.biases.items():
            bias = operations[f"{name}.bias"].input(1)
            array = np.array(values, dtype=np.float32).reshape(bias.get_source_output().get_shape())
            bias.replace_source_output(ops.constant(array).output(0))
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise WeightsError("the int8 twin does not fit the network of its weights") from error


def probe(runtime: OpenVinoRuntime, config: ModelConfig) -> npt.NDArray[np.float32]:
    """Logits of the test picture at some of its pixels, as a twin keeps them."""
    logits = runtime.run(probe_batch(config))[0, :, ::PROBE_STEP, ::PROBE_STEP]
    return np.ascontiguousarray(logits).ravel()


def _fold(
    state: dict[str, npt.NDArray[np.float32]], conv: str, norm: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight and bias of the one convolution that equals a convolution and the batch norm after it."""
    scale = state[f"{norm}.weight"].astype(np.float64) / np.sqrt(
        state[f"{norm}.running_var"].astype(np.float64) + BATCH_NORM_EPSILON
    )
    bias = state.get(f"{conv}.bias", np.zeros(1, dtype=np.float32)).astype(np.float64)
    weight = state[f"{conv}.weight"] * scale[:, None, None, None]
    shifted = (bias - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"]
    return weight.astype(np.float32), shifted.astype(np.float32)


def _processor() -> str:
    """What tells this processor's instructions from another's; a container may move between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return " ".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def state_arrays(checkpoint: Checkpoint) -> dict[str, npt.NDArray[np.float32]]:
    """Parameter name to array."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in checkpoint.state.items()}
