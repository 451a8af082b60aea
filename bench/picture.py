"""Draw the README's picture, nuclei with what the shipped weights give for them, and the card's, where they fail.

python bench/picture.py
"""

from pathlib import Path

import numpy as np
import skimage.data
from skimage.color import label2rgb

from model import Segmenter, load_segmenter
from model.images import draw_overlay, encode_png, read_image, to_display
from model.types import Image

CORNER_PX, SIDE_PX, GAP_PX = 180, 256, 6  # a part of the picture that the page offers to try
FOLDER = Path("docs/images")


def main() -> None:
    """Write docs/images/example.png and docs/images/failures.png."""
    segmenter = load_segmenter(Path("weights/best_model.pth"), device="cpu")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "example.png").write_bytes(encode_png(draw_example(segmenter)))
    (FOLDER / "failures.png").write_bytes(encode_png(draw_failures(segmenter)))


def draw_example(segmenter: Segmenter) -> Image:
    """Image, mask, labels and overlay side by side."""
    image = read_image(Path("app/static/sample.png"))
    result = segmenter.segment(image)
    labels = result.labels()
    colours = (label2rgb(labels, bg_label=0) * 255).astype(np.uint8)
    mask = np.dstack([result.mask().astype(np.uint8) * np.uint8(255)] * 3)
    part = slice(CORNER_PX, CORNER_PX + SIDE_PX), slice(0, SIDE_PX)
    return _beside([to_display(image)[part], mask[part], colours[part], draw_overlay(image, labels)[part]])


def draw_failures(segmenter: Segmenter) -> Image:
    """A brown stain, coins, and an inverted picture, each above its overlay."""
    inverted = np.uint8(255) - read_image(Path("app/static/sample.png"))
    pictures = (skimage.data.immunohistochemistry(), skimage.data.coins(), inverted)
    columns = []
    for picture in pictures:
        overlay = draw_overlay(picture, segmenter.segment(picture).labels())
        part = slice(0, SIDE_PX), slice(0, SIDE_PX)
        gap = np.full((GAP_PX, SIDE_PX, 3), 255, dtype=np.uint8)
        columns.append(np.vstack([to_display(picture)[part], gap, overlay[part]]))
    return _beside(columns)


def _beside(panels: list[Image]) -> Image:
    gap = np.full((panels[0].shape[0], GAP_PX, 3), 255, dtype=np.uint8)
    return np.hstack([part for panel in panels for part in (gap, panel)][1:])


if __name__ == "__main__":
    main()
