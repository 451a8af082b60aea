"""Find and read pairs of image and truth; knows the folder layouts, no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from model.errors import ImageError
from model.images import SUFFIXES, decode_image, read_image
from model.types import Image, Labels
from training.errors import DataError

Kind = Literal["mask", "instances", "cell_masks"]


@dataclass(frozen=True)
class Pair:
    """An image and its truth, as files.

    Attributes:
        name: the image's stem; unique in its data set.
        image: its file.
        truth: one file; one a cell for `cell_masks`.
        kind: of the truth: `mask` has two values, `instances` one integer a cell, `cell_masks` a mask a cell.
        page: of a volume whose pages are images; else None.
    """

    name: str
    image: Path
    truth: tuple[Path, ...]
    kind: Kind
    page: int | None = None

    def read_image(self) -> Image:
        """The image alone, (H, W) or (H, W, C).

        Raises:
            DataError: unreadable; names the file.
        """
        try:
            return read_image(self.image, page=self.page)
        except ImageError as error:
            raise DataError(str(error)) from error

    def read(self) -> tuple[Image, Labels]:
        """The image, (H, W) or (H, W, C), and its truth, (H, W) int32: 0 background; 0/1 only where kind is `mask`.

        Raises:
            DataError: unreadable, of different sizes, or a truth that is not what it should be; names the files.
        """
        image = self.read_image()
        try:
            truths = [_single_channel(read_image(path, page=self.page), path) for path in self.truth]
        except ImageError as error:
            raise DataError(str(error)) from error
        for path, truth in zip(self.truth, truths, strict=True):
            if truth.shape != image.shape[:2]:
                raise DataError(
                    f"{self.image} is {image.shape[1]} x {image.shape[0]} px, but {path} is "
                    f"{truth.shape[1]} x {truth.shape[0]} px"
                )
        if self.kind == "mask":
            return image, _binary(truths[0], self.truth[0])
        if self.kind == "instances":
            truth = truths[0]
            # whole numbers as floats are how ImageJ, and Maskwell for it, keeps more than 65,535 labels
            whole = truth.dtype.kind != "f" or bool(np.all(np.isfinite(truth) & (truth == np.rint(truth))))
            if not whole or truth.min() < 0:
                raise DataError(f"{self.truth[0]}: labels are whole numbers from 0 on, found others ({truth.dtype})")
            large = truth.max(initial=0) > np.iinfo(np.uint16).max
            return image, _renumber(truth) if large else truth.astype(np.int32)
        labels = np.zeros(image.shape[:2], dtype=np.int32)
        for number, (path, truth) in enumerate(zip(self.truth, truths, strict=True), start=1):
            labels[_binary(truth, path) > 0] = number
        return image, labels


def find_pairs(folder: Path) -> list[Pair]:
    """The data set in a folder, sorted by name.

    Layouts: `image/` beside `label/` (binary masks) or `instances/` (label images), files paired by stem;
    `train-volume.tif` beside `train-labels.tif` (ISBI 2012), pages paired by number; `ID/images/` beside `ID/masks/`
    (DSB 2018), one mask a cell.

    Raises:
        DataError: none of these, nothing in it, or a partner is missing; names the files.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    if (folder / "image").is_dir():
        return _find_by_stem(folder)
    volume, labels = folder / "train-volume.tif", folder / "train-labels.tif"
    if volume.is_file() or labels.is_file():
        return _find_volume(volume, labels)
    groups = [path for path in sorted(folder.iterdir()) if (path / "images").is_dir() or (path / "masks").is_dir()]
    if groups:
        return [_find_group(path) for path in groups]
    raise DataError(
        f"{folder} holds no data set: looked for image/ with label/ or instances/, for train-volume.tif with "
        "train-labels.tif, and for */images/ with */masks/"
    )


def split_pairs(
    pairs: Sequence[Pair], *, fraction: float = 0.1, names: Sequence[str] | None = None, seed: int = 0
) -> tuple[list[Pair], list[Pair]]:
    """Part a data set into training and validation images.

    Args:
        pairs: sorted by name.
        fraction: of the images, in (0, 1), that validate; at least one.
        names: those that validate, instead of a fraction.
        seed: of the draw.

    Returns:
        Training and validation pairs, each sorted by name.

    Raises:
        DataError: a name that is not there, or nothing left to train on.
    """
    if names is not None:
        missing = sorted(set(names) - {pair.name for pair in pairs})
        if missing:
            raise DataError(f"the validation list names {missing[0]}, which the data does not hold")
        chosen = set(names)
    else:
        if not 0 < fraction < 1:
            raise DataError(f"validation fraction {fraction}; allowed is between 0 and 1")
        order = np.random.default_rng(seed).permutation(len(pairs))
        chosen = {pairs[index].name for index in order[: max(1, round(fraction * len(pairs)))]}
    train = [pair for pair in pairs if pair.name not in chosen]
    validation = [pair for pair in pairs if pair.name in chosen]
    if not train or not validation:
        raise DataError(f"{len(pairs)} images part into {len(train)} for training and {len(validation)} for validation")
    return train, validation


