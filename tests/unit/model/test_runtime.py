"""A batch in, logits out: the same bytes alone and in company, and a device that is there or an error."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import Architecture, Checkpoint, ModelConfig, read_checkpoint
from model.errors import WeightsError
from model.runtime import Precision, TorchRuntime, _container_cpus, available_cpus, choose_device, stack_tiles
from tests.files import spread, write_seeded_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    config = ModelConfig(architecture=Architecture(width=8, n_classes=2), outputs=("cell", "border"), tile_px=(128,))
    path: Path = tmp_path_factory.mktemp("weights") / "weights.pth"
    write_seeded_weights(path, config)
    return spread(read_checkpoint(path))


def tiles(n: int, side: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(n).random((n, 1, side, side), dtype=np.float32)


def test_the_runtime_gives_the_networks_output(checkpoint: Checkpoint) -> None:
    batch = tiles(2)
    with torch.inference_mode():
        expected = checkpoint.build()(torch.from_numpy(batch)).numpy()
    found = TorchRuntime(checkpoint, device="cpu", batch_tiles=2).run(batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_tile_gives_the_same_bytes_alone_and_in_any_company(checkpoint: Checkpoint) -> None:
    runtime = TorchRuntime(checkpoint, device="cpu", batch_tiles=4)
    batch = tiles(4)
    together = runtime.run(batch)
    assert (together.std(axis=(1, 2, 3)) > 0).all()
    for index in range(4):
        np.testing.assert_array_equal(runtime.run(batch[index : index + 1])[0], together[index])
    np.testing.assert_array_equal(runtime.run(batch[[1, 3, 0]]), together[[1, 3, 0]])


def test_the_number_of_tiles_in_a_pass_hardly_matters(checkpoint: Checkpoint) -> None:
    batch = tiles(4)
    one, four = (TorchRuntime(checkpoint, device="cpu", batch_tiles=n) for n in (1, 4))
    np.testing.assert_allclose(
        np.concatenate([one.run(batch[i : i + 1]) for i in range(4)]), four.run(batch), rtol=1e-4, atol=1e-5
    )


def test_the_batch_is_left_as_it_was_and_may_be_a_view(checkpoint: Checkpoint) -> None:
    runtime = TorchRuntime(checkpoint, device="cpu")
    planes = tiles(1, 100)
    view = planes[:, :, 10:74, 10:74]
    before = planes.copy()
    np.testing.assert_array_equal(runtime.run(view), runtime.run(view.copy()))
    np.testing.assert_array_equal(planes, before)


def test_more_tiles_than_a_pass_takes_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="3 tiles in a batch; at most 2"):
        TorchRuntime(checkpoint, device="cpu", batch_tiles=2).run(tiles(3))


def test_on_a_cpu_auto_means_float32_and_one_tile(checkpoint: Checkpoint) -> None:
    runtime = TorchRuntime(checkpoint, device="cpu")
    assert (runtime.name, runtime.device, runtime.precision, runtime.batch_tiles) == ("torch", "cpu", "fp32", 1)


@pytest.mark.parametrize(("precision", "allowed"), [("bf16", 0.1), ("fp16", 0.015)])
def test_half_the_bits_are_close_and_not_equal(checkpoint: Checkpoint, precision: Precision, allowed: float) -> None:
    batch = tiles(1)
    exact = TorchRuntime(checkpoint, device="cpu").run(batch)
    rough = TorchRuntime(checkpoint, device="cpu", precision=precision).run(batch)
    assert rough.dtype == np.float32
    assert (exact.std(axis=(0, 2, 3)) > 0.5).all()  # else a constant would pass
    assert (np.abs(rough - exact).mean(axis=(0, 2, 3)) > 0).all()
    assert (np.abs(rough - exact).mean(axis=(0, 2, 3)) < allowed).all()


def test_no_batch_norm_is_left(checkpoint: Checkpoint) -> None:
    layers = TorchRuntime(checkpoint, device="cpu")._network.modules()
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in layers)


def test_values_before_a_batch_norm_need_not_fit_float16(checkpoint: Checkpoint) -> None:
    state = {name: value.clone() for name, value in checkpoint.state.items()}
    norm = "down1.maxpool_conv.1.double_conv"
    state[f"{norm}.0.weight"] *= 1e6  # the batch norm divides by as much
    if f"{norm}.0.bias" in state:
        state[f"{norm}.0.bias"] *= 1e6
    state[f"{norm}.1.running_mean"] *= 1e6
    state[f"{norm}.1.running_var"] *= 1e12
    scaled = Checkpoint(state, checkpoint.config, checkpoint.card, checkpoint.version)
    batch = tiles(1)
    exact = TorchRuntime(checkpoint, device="cpu").run(batch)
    rough = TorchRuntime(scaled, device="cpu", precision="fp16").run(batch)
    assert np.abs(rough - exact).max() < 0.05 * exact.std()


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "mps", "meta", "xpu"])
def test_a_device_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="allowed are auto, cpu, cuda and cuda:N"):
        choose_device(name)


def test_a_cuda_device_that_is_not_there_is_refused_and_not_replaced() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(WeightsError, match=f"this machine has {count} CUDA devices"):
        choose_device(f"cuda:{count}")


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu_and_with_itself(checkpoint: Checkpoint) -> None:
    batch = tiles(3)
    on_cpu = TorchRuntime(checkpoint, device="cpu", batch_tiles=3).run(batch)
    runtime = TorchRuntime(checkpoint, device="cuda", batch_tiles=8)
    on_gpu = runtime.run(batch)
    assert np.abs(on_gpu - on_cpu).max() < 0.2 * on_cpu.std(axis=(2, 3)).min()
    for index in range(3):
        np.testing.assert_array_equal(runtime.run(batch[index : index + 1])[0], on_gpu[index])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_captured_pass_answers_what_the_network_answers(checkpoint: Checkpoint, precision: Precision) -> None:
    runtime = TorchRuntime(checkpoint, device="cuda", precision=precision, batch_tiles=2)
    for side in (64, 128, 64):
        batch = tiles(2, side)
        captured = runtime.run(batch)
        kept = captured.copy()
        assert runtime._may_capture
        runtime.run(tiles(1, side))  # writes to the same memory
        np.testing.assert_array_equal(captured, kept)
        with torch.inference_mode():
            np.testing.assert_array_equal(runtime._run_eagerly(batch), captured)
    assert len(runtime._captured) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_passes_under_way_together_on_a_gpu_answer_as_each_alone(checkpoint: Checkpoint) -> None:
    runtime = TorchRuntime(checkpoint, device="cuda", batch_tiles=4)
    batches = [tiles(1 + number % 4, 128) + number for number in range(200)]
    alone = [runtime.run(batch) for batch in batches]
    with ThreadPoolExecutor(2 * runtime.streams) as threads:  # more than there are ways to the device
        together = list(threads.map(runtime.run, batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert runtime._may_capture
    assert len(runtime._captured) == 1


def test_a_network_that_cannot_be_captured_runs_eagerly(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("model.runtime.CapturedPass", refuse)
    runtime = TorchRuntime(checkpoint, device="cpu", batch_tiles=2)
    expected = runtime.run(tiles(2))
    runtime._may_capture = True  # as on a GPU
    np.testing.assert_array_equal(runtime.run(tiles(2)), expected)
    np.testing.assert_array_equal(runtime.run(tiles(2)), expected)
    assert [record.message for record in caplog.records] == ["the network runs eagerly on cpu: it cannot be captured"]


def test_at_least_one_core_is_available() -> None:
    assert available_cpus() >= 1


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "what is this\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_share_of_the_processor_is_known(
    tmp_path: Path, files: dict[str, str], cpus: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _container_cpus(tmp_path) == cpus


def test_tiles_are_stacked_in_c_order_grey_ones_too() -> None:
    generator = np.random.default_rng(0)
    grey = np.broadcast_to(generator.random((1, 8, 8), dtype=np.float32), (3, 8, 8))
    colour = generator.random((3, 8, 8), dtype=np.float32)
    for parts in ([grey, grey[:, ::-1]], [grey, colour], [colour]):
        batch = stack_tiles(parts)
        assert batch.flags.c_contiguous
        assert np.array_equal(batch, np.array([part.tolist() for part in parts], np.float32))
