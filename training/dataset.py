"""Pairs in memory, and the samples of a step: a function of seed, epoch and position alone, so that runs can resume."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from model.checkpoint import ModelConfig
from model.preprocess import preprocess
from model.quality import describe_intensity
from model.types import Image, Labels, Planes
from model.unet import STRIDE
from training.augment import Augmenter
from training.config import Recipe
from training.data import Pair
from training.errors import RunError
from training.targets import make_targets

# Decoded images are kept up to this many bytes in all; those beyond are read again each time.
CACHE_BYTES = 4 * 1024**3
# Stained tissue's channels differ by more than this many grey levels of 255 on average; a camera's noise does not.
COLOUR_LEVELS = 8
# Apart from the laps' seeds, which are short.
DRAWS = 1


class PairCache:
    """Reads each pair once, keeping what fits; a broken file is found before training starts.

    Args:
        pairs: to be read now; kept as `pairs`, what kind of picture each seems to be as `looks`, and what is in it as
            `digests`, and how bright it is as `intensities` (model/quality.py).
        quiet: no progress bar.

    Raises:
        DataError: from Pair.read.
    """

    def __init__(self, pairs: Sequence[Pair], *, quiet: bool = False) -> None:
        self.pairs = list(pairs)
        self._kept: dict[int, tuple[Image, Labels]] = {}
        self.largest_side = 0
        self.looks: list[str] = []
        self._areas: list[int] = []
        held = 0
        self.digests: list[str] = []
        self.intensities: list[npt.NDArray[np.float64]] = []
        digest = hashlib.sha256()
        for index, pair in enumerate(tqdm(self.pairs, desc="reading", unit="image", disable=quiet or None)):
            image, labels = pair.read()
            self.largest_side = max(self.largest_side, *labels.shape)
            self.looks.append(_look(image))
            self._areas.append(labels.size)
            held += image.nbytes + labels.nbytes
            self.digests.append(image_digest(image))
            self.intensities.append(describe_intensity(image))
            digest.update(image.tobytes())
            digest.update(labels.tobytes())
            if held <= CACHE_BYTES:
                self._kept[index] = image, labels
        self.digest = digest.hexdigest()  # of all pixels: names alone do not tell two data sets apart

    def __len__(self) -> int:
        return len(self.pairs)

    def shares(self) -> npt.NDArray[np.float64]:
        """(n,) how often to draw each image, of 1 in all: each look by the root of its count, large images by theirs.

        Between an even draw of images, in which rare kinds are hardly seen, and one of kinds, in which a few images
        are seen all the time.
        """
        looks = np.array(self.looks)
        shares = np.sqrt(np.array(self._areas, dtype=np.float64))
        for look, count in zip(*np.unique(looks, return_counts=True), strict=True):
            shares[looks == look] *= np.sqrt(count) / shares[looks == look].sum()
        balanced: npt.NDArray[np.float64] = shares / shares.sum()
        return balanced

    def __getitem__(self, index: int) -> tuple[Image, Labels]:
        kept = self._kept.get(index)
        return self.pairs[index].read() if kept is None else kept


def image_digest(image: Image) -> str:
    """Tells an image's pixels from all others', whatever its file is called; 16 hex digits."""
    return hashlib.sha256(f"{image.shape} {image.dtype} ".encode() + image.tobytes()).hexdigest()[:16]


class CropDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples for training.

    Args:
        cache: the training pairs.
        recipe: crop, augmentation and seed.
        config: channels, normalisation and outputs of the network.
        plain: add to each image the same crop as it was, for a teacher (training.augment).

    A key is (epoch, position): which image and which crop of it follow from these and the recipe's seed alone.
    """

    def __init__(self, cache: PairCache, recipe: Recipe, config: ModelConfig, *, plain: bool = False) -> None:
        self._cache = cache
        self._recipe = recipe
        self._config = config
        self._plain = plain
        self._augment = Augmenter(recipe)
        self._ends = np.cumsum(cache.shares()) if recipe.balance else None
        self.samples_per_epoch = recipe.crops_per_epoch or len(cache)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(C, S, S) image, or (2 C, S, S) with the plain one, and (K, S, S) targets, float32."""
        epoch, position = key
        seed = int(np.random.SeedSequence([self._recipe.seed, epoch, position]).generate_state(1)[0])
        image, labels = self._cache[self._image_index(epoch, position)]
        planes = preprocess(
            image,
            n_channels=self._config.architecture.n_channels,
            normalisation=self._config.normalisation,
        )
        planes, labels = self._augment(planes, labels, seed=seed, plain=self._plain)
        targets = make_targets(labels, self._config.outputs)
        planes, targets = _pad_to_stride(planes), _pad_to_stride(targets)
        return torch.from_numpy(planes), torch.from_numpy(targets)

    def _image_index(self, epoch: int, position: int) -> int:
        """A draw by shares; or else through all images in a new random order, again and again."""
        number = epoch * self.samples_per_epoch + position
        if self._ends is not None:
            draw = np.random.default_rng([self._recipe.seed, DRAWS, number]).random()
            return min(int(np.searchsorted(self._ends, draw, side="right")), len(self._cache) - 1)
        lap, place = divmod(number, len(self._cache))
        return int(np.random.default_rng([self._recipe.seed, lap]).permutation(len(self._cache))[place])


class BatchKeys(Sampler[list[tuple[int, int]]]):
    """The keys of each step of an epoch, for one of several devices.

    Args:
        samples, batch_size: of an epoch and of a step, over all devices together; a last short batch is left out,
            unless it is the only one.
        rank, world: which device this is, of how many; each takes its share of every batch.

    Raises:
        RunError: the devices cannot share a batch evenly.
    """

    def __init__(self, samples: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        self.steps = max(1, samples // batch_size)
        self.epoch = 0
        self.first_step = 0
        self.batch_size = min(batch_size, samples)
        self._rank, self._world = rank, world
        if self.batch_size % world:
            # one without a sample would crash, and one with fewer would count for more
            raise RunError(f"batches of {self.batch_size} samples for {world} devices; each takes as many of them")

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.steps):
            first = step * self.batch_size
            yield [(self.epoch, first + index) for index in range(self._rank, self.batch_size, self._world)]


def _look(image: Image) -> str:
    """What kind of picture it seems to be: grey or colour, on dark or bright ground."""
    # every fourth pixel of every fourth row tells enough
    pixels = image[::4, ::4].astype(np.float32)
    colour = False
    if pixels.ndim == 3:
        pixels = pixels[:, :, :3]
        full = 255.0 if image.dtype == np.uint8 else max(float(pixels.max()), 1e-9)
        colour = float(np.ptp(pixels, axis=2).mean()) > COLOUR_LEVELS / 255 * full
        pixels = pixels.mean(axis=2)
    low, middle, high = np.percentile(pixels, (1, 50, 99))
    return f"{'colour' if colour else 'grey'}, {'bright' if middle > (low + high) / 2 else 'dark'}"


def _pad_to_stride(planes: Planes) -> Planes:
    bottom, right = -planes.shape[1] % STRIDE, -planes.shape[2] % STRIDE
    if not bottom and not right:
        return planes
    return np.pad(planes, ((0, 0), (0, bottom), (0, right)), mode="reflect")
