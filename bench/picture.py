"""Draw the README's picture: drawn cells, the mask, the labels and the overlay that the shipped weights give for them.

python bench/picture.py
"""

from pathlib import Path

import numpy as np
from skimage.color import label2rgb

from model import load_segmenter
from model.images import draw_overlay, encode_png
from training.synthesize import draw_cells

SIDE_PX = 256
GAP_PX = 6


def main() -> None:
    """Write docs/images/example.png."""
    image, _ = draw_cells(SIDE_PX, np.random.default_rng(7))
    result = load_segmenter(Path("weights/best_model.pth"), device="cpu").segment(image)
    labels = result.labels()
    colours = (label2rgb(labels, bg_label=0) * 255).astype(np.uint8)
    grey = [np.dstack([plane] * 3) for plane in (image, result.mask().astype(np.uint8) * np.uint8(255))]
    gap = np.full((SIDE_PX, GAP_PX, 3), 255, dtype=np.uint8)
    panels = [grey[0], gap, grey[1], gap, colours, gap, draw_overlay(image, labels)]
    path = Path("docs/images/example.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.hstack(panels)))


if __name__ == "__main__":
    main()
