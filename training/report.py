"""A report of scores in one HTML file: tables, the threshold's curve, the worst images with truth and prediction."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.checkpoint import write_atomically
from model.images import draw_overlay, encode_png, to_display
from model.segmenter import Segmenter
from training.dataset import PairCache
from training.evaluate import Scores

WORST = 10
# Large pictures are made smaller for the page, to this many pixels a side at most.
SHOWN_PX = 420

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 82rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem } th, td { padding: 0.2rem 0.8rem; text-align: right }
th { border-bottom: 1px solid #888 } td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: 0 0.5rem 1rem 0; vertical-align: top } figcaption { color: #555 }
img { max-width: 100% }
"""


def write_report(path: Path, *, title: str, segmenter: Segmenter, cache: PairCache, scores: Scores) -> None:
    """Write the report; a file that is there is replaced.

    Args:
        path: of the HTML file; pictures are inside it.
        title: its heading.
        segmenter, cache, scores: what was scored, on what, and with what result.
    """
    summary = [("images", str(len(scores.images))), ("threshold", f"{scores.threshold:.2f}")]
    summary += [("Dice", f"{scores.dice:.4f}"), ("IoU", f"{scores.iou:.4f}")]
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if scores.cells is not None:
        summary += [("AJI", f"{scores.cells.aji:.4f}"), ("PQ", f"{scores.cells.pq:.4f}")]
        more = (("V_info", scores.cells.v_info), ("adapted Rand error", scores.cells.adapted_rand_error))
        summary += [(name, f"{value:.4f}") for name, value in more if value is not None]
    if scores.regions is not None:
        for name, value in vars(scores.regions).items():
            summary.append((name.replace("_", " "), f"{value:.4f}"))
    parts.append(_table(("mask, mean over images", ""), summary))
    if scores.cells is not None:
        parts += ["<h2>Cells: AP = TP / (TP + FP + FN)</h2>"]
        rows = [("counts pooled", scores.cells.ap), ("mean over images", scores.cells.ap_per_image)]
        parts.append(
            _table(("IoU", *scores.cells.ap), [(name, *(f"{v:.3f}" for v in ap.values())) for name, ap in rows])
        )
    parts += ["<h2>By kind of picture</h2>", _looks(scores)]
    parts += ["<h2>Dice by threshold</h2>", f"<img alt='Dice by threshold' src='{_curve(scores)}'>"]
    judge = "Dice" if scores.regions is None else "V_rand"
    parts += [f"<h2>The {min(WORST, len(scores.images))} images with the lowest {judge}</h2>"]
    parts += [_pictures(index, segmenter, cache, scores) for index in scores.worst[:WORST]]
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    write_atomically(path, page.encode())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def cells(kind: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(value)}</{kind}>" for value in values) + "</tr>"

    return f"<table>{cells('th', head)}{''.join(cells('td', row) for row in rows)}</table>"


def _looks(scores: Scores) -> str:
    keys = list(scores.cells.ap) if scores.cells is not None else []
    rows = [
        (name, str(look["n_images"]), f"{look['dice']:.4f}", *(f"{look['ap'][key]:.3f}" for key in keys))
        for name, look in scores.looks.items()
    ]
    return _table(("", "images", "Dice", *(f"AP {key}" for key in keys)), rows)


def _curve(scores: Scores) -> str:
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([float(key) for key in scores.curve], list(scores.curve.values()), marker="o")
    axes.axvline(scores.threshold, color="grey", linestyle=":")
    axes.set(xlabel="threshold", ylabel="mean Dice")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # the library is partly typed
    return _data_url(buffer.getvalue())


def _pictures(index: int, segmenter: Segmenter, cache: PairCache, scores: Scores) -> str:
    image, labels = cache[index]
    score = scores.images[index]
    found = segmenter.segment(image, threshold=scores.threshold).labels()
    shown = {
        "image": to_display(image),
        "truth": draw_overlay(image, labels),
        "prediction": draw_overlay(image, found),
    }
    figures = (
        f"<figure><img alt='{name}' src='{_data_url(encode_png(_fit(picture)))}'>"
        f"<figcaption>{name}</figcaption></figure>"
        for name, picture in shown.items()
    )
    cells = f", cells {labels.max()} true, {found.max()} found" if score.counts else ""
    regions = f"V_rand {score.v_rand:.3f}, " if scores.regions is not None and score.v_rand is not None else ""
    heading = f"{score.name}: {regions}Dice {score.dice:.3f}{cells} ({score.look})"
    return f"<h3>{html.escape(heading)}</h3>{''.join(figures)}"


def _fit(picture: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    scale = SHOWN_PX / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
