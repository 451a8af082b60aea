"""Pictures of a run: curves over the epochs, and validation images with truth and prediction side by side."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.checkpoint import write_atomically
from model.images import draw_overlay
from model.segmenter import Segmenter

if TYPE_CHECKING:
    from training.dataset import PairCache
    from training.evaluate import Scores

ROWS = 6  # validation images shown: the worst, the best, and evenly between


def draw_curves(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Loss, and Dice and AP on the validation images, against the epoch; a PNG at `path`."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    left.plot(epochs, [record["loss"] for record in history], color="tab:blue")
    left.set(title="training loss", xlabel="epoch")
    for key, label in (("val_dice", "Dice"), ("val_ap0.5", "AP at IoU 0.5"), ("val_ap0.7", "AP at IoU 0.7")):
        if history and key in history[-1]:
            right.plot(epochs, [record[key] for record in history], label=label)
    right.set(title="validation", xlabel="epoch", ylim=(0, 1))
    right.legend(loc="lower right")
    _save(figure, path)


def draw_overlays(path: Path, segmenter: Segmenter, cache: "PairCache", scores: "Scores") -> None:
    """Some validation images from the worst Dice to the best: truth at the left, prediction at the right."""
    order = np.argsort([image.dice for image in scores.images])
    shown = sorted({int(order[round(place)]) for place in np.linspace(0, len(order) - 1, min(ROWS, len(order)))})
    shown.sort(key=lambda index: scores.images[index].dice)
    figure = Figure(figsize=(7, 3.4 * len(shown)), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(shown), 2))
    for row, index in zip(axes, shown, strict=True):
        image, labels = cache[index]
        found = segmenter.segment(image, threshold=scores.threshold).labels()
        row[0].imshow(draw_overlay(image, labels))
        row[0].set_title(f"{scores.images[index].name[:24]}: truth", fontsize=8)
        row[1].imshow(draw_overlay(image, found))
        row[1].set_title(f"prediction, Dice {scores.images[index].dice:.3f}", fontsize=8)
        for axis in row:
            axis.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # the library is partly typed
    write_atomically(path, buffer.getvalue())
