"""Write a checkpoint's network as ONNX, for those who serve elsewhere."""

import io
import json
import warnings
from pathlib import Path

import onnx
import torch

from model.checkpoint import Checkpoint, read_checkpoint, write_atomically
from model.unet import STRIDE

OPSET = 17  # of 2022: what serves ONNX today reads it


def export_onnx(weights: Path, out: Path) -> None:
    """Write the network: normalised tiles in, logits out.

    The file takes `image`, (n, C, height, width) float32, of any n, and heights and widths that divide by 16, and gives
    `logits`, (n, K, height, width). Cutting into tiles, normalisation, activation and threshold are not part of it; its
    metadata `maskwell` holds the config that says them, as JSON, beside the SHA-256 of the checkpoint.

    Args:
        weights: a checkpoint, or a bare state dict of a known U-Net.
        out: the file to write.

    Raises:
        WeightsError: the weights cannot be used.
    """
    write_atomically(out, to_onnx(read_checkpoint(weights)))


def to_onnx(checkpoint: Checkpoint) -> bytes:
    """The file that export_onnx writes."""
    sides = {0: "n", 2: "height", 3: "width"}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Tracing is what PyTorch calls legacy. It follows one way through the network; here there is no other, for the
        # only comparison is of sizes that agree whenever sides divide by 16. And it needs no further package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            checkpoint.build(),
            (torch.rand(1, checkpoint.config.architecture.n_channels, 4 * STRIDE, 4 * STRIDE),),
            buffer,  # type: ignore[arg-type]  # tracing takes one, the newer exporter does not
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": sides, "logits": sides},
        )
    network = onnx.load_from_string(buffer.getvalue())
    network.doc_string = f"Sides divide by {STRIDE}."
    config = checkpoint.config.model_dump(mode="json")
    onnx.helper.set_model_props(
        network, {"maskwell": json.dumps(config), "maskwell_checkpoint_sha256": checkpoint.version}
    )
    onnx.checker.check_model(network, full_check=True)
    data: bytes = network.SerializeToString()
    return data
