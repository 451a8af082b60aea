"""Where the cells' AP is lost, and what would gain it: the shipped weights on images with truth.

    python bench/ceiling.py DATA --val-list docs/splits/dsb2018.txt [--weights weights/best_model.pth] [--training 200]

Prints the scores on the validation images as they are, with the mean over eight orientations of each, with the true
mask and with the true parting; the same on a draw of the images trained on; how far the mean AP hangs on the draw of
images; and what became of each cell that was not found.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from kit import split_data
from skimage.measure import label
from skimage.segmentation import relabel_sequential, watershed
from tqdm import tqdm

from model.metrics import Counts, score_cells
from model.postprocess import Maps
from model.segmenter import Segmenter, load_segmenter
from model.types import Image, Labels, Mask
from training.data import Pair
from training.dataset import PairCache
from training.evaluate import AP_THRESHOLDS, Answer, answer_images, pooled_ap, pooled_mean_ap

Pairs = list[tuple[Labels, Labels]]  # truth and found
PerThreshold = Mapping[float, Counts]  # of an image
FOUND_IOU = 0.5
SEEN_SHARE = 0.2  # of a cell that the mask has to cover for it to have been seen at all
INSIDE_SHARE = 0.5  # of a cell that lies in one of those found
DRAWS = 2000


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--val-list", type=Path, required=True, help="file of image names, a line each")
    parser.add_argument("--weights", type=Path, default=Path("weights/best_model.pth"))
    parser.add_argument("--precision", choices=["auto", "fp32", "int8"], default="auto", help="as the service's")
    parser.add_argument("--look", default="grey, dark", help="kind of picture, as evaluate names it")
    parser.add_argument("--training", type=int, default=200, help="images trained on that are drawn")
    options = parser.parse_args()
    segmenter = load_segmenter(options.weights, device="cpu", precision=options.precision)
    validation, trained = split_data(options.data, options.val_list, training=options.training)

    cache = PairCache(validation, quiet=True)
    answers = [answer for answer in answer_images(segmenter, cache) if answer.look == options.look]
    turned = [replace(answer, maps=in_all_orientations(segmenter, answer.pair)) for answer in tqdm(answers)]
    seen = [answer for answer in answer_images(segmenter, trained) if answer.look == options.look]

    def read(found: Iterable[Answer]) -> Pairs:
        return [(answer.labels, segmenter.read(answer.maps).labels()) for answer in found]

    rows: dict[str, Pairs] = {
        "as it answers": read(answers),
        "mean over eight orientations": read(turned),
        "its mask, truly parted": [(a.labels, part_truly(segmenter.read(a.maps).mask(), a.labels)) for a in answers],
        "the true mask, parted by it": read(replace(a, maps=with_true_mask(a)) for a in answers),
        "images it was trained on": read(seen),
    }
    for size in sorted({answer.labels.shape for answer in answers}):
        of_size = [answer for answer in answers if answer.labels.shape == size]
        rows[f"as it answers, {size[0]} x {size[1]} px"] = read(of_size)
        rows[f"trained on, {size[0]} x {size[1]} px"] = read(a for a in seen if a.labels.shape == size)
    print(f"| {options.look} | images | cells | AP at " + " | ".join(map(str, AP_THRESHOLDS)) + " | mean |")
    print("|---" * (4 + len(AP_THRESHOLDS)) + "|")
    for name, found in rows.items():
        if not found:
            continue
        counts = count_matches(found)
        scores = [pooled_ap([count[threshold] for count in counts]) for threshold in AP_THRESHOLDS]
        n_cells = sum(int(truth.max()) for truth, _ in found)
        values = " | ".join(f"{score:.3f}" for score in (*scores, float(np.mean(scores))))
        print(f"| {name} | {len(found)} | {n_cells} | {values} |")
    print("\n" + describe_spread(count_matches(rows["as it answers"])))
    fates = sum((fates_of(*pair) for pair in rows["as it answers"]), Counter())
    print("\n" + ", ".join(f"{name}: {count}" for name, count in fates.most_common()))


def describe_spread(counts: Sequence[PerThreshold]) -> str:
    """How far the mean AP hangs on which images were drawn: by drawing as many of them again and again."""
    n = len(counts)
    generator = np.random.default_rng(0)
    draws = [pooled_mean_ap([counts[index] for index in generator.integers(0, n, n)]) for _ in range(DRAWS)]
    low, lower, upper, high = np.percentile(draws, (2.5, 16, 84, 97.5))
    each = np.mean([pooled_mean_ap([count]) for count in counts])
    return (
        f"mean AP {pooled_mean_ap(counts):.3f} with counts pooled, {each:.3f} as the mean over images; "
        f"pooled, of as many drawn from these images: {lower:.3f} to {upper:.3f} in two draws of three, "
        f"{low:.3f} to {high:.3f} in 95 %"
    )


def count_matches(pairs: Pairs) -> list[PerThreshold]:
    """Of each image, at each of AP_THRESHOLDS."""
    return [score_cells(*pair, AP_THRESHOLDS).counts for pair in pairs]


def in_all_orientations(segmenter: Segmenter, pair: Pair) -> Maps:
    """The mean of the logits over the eight ways to turn and mirror an image."""
    image, _ = pair.read()
    total: list[npt.NDArray[np.float32]] = []
    for turns in range(4):
        for mirrored in (False, True):

            def there(picture: Image, turns: int = turns, mirrored: bool = mirrored) -> Image:
                turned = np.rot90(picture, turns)
                return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)

            def back(picture: Image, turns: int = turns, mirrored: bool = mirrored) -> Image:
                return np.rot90(picture[:, ::-1] if mirrored else picture, -turns)

            maps = segmenter.segment(there(image)).maps
            logits = [to_logits(back(map_)) for map_ in (maps.cell, maps.border, maps.distance) if map_ is not None]
            total = [one + other for one, other in zip(total, logits, strict=True)] if total else logits
    return Maps.from_probabilities(*(1 / (1 + np.exp(-logits / 8)) for logits in total))


def to_logits(map_: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.float32]:
    """From the steps that maps are kept in."""
    share = np.clip(map_.astype(np.float32) / np.iinfo(map_.dtype).max, 1e-4, 1 - 1e-4)
    logits: npt.NDArray[np.float32] = np.log(share / (1 - share))
    return logits


def with_true_mask(answer: Answer) -> Maps:
    """The network's maps, but for the mask."""
    return replace(answer.maps, cell=np.where(answer.labels > 0, np.uint16(65535), np.uint16(0)))


