"""Draw the README's picture: nuclei, and the mask, labels and overlay that the shipped weights give for them.

python bench/picture.py
"""

from pathlib import Path

import numpy as np
from skimage.color import label2rgb

from model import load_segmenter
from model.images import draw_overlay, encode_png, read_image, to_display

CORNER_PX, SIDE_PX, GAP_PX = 180, 256, 6  # a part of the picture that the page offers to try


def main() -> None:
    """Write docs/images/example.png."""
    image = read_image(Path("app/static/sample.png"))
    result = load_segmenter(Path("weights/best_model.pth"), device="cpu").segment(image)
    labels = result.labels()
    colours = (label2rgb(labels, bg_label=0) * 255).astype(np.uint8)
    mask = np.dstack([result.mask().astype(np.uint8) * np.uint8(255)] * 3)
    part = slice(CORNER_PX, CORNER_PX + SIDE_PX), slice(0, SIDE_PX)
    gap = np.full((SIDE_PX, GAP_PX, 3), 255, dtype=np.uint8)
    panels = [to_display(image)[part], gap, mask[part], gap, colours[part], gap, draw_overlay(image, labels)[part]]
    path = Path("docs/images/example.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.hstack(panels)))


if __name__ == "__main__":
    main()
