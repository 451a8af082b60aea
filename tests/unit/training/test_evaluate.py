"""Scores of known answers, through the real segmenter."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import Architecture, Checkpoint, ModelConfig
from model.images import encode_png
from model.segmenter import Segmenter
from model.types import Batch, Logits
from tests.files import write_seeded_weights
from training.__main__ import main
from training.data import find_pairs
from training.dataset import PairCache
from training.evaluate import evaluate
from training.report import write_report


class BrightnessRuntime:
    """Answers with the image itself: logit of the grey level over 255. A known network, run for real."""

    name, device, precision, batch_tiles, streams = "brightness", "cpu", "fp32", 1, 1

    def run(self, batch: Batch, *, alone: bool = False) -> Logits:
        probability = torch.from_numpy(batch).clamp(0.001, 0.999)
        return torch.logit(probability).numpy()


def segmenter(threshold: float = 0.5) -> Segmenter:
    config = ModelConfig(architecture=Architecture(width=4), normalisation="unit", threshold=threshold)
    return Segmenter(Checkpoint({}, config, {}, ""), BrightnessRuntime())


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a: one cell found exactly at 0.5. b: half of a cell is dim, 0.4; one thing that is no cell is bright."""
    image, labels = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint16)
    image[5:15, 5:25], labels[5:15, 5:25] = 200, 1
    write(tmp_path / "image" / "a.png", image)
    write(tmp_path / "instances" / "a.png", labels)
    image[5:15, 15:25] = 102
    image[30:35, 30:50] = 255
    write(tmp_path / "image" / "b.png", image)
    write(tmp_path / "instances" / "b.png", labels)
    return tmp_path


