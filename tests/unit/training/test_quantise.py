"""The twin that calibration makes: it answers like the network, passes its checks or is not written."""

import json
from pathlib import Path

import numpy as np
import pytest

import training.quantise
from model.checkpoint import Architecture, ModelConfig, read_checkpoint, write_checkpoint
from model.errors import WeightsError
from model.segmenter import load_segmenter
from model.twin import TwinReport, read_twin, twin_path
from tests.e2e.kit import draw_cells, write_weights
from tests.files import spread
from training.__main__ import main
from training.data import find_pairs
from training.dataset import image_digest
from training.errors import DataError, RefusedError, RunError
from training.lock import publishing
from training.publish import publish
from training.quantise import _is_good, quantise, split_for_twin
from training.seen import unseen_pairs


def write_sure(path: Path, **architecture: object) -> Path:
    """Calls everything a cell, so that rounding costs nothing, though its logits differ from place to place."""
    config = ModelConfig(architecture=Architecture(width=8, **architecture), tile_px=(128,))  # type: ignore[arg-type]
    write_weights(path, architecture=config.architecture, tile_px=(128,))
    checkpoint = spread(read_checkpoint(path))
    checkpoint.state["outc.conv.bias"].fill_(20)
    write_checkpoint(path, checkpoint.state, config, {})
    return path


@pytest.mark.parametrize("bilinear", [True, False])
def test_a_twin_answers_like_its_network(cells: Path, tmp_path: Path, bilinear: bool) -> None:
    weights = write_sure(tmp_path / "sure.pth", bilinear=bilinear, align_corners=False)
    report = quantise(weights, find_pairs(cells), quiet=True)
    assert (report.n_images, report.n_calibration, report.kept_float) == (5, 5, ())
    assert report.agreement == 1
    assert report.dice_int8 == report.dice_fp32
    assert "nncf" in report.tool
    exact, rounded = load_segmenter(weights, device="cpu", precision="fp32"), load_segmenter(weights, device="cpu")
    assert rounded.runtime.precision == "int8"
    tile = exact.start(draw_cells(128, 128)).tile(0)[None]
    one, two = exact.runtime.run(tile), rounded.runtime.run(tile)
    assert 0 < np.abs(one - two).mean() < 0.2 * one.std()  # a constant would be four times as far off


def test_one_twin_does_for_every_size_of_tile(cells: Path, tmp_path: Path) -> None:
    weights = write_sure(tmp_path / "sure.pth")
    quantise(weights, find_pairs(cells), quiet=True)
    segmenter = load_segmenter(weights, device="cpu", precision="int8")
    for side in (128, 256):
        tile = np.random.default_rng(0).random((1, 1, side, side), dtype=np.float32)
        exact = load_segmenter(weights, device="cpu", precision="fp32").runtime.run(tile)
        assert 0 < np.abs(segmenter.runtime.run(tile) - exact).mean() < 0.2 * exact.std()


