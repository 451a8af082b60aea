"""An int8 twin is read strictly, belongs to one checkpoint, and is used only where it answers as when checked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoint import read_checkpoint, write_checkpoint
from model.errors import WeightsError
from model.openvino_runtime import OpenVinoRuntime
from model.segmenter import load_segmenter
from model.twin import MAX_BYTES, read_twin, twin_path
from tests.e2e.kit import draw_cells, write_small_twin, write_weights
from tests.files import spread


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "cells.v2.pth"
    write_weights(path, tile_px=(128,))
    checkpoint = spread(read_checkpoint(path))
    write_checkpoint(path, checkpoint.state, checkpoint.config, checkpoint.card)
    write_small_twin(path)
    return path


def change(weights: Path, **fields: Any) -> None:
    path = twin_path(weights)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_twin_lies_beside_its_weights_and_is_read_back(weights: Path) -> None:
    assert twin_path(weights).name == "cells.v2.int8.json"
    found = read_twin(weights, read_checkpoint(weights).version)
    assert found is not None
    assert found.twin.checkpoint == read_checkpoint(weights).version
    assert found.twin.report.tool == "hand"
    assert read_twin(weights.with_name("other.pth"), "0" * 64) is None


def test_auto_takes_int8_where_there_is_a_twin_and_the_answer_is_close(weights: Path) -> None:
    image = draw_cells(200, 300)
    exact = load_segmenter(weights, device="cpu", precision="fp32")
    rounded = load_segmenter(weights, device="cpu")
    assert (exact.runtime.precision, rounded.runtime.precision) == ("fp32", "int8")
    assert (exact.twin, exact.twin_error, rounded.twin_error) == (None, None, None)
    one, two = exact.segment(image).probability, rounded.segment(image).probability
    assert 0 < np.abs(one - two).mean() < 0.2 * one.std()  # a constant would be four times as far off


def test_a_tile_has_the_same_bytes_in_int8_on_one_core_and_on_two(weights: Path) -> None:
    checkpoint = read_checkpoint(weights)
    twin = read_twin(weights, checkpoint.version)
    assert twin is not None
    batch = np.random.default_rng(0).random((1, 1, 128, 128), dtype=np.float32)
    one, two = (OpenVinoRuntime(checkpoint, twin=twin.twin, threads=threads) for threads in (1, 2))
    assert one.run(batch).tobytes() == two.run(batch).tobytes() == two.run(batch, alone=True).tobytes()


def test_int8_without_a_twin_is_refused(weights: Path) -> None:
    twin_path(weights).unlink()
    with pytest.raises(WeightsError, match="'int8' needs an int8 twin beside the weights; there is none"):
        load_segmenter(weights, device="cpu", precision="int8")
    assert load_segmenter(weights, device="cpu").runtime.precision == "fp32"


BAD: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "other weights": ({"checkpoint": "0" * 64}, "made for version 000000000000"),
    "format": ({"format": "maskwell-int8/9"}, "format"),
    "unknown field": ({"code": "print()"}, "code"),
    "no ranges": ({"quantisers": []}, "quantisers"),
    "a range upside down": (
        {"quantisers": [{"inputs": [["outc.conv", 0]], "levels": 256, "low": 1, "high": 0}]},
        "rounded between 1.0 and 0.0",
    ),
    "a range without end": (
        {"quantisers": [{"inputs": [["outc.conv", 0]], "levels": 256, "low": 0, "high": float("inf")}]},
        "finite",
    ),
    "an operation that is not there": (
        {"quantisers": [{"inputs": [["inc.9", 0]], "levels": 256, "low": 0, "high": 1}]},
        "does not fit the network",
    ),
    "an input that is not there": (
        {"quantisers": [{"inputs": [["outc.conv", 7]], "levels": 256, "low": 0, "high": 1}]},
        "does not fit the network",
    ),
    "different values rounded alike": (
        {"quantisers": [{"inputs": [["outc.conv", 0], ["up4.pool", 0]], "levels": 256, "low": 0, "high": 1}]},
        "does not fit the network",
    ),
    "two values rounded alike": (
        {"quantisers": [{"inputs": [["outc.conv", 0], ["down1.pool", 0]], "levels": 256, "low": 0, "high": 1}]},
        "rounds different values alike",
    ),
    "too few scales": ({"scales": {"down1.maxpool_conv.1.double_conv.0": [1.0]}}, "1 scales for down1"),
    "too many biases": ({"biases": {"outc.conv": [1.0, 2.0]}}, "does not fit the network"),
    "another probe": ({"probe": [0.0, 1.0]}, "2 values of a test picture"),
    "an answer that this processor does not give": ({"probe": [5.0] * 64}, "off by"),
    "half a file": (b'{"format": "maskwell-int8/1", "checkp', "is no int8 twin"),
    "no JSON": (b"\x80\x04K\x01.", "is no int8 twin"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_not_used_and_it_says_why(weights: Path, kind: str) -> None:
    content, said = BAD[kind]
    if isinstance(content, bytes):
        twin_path(weights).write_bytes(content)
    else:
        change(weights, **content)
    with pytest.raises(WeightsError, match=said):
        load_segmenter(weights, device="cpu", precision="int8")
    segmenter = load_segmenter(weights, device="cpu")
    assert segmenter.runtime.precision == "fp32"
    assert segmenter.twin_error is not None
    assert said.split()[0] in segmenter.twin_error


def test_a_huge_file_is_not_read_to_its_end(weights: Path) -> None:
    with twin_path(weights).open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(WeightsError, match="more than 67,108,864 bytes"):
        read_twin(weights, read_checkpoint(weights).version)