def test_dice_iou_and_ap_are_those_computed_by_hand(folder: Path) -> None:
    scores = evaluate(segmenter(), find_pairs(folder), quiet=True)
    # b: truth 200 px, found 100 of them and 100 others
    assert [image.dice for image in scores.images] == pytest.approx([1.0, 2 * 100 / (200 + 200)])
    assert [image.iou for image in scores.images] == pytest.approx([1.0, 100 / 300])
    assert scores.dice == pytest.approx(0.75)
    # a: one match. b: an IoU of exactly 0.5 matches at 0.5, and one false positive
    assert scores.images[1].counts["0.5"] == (1, 1, 0)
    assert scores.cells is not None
    assert scores.cells.ap["0.5"] == pytest.approx(2 / 3)
    assert scores.cells.ap["0.9"] == pytest.approx(1 / (1 + 2 + 1))
    assert scores.cells.ap["mean"] == pytest.approx((2 / 3 + 4 * 1 / 4) / 5)
    # each image alone: a is perfect, b has one of two at 0.5 and none of three above
    assert scores.cells.ap_per_image["0.5"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores.cells.ap_per_image["0.9"] == pytest.approx((1 + 0) / 2)
    # a: 1 - 0. b: of the cell's 200 px 100 are the cell found and 100 background, so of 19,900 pairs 9,900 are together
    error = 1 - 2 * 9900 / (19900 + 9900)
    assert [image.adapted_rand_error for image in scores.images] == pytest.approx([0, error])
    assert scores.cells.adapted_rand_error == pytest.approx(error / 2)
    # one cell carries no information: what parts it agrees in nothing, and itself in all
    assert scores.cells.v_info == pytest.approx((1 + 0) / 2)
    assert scores.looks == {
        "grey, dark": {
            "n_images": 2, "dice": scores.dice, "iou": scores.iou, "ap": scores.cells.ap,
        }
    }  # fmt: skip


def test_tuning_finds_the_threshold_with_the_best_dice(folder: Path) -> None:
    scores = evaluate(segmenter(0.75), find_pairs(folder), tune=True, quiet=True)
    assert scores.threshold == pytest.approx(0.4)
    assert scores.dice == pytest.approx((1.0 + 2 * 200 / (200 + 300)) / 2)
    assert evaluate(segmenter(0.75), find_pairs(folder), quiet=True).threshold == 0.75


def test_a_summary_is_plain_and_has_no_single_images(folder: Path) -> None:
    summary = evaluate(segmenter(), find_pairs(folder), quiet=True).summary()
    assert set(summary) == {"threshold", "dice", "iou", "cells", "looks", "n_images"}
    assert json.loads(json.dumps(summary)) == summary
    assert summary["n_images"] == 2


def test_binary_truth_has_no_ap(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[3:9, 3:9] = 255
    write(tmp_path / "image" / "a.png", mask)
    write(tmp_path / "label" / "a.png", mask)
    scores = evaluate(segmenter(), find_pairs(tmp_path), quiet=True)
    assert scores.cells is None
    assert scores.dice == 1.0


def test_regions_of_a_binary_truth(tmp_path: Path) -> None:
    """Two cells parted by a membrane of 2 px; found with a gap in it that closes above 0.6."""
    truth = np.full((20, 42), 255, np.uint8)
    truth[:, 20:22] = 0
    image = truth.copy()
    image[8:12, 20:22] = 150
    write(tmp_path / "image" / "a.png", image)
    write(tmp_path / "label" / "a.png", truth)
    scores = evaluate(segmenter(0.5), find_pairs(tmp_path), regions=True, quiet=True)
    assert scores.regions is not None
    # one region where two equal ones are: 2 * 1/4 against the mean of 2 * 1/4 and 1
    assert scores.regions.v_rand == pytest.approx(0.5 / 0.75)
    assert scores.regions.best_v_rand == pytest.approx(1)
    assert [scores.regions.v_info, scores.regions.best_v_info] == pytest.approx([0, 1])
    assert scores.regions.pixel_error == pytest.approx(1 - 2 * 800 / (800 + 808))
    assert scores.regions.best_pixel_error == pytest.approx(0)
    assert scores.regions.adapted_rand_error == pytest.approx(1 - 2 * 2 * 400 * 399 / (800 * 799 + 2 * 400 * 399))
    assert scores.regions.best_adapted_rand_error == pytest.approx(0)
    # 150 / 255 is 0.588
    assert (scores.regions.best_v_rand_threshold, scores.regions.best_pixel_error_threshold) == (0.6, 0.6)


@pytest.mark.parametrize(("grey", "best"), [(229, 0.9), (30, 0.15)])
def test_the_best_threshold_of_regions_is_looked_for_near_0_and_1_too(tmp_path: Path, grey: int, best: float) -> None:
    """Two cells whose gap closes, or whose dim halves appear, only there."""
    truth = np.full((20, 42), 255, np.uint8)
    truth[:, 20:22] = 0
    image = np.where(truth > 0, min(grey + 20, 255), grey).astype(np.uint8)
    write(tmp_path / "image" / "a.png", image)
    write(tmp_path / "label" / "a.png", truth)
    scores = evaluate(segmenter(0.5), find_pairs(tmp_path), regions=True, quiet=True)
    assert scores.regions is not None
    assert (scores.regions.best_v_rand_threshold, scores.regions.best_pixel_error_threshold) == (best, best)
    assert [scores.regions.best_v_rand, scores.regions.best_pixel_error] == pytest.approx([1, 0])


def test_what_is_found_in_a_slice_without_a_cell_counts_in_the_pixel_error(tmp_path: Path) -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[:10] = 255
    write(tmp_path / "image" / "a.png", truth)
    write(tmp_path / "label" / "a.png", truth)
    wrong = np.zeros((20, 20), np.uint8)
    wrong[:, :2] = 255
    write(tmp_path / "image" / "b.png", wrong)
    write(tmp_path / "label" / "b.png", truth * 0)
    scores = evaluate(segmenter(0.5), find_pairs(tmp_path), regions=True, quiet=True)
    assert scores.regions is not None
    # 200 px that are right, and 40 that are not
    assert scores.regions.pixel_error == pytest.approx(1 - 2 * 200 / (200 + 240))
    assert (scores.regions.v_rand, scores.images[1].v_rand) == (1, None)
    assert scores.worst == [1, 0]


def test_the_report_shows_the_worst_by_v_rand_where_the_truth_parts_a_tissue(tmp_path: Path) -> None:
    """a: a gap of 2 px joins its two cells. b: both cells found, a quarter of each too small."""
    truth = np.full((20, 42), 255, np.uint8)
    truth[:, 20:22] = 0
    joined, small = truth.copy(), truth.copy()
    joined[8:10, 20:22] = 255
    small[:5] = 0
    for name, image in (("a", joined), ("b", small)):
        write(tmp_path / "image" / f"{name}.png", image)
        write(tmp_path / "label" / f"{name}.png", truth)
    cache = PairCache(find_pairs(tmp_path), quiet=True)
    scores = evaluate(segmenter(), cache, regions=True, quiet=True)
    assert scores.images[0].dice > scores.images[1].dice
    write_report(tmp_path / "r.html", title="t", segmenter=segmenter(), cache=cache, scores=scores)
    page = (tmp_path / "r.html").read_text()
    assert "<h2>The 2 images with the lowest V_rand</h2>" in page
    assert page.index("a: V_rand 0.667, Dice 0.998") < page.index("b: V_rand 1.000, Dice 0.857")
    for row in ("best v rand threshold", "best pixel error threshold", "adapted rand error"):
        assert f"<td>{row}</td>" in page


def test_specks_below_the_checkpoint_s_least_area_count_neither_in_the_mask_nor_as_cells(folder: Path) -> None:
    config = ModelConfig(architecture=Architecture(width=4), normalisation="unit", min_area_px=150)
    strict = Segmenter(Checkpoint({}, config, {}, ""), BrightnessRuntime())
    scores = evaluate(strict, find_pairs(folder), quiet=True)
    # b: both things found have 100 px
    assert [image.dice for image in scores.images] == pytest.approx([1.0, 0.0])
    assert scores.images[1].counts["0.5"] == (0, 0, 1)


def test_the_report_holds_tables_and_pictures_and_escapes_names(folder: Path, tmp_path: Path) -> None:
    for place in ("image", "instances"):
        (folder / place / "b.png").rename(folder / place / "b<i>.png")
    cache = PairCache(find_pairs(folder), quiet=True)
    scores = evaluate(segmenter(), cache, quiet=True)
    write_report(tmp_path / "r.html", title="a < b", segmenter=segmenter(), cache=cache, scores=scores)
    page = (tmp_path / "r.html").read_text()
    assert "<h1>a &lt; b</h1>" in page
    assert "b&lt;i&gt;: Dice 0.500, cells 1 true, 2 found" in page
    assert "<i>" not in page
    # the curve, and three pictures of each image
    assert page.count("src='data:image/png;base64,") == 1 + 3 * 2
    assert "http" not in page


def test_the_command_prints_scores_and_refuses_a_threshold_that_is_none(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(architecture=Architecture(width=4, align_corners=False), tile_px=(128,))
    write_seeded_weights(tmp_path / "w.pth", config)
    command = ["evaluate", str(tmp_path / "w.pth"), str(cells), "--quiet", "--device", "cpu"]
    assert main([*command, "--report", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr().out
    assert "AJI" in said
    assert "grey, dark: 10 images" in said
    assert (tmp_path / "r.html").stat().st_size > 10_000
    assert main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 10
    assert main([*command, "--threshold", "2"]) == 2
    assert "threshold 2.0; allowed is 0 to 1" in capsys.readouterr().err
