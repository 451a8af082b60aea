"""What tests of the service need: tiny weights, drawn images, and a real server process."""

import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import httpx
import numpy as np
import numpy.typing as npt
import torch

from model.checkpoint import Architecture, Checkpoint, ModelConfig, read_checkpoint, write_checkpoint
from model.images import encode_png
from model.openvino_runtime import OpenVinoRuntime, probe
from model.runtime import TorchRuntime
from model.segmenter import Segmenter, load_segmenter
from model.twin import Quantiser, Twin, TwinReport, write_twin

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0  # a deadline, not an expectation: the machine may be busy


def draw_cells(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(height, width) uint8: blurred discs on a noisy ground."""
    generator = np.random.default_rng(seed)
    image = np.zeros((height, width), dtype=np.uint8)
    for _ in range(max(1, height * width // 2000)):
        centre = int(generator.integers(width)), int(generator.integers(height))
        cv2.circle(image, centre, int(generator.integers(4, 14)), int(generator.integers(80, 220)), -1)
    noise = generator.integers(0, 30, image.shape).astype(np.uint8)
    blurred: npt.NDArray[np.uint8] = np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), dtype=np.uint8)
    return blurred + noise


def write_weights(path: Path, seed: int = 0, **config: Any) -> str:
    """A seeded, untrained U-Net whose threshold is the median of its answer, so that masks hold both values."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"architecture": Architecture(width=4), **config}
    model_config = ModelConfig(**settings)
    state = model_config.architecture.build().state_dict()
    checkpoint = Checkpoint(state=state, config=model_config, card={}, version="")
    segmenter = Segmenter(checkpoint, TorchRuntime(checkpoint, device="cpu"))
    threshold = float(np.median(segmenter.segment(draw_cells(256, 256)).probability))
    card = {
        "data": "drawn",
        "seed": seed,
        "split": {"train": ["a", "b"], "validation": ["c"]},
        "seen": ["0123abcd"],
        "seen_by_name": ["c"],
        "tuned": {"images": ["c"]},
    }
    return write_checkpoint(path, state, model_config.model_copy(update={"threshold": round(threshold, 4)}), card)


def write_small_twin(weights: Path) -> Twin:
    """An int8 twin that rounds what goes into the last convolution, and its weights."""
    checkpoint = read_checkpoint(weights)
    weight = checkpoint.state["outc.conv.weight"].numpy()
    network, highest = checkpoint.build(), []
    network.outc.register_forward_pre_hook(lambda _, inputs: highest.append(float(inputs[0].max())))
    channels = checkpoint.config.architecture.n_channels
    with torch.inference_mode():
        network(torch.rand(1, channels, 128, 128, generator=torch.Generator().manual_seed(0)))
    steps = np.abs(weight).max(axis=(1, 2, 3)) / 127
    twin = Twin(
        checkpoint=checkpoint.version,
        quantisers=(Quantiser(inputs=(("outc.conv", 0),), levels=256, low=0.0, high=highest[0]),),
        scales={"outc.conv": tuple(float(step) for step in steps)},
        biases={},
        probe=(),
        report=TwinReport(
            n_calibration=1, n_images=1, dice_fp32=0.9, dice_int8=0.9, agreement=1, kept_float=(), tool="hand"
        ),
    )
    logits = probe(OpenVinoRuntime(checkpoint, twin=twin, check=False), checkpoint.config)
    twin = twin.model_copy(update={"probe": tuple(logits.tolist())})
    write_twin(weights, twin)
    return twin


def load_reference(path: Path, *, batch_tiles: int = 1) -> Segmenter:
    """The library's own segmenter for the same weights: the second way to the same bytes."""
    return load_segmenter(path, device="cpu", batch_tiles=batch_tiles)


def to_png(image: npt.NDArray[Any]) -> bytes:
    """PNG bytes of an image."""
    return encode_png(image)


def decode(data: bytes) -> npt.NDArray[Any]:
    """Pixels of a PNG answer, as stored, by another decoder than the service's."""
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, "not an image"
    return np.asarray(pixels)


def promise_png(width: int, height: int) -> bytes:
    """A grey PNG that says it has so many pixels and holds next to none."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(10))),
        (b"IEND", b""),
    )
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    """Poll until it is so; the seconds are a deadline, not an expectation."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def find_free_port() -> int:
    """A port from the OS that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """`python -m app` on a port from the OS; a context manager that never leaves a process behind."""

    def __init__(
        self,
        weights_dir: Path,
        log: Path,
        settings: Mapping[str, object] | None = None,
        *,
        command: Sequence[str] = ("-m", "app"),
    ) -> None:
        self._command = [sys.executable, *command]
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.weights_dir = weights_dir
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MASKWELL_")}
        given = {f"MASKWELL_{name.upper()}": str(value) for name, value in (settings or {}).items()}
        self._environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",  # tiny networks on a busy machine: threads would wait for each other
            "MASKWELL_DEVICE": "cpu",
            "MASKWELL_CACHE_DIR": "off",
            "MASKWELL_WEIGHTS_DIR": str(weights_dir),
            "MASKWELL_PORT": str(self.port),
            **given,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The running process."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start without waiting."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)

    def wait_until_ready(self) -> None:
        """Poll /readyz until it says 200."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server left with {self.process.returncode}:\n{self.log.read_text()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready within {START_S} s:\n{self.log.read_text()}")

    def wait(self) -> int:
        """The exit status, once it has left."""
        return self.process.wait(START_S)

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


HELD = """
import sys, time
from pathlib import Path
from app.__main__ import main
from app.batcher import Batcher
held, run = Path(sys.argv[1]), Batcher._pass
def wait(self, runtime, batch, *, alone):
    while held.exists():
        time.sleep(0.005)
    return run(self, runtime, batch, alone=alone)
Batcher._pass = wait
sys.exit(main([]))
"""


class HeldServer(ServerProcess):
    """A server whose network begins no pass while it is held; one process, no workers."""

    def __init__(self, weights_dir: Path, log: Path, settings: Mapping[str, object] | None = None) -> None:
        self._held = log.with_name(f"{log.name}-held")
        super().__init__(weights_dir, log, settings, command=("-c", HELD, str(self._held)))

    def hold(self) -> None:
        """From now on."""
        self._held.touch()

    def let_go(self) -> None:
        """Go on."""
        self._held.unlink(missing_ok=True)

    def _stop(self) -> None:
        self.let_go()  # its end waits for the pass
        super()._stop()


class HalfSent:
    """A request whose upload stops in the middle until it is told to go on."""

    def __init__(self, server: ServerProcess, image: bytes) -> None:
        request = httpx.Request("POST", f"{server.url}/segment", files={"file": ("x.png", image)})
        body = request.read()
        head = (
            f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        self._rest = body[len(body) // 2 :]
        self._connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        self._connection.sendall(head + body[: len(body) // 2])

    def go_on(self) -> None:
        self._connection.sendall(self._rest)

    def read_status(self) -> int:
        with self._connection:
            reply = b""
            while part := self._connection.recv(65536):
                reply += part
        return int(reply.split()[1])