def test_layers_stay_in_float_where_rounding_them_costs_too_much(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_sure(tmp_path / "sure.pth")
    real = training.quantise._Reference.compare
    tried = []

    def refuse_the_quickest(self, twin, *, quiet):  # type: ignore[no-untyped-def]  # the real one, with a worse word
        report = real(self, twin, quiet=quiet)
        tried.append(report.kept_float)
        return report.model_copy(update={"agreement": 0.9949}) if len(tried) <= 2 else report

    monkeypatch.setattr(training.quantise._Reference, "compare", refuse_the_quickest)
    report = quantise(weights, find_pairs(cells), quiet=True)
    assert tried == [(), ("inc.double_conv.0",), ("inc.double_conv.0", "outc.conv")]
    assert report.kept_float == ("inc.double_conv.0", "outc.conv")
    content = json.loads(twin_path(weights).read_text())
    assert "outc.conv" not in content["scales"]
    assert load_segmenter(weights, device="cpu").runtime.precision == "int8"


def test_a_twin_that_costs_too_much_is_refused_and_an_old_one_goes(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_sure(tmp_path / "sure.pth")
    twin_path(weights).write_text("of other weights")
    monkeypatch.setattr(training.quantise, "MIN_AGREEMENT", 1.1)
    monkeypatch.setattr(training.quantise, "SENSITIVE", ((),))
    with pytest.raises(RefusedError, match=r"agrees with it in 1\.0000 of pixels; allowed are"):
        quantise(weights, find_pairs(cells), quiet=True)
    assert not twin_path(weights).exists()
    assert main(["quantise", str(weights), str(cells), "--quiet"]) == 1
    assert "refused: no int8 twin is good enough" in capsys.readouterr().err
    to = tmp_path / "served" / "best_model.pth"
    report = publish(weights, find_pairs(cells), to=to, quiet=True)
    assert report.twin is None
    assert "no int8 twin, so a CPU runs it in float32" in str(report)
    assert to.exists()
    assert not twin_path(to).exists()


def test_publishing_brings_the_twin_along_and_the_command_makes_it_anew(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_sure(tmp_path / "sure.pth")
    to = tmp_path / "served" / "best_model.pth"
    report = publish(weights, find_pairs(cells), to=to, quiet=True)
    assert report.twin is not None
    assert "int8 twin: Dice" in str(report)
    first = twin_path(to).read_bytes()
    found = read_twin(to, report.version)
    assert found is not None
    assert found.twin.report == report.twin
    twin_path(to).unlink()
    assert main(["quantise", str(to), str(cells), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith(str(twin_path(to)))
    assert twin_path(to).read_bytes() == first  # the same images and seed: the same twin
    assert publish(weights, find_pairs(cells), to=to, int8=False, quiet=True).twin is None
    assert not twin_path(to).exists()


def test_ranges_come_from_training_images_and_the_check_from_others(cells: Path) -> None:
    pairs = find_pairs(cells)
    seen = [image_digest(pair.read()[0]) for pair in pairs[:6]]
    split = split_for_twin(pairs, unseen_pairs(pairs, {"seen": seen}))
    assert (split.calibration, split.check) == (pairs[:6], pairs[6:])
    few = split_for_twin(pairs, unseen_pairs(pairs, {"seen": seen[:2]}))
    assert (few.calibration, few.check) == (pairs[2::2], pairs[3::2])
    one = split_for_twin(pairs[:1], unseen_pairs(pairs[:1], {}))
    assert one.check == one.calibration == pairs[:1]
    with pytest.raises(DataError, match="trained on all 6"):
        split_for_twin(pairs[:6], unseen_pairs(pairs[:6], {"seen": seen}))


def test_weights_that_cannot_be_read_get_no_twin(cells: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"junk")
    with pytest.raises(WeightsError):
        quantise(bad, find_pairs(cells), quiet=True)
    assert not twin_path(bad).exists()


def test_a_twin_that_parts_cells_worse_is_not_good_enough() -> None:
    report = TwinReport(
        n_calibration=1, n_images=1, dice_fp32=0.9, dice_int8=0.9, agreement=1.0, kept_float=(), tool="by hand",
        ap_fp32=0.55, ap_int8=0.549,
    )  # fmt: skip
    assert _is_good(report)
    assert not _is_good(report.model_copy(update={"ap_int8": 0.545}))
    assert _is_good(report.model_copy(update={"ap_fp32": None, "ap_int8": None}))
    assert not _is_good(report.model_copy(update={"dice_int8": 0.89}))
    assert not _is_good(report.model_copy(update={"agreement": 0.99}))


def test_a_twin_of_these_weights_outlives_a_check_on_images_that_it_fails(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_sure(tmp_path / "a.pth")
    quantise(weights, find_pairs(cells), quiet=True)
    kept = twin_path(weights).read_bytes()
    monkeypatch.setattr(training.quantise, "MIN_AGREEMENT", 1.1)  # what no twin reaches
    with pytest.raises(RefusedError):
        quantise(weights, find_pairs(cells), quiet=True)
    assert twin_path(weights).read_bytes() == kept


def test_one_process_at_a_time_changes_a_file_of_weights(cells: Path, tmp_path: Path) -> None:
    weights = write_sure(tmp_path / "a.pth")
    with publishing(weights):
        with pytest.raises(RunError, match=r"another process publishes to .*a\.pth"):
            quantise(weights, find_pairs(cells), quiet=True)
        with pytest.raises(RunError, match="another process"):
            publish(weights, find_pairs(cells), to=weights, int8=False, quiet=True)
