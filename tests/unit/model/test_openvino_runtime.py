"""OpenVINO's graph of the U-Net against PyTorch's, for every layout; and what it refuses."""

import threading

import numpy as np
import pytest
import torch

from model.checkpoint import Architecture, Checkpoint, ModelConfig
from model.errors import WeightsError
from model.openvino_runtime import OpenVinoRuntime, _Engine, _Requests
from model.runtime import TorchRuntime, make_runtime
from model.unet import Layout


def checkpoint(architecture: Architecture) -> Checkpoint:
    """A network whose batch norms have seen something, so that folding them matters."""
    torch.manual_seed(1)
    network = architecture.build().train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(2, architecture.n_channels, 32, 32) * 3)
        for value in network.parameters():
            if value.ndim == 1:
                value.add_(torch.rand_like(value), alpha=0.3)
    outputs = ("cell", "border")[: architecture.n_classes]
    config = ModelConfig(architecture=architecture, outputs=outputs)  # type: ignore[arg-type]  # a slice of literals
    return Checkpoint(network.state_dict(), config, {}, "")


def tiles(n: int, channels: int = 1, height: int = 64, width: int = 128) -> np.ndarray:
    return np.random.default_rng(n).random((n, channels, height, width), dtype=np.float32)


@pytest.mark.parametrize("layout", ["tutorial", "milesial", "milesial-biased"])
@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
def test_it_answers_as_pytorch_does(layout: Layout, bilinear: bool, align_corners: bool) -> None:
    weights = checkpoint(
        Architecture(n_channels=3, n_classes=2, width=8, layout=layout, bilinear=bilinear, align_corners=align_corners)
    )
    batch = tiles(2, channels=3)
    expected = TorchRuntime(weights, device="cpu", batch_tiles=2).run(batch)
    found = OpenVinoRuntime(weights, batch_tiles=2).run(batch)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_tile_has_the_same_bytes_alone_and_in_company() -> None:
    runtime = OpenVinoRuntime(checkpoint(Architecture(width=8)), batch_tiles=4)
    batch = tiles(4)
    together = runtime.run(batch)
    for index in range(4):
        assert runtime.run(batch[index : index + 1])[0].tobytes() == together[index].tobytes()


def test_answers_stay_as_they_are_when_the_next_tile_comes_and_for_every_thread() -> None:
    runtime = OpenVinoRuntime(checkpoint(Architecture(width=4)))
    batches = [np.full((1, 1, 64, 64), value, dtype=np.float32) for value in (0.1, 0.5, 0.9)]
    alone = [runtime.run(batch) for batch in batches]
    found: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: []}

    def work(index: int) -> None:
        for _ in range(20):
            found[index].append(runtime.run(batches[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, answers in found.items():
        assert len(answers) == 20
        assert all(np.array_equal(answer, alone[index]) for answer in answers)


def test_a_pass_on_all_cores_gives_the_same_bytes_as_on_one() -> None:
    weights = checkpoint(Architecture(width=8))
    batch = tiles(1)
    one = OpenVinoRuntime(weights, threads=1)
    two = OpenVinoRuntime(weights, threads=2)
    assert (one.streams, two.streams) == (1, 2)
    expected = one.run(batch).tobytes()
    assert one.run(batch, alone=True).tobytes() == expected
    assert two.run(batch).tobytes() == two.run(batch, alone=True).tobytes() == expected


def test_all_cores_are_not_used_for_one_pass_where_that_changes_bytes(caplog: pytest.LogCaptureFixture) -> None:
    class Requests(_Requests):
        def __init__(self, last_bit: float) -> None:
            self.last_bit = last_bit

        def infer(self, batch: np.ndarray) -> np.ndarray:
            return batch + np.float32(self.last_bit)

    batch = tiles(1)
    same = _Engine(Requests(0.0), Requests(0.0), batch)
    assert same._whole is not None
    other = _Engine(Requests(0.0), Requests(1e-6), batch)
    assert other.infer(batch, alone=True).tobytes() == batch.tobytes()
    assert "other bytes" in caplog.text


def test_streams_are_no_more_than_cores_and_four_at_most_unless_said_otherwise() -> None:
    weights = checkpoint(Architecture(width=4))
    assert OpenVinoRuntime(weights, threads=16).streams == 4
    assert OpenVinoRuntime(weights, threads=16, streams=8).streams == 8
    assert OpenVinoRuntime(weights, threads=3, streams=8).streams == 3


def test_fewer_tiles_a_pass_from_now_on_give_the_same_answer() -> None:
    runtime = OpenVinoRuntime(checkpoint(Architecture(width=4)), batch_tiles=4)
    batch = tiles(2)
    before = runtime.run(batch)
    runtime.batch_tiles = 2
    np.testing.assert_allclose(runtime.run(batch), before, atol=1e-6)


def test_too_many_tiles_and_sides_that_do_not_pool_evenly_are_refused() -> None:
    runtime = OpenVinoRuntime(checkpoint(Architecture(width=4)))
    with pytest.raises(ValueError, match="2 tiles in a batch; at most 1"):
        runtime.run(tiles(2))
    with pytest.raises(ValueError, match="sides must divide by 16"):
        runtime.run(tiles(1, height=72))


def test_half_precision_is_refused_on_a_cpu_with_what_is_allowed() -> None:
    with pytest.raises(WeightsError, match=r"fp16.*fp32 and bf16"):
        make_runtime(checkpoint(Architecture(width=4)), device="cpu", precision="fp16")


def test_a_cpu_gets_openvino() -> None:
    runtime = make_runtime(checkpoint(Architecture(width=4)), device="cpu")
    assert (runtime.name, runtime.device, runtime.precision, runtime.batch_tiles) == ("openvino", "cpu", "fp32", 1)
