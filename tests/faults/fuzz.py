"""Damaged image files, the same ones for the same seed, and what reading them does: `python -m tests.faults.fuzz`.

Run as a program, it reads them in its own process, which may crash without taking a test run with it, under a limit of
memory; each line that it prints says how far it is, so the last one names the file that killed it.
"""

import argparse
import faulthandler
import io
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as PillowImage

from model.errors import ImageError
from model.images import decode_image, inspect_image
from model.source import Selection

MAX_PIXELS = 1 << 20
MEMORY_BYTES = 6 << 30  # address space, most of which the libraries reserve and never touch
SLOWEST_S = 20.0  # on a busy machine; a good file of the corpus takes a millisecond or two
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def make_corpus() -> dict[str, bytes]:
    """Small good files, one of each kind that is read."""
    generator = np.random.default_rng(0)
    grey = cv2.GaussianBlur(generator.integers(0, 256, (41, 57)).astype(np.uint8), (0, 0), 2)
    rgb = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=2)
    deep = grey.astype(np.uint16) * 257
    stack = np.stack([deep, deep[::-1], deep[:, ::-1]])
    files = {
        "png-grey": _pillow(grey, "PNG"),
        "png-rgb": _pillow(rgb, "PNG"),
        "png-rgba": _pillow(np.dstack([rgb, grey]), "PNG"),
        "png-16": cv2.imencode(".png", deep)[1].tobytes(),
        "png-palette": _save(PillowImage.fromarray(rgb).quantize(16), "PNG"),
        "png-1": _save(PillowImage.fromarray(grey > 128), "PNG"),
        "jpeg": _pillow(rgb, "JPEG"),
        "jpeg-grey": _pillow(grey, "JPEG"),
        "jpeg-progressive": _pillow(rgb, "JPEG", progressive=True),
        "bmp": _pillow(rgb, "BMP"),
        "bmp-palette": _save(PillowImage.fromarray(rgb).quantize(16), "BMP"),
        "webp": _pillow(rgb, "WEBP"),
        "webp-lossless": _pillow(rgb, "WEBP", lossless=True),
        "npy": _npy(grey),
        "npy-stack": _npy(stack),
        "tiff": _tiff(grey),
        "tiff-rgb": _tiff(rgb, photometric="rgb"),
        "tiff-float": _tiff(grey.astype(np.float32)),
        "tiff-16-big-endian": _tiff(deep, byteorder=">"),
        "tiff-big": _tiff(deep, bigtiff=True),
        "tiff-stack": _tiff(stack, photometric="minisblack"),
        "tiff-imagej": _tiff(stack, imagej=True, metadata={"axes": "ZYX"}),
        "tiff-ome": _tiff(stack, ome=True, metadata={"axes": "CYX"}),
        "tiff-tiled": _tiff(deep, tile=(16, 16)),
        "tiff-1": _save(PillowImage.fromarray(grey > 128), "TIFF", compression="group4"),
        "tiff-palette": _save(PillowImage.fromarray(rgb).quantize(16), "TIFF"),
    }
    for compression in ("lzw", "zlib", "packbits", "zstd", "lzma", "jpeg", "jpeg2000", "webp", "png"):
        picture = rgb if compression in ("jpeg", "webp") else grey
        files[f"tiff-{compression}"] = _tiff(picture, compression=compression)
    files["tiff-predictor"] = _tiff(deep, compression="zlib", predictor=True)
    return files


