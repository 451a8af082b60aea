"""Run a network by OpenVINO on a CPU: the U-Net as a graph of fixed shapes, a compiled one for each tile size.

The graph is built from the tensors, not traced from the module: tracing takes seconds at each start and each refresh
of the weights, and OpenVINO's converter reports home unless it is told not to (decisions/0008).
"""

import threading

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset15 as ops
from openvino import Node
from torch import Tensor

from model.checkpoint import Architecture, Checkpoint
from model.errors import WeightsError
from model.runtime import fill_batch
from model.types import Batch, Logits
from model.unet import STRIDE

# torch.nn.BatchNorm2d's own
BATCH_NORM_EPSILON = 1e-5
HINTS = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}


class OpenVinoRuntime:
    """OpenVINO on the CPU.

    Args:
        checkpoint: whose weights to run.
        precision: `fp32`, or `bf16` where the processor has the instructions for it.
        threads: cores to use; 0 takes all that the process may use.
        batch_tiles: tiles in a pass.

    Raises:
        WeightsError: another precision.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self, checkpoint: Checkpoint, *, precision: str = "fp32", threads: int = 0, batch_tiles: int = 1
    ) -> None:
        if precision not in HINTS:
            raise WeightsError(f"precision {precision!r} on a CPU; allowed are {' and '.join(HINTS)}")
        self.precision = precision
        self.batch_tiles = batch_tiles
        self._architecture = checkpoint.config.architecture
        self._state = {name: _array(tensor) for name, tensor in checkpoint.state.items()}
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
        }
        self._core = ov.Core()
        self._requests: dict[tuple[int, int, int], ov.InferRequest] = {}
        self._lock = threading.Lock()  # a request does one thing at a time

    def run(self, batch: Batch) -> Logits:
        """As model.runtime.Runtime says."""
        n = batch.shape[0]
        batch = np.ascontiguousarray(fill_batch(batch, self.batch_tiles), dtype=np.float32)
        with self._lock:
            try:
                # copied out of the request's memory, which the next call writes to
                logits: Logits = np.array(self._request(batch.shape).infer([batch], share_inputs=True)[0][:n])
            except RuntimeError as error:
                if "alloc" in str(error).lower() or "memory" in str(error).lower():
                    raise MemoryError(f"no room for {self.batch_tiles} tiles on the CPU") from error
                raise
        return logits

    def _request(self, shape: tuple[int, ...]) -> ov.InferRequest:
        key = shape[0], shape[2], shape[3]
        if key not in self._requests:
            if shape[2] % STRIDE or shape[3] % STRIDE:
                raise ValueError(f"tiles of {shape[3]} x {shape[2]} px; sides must divide by {STRIDE}")
            graph = build_graph(self._architecture, self._state, (shape[0], shape[2], shape[3]))
            # batch_tiles may go down where memory is short; what was compiled for more is of no use then
            self._requests = {old: request for old, request in self._requests.items() if old[0] == shape[0]}
            self._requests[key] = self._core.compile_model(graph, "CPU", self._options).create_infer_request()
        return self._requests[key]


def build_graph(
    architecture: Architecture, state: dict[str, npt.NDArray[np.float32]], shape: tuple[int, int, int]
) -> ov.Model:
    """The U-Net of model.unet in OpenVINO's operations, batch norms folded into the convolutions.

    Args:
        architecture: says which U-Net.
        state: parameter name to array.
        shape: tiles, height and width, fixed; height and width divide by 16.
    """

    def convolution(x: Node, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> Node:
        pad = [weight.shape[2] // 2] * 2
        y = ops.convolution(x, ops.constant(weight), [1, 1], pad, pad, [1, 1])
        return ops.add(y, ops.constant(bias.reshape(1, -1, 1, 1)))

    def double_conv(x: Node, prefix: str) -> Node:
        for conv, norm in ((0, 1), (3, 4)):
            weight, bias = _fold(state, f"{prefix}.double_conv.{conv}", f"{prefix}.double_conv.{norm}")
            x = ops.relu(convolution(x, weight, bias))
        return x

    def down(x: Node, prefix: str) -> Node:
        pooled = ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
        return double_conv(pooled, f"{prefix}.maxpool_conv.1")

    def up(below: Node, skip: Node, prefix: str) -> Node:
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
        else:
            kernel, bias = state[f"{prefix}.up.weight"], state[f"{prefix}.up.bias"]
            x = ops.convolution_backprop_data(below, ops.constant(kernel), [2, 2], None, [0, 0], [0, 0], [1, 1])
            x = ops.add(x, ops.constant(bias.reshape(1, -1, 1, 1)))
        return double_conv(ops.concat([skip, x], 1), f"{prefix}.conv")

    image = ops.parameter([shape[0], architecture.n_channels, shape[1], shape[2]], np.float32, name="image")
    x1 = double_conv(image, "inc")
    x2 = down(x1, "down1")
    x3 = down(x2, "down2")
    x4 = down(x3, "down3")
    x = up(down(x4, "down4"), x4, "up1")
    x = up(x, x3, "up2")
    x = up(x, x2, "up3")
    x = up(x, x1, "up4")
    logits = convolution(x, state["outc.conv.weight"], state["outc.conv.bias"])
    return ov.Model([logits], [image], "unet")


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


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().cpu().numpy()
    return array
