"""`python -m model predict`: results on disk, one bad file among good ones, and what ends it at once."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage

from model.__main__ import main
from model.checkpoint import Architecture, ModelConfig
from model.errors import SegmentationError
from model.images import encode_png, read_image
from model.segmenter import Segmentation, Segmenter, load_segmenter
from tests.files import write_seeded_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig(architecture=Architecture(width=8), tile_px=(128,), threshold=0.45)
    path: Path = tmp_path_factory.mktemp("weights") / "weights.pth"
    write_seeded_weights(path, config)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of three formats, and a file that is none."""
    path = tmp_path / "images"
    path.mkdir()
    generator = np.random.default_rng(0)
    (path / "a.png").write_bytes(encode_png(generator.integers(0, 255, (40, 50)).astype(np.uint8)))
    tifffile.imwrite(path / "b.v2.tif", generator.integers(0, 65535, (30, 60)).astype(np.uint16))
    PillowImage.fromarray(generator.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(path / "c.JPG", "JPEG")
    (path / "notes.txt").write_text("no image")
    return path


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def predict(*arguments: object, weights: Path) -> int:
    return main(["predict", *map(str, arguments), "--weights", str(weights), "--device", "cpu"])


def test_a_folder_gives_a_mask_for_each_of_its_images(folder: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert predict(folder, "--out", out, weights=weights) == 0
    assert names(out) == ["a_mask.png", "b.v2_mask.png", "c_mask.png"]
    segmenter = load_segmenter(weights, device="cpu")
    for name, result in (("a.png", "a_mask.png"), ("b.v2.tif", "b.v2_mask.png"), ("c.JPG", "c_mask.png")):
        expected = segmenter.segment(read_image(folder / name)).mask()
        np.testing.assert_array_equal(read_image(out / result), expected * np.uint8(255))
    with PillowImage.open(out / "a_mask.png") as picture:
        assert picture.info["X-Model-Version"] == segmenter.version
        assert picture.info["X-Threshold"] == "0.45"


@pytest.mark.parametrize(
    ("error", "said"),
    [(MemoryError(), "no memory for it"), (SegmentationError("the network answered with NaN"), "with NaN")],
)
def test_an_image_that_fails_alone_is_named_and_the_others_are_segmented(
    error: Exception, said: str, folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    honest, calls = Segmenter.segment, []

    def segment(self: Segmenter, image: Any, **options: Any) -> Segmentation:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return honest(self, image, **options)

    monkeypatch.setattr(Segmenter, "segment", segment)
    assert predict(folder, "--out", tmp_path / "out", weights=weights) == 1
    assert names(tmp_path / "out") == ["a_mask.png", "c_mask.png"]
    told = capsys.readouterr().err
    assert f"error: {folder / 'b.v2.tif'}: " in told
    assert said in told
    assert "2 of 3 images" in told


def test_results_lie_beside_the_images_and_a_second_run_does_not_take_them_for_images(
    folder: Path, weights: Path
) -> None:
    for _ in range(2):
        assert predict(folder, weights=weights) == 0
        assert names(folder) == ["a.png", "a_mask.png", "b.v2.tif", "b.v2_mask.png", "c.JPG", "c_mask.png", "notes.txt"]


@pytest.mark.parametrize("output", ["mask", "probability", "labels", "overlay"])
def test_each_output_has_the_size_of_its_image(output: str, folder: Path, weights: Path, tmp_path: Path) -> None:
    assert predict(folder / "a.png", "--out", tmp_path, "--output", output, weights=weights) == 0
    pixels = read_image(tmp_path / f"a_{output}.png")
    assert output in ("mask", "labels") or np.ptp(pixels) > 0
    assert pixels.shape[:2] == (40, 50)
    assert pixels.dtype == (np.uint16 if output in ("probability", "labels") else np.uint8)
    assert pixels.ndim == (3 if output == "overlay" else 2)


@pytest.mark.parametrize(
    ("output", "suffix"), [("geojson", ".geojson"), ("rois", ".zip"), ("table", ".csv"), ("all", ".zip")]
)
def test_outputs_that_are_no_pictures_have_their_own_suffix(
    output: str, suffix: str, folder: Path, weights: Path, tmp_path: Path
) -> None:
    assert predict(folder / "a.png", "--out", tmp_path, "--output", output, weights=weights) == 0
    assert (tmp_path / f"a_{output}{suffix}").stat().st_size > 20


def test_thresholds_and_least_area_are_used(folder: Path, weights: Path, tmp_path: Path) -> None:
    assert predict(folder / "a.png", "--out", tmp_path, "--threshold", "0", weights=weights) == 0
    assert (read_image(tmp_path / "a_mask.png") == 255).all()
    assert predict(folder / "a.png", "--out", tmp_path, "--min-area-px", "100000", weights=weights) == 0
    assert not read_image(tmp_path / "a_mask.png").any()
    assert predict(folder / "a.png", "--out", tmp_path, "--high-threshold", "1", weights=weights) == 0
    assert not read_image(tmp_path / "a_mask.png").any()


def test_a_page_of_a_stack_can_be_said(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = np.random.default_rng(0).integers(0, 65535, (5, 20, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    assert predict(tmp_path / "stack.tif", weights=weights) == 1
    assert "5 planes; say which one is meant" in capsys.readouterr().err
    assert predict(tmp_path / "stack.tif", "--page", "3", "--output", "probability", weights=weights) == 0
    expected = load_segmenter(weights, device="cpu").segment(stack[3]).probability
    np.testing.assert_array_equal(read_image(tmp_path / "stack_probability.png"), np.rint(expected * np.float32(65535)))


def test_a_stack_of_times_comes_back_as_one_and_a_channel_as_png(weights: Path, tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 65535, (2, 20, 30)).astype(np.uint16)
    options: dict[str, Any] = {"imagej": True, "resolution": (2, 2), "metadata": {"axes": "TYX", "unit": "um"}}
    tifffile.imwrite(tmp_path / "t.tif", stack, **options)
    segmenter = load_segmenter(weights, device="cpu")
    assert predict(tmp_path / "t.tif", "--output", "labels", weights=weights) == 0
    with tifffile.TiffFile(tmp_path / "t_labels.tif") as tiff:
        assert tiff.series[0].axes == "TYX"
        np.testing.assert_array_equal(tiff.asarray(), [segmenter.segment(plane).labels() for plane in stack])
        assert "X-Pixel-Size-Um=0.5 x 0.5" in str((tiff.imagej_metadata or {})["Info"])
    assert predict(tmp_path / "t.tif", "--axes", "CYX", "--channel", "1", weights=weights) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "t_mask.png") > 0, segmenter.segment(stack[1]).mask())
    assert predict(tmp_path / "t.tif", "--page", "0", "--format", "tiff", weights=weights) == 0
    assert tifffile.imread(tmp_path / "t_mask.tif").shape == (20, 30)
    with pytest.raises(SystemExit):
        predict(tmp_path / "t.tif", "--output", "table", "--format", "tiff", weights=weights)


def test_a_result_never_takes_the_place_of_an_input_whatever_its_suffix(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("t.tif", "t_labels.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((20, 30), np.uint8))
    before = (tmp_path / "t_labels.tif").read_bytes()
    found = predict(
        tmp_path / "t.tif", tmp_path / "t_labels.tif", "--output", "labels", "--format", "tiff", weights=weights
    )
    assert found == 2
    assert "is an input and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "t_labels.tif").read_bytes() == before


def test_one_bad_file_fails_alone(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"nonsense")
    out = tmp_path / "out"
    assert predict(folder, "--out", out, weights=weights) == 1
    assert names(out) == ["a_mask.png", "b.v2_mask.png", "c_mask.png"]
    error = capsys.readouterr().err
    assert "bad.png: not an image" in error
    assert "3 of 4 images segmented" in error


def test_a_result_that_cannot_be_written_fails_alone(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "a_mask.png").mkdir(parents=True)  # in the way
    assert predict(folder, "--out", out, weights=weights) == 1
    assert "a_mask.png" in capsys.readouterr().err
    assert (out / "c_mask.png").is_file()


def test_images_that_would_be_written_to_one_file_are_refused_before_any_is(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.tif").write_bytes((folder / "b.v2.tif").read_bytes())
    out = tmp_path / "out"
    assert predict(folder, "--out", out, weights=weights) == 2
    assert "several inputs would be written to" in capsys.readouterr().err
    assert not out.exists()


def test_an_input_is_never_overwritten(folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = (folder / "a.png").read_bytes()
    (folder / "a_mask.png").write_bytes(truth)
    assert predict(folder / "a.png", folder / "a_mask.png", weights=weights) == 2
    assert "a_mask.png is an input and would be overwritten" in capsys.readouterr().err
    assert (folder / "a_mask.png").read_bytes() == truth


def test_missing_weights_images_and_devices_end_it_at_once(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(folder, weights=tmp_path / "none.pth") == 2
    assert "none.pth: No such file" in capsys.readouterr().err
    assert predict(tmp_path / "none.png", weights=weights) == 2
    assert "none.png does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / "empty", weights=weights) == 2
    assert "holds no images" in capsys.readouterr().err
    assert main(["predict", str(folder), "--weights", str(weights), "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threshold", "1.5"),
        ("--threshold", "nan"),
        ("--high-threshold", "-0.1"),
        ("--min-area-px", "-1"),
        ("--output", "gif"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_option(
    option: str, value: str, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict(folder, option, value, weights=weights)
    assert option in capsys.readouterr().err


def test_it_runs_as_a_module(folder: Path, weights: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "model", "predict", str(folder / "a.png"), "--out", str(tmp_path / "out"),
         "--weights", str(weights), "--device", "cpu"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    mask = PillowImage.open(io.BytesIO((tmp_path / "out" / "a_mask.png").read_bytes()))
    assert (mask.mode, mask.size) == ("L", (50, 40))
