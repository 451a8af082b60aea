"""What the commands of this folder share: a drawn picture, the machine in a line, docs/benchmarks.md, plots."""

import io
import os
import platform
import random
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from model.checkpoint import Architecture, ModelConfig, write_checkpoint
from training.data import Pair, find_pairs, split_pairs
from training.synthesize import draw_cells

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "images"


def draw_image(side: int, seed: int = 0) -> np.ndarray:
    """(side, side) uint8: drawn cells with a camera's noise, of which a PNG is about three quarters as large."""
    generator = np.random.default_rng(seed)
    image, _ = draw_cells(side, generator)
    grey = np.asarray(image)
    grey = grey if grey.ndim == 2 else grey[:, :, 0]
    noisy = grey + generator.normal(0, 8, grey.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def draw_png(side: int, seed: int = 0) -> bytes:
    """The same as the PNG that Pillow writes."""
    buffer = io.BytesIO()
    PillowImage.fromarray(draw_image(side, seed)).save(buffer, format="PNG")
    return buffer.getvalue()


def split_data(data: Path, val_list: Path, *, training: int | None = None) -> tuple[list[Pair], list[Pair]]:
    """The pairs of a folder that a file names, a line each, and those that the weights were trained on.

    Args:
        training: draw so many of the latter, always the same; None takes all.
    """
    trained, validation = split_pairs(find_pairs(data), names=val_list.read_text().split())
    if training is not None:
        trained = random.Random(0).sample(trained, min(training, len(trained)))
    return validation, trained


def write_costless_weights(path: Path) -> None:
    """A checkpoint for bench/costless.py: grey levels as they are, one map."""
    architecture = Architecture(width=1)
    config = ModelConfig(architecture=architecture, normalisation="raw", tile_px=(256, 512))
    write_checkpoint(path, architecture.build().state_dict(), config, {"data": "none: it costs nothing"})


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine() -> str:
    """Date and machine, in a sentence."""
    model = platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
        memory = int(re.findall(r"\d+", Path("/proc/meminfo").read_text())[0]) / 1024**2
        ram = f", {memory:.0f} GiB of memory"
    except OSError:
        ram = ""
    cores = len(os.sched_getaffinity(0))
    return f"{time.strftime('%Y-%m-%d')}, {cores} cores of {model}{ram}, Python {platform.python_version()}."


def report(section: str, lines: Sequence[str], *, write: bool) -> None:
    """Print the lines; with `write` they replace what stands between the section's two marks in docs/benchmarks.md."""
    text = "\n".join(lines)
    print(text)
    if not write:
        return
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    page = PAGE.read_text(encoding="utf-8")
    if start not in page or end not in page:
        print(f"error: {PAGE} has no place for {section}: {start} and {end}", file=sys.stderr)
        return
    before, after = page.split(start)[0], page.split(end)[1]
    PAGE.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def plot_bars(name: str, title: str, unit: str, groups: Sequence[str], bars: Mapping[str, Sequence[float]]) -> None:
    """docs/images/bench-NAME.png: a bar a server in each group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for index, (label, values) in enumerate(bars.items()):
        places = np.arange(len(groups)) + (index - (len(bars) - 1) / 2) * width
        drawn = axes.bar(places, values, width * 0.92, label=label, color="#c0392b" if index == 0 else None)
        axes.bar_label(drawn, [f"{value:.3g}" for value in values], fontsize=6)
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=9)
    figure.legend(fontsize=7, ncols=len(bars), loc="outside lower center")
    figure.savefig(PLOTS / f"bench-{name}.png", dpi=110)


def plot_lines(
    name: str, title: str, x: str, y: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """docs/images/bench-NAME.png: a line of points each, the first axis in powers of ten."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, (xs, ys) in lines.items():
        axes.plot(xs, ys, marker="o", label=label)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(PLOTS / f"bench-{name}.png", dpi=110)