def part_touching(labels: Labels) -> npt.NDArray[np.bool_]:
    """(H, W) foreground of a label image in which touching cells are parted by a line of background.

    The line is one pixel of each of the two cells wide.
    """
    foreground = labels > 0
    for axis in (0, 1):
        first = np.swapaxes(labels, 0, axis)[:-1]
        second = np.swapaxes(labels, 0, axis)[1:]
        touch = (first != second) & (first > 0) & (second > 0)
        view = np.swapaxes(foreground, 0, axis)
        view[:-1][touch] = False
        view[1:][touch] = False
    return foreground


def _find_by_stem(folder: Path) -> list[Pair]:
    if (folder / "label").is_dir() and (folder / "instances").is_dir():
        raise DataError(f"{folder} has label/ and instances/ beside image/; move one away")
    kinds: list[Kind] = ["mask", "instances"]
    for kind, name in zip(kinds, ("label", "instances"), strict=True):
        if (folder / name).is_dir():
            images, truths = _by_stem(folder / "image"), _by_stem(folder / name)
            for stem, path in images.items():
                if stem not in truths:
                    raise DataError(f"{path} has no partner {folder / name / stem}.*")
            for stem, path in truths.items():
                if stem not in images:
                    raise DataError(f"{path} has no partner {folder / 'image' / stem}.*")
            return [Pair(stem, images[stem], (truths[stem],), kind) for stem in sorted(images)]
    raise DataError(f"{folder} has image/, but neither label/ nor instances/ beside it")


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in files:
                raise DataError(f"{files[path.stem]} and {path} have one stem; which one is meant?")
            files[path.stem] = path
    if not files:
        raise DataError(f"{folder} holds no images; looked for {', '.join(SUFFIXES)}")
    return files


def _find_volume(volume: Path, labels: Path) -> list[Pair]:
    counts = []
    for path in (volume, labels):
        if not path.is_file():
            raise DataError(f"{path} is missing beside its partner")
        try:
            counts.append(decode_image(path.read_bytes(), page=0).n_pages)
        except ImageError as error:
            raise DataError(f"{path}: {error}") from error
    if counts[0] != counts[1]:
        raise DataError(f"{volume} has {counts[0]} pages, but {labels} has {counts[1]}")
    return [Pair(f"{index:03d}", volume, (labels,), "mask", page=index) for index in range(counts[0])]


def _find_group(folder: Path) -> Pair:
    if not (folder / "images").is_dir():
        raise DataError(f"{folder / 'masks'} has no image: {folder / 'images'} is missing")
    images = list(_by_stem(folder / "images").values())
    if len(images) != 1:
        raise DataError(f"{folder / 'images'} holds {len(images)} images; one is needed")
    if not (folder / "masks").is_dir():
        raise DataError(f"{images[0]} has no masks: {folder / 'masks'} is missing")
    return Pair(folder.name, images[0], tuple(_by_stem(folder / "masks").values()), "cell_masks")


def _single_channel(image: Image, path: Path) -> Image:
    if image.ndim == 2:
        return image
    if (image[:, :, 0] == image[:, :, 1]).all() and (image[:, :, 0] == image[:, :, 2]).all():
        return image[:, :, 0]
    raise DataError(f"{path}: a truth is grey, this one has colours")


def _renumber(truth: Image) -> Labels:
    """The same cells as 1..n, for numbers that a float32 or an int32 cannot tell apart."""
    ids, inverse = np.unique(truth, return_inverse=True)
    first = 0 if ids[0] == 0 else 1
    return (inverse.reshape(truth.shape) + first).astype(np.int32)


def _binary(truth: Image, path: Path) -> Labels:
    values = np.unique(truth)
    if values.size > 2 or (values.size == 2 and values[0] != 0):
        raise DataError(
            f"{path}: a binary mask has 0 and one other value, this one has {values.size} values "
            f"({', '.join(map(str, values[:4]))}...); label images belong into instances/"
        )
    return (truth > 0).astype(np.int32)