def part_truly(mask: Mask, truth: Labels) -> Labels:
    """The mask, each pixel given to the true cell that it can be reached from; the rest are cells of their own."""
    parted: Labels = watershed(np.zeros(mask.shape, np.uint8), markers=np.where(mask, truth, 0), mask=mask)  # type: ignore[no-untyped-call]
    others = label(mask & (parted == 0), connectivity=1)
    found: Labels = relabel_sequential(np.where(others > 0, others + parted.max(), parted))[0].astype(np.int32)
    return found


def fates_of(truth: Labels, found: Labels) -> Counter[str]:
    """What became of the true cells, and of the found ones that are none."""
    n_true, n_found = int(truth.max()), int(found.max())
    table = np.zeros((n_true + 1, n_found + 1))
    np.add.at(table, (truth.reshape(-1), found.reshape(-1)), 1)
    areas, found_areas = table.sum(axis=1), table.sum(axis=0)
    iou = table / np.maximum(areas[:, None] + found_areas - table, 1)
    fates: Counter[str] = Counter()
    for cell in range(1, n_true + 1):
        shares = table[cell, 1:] / max(areas[cell], 1)
        if (iou[cell, 1:] > FOUND_IOU).any():
            fates["found"] += 1
        elif shares.sum() < SEEN_SHARE:
            fates["not seen"] += 1
        elif shares.max() <= INSIDE_SHARE:
            fates["split, or too small"] += 1
        else:
            owner = int(shares.argmax()) + 1
            others = table[1:, owner] / np.maximum(areas[1:], 1) > INSIDE_SHARE
            fates["joined to another" if others.sum() > 1 else "too large"] += 1
    wrong = ~(iou[1:, 1:] > FOUND_IOU).any(axis=0)
    in_background = table[0, 1:] / np.maximum(found_areas[1:], 1) > 1 - SEEN_SHARE
    fates["found where there is none"] += int((wrong & in_background).sum())
    return fates


if __name__ == "__main__":
    main()
