"""How the score changes with what users send: blur, noise, inverted contrast, magnification, exposure, JPEG, colour.

    python bench/robustness.py DATA --only docs/splits/dsb2018.txt [--weights W.pth] [--changes stained]

DATA has image/ and instances/. Prints, for each change of the same images, the mean Dice and AP at IoU 0.5, and, for
crops without a cell and for pictures of other things, the part of the pixels that is taken for cells. With --changes
only those whose names begin so, beside the images as they are.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data
from skimage.color import hed2rgb
from tqdm import tqdm

from model.metrics import average_precision, dice, match_counts
from model.segmenter import load_segmenter
from model.types import Image, Labels
from training.data import find_pairs

Change = Callable[[npt.NDArray[np.float32], Labels, np.random.Generator], tuple[Image, Labels]]
CROP_PX = 96
UNCHANGED = "as they are"
# Optical densities of the brightest nucleus and of the ground, in scikit-image's units: violet on pink.
HEMATOXYLIN, EOSIN = 0.09, 0.025
# They come with scikit-image's package, without a download.
OTHER_THINGS = ("brick", "camera", "coins", "grass", "gravel", "page", "text", "clock", "moon", "checkerboard")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", type=Path, required=True, help="file of image names, a line each")
    parser.add_argument("--weights", type=Path, default=Path("weights/best_model.pth"))
    parser.add_argument("--changes", nargs="+", help="only those whose names begin so, and no pictures without cells")
    options = parser.parse_args()
    chosen = dict(CHANGES)
    if options.changes:
        wanted = tuple(options.changes)
        chosen = {name: change for name, change in CHANGES.items() if name == UNCHANGED or name.startswith(wanted)}
        for start in wanted:
            if not any(name.startswith(start) for name in CHANGES):
                parser.error(f"no change begins with {start!r}; there are {', '.join(CHANGES)}")
    names = set(options.only.read_text().split())
    segmenter = load_segmenter(options.weights, precision="fp32")
    read = [pair.read() for pair in find_pairs(options.data) if pair.name in names]

    print(f"{len(read)} images; Dice and AP at IoU 0.5, and the change of the Dice")
    first = None
    for name, change in chosen.items():
        dices, counts = [], np.zeros(3, dtype=int)
        for index, (image, labels) in enumerate(tqdm(read, desc=name, leave=False, disable=None)):
            changed, truth = change(to_unit(image), labels, np.random.default_rng(index))
            answer = segmenter.segment(changed)
            dices.append(dice(truth > 0, answer.mask()))
            counts += match_counts(truth, answer.labels(), 0.5)
        score = float(np.mean(dices))
        first = score if first is None else first
        ap = average_precision((int(counts[0]), int(counts[1]), int(counts[2])))
        print(f"{name:34} {score:.3f}  {ap:.3f}  {score - first:+.3f}", flush=True)

    if options.changes:
        return
    empty = [crop for image, labels in read for crop in empty_crops(image, labels)]
    parts = [float(segmenter.segment(crop).mask().mean()) for crop in empty]
    clean = sum(part == 0 for part in parts)
    print(f"{len(empty)} crops of {CROP_PX} px without a cell: {clean} empty masks, {np.mean(parts):.4f} of the pixels")
    for name in OTHER_THINGS:
        answer = segmenter.segment(getattr(skimage.data, name)())
        print(f"{name:34} {answer.mask().mean():.3f} of the pixels, {answer.labels().max()} cells")
    noise = np.random.default_rng(0).normal(100, 10, (512, 512)).clip(0, 255).astype(np.uint8)
    for name, picture in (("noise", noise), ("nothing at all", np.full((512, 512), 7, np.uint8))):
        print(f"{name:34} {segmenter.segment(picture).mask().mean():.3f} of the pixels")


def to_unit(image: Image) -> npt.NDArray[np.float32]:
    """(H, W) or (H, W, 3) in 0..1, by dtype."""
    pixels = image[..., :3] if image.ndim == 3 else image
    return pixels.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def to_bytes(pixels: npt.NDArray[np.float32]) -> Image:
    """8 bits, as a camera or a file would have them."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def span(pixels: npt.NDArray[np.float32]) -> float:
    """From the 1st to the 99.8th percentile."""
    low, high = np.percentile(pixels, (1, 99.8))
    return float(max(high - low, 1e-3))


