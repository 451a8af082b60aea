"""Tiles cover every pixel, and blend back to what a whole pass would have given."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tiling import OVERLAP_PX, Stitcher, TileGrid, plan_tiles
from model.types import Logits
from model.unet import STRIDE, UNet

SIDES = st.sampled_from([(128,), (192,), (256,), (128, 256), (256, 512)])


def run_identity(planes: Logits, grid: TileGrid) -> Logits:
    """A network whose logits are its input."""
    stitcher = Stitcher(planes, grid, planes.shape[0])
    for index in range(len(grid)):
        stitcher.add(index, stitcher.tile(index))
    return stitcher.result()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1500), st.integers(1, 1500), SIDES)
def test_the_tiles_cover_the_image_in_the_phase_of_the_pooling_grid(
    height: int, width: int, sides: tuple[int, ...]
) -> None:
    grid = plan_tiles(height, width, sides)
    assert grid.side in sides
    for length, origins in ((height, grid.ys), (width, grid.xs)):
        assert origins[0] == 0
        assert origins[-1] < length <= origins[-1] + grid.side  # no tile for nothing, and the end is covered
        assert all(origin % STRIDE == 0 for origin in origins)
        for before, after in pairwise(origins):
            assert after <= before + grid.side - OVERLAP_PX
    assert len(grid) == len(grid.ys) * len(grid.xs)
    assert grid.pixels == len(grid) * grid.side**2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([(128,), (192,), (128, 256)]))
def test_the_weights_of_the_tiles_add_up_to_one_at_every_pixel(height: int, width: int, sides: tuple[int, ...]) -> None:
    grid = plan_tiles(height, width, sides)
    stitcher = Stitcher(np.zeros((1, height, width), dtype=np.float32), grid, 2)
    for index in range(len(grid)):
        logits = np.ones((2, grid.side, grid.side), dtype=np.float32)
        logits[1] = -3
        stitcher.add(index, logits)
    np.testing.assert_allclose(stitcher.result()[0], 1, rtol=1e-6)
    np.testing.assert_allclose(stitcher.result()[1], -3, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32 - 1))
def test_a_network_that_returns_its_input_gives_the_image_back(height: int, width: int, seed: int) -> None:
    planes = np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)
    np.testing.assert_allclose(run_identity(planes, plan_tiles(height, width, (128,))), planes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 300), (128, 128), (129, 128), (16, 129)])
def test_thin_and_tiny_images_come_back_whole(size: tuple[int, int]) -> None:
    planes = np.random.default_rng(0).random((1, *size), dtype=np.float32)
    np.testing.assert_allclose(run_identity(planes, plan_tiles(*size, (128,))), planes, rtol=1e-5, atol=1e-6)


def test_an_image_that_fits_one_tile_comes_back_to_the_bit() -> None:
    planes = np.random.default_rng(0).random((1, 100, 128), dtype=np.float32)
    np.testing.assert_array_equal(run_identity(planes, plan_tiles(100, 128, (128,))), planes)


def test_what_reaches_past_the_image_is_its_mirror() -> None:
    planes = np.arange(120, dtype=np.float32)[None, None, :].repeat(128, axis=1)
    tile = Stitcher(planes, plan_tiles(128, 120, (128,)), 1).tile(0)
    np.testing.assert_array_equal(tile[0, 0, 116:], [116, 117, 118, 119, 118, 117, 116, 115, 114, 113, 112, 111])


def test_the_side_that_computes_least_is_taken_and_of_two_alike_the_larger() -> None:
    assert plan_tiles(200, 200, (256, 512)).side == 256
    assert plan_tiles(256, 256, (256, 512)).side == 256
    assert plan_tiles(512, 512, (256, 512)).side == 512
    assert plan_tiles(448, 448, (256, 512)).side == 512  # four of 256 compute as much as one of 512
    assert plan_tiles(300, 200, (256, 512)).side == 256


def test_the_outermost_pixels_of_a_tile_do_not_count_where_a_neighbour_covers_them() -> None:
    grid = plan_tiles(128, 192, (128,))
    assert grid.xs == (0, 64)
    stitcher = Stitcher(np.zeros((1, 128, 192), dtype=np.float32), grid, 1)
    spoilt = np.zeros((1, 128, 128), dtype=np.float32)
    spoilt[:, :, -16:] = 1000  # what a tile's own edge may do
    stitcher.add(0, spoilt)
    spoilt = np.zeros((1, 128, 128), dtype=np.float32)
    spoilt[:, :, :16] = 1000
    stitcher.add(1, spoilt)
    assert not stitcher.result().any()


def test_tiles_come_back_in_order_and_all_of_them() -> None:
    grid = plan_tiles(128, 300, (128,))
    stitcher = Stitcher(np.zeros((1, 128, 300), dtype=np.float32), grid, 1)
    logits = np.zeros((1, 128, 128), dtype=np.float32)
    with pytest.raises(ValueError, match="tile 1 came where tile 0 was due"):
        stitcher.add(1, logits)
    stitcher.add(0, logits)
    with pytest.raises(ValueError, match="tile 0 came where tile 1 was due"):
        stitcher.add(0, logits)
    assert not stitcher.complete
    with pytest.raises(ValueError, match=f"{len(grid) - 1} tiles are missing"):
        stitcher.result()
    for index in range(1, len(grid)):
        stitcher.add(index, logits)
    assert stitcher.complete
    assert stitcher.result().shape == (1, 128, 300)


@cache
def tiled_and_whole(*, align_corners: bool) -> tuple[Logits, Logits]:
    """Logits of one picture by tiles of 128 px and in one pass, of a network with a U-Net's real reach."""
    torch.manual_seed(0)
    network = UNet(1, 1, width=4, align_corners=align_corners)
    with torch.no_grad():  # statistics of real activations, as after training
        network.train()
        for _ in range(20):
            network(torch.randn(2, 1, 128, 128))
    network.eval()
    planes = np.random.default_rng(0).normal(size=(1, 256, 320)).astype(np.float32)
    grid = plan_tiles(256, 320, (128,))
    stitcher = Stitcher(planes, grid, 1)
    with torch.inference_mode():
        for index in range(len(grid)):
            stitcher.add(index, network(torch.from_numpy(stitcher.tile(index)[None].copy()))[0].numpy())
        whole: Logits = network(torch.from_numpy(planes[None]))[0].numpy()
    return stitcher.result(), whole


def test_tiled_equals_whole_within_a_few_hundredths_of_the_logits_spread() -> None:
    tiled, whole = tiled_and_whole(align_corners=False)
    assert whole.std() > 0.01
    # The bottom of the network sees further than a tile, so equal to the bit it cannot be.
    error = np.abs(tiled - whole) / whole.std()
    assert error.mean() < 0.02
    assert np.quantile(error, 0.99) < 0.1


def test_align_corners_makes_tiled_differ_from_whole_several_times_as_much() -> None:
    errors = {}
    for align_corners in (False, True):
        tiled, whole = tiled_and_whole(align_corners=align_corners)
        errors[align_corners] = float(np.abs(tiled - whole).mean() / whole.std())
    assert errors[True] > 3 * errors[False]
