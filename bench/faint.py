"""What the high threshold, below whose reach faint regions are dropped, gains and costs.

    python bench/faint.py DATA --val-list docs/splits/dsb2018.txt [--weights weights/best_model.pth] [--training 200]

Prints for each high threshold the mean Dice of the masks and the AP of the cells, of the validation images and of a
draw of the images trained on.
"""

import argparse
from pathlib import Path

from kit import split_data

from model.segmenter import load_segmenter
from training.evaluate import answer_images, score_answers
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
    sets = split_data(options.data, options.val_list, training=options.training)
    answers = [answer_images(segmenter, pairs) for pairs in sets]

    print("| high threshold | Dice | AP at 0.5 | mean AP | trained on: Dice | AP at 0.5 | mean AP |\n|" + "---|" * 7)
    for high in HIGH_THRESHOLDS:
        segmenter.config = segmenter.config.model_copy(update={"high_threshold": high})
        values = []
        for scores in (score_answers(segmenter, some) for some in answers):
            if scores.cells is None:
                parser.error(f"{options.data} has no labels of single cells")
            values += [scores.dice, scores.cells.ap["0.5"], scores.cells.ap["mean"]]
        print(f"| {high:g} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


if __name__ == "__main__":
    main()
