"""What the high threshold, below whose reach faint regions are dropped, gains and costs.

    python bench/faint.py DATA --val-list docs/splits/dsb2018.txt [--weights weights/best_model.pth] [--training 200]

Prints for each high threshold the mean Dice of the masks and the AP of the cells, of the validation images and of a
draw of the images trained on.
"""

import argparse
import random
from pathlib import Path

import numpy as np

from model.metrics import dice, score_cells
from model.segmenter import Segmenter, load_segmenter
from training.data import find_pairs
from training.evaluate import AP_THRESHOLDS, Answer, answer_images, pooled_ap, pooled_mean_ap
from training.tune import HIGH_THRESHOLDS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--val-list", type=Path, required=True, help="file of image names, a line each")
    parser.add_argument("--weights", type=Path, default=Path("weights/best_model.pth"))
    parser.add_argument("--precision", choices=["auto", "fp32", "int8"], default="auto", help="as the service's")
    parser.add_argument("--training", type=int, default=200, help="images trained on that are drawn")
    options = parser.parse_args()
    segmenter = load_segmenter(options.weights, device="cpu", precision=options.precision)
    held_out = set(options.val_list.read_text().split())
    pairs = find_pairs(options.data)
    rest = [pair for pair in pairs if pair.name not in held_out]
    drawn = random.Random(0).sample(rest, min(options.training, len(rest)))
    validation = answer_images(segmenter, [pair for pair in pairs if pair.name in held_out])
    trained = answer_images(segmenter, drawn)

    print("| high threshold | Dice | AP at 0.5 | mean AP | trained on: Dice | AP at 0.5 | mean AP |\n|" + "---|" * 7)
    for high in HIGH_THRESHOLDS:
        values = [*score(segmenter, validation, high), *score(segmenter, trained, high)]
        print(f"| {high:g} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


def score(segmenter: Segmenter, answers: list[Answer], high_threshold: float) -> tuple[float, float, float]:
    """Mean Dice, AP at IoU 0.5, and mean AP."""
    dices, counts = [], []
    for answer in answers:
        found = segmenter.read(answer.maps, high_threshold=high_threshold)
        counts.append(score_cells(answer.labels, found.labels(), AP_THRESHOLDS).counts)
        dices.append(dice(answer.labels > 0, found.mask()))
    return float(np.mean(dices)), pooled_ap([count[0.5] for count in counts]), pooled_mean_ap(counts)


if __name__ == "__main__":
    main()