def blurred(sigma: float) -> Change:
    """Out of focus."""
    return lambda pixels, labels, _: (to_bytes(cv2.GaussianBlur(pixels, (0, 0), sigma)), labels)


def noisy(part: float) -> Change:
    """Gaussian noise, as a part of the image's own span."""

    def change(pixels: npt.NDArray[np.float32], labels: Labels, generator: np.random.Generator) -> tuple[Image, Labels]:
        noise = generator.normal(0, part * span(pixels), pixels.shape).astype(np.float32)
        return np.clip((pixels + noise + 0.1) / 1.2 * 65535, 0, 65535).astype(np.uint16), labels

    return change


def resized(scale: float) -> Change:
    """Another magnification; the truth is resized as well."""

    def change(pixels: npt.NDArray[np.float32], labels: Labels, _: np.random.Generator) -> tuple[Image, Labels]:
        mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        size = (round(labels.shape[1] * scale), round(labels.shape[0] * scale))
        moved = cv2.resize(labels.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
        return to_bytes(cv2.resize(pixels, size, interpolation=mode)), moved.astype(np.int32)

    return change


def underexposed(
    pixels: npt.NDArray[np.float32], labels: Labels, generator: np.random.Generator
) -> tuple[Image, Labels]:
    """16 bits of which the signal fills 300 levels over an offset of 100, with shot noise."""
    photons = generator.poisson(np.clip(pixels, 0, None) / span(pixels) * 300)
    return (photons + 100).clip(0, 65535).astype(np.uint16), labels


def compressed(quality: int) -> Change:
    """JPEG."""

    def change(pixels: npt.NDArray[np.float32], labels: Labels, _: np.random.Generator) -> tuple[Image, Labels]:
        _, data = cv2.imencode(".jpg", to_bytes(pixels), [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED), labels

    return change


def inverted(pixels: npt.NDArray[np.float32], labels: Labels, _: np.random.Generator) -> tuple[Image, Labels]:
    """Bright becomes dark."""
    return to_bytes(pixels.max() - pixels), labels


def tinted(pixels: npt.NDArray[np.float32], labels: Labels, _: np.random.Generator) -> tuple[Image, Labels]:
    """Another stain or white balance; grey pictures become blue, as DAPI is shown."""
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    gains = np.array((0.85, 1.0, 0.9) if np.median(colour) > 0.5 else (0.1, 0.2, 1.0), np.float32)
    return to_bytes(colour * gains), labels


def stained(pixels: npt.NDArray[np.float32], labels: Labels, _: np.random.Generator) -> tuple[Image, Labels]:
    """What shines becomes hematoxylin over a ground of eosin; grey pictures on dark ground only, others stay."""
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    coloured = pixels.ndim == 3 and float(np.ptp(pixels, axis=2).max()) > 0
    if coloured or np.median(grey) > 0.5:
        return to_bytes(pixels), labels
    low = np.percentile(grey, 1)
    nuclei = np.clip((grey - low) / span(grey), 0, 1)
    stains = np.stack([HEMATOXYLIN * nuclei, np.full_like(nuclei, EOSIN), np.zeros_like(nuclei)], axis=2)
    return to_bytes(hed2rgb(stains).astype(np.float32)), labels


def empty_crops(image: Image, labels: Labels) -> list[Image]:
    """Squares of a grid in which the truth has no cell."""
    ys, xs = (range(0, side - CROP_PX + 1, CROP_PX) for side in labels.shape)
    places = [(slice(y, y + CROP_PX), slice(x, x + CROP_PX)) for y in ys for x in xs]
    return [image[place] for place in places if not labels[place].any()]


CHANGES: dict[str, Change] = {
    UNCHANGED: lambda pixels, labels, _: (to_bytes(pixels), labels),
    "blur, sigma 1 px": blurred(1),
    "blur, sigma 2 px": blurred(2),
    "noise, 5 % of the span": noisy(0.05),
    "noise, 15 % of the span": noisy(0.15),
    "twice the magnification": resized(2),
    "half the magnification": resized(0.5),
    "16 bits, 300 photons": underexposed,
    "JPEG, quality 50": compressed(50),
    "JPEG, quality 15": compressed(15),
    "another tint": tinted,
    "inverted": inverted,
    "stained, as H&E": stained,
}


if __name__ == "__main__":
    main()
