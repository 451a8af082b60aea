"""Files of weights: read safely, refused with what was found, written whole or not at all."""

import hashlib
import json
import os
import pickle
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import (
    FORMAT,
    Architecture,
    ModelConfig,
    read_checkpoint,
    recognise,
    write_atomically,
    write_checkpoint,
)
from model.errors import WeightsError

CONFIG = ModelConfig(architecture=Architecture(width=2, align_corners=False), threshold=0.4, min_area_px=7)


def seeded_state(architecture: Architecture = CONFIG.architecture) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(architecture.build().state_dict())


def content(**changes: Any) -> dict[str, Any]:
    """A good Maskwell checkpoint, but for the changes."""
    config = CONFIG.model_dump(mode="json")
    return {"format": FORMAT, "config": config, "card": {}, "state_dict": seeded_state(), **changes}


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


class Malicious:
    """Runs code when it is unpickled by a careless reader."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.witness),)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "weights.pth"
    card = {"data": "drawn", "scores": {"dice": 0.91}, "split": ["a", "b"], "seed": 3, "resumed": False, "note": None}
    version = write_checkpoint(path, seeded_state(), CONFIG, card)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == CONFIG
    assert checkpoint.card == card
    assert checkpoint.version == version == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(checkpoint.state) == list(seeded_state())
    for name, tensor in seeded_state().items():
        assert torch.equal(checkpoint.state[name], tensor), name
    assert not checkpoint.build().training


def test_the_same_weights_have_the_same_version_and_others_another(tmp_path: Path) -> None:
    state = seeded_state()
    first = write_checkpoint(tmp_path / "a.pth", state, CONFIG, {})
    assert write_checkpoint(tmp_path / "b.pth", state, CONFIG, {}) == first
    state["outc.conv.bias"] = state["outc.conv.bias"] + 1
    assert write_checkpoint(tmp_path / "c.pth", state, CONFIG, {}) != first


def test_half_precision_halves_the_file_and_reads_as_float32(tmp_path: Path) -> None:
    config = ModelConfig(architecture=Architecture(width=8))
    state = seeded_state(config.architecture)
    write_checkpoint(tmp_path / "full.pth", state, config, {})
    write_checkpoint(tmp_path / "half.pth", state, config, {}, half=True)
    assert (tmp_path / "half.pth").stat().st_size < 0.65 * (tmp_path / "full.pth").stat().st_size
    for name, tensor in read_checkpoint(tmp_path / "half.pth").state.items():
        assert tensor.dtype == state[name].dtype
        torch.testing.assert_close(tensor, state[name], rtol=1e-3, atol=1e-4)


def test_half_precision_keeps_a_variance_that_float16_cannot_hold(tmp_path: Path) -> None:
    state = seeded_state()
    state["inc.double_conv.1.running_var"] = torch.full((2,), 1e6)
    state["inc.double_conv.4.running_var"] = torch.full((2,), 1e-9)
    write_checkpoint(tmp_path / "half.pth", state, CONFIG, {}, half=True)
    read = read_checkpoint(tmp_path / "half.pth").state
    assert torch.equal(read["inc.double_conv.1.running_var"], state["inc.double_conv.1.running_var"])
    assert torch.equal(read["inc.double_conv.4.running_var"], state["inc.double_conv.4.running_var"])


def test_half_precision_keeps_a_convolution_that_float16_cannot_hold(tmp_path: Path) -> None:
    state = seeded_state()
    state["inc.double_conv.0.weight"] *= 1e6
    write_checkpoint(tmp_path / "half.pth", state, CONFIG, {}, half=True)
    read = read_checkpoint(tmp_path / "half.pth").state
    assert torch.equal(read["inc.double_conv.0.weight"], state["inc.double_conv.0.weight"])


def test_a_card_becomes_what_json_can_say(tmp_path: Path) -> None:
    card = {
        "dice": np.float32(0.5),
        "n": np.int64(3),
        "pair": (1, 2),
        "loss": float("nan"),
        "nested": {"x": [np.True_]},
    }
    write_checkpoint(tmp_path / "weights.pth", seeded_state(), CONFIG, card)
    read = read_checkpoint(tmp_path / "weights.pth").card
    assert read == {"dice": 0.5, "n": 3, "pair": [1, 2], "loss": None, "nested": {"x": [True]}}
    json.dumps(read, allow_nan=False)


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, object(), torch.zeros(1), {1: "number as key"}])
def test_a_card_that_could_not_be_read_again_is_not_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"card\.bad"):
        write_checkpoint(tmp_path / "weights.pth", seeded_state(), CONFIG, {"bad": value})
    assert list(tmp_path.iterdir()) == []


def test_the_grey_levels_that_milesial_hides_among_the_tensors_are_passed_over(tmp_path: Path) -> None:
    architecture = Architecture(n_channels=3, n_classes=2, width=2, layout="milesial", bilinear=False)
    state: dict[str, Any] = seeded_state(architecture)
    state["mask_values"] = [0, 255]
    checkpoint = read_checkpoint(save(tmp_path / "milesial.pth", state))
    assert checkpoint.config.architecture == architecture
    assert checkpoint.config.normalisation == "unit"
    assert checkpoint.config.outputs == ("background", "cell")
    assert checkpoint.config.activation == "softmax"
    checkpoint.build()


def test_a_bare_state_dict_of_the_tutorial_gets_its_preprocessing(tmp_path: Path) -> None:
    state = OrderedDict(seeded_state(Architecture(width=2)))
    checkpoint = read_checkpoint(save(tmp_path / "bare.pth", state))
    assert checkpoint.config.normalisation == "raw"
    assert checkpoint.config.threshold == 0.5
    assert checkpoint.config.activation == "sigmoid"
    assert checkpoint.config.outputs == ("cell",)
    assert checkpoint.config.architecture.align_corners
    assert checkpoint.config.tile_px == (512,)
    assert checkpoint.card == {}


@pytest.mark.parametrize("layout", ["tutorial", "milesial", "milesial-biased"])
@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("width", [2, 6])
def test_the_architecture_is_read_off_the_shapes(layout: Any, bilinear: bool, width: int) -> None:
    architecture = Architecture(n_channels=2, n_classes=3, width=width, layout=layout, bilinear=bilinear)
    assert recognise(seeded_state(architecture)).architecture == architecture


def refused(path: Path, *expected: str) -> None:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    for part in (str(path), *expected):
        assert part in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "No such file")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "directory")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    path.touch()
    refused(path, "(0 bytes)")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth", content()).read_bytes()
    path = tmp_path / "cut.pth"
    for length in [1, 2, 4, 100, *range(1000, len(whole), len(whole) // 23), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, "no readable file of weights")


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "random.pth"
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00", b"GIF89a"):
        for _ in range(12):
            path.write_bytes(start + generator.bytes(int(generator.integers(1, 400))))
            refused(path)


def test_a_flipped_byte_gives_the_same_weights_or_a_refusal(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth", content()).read_bytes()
    generator = np.random.default_rng(1)
    path = tmp_path / "flipped.pth"
    outcomes = set()
    for position in generator.integers(0, len(whole), 60):
        data = bytearray(whole)
        data[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        try:
            read_checkpoint(path).build()
            outcomes.add("read")
        except WeightsError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "pwned"
    path = save(tmp_path / "bad.pth", {"format": FORMAT, "card": Malicious(witness)})
    refused(path, "no readable file of weights")
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Malicious(witness)))
    refused(plain)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Malicious(witness)))  # the bait is good: a careless reader would have run it
    assert witness.exists()


@pytest.mark.parametrize(
    ("value", "found"), [([1, 2], "list"), (torch.zeros(2), "Tensor"), ("text", "str"), (None, "None")]
)
def test_something_that_is_no_dict_is_refused(value: Any, found: str, tmp_path: Path) -> None:
    refused(save(tmp_path / "weights.pth", value), f"holds a {found}")


def test_an_empty_dict_is_refused(tmp_path: Path) -> None:
    refused(save(tmp_path / "weights.pth", {}), "starts with nothing")


def test_another_network_is_refused_with_its_first_names(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    refused(save(tmp_path / "weights.pth", state), "no U-Net of a known kind", "weight, bias")


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pth", CONFIG.architecture.build())
    refused(path, "no readable file of weights", "objects other than tensors")
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)  # PyTorch's own words say how to switch the protection off


def test_a_state_dict_with_a_wrong_shape_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    state = seeded_state()
    state["up2.conv.double_conv.0.weight"] = torch.zeros(3, 3, 3, 3)
    refused(save(tmp_path / "weights.pth", state), "up2.conv.double_conv.0.weight is (3, 3, 3, 3)")


def test_a_missing_and_an_extra_tensor_are_refused(tmp_path: Path) -> None:
    state = seeded_state()
    del state["down3.maxpool_conv.1.double_conv.1.running_mean"]
    refused(save(tmp_path / "a.pth", state), "down3.maxpool_conv.1.double_conv.1.running_mean is missing")
    state = seeded_state()
    state["extra.weight"] = torch.zeros(1)
    refused(save(tmp_path / "b.pth", state), "extra.weight is not part of it")


@pytest.mark.parametrize("shape", [(0, 1, 3, 3), (2, 0, 3, 3), (5000, 1, 3, 3), (2, 100, 3, 3)])
def test_a_state_dict_of_an_impossible_width_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    state = {**seeded_state(), "inc.double_conv.0.weight": torch.zeros(shape)}
    refused(save(tmp_path / "weights.pth", state), "no U-Net of a known kind")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("bare", [True, False])
def test_weights_that_are_not_finite_are_refused(value: float, bare: bool, tmp_path: Path) -> None:
    state = seeded_state()
    state["up1.conv.double_conv.0.weight"].view(-1)[3] = value
    stored = state if bare else content(state_dict=state)
    refused(save(tmp_path / "weights.pth", stored), "up1.conv.double_conv.0.weight holds NaN or infinity")


def test_a_negative_variance_is_refused(tmp_path: Path) -> None:
    state = seeded_state()
    state["inc.double_conv.1.running_var"][0] = -1
    refused(save(tmp_path / "weights.pth", state), "negative variance")


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(1, dtype=torch.int32), "outc.conv.bias is of torch.int32"),
        (torch.zeros(1, dtype=torch.complex64), "outc.conv.bias is of torch.complex64"),
        (torch.zeros(1).to_sparse(), "outc.conv.bias is no plain tensor"),
        (torch.zeros(1, device="meta"), "outc.conv.bias is no plain tensor"),
        ([0.0], "'outc.conv.bias' is a list"),
    ],
)
def test_what_is_no_plain_float_tensor_is_refused(tensor: Any, found: str, tmp_path: Path) -> None:
    state = {**seeded_state(), "outc.conv.bias": tensor}
    refused(save(tmp_path / "weights.pth", content(state_dict=state)), found)


@pytest.mark.parametrize("found", ["maskwell/2", 3, None, torch.zeros(3)])
def test_an_unknown_format_is_refused(found: Any, tmp_path: Path) -> None:
    refused(save(tmp_path / "weights.pth", content(format=found)), "is of format", FORMAT)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"threshold": "high"}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"high_threshold": 1.5}, "high_threshold"),
        ({"high_threshold": -0.1}, "high_threshold"),
        ({"normalisation": "z-score"}, "normalisation"),
        ({"architecture": {"width": "wide"}}, "architecture.width"),
        ({"architecture": {"width": 0}}, "architecture.width"),
        ({"architecture": {"layout": "other"}}, "architecture.layout"),
        ({"architecture": None}, "architecture"),
        ({"tile_px": [100]}, "multiples of 64"),
        ({"tile_px": []}, "tile_px"),
        ({"outputs": ["cell", "border"]}, "2 outputs are named; the network has 1"),
        ({"outputs": ["border"]}, "no output is named 'cell'"),
        ({"min_area_px": -1}, "min_area_px"),
        ({"pixel_size_um": 0}, "pixel_size_um"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_config_is_refused_with_the_place(change: dict[str, Any], place: str, tmp_path: Path) -> None:
    config = {**CONFIG.model_dump(mode="json"), **change}
    refused(save(tmp_path / "weights.pth", content(config=config)), "config", place)


@pytest.mark.parametrize("config", [None, [], "text", 3])
def test_a_config_of_the_wrong_type_is_refused(config: Any, tmp_path: Path) -> None:
    refused(save(tmp_path / "weights.pth", content(config=config)), "config")


def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    config = CONFIG.model_dump(mode="json")
    config["architecture"]["width"] = 4
    refused(
        save(tmp_path / "weights.pth", content(config=config)),
        "the tensors do not fit the config",
        "inc.double_conv.0.weight is (2, 1, 3, 3), expected (4, 1, 3, 3)",
    )


@pytest.mark.parametrize("change", [{"state_dict": None}, {"state_dict": [1]}, {"card": None}, {"card": "text"}])
def test_a_missing_state_dict_or_card_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    refused(save(tmp_path / "weights.pth", content(**change)), "state_dict or card is missing")


def test_a_card_with_tensors_is_refused(tmp_path: Path) -> None:
    refused(save(tmp_path / "weights.pth", content(card={"a": [torch.zeros(1)]})), "card.a[0] is a Tensor")


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    old, new = b"o" * 300_000, b"n" * 500_000
    write_atomically(path, old)
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(30):
        write_atomically(path, old if turn % 2 else new)
    stop.set()
    reader.join()
    assert seen
    assert seen <= {old, new}
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.mkdir()  # a file cannot replace a folder
    (path / "inside").touch()
    with pytest.raises(OSError, match=r"weights\.pth"):
        write_atomically(path, b"new")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["inside", "weights.pth"]


def test_a_write_that_runs_out_of_room_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "weights.pth"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            write_atomically(path, b"n" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_file_has_the_permissions_that_the_umask_gives(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "weights.pth", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights.pth").stat().st_mode) == mode
