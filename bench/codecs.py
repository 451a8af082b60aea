"""Milliseconds and bytes to read and write one picture as PNG, by what serves and by others.

python bench/codecs.py [--side 512] [--repeats 40] [--write]
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from kit import machine, report
from PIL import Image as PillowImage
from scipy import ndimage

from model.images import decode_image
from model.png import Content, write_png


def main() -> None:
    """Print a table; times are those of the processor in this one thread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    lines = ["| what | by | ms | bytes |", "|---|---|---|---|"]

    def add(what: str, by: str, work: Callable[[], Any], n_bytes: int) -> None:
        lines.append(f"| {what} | {by} | {median_ms(work, options.repeats):.2f} | {n_bytes:,} |")
        print(lines[-1], file=sys.stderr, flush=True)

    for name, content, pixels in draw(options.side):
        for writer, write in writers(pixels, content).items():
            add(f"write {name}", writer, write, len(write()))
    [(_, _, picture)] = [item for item in draw(options.side) if item[0] == "picture"]
    data = by_pillow(picture, 6)
    for reader, read in readers(data).items():
        add("read picture", reader, read, len(data))
    report("codecs", [machine(), "", *lines], write=options.write)


def draw(side: int) -> list[tuple[str, Content, npt.NDArray[Any]]]:
    """Blurred noise as cells: its mask, labels, probability, and a noisy picture of it."""
    generator = np.random.default_rng(0)
    field = ndimage.gaussian_filter(generator.standard_normal((side, side)), 5)
    field /= field.std()
    labels = ndimage.label(field > 0.8)[0].astype(np.int32)
    probability = np.rint(65535 / (1 + np.exp(-6 * (field - 0.8)))).astype(np.uint16)
    picture = np.clip(60 + 40 * field + generator.normal(0, 12, field.shape), 0, 255).astype(np.uint8)
    return [
        ("mask", "mask", labels > 0),
        ("labels", "labels", labels),
        ("probability", "picture", probability),
        ("picture", "picture", picture),
        ("overlay", "picture", np.repeat(picture[:, :, None], 3, axis=2)),
    ]


def writers(pixels: npt.NDArray[Any], content: Content) -> dict[str, Callable[[], bytes]]:
    """Ways to write it."""
    plain = pixels.astype(np.uint8) * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    plain = plain.astype(np.uint16) if plain.dtype == np.int32 else plain
    return {
        "Maskwell": lambda: write_png(pixels, content=content),
        "Pillow, level 1": lambda: by_pillow(plain, 1),
        "Pillow, level 6": lambda: by_pillow(plain, 6),
        "OpenCV, level 1": lambda: cv2.imencode(".png", plain, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(),
    }


def readers(data: bytes) -> dict[str, Callable[[], Any]]:
    """Ways to read it."""
    return {
        "Maskwell": lambda: decode_image(data).pixels,
        "Pillow": lambda: np.asarray(PillowImage.open(io.BytesIO(data))),
        "OpenCV": lambda: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED),
        "libpng (imagecodecs)": lambda: imagecodecs.png_decode(data),
    }


def by_pillow(pixels: npt.NDArray[Any], level: int) -> bytes:
    """PNG by Pillow."""
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, format="PNG", compress_level=level)
    return buffer.getvalue()


def median_ms(work: Callable[[], Any], repeats: int) -> float:
    """Of the time that this thread spends on it."""
    work()
    times = []
    for _ in range(repeats):
        started_at = time.thread_time()
        work()
        times.append(time.thread_time() - started_at)
    return statistics.median(times) * 1000


if __name__ == "__main__":
    main()
