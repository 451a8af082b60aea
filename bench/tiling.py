"""How much an answer depends on the size of the tile, with align_corners and without: `python bench/tiling.py`.

Trains small networks of each kind on drawn discs, then compares, on new pictures, the answer by tiles with the one
of a pass over the whole. A minute or two on a CPU; the figures are means over networks of several seeds.
"""

import argparse

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from model.tiling import Stitcher, plan_tiles
from model.unet import UNet

TRAINED_PX = 128
PICTURE_PX = 640
SIDES = (128, 256, 512)


def draw(generator: np.random.Generator, side: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A noisy picture of blurred discs of 4 to 14 px radius, and its mask; (side, side) each."""
    mask = np.zeros((side, side), dtype=np.float32)
    for _ in range(side * side // 1500):
        y, x, radius = int(generator.integers(side)), int(generator.integers(side)), generator.uniform(4, 14)
        top, left = max(y - 14, 0), max(x - 14, 0)
        window = mask[top : y + 15, left : x + 15]
        ys, xs = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
        window[(ys - y) ** 2 + (xs - x) ** 2 < radius**2] = 1
    soft = functional.avg_pool2d(torch.from_numpy(mask)[None, None], 5, 1, 2)[0, 0].numpy()
    picture = soft * 0.5 + 0.25 + generator.normal(scale=0.2, size=mask.shape)
    return picture.astype(np.float32), mask


def train(seed: int, *, align_corners: bool, steps: int, width: int) -> UNet:
    """A network after some steps of Adam on batches of four."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    network = UNet(1, 1, width=width, align_corners=align_corners)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        pairs = [draw(generator, TRAINED_PX) for _ in range(4)]
        pictures, masks = (torch.from_numpy(np.stack(part)[:, None]) for part in zip(*pairs, strict=True))
        loss = functional.binary_cross_entropy_with_logits(network(pictures), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.inference_mode()
def compare(network: UNet, picture: npt.NDArray[np.float32], side: int) -> tuple[float, float, float]:
    """Tiled against whole: mean and greatest difference of the probability, share of mask pixels that change."""
    whole = torch.sigmoid(network(torch.from_numpy(picture[None, None])))[0, 0].numpy()
    grid = plan_tiles(picture.shape[0], picture.shape[1], (side,))
    stitcher = Stitcher(picture[None], grid, 1)
    for index in range(len(grid)):
        stitcher.add(index, network(torch.from_numpy(stitcher.tile(index)[None].copy()))[0].numpy())
    tiled = torch.sigmoid(torch.from_numpy(stitcher.result()[0])).numpy()
    difference = np.abs(tiled - whole)
    changed = (tiled >= 0.5) != (whole >= 0.5)
    return float(difference.mean()), float(difference.max()), float(changed.mean())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--width", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("align_corners  tile px  mean |dp|  greatest |dp|  mask pixels changed")
    for align_corners in (False, True):
        networks = [
            train(seed, align_corners=align_corners, steps=options.steps, width=options.width)
            for seed in range(options.seeds)
        ]
        pictures = [draw(np.random.default_rng(1000 + seed), PICTURE_PX)[0] for seed in range(options.seeds)]
        for side in SIDES:
            rows = [compare(network, picture, side) for network, picture in zip(networks, pictures, strict=True)]
            mean, greatest, changed = np.mean(rows, axis=0)
            print(f"{align_corners!s:13}  {side:7}  {mean:9.5f}  {greatest:13.3f}  {changed:18.3%}")


if __name__ == "__main__":
    main()
