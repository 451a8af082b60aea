"""Runs: classic equals a plain loop, resuming equals not stopping, and stops lose nothing."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import Architecture, Checkpoint, ModelConfig, read_checkpoint
from model.errors import WeightsError
from model.images import encode_png
from model.preprocess import Normalisation
from model.runtime import Runtime, available_cpus, make_runtime
from model.unet import UNet
from training.__main__ import main
from training.config import CLASSIC, Recipe
from training.data import find_pairs, split_pairs
from training.dataset import BatchKeys
from training.errors import RunError
from training.lock import publishing
from training.synthesize import synthesize
from training.train import choose_workers, fit, warm_start


def run(cells: Path, recipe: Recipe, folder: Path, *, max_steps: int | None = None, quiet: bool = True) -> bool:
    train, validation = split_pairs(find_pairs(cells), fraction=0.2, seed=0)
    out, runs = folder / "out.pth", folder / "run"
    return fit(
        train, validation, recipe, out=out, run_folder=runs, device="cpu", quiet=quiet, max_steps=max_steps
    ).finished


def test_ten_steps_of_classic_equal_a_plain_loop(cells: Path, tmp_path: Path) -> None:
    recipe = replace(CLASSIC, width=8, epochs=1, crops_per_epoch=10, flip_prob=0.0, seed=7)
    train, validation = split_pairs(find_pairs(cells), fraction=0.2, seed=0)
    fit(train, validation, recipe, out=tmp_path / "a.pth", run_folder=tmp_path / "run", device="cpu", quiet=True)

    torch.manual_seed(7)
    # the same memory format, for another one rounds differently, and RMSprop's first steps follow the gradient's sign
    network = UNet(1, 1, bilinear=True, width=8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-5, weight_decay=1e-8, momentum=0.9)
    criterion = torch.nn.BCEWithLogitsLoss()
    network.train()
    orders = [np.random.default_rng([7, lap]).permutation(len(train)) for lap in range(2)]
    for index in np.concatenate(orders)[:10]:
        image, labels = train[index].read()
        parted = labels > 0
        for axis in (0, 1):  # touching cells are parted by a line of background
            near = np.diff(labels, axis=axis) != 0
            for side in (0, 1):
                grown = np.pad(near, [(side, 1 - side) if place == axis else (0, 0) for place in (0, 1)])
                other = np.roll(labels, 1 if side else -1, axis)
                parted &= ~(grown & (labels > 0) & (other > 0))
        x = torch.from_numpy(image.astype(np.float32))[None, None].contiguous(memory_format=torch.channels_last)
        y = torch.from_numpy(parted.astype(np.float32))[None, None]
        optimizer.zero_grad()
        criterion(network(x), y).backward()
        optimizer.step()

    trained = read_checkpoint(tmp_path / "run" / "best.pth")
    for name, value in network.state_dict().items():
        # the file holds the convolutions as float16
        assert torch.equal(trained.state[name], value.half().float() if value.ndim == 4 else value), name


@pytest.mark.parametrize("steps", [1, 3, 4])  # within an epoch, and at the end of one
def test_a_stopped_run_goes_on_to_the_very_same_weights(
    cells: Path, tmp_path: Path, tiny_recipe: Recipe, steps: int
) -> None:
    assert run(cells, tiny_recipe, tmp_path / "whole")
    pauses = 0
    while not run(cells, tiny_recipe, tmp_path / "parts", max_steps=steps):
        pauses += 1
    assert pauses >= 1
    whole, parts = (read_checkpoint(tmp_path / name / "out.pth") for name in ("whole", "parts"))
    assert all(torch.equal(whole.state[name], parts.state[name]) for name in whole.state)
    assert whole.card["scores"] == parts.card["scores"]


def test_training_learns_and_keeps_the_best_epoch_by_mask_and_cells(
    cells: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    recipe = replace(tiny_recipe, width=8, epochs=4, crops_per_epoch=24, intensity_prob=0.0, ema_decay=0.5, lr=2e-3)
    train, validation = split_pairs(find_pairs(cells), fraction=0.2, seed=0)
    result = fit(train, validation, recipe, out=tmp_path / "o.pth", run_folder=tmp_path / "r", device="cpu", quiet=True)

    history = result.progress.history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert result.progress.best_score == max(record["score"] for record in history)
    checkpoint = read_checkpoint(tmp_path / "o.pth")
    scores = checkpoint.card["scores"]["validation"]
    assert scores["dice"] > 0.6
    assert (scores["dice"] + scores["cells"]["ap"]["mean"]) / 2 == pytest.approx(result.progress.best_score, abs=1e-4)
    assert checkpoint.card["recipe"] == recipe.to_dict()
    assert len(checkpoint.card["intensity"]["quantiles"]) >= 3
    assert checkpoint.config.outputs == ("cell", "border", "distance")
    assert (checkpoint.config.join_probability, checkpoint.config.high_threshold) == (0.3, 0.9)
    assert set(checkpoint.card["split"]["train"]).isdisjoint(checkpoint.card["split"]["validation"])
    for name in ("curves.png", "overlays.png"):
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "r" / "tensorboard").iterdir())


def test_early_stopping_ends_a_run_that_gets_no_better(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, lr=1e-30, schedule="constant", ema_decay=0.0, epochs=30, patience=2)
    train, validation = split_pairs(find_pairs(cells), fraction=0.2, seed=0)
    result = fit(train, validation, recipe, out=tmp_path / "o.pth", run_folder=tmp_path / "r", device="cpu", quiet=True)
    assert result.finished
    # batch norm's averages still move, so a few epochs may be better than the ones before
    assert result.progress.epoch == result.progress.best_epoch + 3 < 30


def test_a_run_folder_of_another_recipe_is_refused(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    assert not run(cells, tiny_recipe, tmp_path, max_steps=1)
    with pytest.raises(RunError, match="another recipe"):
        run(cells, replace(tiny_recipe, lr=0.5), tmp_path)


def test_a_stopped_run_does_not_go_on_with_other_images_of_the_same_names(
    cells: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    assert not run(cells, tiny_recipe, tmp_path, max_steps=1)
    synthesize(tmp_path / "other", count=10, size_px=128, seed=4)
    with pytest.raises(RunError, match="other images"):
        run(tmp_path / "other", tiny_recipe, tmp_path)


def test_after_a_finished_run_the_same_command_begins_anew(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    assert run(cells, tiny_recipe, tmp_path)
    assert not run(cells, replace(tiny_recipe, seed=9), tmp_path, max_steps=1)


def test_binary_masks_give_a_network_of_one_output(tmp_path: Path, tiny_recipe: Recipe) -> None:
    for index in range(4):
        mask = np.zeros((64, 64), np.uint8)
        mask[8 * index : 8 * index + 20, 10:40] = 255
        write_grey(tmp_path / "image" / f"{index}.png", mask // 2 + 20)
        write_grey(tmp_path / "label" / f"{index}.png", mask)
    assert run(tmp_path, replace(tiny_recipe, epochs=1), tmp_path)
    config = read_checkpoint(tmp_path / "out.pth").config
    assert (config.outputs, config.join_probability, config.high_threshold) == (("cell",), 1, 0)


def write_grey(path: Path, pixels: np.ndarray) -> None:
    from model.images import encode_png

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels))


def command(cells: Path, folder: Path, *more: str) -> list[str]:
    numbers = "--width 4 --crop-px 128 --crops-per-epoch 8 --batch-size 2 --warmup-steps 2 --val-fraction 0.2"
    return [
        sys.executable, "-m", "training", "fit", str(cells), "--out", str(folder / "out.pth"),
        "--run-folder", str(folder / "run"), "--device", "cpu", *numbers.split(), *more,
    ]  # fmt: skip


def wait_for_an_epoch(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "best.pth").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_leaves_and_the_same_command_goes_on(cells: Path, tmp_path: Path, name: str) -> None:
    import signal

    process = subprocess.Popen(command(cells, tmp_path, "--epochs", "500"), stderr=subprocess.PIPE, text=True)
    try:
        wait_for_an_epoch(process, tmp_path / "run")
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "the same command goes on" in said
    assert not (tmp_path / "out.pth").exists()
    state = torch.load(tmp_path / "run" / "state.pth", weights_only=True)
    assert state["progress"]["epoch"] >= 1

    again = subprocess.run(
        command(cells, tmp_path, "--epochs", "500", "--max-steps", "1"), capture_output=True, text=True, check=False
    )
    assert f"going on with {tmp_path / 'run'} at epoch" in again.stderr + again.stdout


def test_two_trainers_cannot_share_a_run_folder(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    process = subprocess.Popen(command(cells, tmp_path, "--epochs", "500", "--quiet"))
    try:
        wait_for_an_epoch(process, tmp_path / "run")
        with pytest.raises(RunError, match="another process trains"):
            run(cells, tiny_recipe, tmp_path)
    finally:
        process.kill()
        process.wait()


def test_killed_at_any_moment_the_state_and_the_best_weights_load(cells: Path, tmp_path: Path) -> None:
    for moment in range(3):
        process = subprocess.Popen(command(cells, tmp_path, "--epochs", "500", "--quiet"))
        try:
            deadline = time.monotonic() + 120
            before = (tmp_path / "run" / "state.pth").stat().st_mtime_ns if moment else 0
            while True:
                path, best = tmp_path / "run" / "state.pth", tmp_path / "run" / "best.pth"
                if best.exists() and path.stat().st_mtime_ns > before:  # the first validation is done
                    break
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.11 * moment)
        finally:
            process.kill()
            process.wait()
        torch.load(tmp_path / "run" / "state.pth", weights_only=True)
        read_checkpoint(tmp_path / "run" / "best.pth")


def test_two_processes_under_torchrun_train_one_network(cells: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         *command(cells, tmp_path, "--epochs", "2", "--quiet")[1:]],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = read_checkpoint(tmp_path / "out.pth").card
    assert card["steps"] <= 8


def test_devices_share_each_batch_between_them() -> None:
    whole = list(BatchKeys(8, 4))
    shares = [list(BatchKeys(8, 4, rank=rank, world=2)) for rank in (0, 1)]
    assert [sorted(first + second) for first, second in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize(("samples", "batch", "world"), [(8, 4, 8), (8, 4, 3), (2, 4, 4)])
def test_devices_that_cannot_share_a_batch_evenly_are_refused(samples: int, batch: int, world: int) -> None:
    with pytest.raises(RunError, match=rf"batches of {min(samples, batch)} samples for {world} devices"):
        BatchKeys(samples, batch, world=world)


def test_processes_prepare_samples_beside_a_gpu_and_not_beside_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_workers("cpu") == 0
    assert choose_workers("cuda") == min(available_cpus(), 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert choose_workers("cuda") == 1


def test_images_longer_than_a_warp_takes_are_refused_before_anything_is_trained(
    tmp_path: Path, tiny_recipe: Recipe
) -> None:
    for name, dtype in (("image", np.uint8), ("instances", np.uint16)):
        (tmp_path / name).mkdir()
        for stem, side in (("long", 32_767), ("short", 200)):
            (tmp_path / name / f"{stem}.png").write_bytes(encode_png(np.zeros((16, side), dtype)))
    train, validation = split_pairs(find_pairs(tmp_path), names=["short"])
    with pytest.raises(RunError, match="an image of 32,767 px"):
        fit(train, validation, tiny_recipe, out=tmp_path / "a.pth", run_folder=tmp_path / "run", quiet=True)


def test_a_run_can_begin_with_weights_and_refuses_those_of_another_architecture(
    cells: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    assert run(cells, tiny_recipe, tmp_path)
    init = read_checkpoint(tmp_path / "out.pth")
    train, validation = split_pairs(find_pairs(cells), fraction=0.2, seed=0)
    frozen = replace(tiny_recipe, lr=1e-30, ema_decay=0.0, epochs=1)
    fit(
        train,
        validation,
        frozen,
        out=tmp_path / "b.pth",
        run_folder=tmp_path / "b",
        device="cpu",
        quiet=True,
        init=init,
    )
    begun = read_checkpoint(tmp_path / "b.pth")
    assert torch.equal(begun.state["outc.conv.weight"], init.state["outc.conv.weight"])
    turned = warm_start(init, init.config.model_copy(update={"outputs": ("distance", "cell", "border")}), init.state)
    assert torch.equal(turned["outc.conv.weight"], init.state["outc.conv.weight"][[2, 0, 1]])
    with pytest.raises(RunError, match="bilinear=False"):
        fit(
            train, validation, replace(tiny_recipe, bilinear=False), out=tmp_path / "c.pth", run_folder=tmp_path / "c",
            device="cpu", quiet=True, init=init,
        )  # fmt: skip


def test_grey_weights_answer_grey_pictures_alike_in_a_network_for_colour(cells: Path, tiny_recipe: Recipe) -> None:
    architecture = Architecture(n_channels=1, n_classes=1, width=4, align_corners=False)
    old = ModelConfig(architecture=architecture, outputs=("cell",))
    new = ModelConfig(
        architecture=architecture.model_copy(update={"n_channels": 3, "n_classes": 2}), outputs=("border", "cell")
    )
    network = architecture.build().eval()
    grown = new.architecture.build().eval()
    fresh = grown.state_dict()["outc.conv.weight"][0].clone()
    grown.load_state_dict(warm_start(Checkpoint(network.state_dict(), old, {}, ""), new, grown.state_dict()))
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grown(grey.repeat(1, 3, 1, 1))[:, 1:], network(grey), rtol=1e-4, atol=1e-5)
    assert torch.equal(grown.state_dict()["outc.conv.weight"][0], fresh)


@pytest.mark.parametrize("old", ["raw", "unit", "percentile"])
def test_weights_of_another_scale_or_of_a_softmax_answer_alike_to_begin_with(old: Normalisation) -> None:
    architecture = Architecture(n_classes=2, width=4, align_corners=False)
    config = ModelConfig(
        architecture=architecture, outputs=("background", "cell"), activation="softmax", normalisation=old
    )
    new = ModelConfig(architecture=architecture.model_copy(update={"n_classes": 1}), outputs=("cell",))
    network, begun = architecture.build().eval(), new.architecture.build().eval()
    begun.load_state_dict(warm_start(Checkpoint(network.state_dict(), config, {}, ""), new, begun.state_dict()))
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = torch.softmax(network(grey * (255 if old == "raw" else 1)), dim=1)[:, 1:]
        torch.testing.assert_close(torch.sigmoid(begun(grey)), expected, rtol=1e-4, atol=1e-5)
    three = config.model_copy(update={"outputs": ("background", "cell", "border")})
    with pytest.raises(RunError, match="background, cell, border as softmax"):
        warm_start(Checkpoint(network.state_dict(), three, {}, ""), new, begun.state_dict())


def test_a_picture_in_both_splits_is_refused(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    pairs = find_pairs(cells)
    copy = replace(pairs[3], name="copy")
    with pytest.raises(RunError, match=f"copy of the validation images is the same picture as {pairs[3].name}"):
        fit(pairs[:5], [copy], tiny_recipe, out=tmp_path / "a.pth", run_folder=tmp_path / "a", device="cpu", quiet=True)


def test_validation_images_that_the_first_weights_have_seen_are_told(
    cells: Path, tmp_path: Path, tiny_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cells, replace(tiny_recipe, epochs=1), tmp_path)
    assert "flatter" not in capsys.readouterr().err
    pairs, init = find_pairs(cells), read_checkpoint(tmp_path / "out.pth")
    seen = [pair for pair in pairs if pair.name in init.card["split"]["train"]]
    fit(
        seen[:4], seen[4:6], replace(tiny_recipe, epochs=1), out=tmp_path / "b.pth", run_folder=tmp_path / "b",
        device="cpu", quiet=True, init=init,
    )  # fmt: skip
    assert "2 of the 2 validation images were trained on" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "out.pth"), str(cells), "--device", "cpu", "--quiet"]) == 0
    assert "8 of the 10 images were trained on: the scores flatter" in capsys.readouterr().err


def test_a_runtime_s_flags_are_not_left_to_the_steps(
    cells: Path, tmp_path: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = torch.backends.cudnn
    monkeypatch.setattr(flags, "deterministic", False)
    monkeypatch.setattr(flags, "allow_tf32", True)
    seen = []

    def on_a_gpu(*args: Any, **options: Any) -> Runtime:
        flags.deterministic, flags.allow_tf32 = True, False  # as TorchRuntime sets them there
        seen.append(1)
        return make_runtime(*args, **options)

    monkeypatch.setattr("training.train.make_runtime", on_a_gpu)
    assert run(cells, replace(tiny_recipe, epochs=1), tmp_path)
    assert seen
    assert (flags.deterministic, flags.allow_tf32) == (False, True)


def test_the_result_waits_for_nobody_who_publishes_to_its_place_and_is_not_lost(
    cells: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    with publishing(tmp_path / "out.pth"), pytest.raises(RunError, match="another process publishes"):
        run(cells, replace(tiny_recipe, epochs=1), tmp_path)
    assert not (tmp_path / "out.pth").exists()
    assert run(cells, replace(tiny_recipe, epochs=1), tmp_path)  # the same command again
    assert (tmp_path / "out.pth").exists()


def test_a_missing_data_folder_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path / "nowhere", tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {tmp_path / 'nowhere'} is not a folder"


def test_unreadable_weights_to_begin_with_are_an_error(cells: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"no weights")
    with pytest.raises(WeightsError):
        read_checkpoint(bad)
    done = subprocess.run(command(cells, tmp_path, "--init", str(bad)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(bad) in done.stderr
