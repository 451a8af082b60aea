"""How well the quality signals tell spoilt images from good ones.

    python bench/quality.py DATA [--only docs/splits/dsb2018.txt | --without docs/splits/dsb2018.txt]

DATA has image/ and instances/ or label/. Prints, for each way to spoil the same images, the share of them that each
signal flags: for images as they are a false alarm, else a hit where the signal is meant for that. And what it costs.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model.metrics import dice
from model.quality import FLAGS, assess_image, describe_intensity, make_profile
from model.segmenter import load_segmenter
from training.data import find_pairs

Float = npt.NDArray[np.float32]
Spoil = Callable[[Float, np.random.Generator], Float]
# On crops of this size at the most: larger ones would take minutes and say no more.
CROP_PX = 512


def blur(sigma_px: float) -> Spoil:
    """Out of focus, with a detector's noise on top, as a microscope would have it."""
    return lambda image, random_: cv2.GaussianBlur(image, (0, 0), sigma_px) + noise_of(image, 1.0, random_)


def noise_of(image: Float, sigma: float, random_: np.random.Generator) -> Float:
    """White noise of that many grey levels."""
    return random_.normal(0, sigma, image.shape).astype(np.float32)


def expose(share: float) -> Spoil:
    """Exposed so long that this share of the pixels is clipped."""
    return lambda image, _: image * (255 / max(float(np.quantile(image, 1 - share)), 1.0))


SPOILT: dict[str, Spoil] = {
    "as they are": lambda image, _: image,
    "blurred, sigma 1 px": blur(1),
    "blurred, sigma 2 px": blur(2),
    "blurred, sigma 3 px": blur(3),
    "blurred, sigma 4 px": blur(4),
    "2 % of the pixels clipped": expose(0.02),
    "10 % of the pixels clipped": expose(0.10),
    "noise as strong as the signal": lambda image, random_: image + noise_of(image, float(image.std()) + 5, random_),
    "inverted": lambda image, _: 255 - image,
    "nothing but noise": lambda image, random_: 40 + noise_of(image, 8, random_),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", type=Path, help="file of image names, a line each")
    parser.add_argument("--without", type=Path, help="likewise, to leave out")
    parser.add_argument("--images", type=int, default=62, help="so many, drawn by lot (62)")
    parser.add_argument("--weights", type=Path, default=Path("weights/best_model.pth"))
    options = parser.parse_args()
    only = set(options.only.read_text().split()) if options.only else None
    without = set(options.without.read_text().split()) if options.without else set()
    pairs = [pair for pair in find_pairs(options.data) if (only is None or pair.name in only)]
    pairs = [pair for pair in pairs if pair.name not in without]
    random.Random(0).shuffle(pairs)
    segmenter = load_segmenter(options.weights, device="cpu")
    # Of other images than those that are judged: the profile is of what was trained on.
    others = [pair for pair in find_pairs(options.data) if pair not in pairs[: options.images]]
    random.Random(1).shuffle(others)
    profile = make_profile(describe_intensity(pair.read()[0]) for pair in others[:200])

    print(f"| {len(pairs[: options.images])} images | mean Dice | {' | '.join(FLAGS)} | any |")
    print(f"|---|---|{'---|' * (len(FLAGS) + 1)}")
    seconds = pixels = 0.0
    read = [pair.read() for pair in pairs[: options.images]]
    for name, spoil in SPOILT.items():
        counts: Counter[str] = Counter()
        dices = []
        for index, (image, labels) in enumerate(tqdm(read, desc=name, leave=False, disable=None)):
            crop, truth = image[:CROP_PX, :CROP_PX], labels[:CROP_PX, :CROP_PX] > 0
            level = 255 / np.iinfo(crop.dtype).max
            spoilt = spoil(crop[..., :3].astype(np.float32) * level if crop.ndim == 3 else crop * np.float32(level),
                           np.random.default_rng(index))  # fmt: skip
            sent = np.clip(np.rint(spoilt), 0, 255).astype(np.uint8)
            answer = segmenter.segment(sent)
            started_at = time.perf_counter()
            flags = {*assess_image(sent, profile), *answer.quality(with_labels=False)}
            seconds += time.perf_counter() - started_at
            pixels += sent.shape[0] * sent.shape[1]
            counts.update(flags | ({"any"} if flags else set()))
            dices.append(dice(truth, answer.mask()))
        shares = " | ".join(f"{counts[flag] / len(read):.2f}" for flag in (*FLAGS, "any"))
        print(f"| {name} | {np.mean(dices):.2f} | {shares} |", flush=True)
    print(f"{seconds / pixels * 1e9:.1f} ms a megapixel")
    large = np.random.default_rng(0).integers(0, 200, (4096, 4096, 3), dtype=np.uint8)
    started_at = time.perf_counter()
    assess_image(large, profile)
    print(f"{(time.perf_counter() - started_at) * 1000:.1f} ms for the image of 4096 x 4096 px in colour")


if __name__ == "__main__":
    main()