def _npy(pixels: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def _tiff(pixels: npt.NDArray[np.generic], **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)  # type: ignore[arg-type]  # each option has a type of its own
    return buffer.getvalue()


def _pillow(pixels: npt.NDArray[np.generic], kind: str, **options: object) -> bytes:
    return _save(PillowImage.fromarray(pixels), kind, **options)


def _save(picture: PillowImage.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _truncate(data: bytearray, generator: np.random.Generator, _: bytes) -> bytearray:
    return data[: int(generator.integers(0, len(data)))]


def _flip_bits(data: bytearray, generator: np.random.Generator, _: bytes) -> bytearray:
    for place in generator.integers(0, len(data) * 8, int(generator.integers(1, 17))):
        data[place // 8] ^= 1 << int(place % 8)
    return data


def _spoil_head(data: bytearray, generator: np.random.Generator, _: bytes) -> bytearray:
    """The first bytes say how large everything is."""
    for place in generator.integers(0, min(len(data), 256), int(generator.integers(1, 5))):
        data[place] = int(generator.integers(0, 256))
    return data


def _write_number(data: bytearray, generator: np.random.Generator, _: bytes) -> bytearray:
    size = int(generator.choice([1, 2, 4, 8]))
    value = INTERESTING[int(generator.integers(len(INTERESTING)))] % (1 << 8 * size)
    place = int(generator.integers(0, max(len(data) - size, 1)))
    data[place : place + size] = value.to_bytes(size, "little" if generator.random() < 0.5 else "big")
    return data


def _repeat_part(data: bytearray, generator: np.random.Generator, _: bytes) -> bytearray:
    first, last = sorted(int(place) for place in generator.integers(0, len(data) + 1, 2))
    return data[:last] + data[first:last] * int(generator.integers(1, 4)) + data[last:]


def _cut_part(data: bytearray, generator: np.random.Generator, _: bytes) -> bytearray:
    first, last = sorted(int(place) for place in generator.integers(0, len(data) + 1, 2))
    return data[:first] + data[last:]


def _splice(data: bytearray, generator: np.random.Generator, other: bytes) -> bytearray:
    """The beginning of one file and the end of another."""
    return data[: int(generator.integers(0, len(data)))] + other[int(generator.integers(0, len(other))) :]


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator, bytes], bytearray], ...] = (
    _truncate, _flip_bits, _flip_bits, _spoil_head, _write_number, _write_number, _repeat_part, _cut_part, _splice,
)  # fmt: skip


@dataclass(frozen=True)
class Damaged:
    """A damaged file, and how to make it again."""

    name: str
    data: bytes


def damage(corpus: dict[str, bytes], seed: int) -> Damaged:
    """The file of that seed."""
    generator = np.random.default_rng(seed)
    kinds = sorted(corpus)
    kind = kinds[seed % len(kinds)]
    data = bytearray(corpus[kind])
    names = [kind]
    for _ in range(int(generator.integers(1, 4))):
        if data:
            mutate = MUTATIONS[int(generator.integers(len(MUTATIONS)))]
            data = mutate(data, generator, corpus[kinds[int(generator.integers(len(kinds)))]])
            names.append(mutate.__name__.strip("_"))
    return Damaged(f"{seed}: {' '.join(names)}", bytes(data))


def damage_all(first: int, count: int) -> Iterator[Damaged]:
    """Files of `count` seeds, from `first` on."""
    corpus = make_corpus()
    for seed in range(first, first + count):
        yield damage(corpus, seed)


def read(data: bytes) -> str:
    """What comes of reading a file: `read`, or the name of its refusal.

    Raises:
        Exception: anything but an ImageError, which the service would answer with 500.
    """
    try:
        inspect_image(data, Selection(page=0), max_pixels=MAX_PIXELS)
        decode_image(data, max_pixels=MAX_PIXELS)
    except ImageError as error:
        return type(error).__name__
    return "read"


def main() -> int:
    """Read damaged files; the exit status is 1 if any was neither read nor refused in time."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0, help="first seed (0)")
    options = parser.parse_args()
    faulthandler.enable()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it remarks on each damaged tag, as the service knows
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    outcomes: dict[str, int] = {}
    bad = 0
    for damaged in damage_all(options.first, options.count):
        print(f"at {damaged.name}", flush=True)
        started_at = time.perf_counter()
        try:
            outcome = read(damaged.data)
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
            bad += 1
            print(f"BAD {damaged.name}: {outcome}", flush=True)
        seconds = time.perf_counter() - started_at
        if seconds > SLOWEST_S:
            bad += 1
            print(f"BAD {damaged.name}: took {seconds:.1f} s", flush=True)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{options.count} files: {outcomes}; peak {peak_mib} MiB")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
