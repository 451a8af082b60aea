"""An image of any size in; probability, mask and cells of that size out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import Architecture, ModelConfig, read_checkpoint, write_checkpoint
from model.errors import ImageError, SegmentationError, WeightsError
from model.postprocess import Maps, Parting
from model.segmenter import Segmenter, load_segmenter
from model.types import Batch, Image, Logits


def written(path: Path, state: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """Weights of a tiny seeded network, or of `state`."""
    torch.manual_seed(0)
    architecture = config.pop("architecture", Architecture(width=8, align_corners=False))
    whole = ModelConfig(architecture=architecture, tile_px=(128,), **config)
    network = architecture.build()
    write_checkpoint(path, state or network.state_dict(), whole, {"data": "drawn"})
    return path


def bright_is_cell(architecture: Architecture) -> dict[str, Tensor]:
    """A network without training that thresholds the picture: the skip connection at the top is all that it uses."""
    state = {name: torch.zeros_like(value) for name, value in architecture.build().state_dict().items()}
    for name in state:
        if name.endswith("running_var"):
            state[name].fill_(1.0)
        if name.endswith(("double_conv.1.weight", "double_conv.4.weight")):
            state[name].fill_(1.0)
    state["inc.double_conv.0.weight"][0, :, 1, 1] = 1.0
    state["inc.double_conv.3.weight"][0, 0, 1, 1] = 1.0
    state["up4.conv.double_conv.0.weight"][0, 0, 1, 1] = 1.0
    state["up4.conv.double_conv.3.weight"][0, 0, 1, 1] = 1.0
    state["outc.conv.weight"][0, 0] = 20.0
    state["outc.conv.bias"][0] = -10.0
    return state


def make_thresholder(path: Path, **config: Any) -> Segmenter:
    """With weights of that network at the path."""
    architecture = Architecture(width=2)
    return load_segmenter(
        written(path, bright_is_cell(architecture), architecture=architecture, **config), device="cpu"
    )


@pytest.fixture(scope="module")
def thresholder(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return make_thresholder(tmp_path_factory.mktemp("weights") / "bright.pth")


def squares(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = np.full((height, width), 10, dtype=np.uint8)
    for y in range(8, height - 8, 24):
        for x in range(8, width - 8, 24):
            image[y : y + 9, x : x + 9] = 200
    return image


@pytest.mark.parametrize(("height", "width"), [(60, 100), (128, 128), (300, 140), (131, 400)])
def test_bright_squares_are_found_whole_and_one_by_one(thresholder: Segmenter, height: int, width: int) -> None:
    image = squares(height, width)
    result = thresholder.segment(image)
    np.testing.assert_array_equal(result.mask(), image == 200)
    labels = result.labels()
    n = len(range(8, height - 8, 24)) * len(range(8, width - 8, 24))
    assert labels.max() == n
    assert result.probability.shape == (height, width)
    assert result.probability.dtype == np.float32
    assert result.probability[image == 200].min() > 0.9
    assert result.probability[image == 10].max() < 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (15, 17), (127, 129)])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_any_size_comes_back_in_that_size(size: tuple[int, int], n_channels: int, tmp_path: Path) -> None:
    segmenter = load_segmenter(
        written(tmp_path / "w.pth", architecture=Architecture(n_channels=n_channels, width=2)), device="cpu"
    )
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    result = segmenter.segment(image)
    assert result.probability.shape == result.mask().shape == result.labels().shape == size
    assert np.isfinite(result.probability).all()


def test_the_threshold_and_least_area_are_the_checkpoints_unless_said_otherwise(tmp_path: Path) -> None:
    segmenter = make_thresholder(tmp_path / "w.pth", threshold=0.3, min_area_px=20)
    image = np.full((64, 64), 10, dtype=np.uint8)
    image[5:9, 5:9] = image[20:30, 20:30] = 200  # 16 and 100 px
    result = segmenter.segment(image)
    assert (result.threshold, result.min_area_px) == (0.3, 20)
    assert result.labels().max() == 1
    assert result.mask().sum() == 100
    other = segmenter.segment(image, threshold=0.7, min_area_px=0)
    assert (other.threshold, other.min_area_px) == (0.7, 0)
    assert other.labels().max() == 2
    assert segmenter.segment(image, threshold=0.0).mask().all()  # 0 is a threshold, not an absent one


def test_the_high_threshold_is_the_checkpoint_s_moved_with_the_threshold_unless_said_otherwise(tmp_path: Path) -> None:
    segmenter = make_thresholder(tmp_path / "w.pth", threshold=0.3, high_threshold=0.9)
    image = np.full((64, 64), 10, dtype=np.uint8)
    image[20:30, 20:30] = 200
    maps = segmenter.segment(image).maps
    assert segmenter.segment(image).high_threshold == segmenter.read(maps, threshold=0.3).high_threshold == 0.9
    assert segmenter.segment(image, high_threshold=0).high_threshold == 0
    faint = replace(maps, cell=maps.cell // 2)  # nowhere above 0.5
    assert segmenter.read(faint, high_threshold=0.45).labels().max() == 1
    assert segmenter.read(faint).labels().max() == segmenter.read(faint).mask().max() == 0
    lower = segmenter.segment(image, threshold=0.1)
    assert lower.high_threshold / (1 - lower.high_threshold) == pytest.approx(9 * (1 / 9) / (3 / 7))
    assert segmenter.read(faint, threshold=0).mask().all()
    for higher in (0.31, 0.95, 1):
        assert segmenter.read(maps, threshold=higher).high_threshold == 0.9


@pytest.mark.parametrize("min_area_px", [0, 50])
def test_the_mask_is_where_the_labels_are(thresholder: Segmenter, min_area_px: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 200)).astype(np.uint8)
    result = thresholder.segment(image, min_area_px=min_area_px)
    np.testing.assert_array_equal(result.mask(), result.labels() > 0)


def test_tiles_run_by_hand_in_company_give_the_same_bytes(tmp_path: Path) -> None:
    segmenter = load_segmenter(written(tmp_path / "w.pth"), device="cpu", batch_tiles=3)
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 65535, size).astype(np.uint16) for size in ((130, 200), (50, 60), (300, 128))]
    alone = [segmenter.segment(image).probability for image in images]
    assert all(probability.std() > 0 for probability in alone)
    stitchers = [segmenter.start(image) for image in images]
    queue = [(stitcher, index) for stitcher in stitchers for index in range(len(stitcher.grid))]
    while queue:
        batch, queue = queue[:3], queue[3:]
        logits = segmenter.runtime.run(np.stack([stitcher.tile(index) for stitcher, index in batch]))
        for (stitcher, index), part in zip(batch, logits, strict=True):
            stitcher.add(index, part)
    for stitcher, expected in zip(stitchers, alone, strict=True):
        np.testing.assert_array_equal(segmenter.finish(stitcher).probability, expected)


def test_tiles_one_by_one_or_four_at_a_time_give_almost_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "w.pth")
    image = np.random.default_rng(0).integers(0, 255, (200, 300)).astype(np.uint8)
    one, four = (load_segmenter(path, device="cpu", batch_tiles=n).segment(image).probability for n in (1, 4))
    assert one.std() > 5e-4
    np.testing.assert_allclose(one, four, atol=4e-5)


class Rows:
    """An image that is read by rows, and remembers which."""

    def __init__(self, image: Image) -> None:
        self.height, self.width = image.shape[:2]
        self.longest = 0
        self._image = image

    def read_rows(self, start: int, stop: int) -> Image:
        self.longest = max(self.longest, stop - start)
        return self._image[start:stop]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_large_image_is_read_and_kept_by_rows_to_the_same_bytes(
    dtype: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = ("cell", "border", "distance")
    architecture = Architecture(width=4, n_classes=3, align_corners=False)
    segmenter = load_segmenter(written(tmp_path / "w.pth", architecture=architecture, outputs=outputs), device="cpu")
    image = np.random.default_rng(0).integers(0, 250, (500, 170)).astype(dtype)
    at_once = segmenter.segment(image).maps
    monkeypatch.setattr("model.segmenter.MAPS_AT_ONCE_PX", 0)
    monkeypatch.setattr("model.preprocess.BAND_PX", 5000)
    rows = Rows(image)
    stitcher = segmenter.start(rows)
    for index in range(len(stitcher.grid)):
        stitcher.add(index, segmenter.runtime.run(np.ascontiguousarray(stitcher.tile(index)[None]))[0])
    by_rows = segmenter.finish(stitcher).maps
    assert rows.longest < 200
    for name in outputs:
        np.testing.assert_array_equal(getattr(by_rows, name), getattr(at_once, name))


def test_an_image_of_one_tile_is_kept_by_rows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load_segmenter(written(tmp_path / "w.pth", architecture=Architecture(width=4)), device="cpu")
    image = np.random.default_rng(0).integers(0, 250, (90, 70), dtype=np.uint8)
    at_once = segmenter.segment(image).maps
    monkeypatch.setattr("model.segmenter.MAPS_AT_ONCE_PX", 0)
    np.testing.assert_array_equal(segmenter.segment(image).maps.cell, at_once.cell)


def test_an_image_that_cannot_be_taken_is_refused(thresholder: Segmenter) -> None:
    with pytest.raises(ImageError, match="an image of shape"):
        thresholder.segment(np.zeros((3, 3, 3, 3)))


def test_a_segmenter_knows_its_file(tmp_path: Path) -> None:
    segmenter = load_segmenter(written(tmp_path / "w.pth"), device="cpu")
    assert segmenter.card == {"data": "drawn"}
    assert len(segmenter.version) == 64


def test_nan_is_an_error_and_no_image_without_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load_segmenter(written(tmp_path / "w.pth"), device="cpu")
    honest = segmenter.runtime.run

    def run(batch: Batch, *, alone: bool = False) -> Logits:
        logits = honest(batch, alone=alone)
        logits[0, 0, 3, 3] = np.nan
        return logits

    monkeypatch.setattr(segmenter.runtime, "run", run)
    with pytest.raises(SegmentationError, match="NaN or infinity"):
        segmenter.segment(np.zeros((40, 40), np.uint8))


def test_a_healthy_network_warms_up(tmp_path: Path) -> None:
    for normalisation in ("percentile", "raw", "unit"):
        load_segmenter(written(tmp_path / "w.pth", normalisation=normalisation), device="cpu").warm_up()


def test_where_memory_is_short_passes_become_smaller_at_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = load_segmenter(written(tmp_path / "w.pth"), device="cpu", batch_tiles=8)
    honest, largest = segmenter.runtime.run, 2

    def run(batch: Batch, *, alone: bool = False) -> Logits:
        if segmenter.runtime.batch_tiles > largest:
            raise MemoryError("no room")
        return honest(batch, alone=alone)

    monkeypatch.setattr(segmenter.runtime, "run", run)
    segmenter.warm_up()
    assert segmenter.runtime.batch_tiles == 2
    largest = 0
    with pytest.raises(MemoryError):
        segmenter.warm_up()
    assert segmenter.runtime.batch_tiles == 1


def test_a_network_that_says_one_thing_of_every_pixel_does_not_warm_up(tmp_path: Path) -> None:
    architecture = Architecture(width=2, n_classes=2)
    state = architecture.build().state_dict()
    state["outc.conv.weight"].zero_()
    state["outc.conv.bias"].copy_(torch.tensor([1.0, -1.0]))  # the two maps differ, but no pixel does from another
    path = written(tmp_path / "w.pth", state, architecture=architecture, outputs=("cell", "border"))
    with pytest.raises(WeightsError, match="one and the same value"):
        load_segmenter(path, device="cpu").warm_up()


def test_a_network_that_overflows_does_not_warm_up(tmp_path: Path) -> None:
    architecture = Architecture(width=2)
    state = architecture.build().state_dict()
    state["inc.double_conv.0.weight"].fill_(3e38)  # finite, so the file itself is in order
    with pytest.raises(WeightsError, match=r"NaN or infinity|one and the same value"):  # ReLU hides NaN on some engines
        load_segmenter(written(tmp_path / "w.pth", state, architecture=architecture), device="cpu").warm_up()


def test_touching_cells_are_parted_as_the_checkpoint_says(tmp_path: Path) -> None:
    """Two halves of a cell with a border of 0.45 between them, beside cells twice as large as they are."""
    path = written(tmp_path / "w.pth", core_threshold=0.6, core_distance=0.1, join_probability=0.4)
    config = read_checkpoint(path).config
    assert config.parting == Parting(0.6, 0.1, 0.4)
    cell, border = np.zeros((40, 200), np.float32), np.zeros((40, 200), np.float32)
    for left in range(2, 180, 24):
        cell[2:22, left : left + 20] = 0.95
    cell[26:36, 2:22] = 0.95
    border[26:36, 11:13] = 0.45
    maps = Maps.from_probabilities(cell, border)
    joined = load_segmenter(path, device="cpu").read(maps).labels()
    assert joined[30, 4] == joined[30, 20] > 0
    apart = written(tmp_path / "a.pth", core_threshold=0.6, core_distance=0.1)
    parted = load_segmenter(apart, device="cpu").read(maps).labels()
    assert parted[30, 4] != parted[30, 20]
