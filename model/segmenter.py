"""An image in; probability, mask and labelled cells out. The library's front door."""

import logging
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from model.bands import cut
from model.checkpoint import Checkpoint, ModelConfig, read_checkpoint
from model.compiled_cache import CompiledCache
from model.errors import SegmentationError, WeightsError
from model.postprocess import DEFAULT_PARTING, Maps, Parting, label_cells, mask_cells, threshold_mask, to_maps
from model.preprocess import Preprocessor, RowReader
from model.quality import PROFILE_KEY, Flag, assess_answer, assess_image, in_order, sample_rows
from model.runtime import Precision, Runtime, choose_device, make_runtime, stack_tiles
from model.tiling import PlaneReader, Stitcher, TileGrid, plan_tiles
from model.twin import TwinFile, read_twin
from model.types import Image, Labels, Logits, Mask, Probability

logger = logging.getLogger("model.segmenter")

# Up to here an image's logits are kept whole; 12 bytes a pixel for three maps.
MAPS_AT_ONCE_PX = 1 << 22


@dataclass(frozen=True)
class Segmentation:
    """The answer for one image; each part is made when it is asked for.

    Attributes:
        maps: what the network said.
        threshold, high_threshold: in [0, 1], that `mask` and `labels` use.
        min_area_px: smallest cell kept, in pixels.
        parting: how `labels` parts touching cells.
        image_quality: what `model.quality.assess_image` says of the image.
    """

    maps: Maps
    threshold: float
    min_area_px: int
    high_threshold: float = 0.0
    parting: Parting = DEFAULT_PARTING
    image_quality: frozenset[Flag] = frozenset()

    @property
    def probability(self) -> Probability:
        """(H, W) float32 in [0, 1]: of being inside a cell."""
        return self.maps.probability

    def labels(self) -> Labels:
        """(H, W) int32: 0 is background, cells are 1..n. The same array each time: copy it to change it."""
        return self._labels

    @cached_property
    def _labels(self) -> Labels:
        return label_cells(
            self.maps,
            threshold=self.threshold,
            high_threshold=self.high_threshold,
            min_area_px=self.min_area_px,
            parting=self.parting,
        )

    def quality(self, *, with_labels: bool = True) -> tuple[Flag, ...]:
        """Signs that the answer may not be trusted, in the order of `model.quality.FLAGS`; none is what one wants.

        Args:
            with_labels: False spares making them where nobody needs them; what is too small or faint counts then, too.
        """
        mask = self.mask() if with_labels else threshold_mask(self.maps.cell, self.threshold)
        n_foreground = int(np.count_nonzero(mask))
        answer = assess_answer(self.maps.cell, threshold=self.threshold, n_foreground=n_foreground)
        return in_order(self.image_quality | answer)

    def mask(self) -> Mask:
        """(H, W) bool: True in a cell; the same pixels that `labels()` numbers, in less time than these take."""
        if "_labels" in self.__dict__:  # they are there already
            mask: Mask = self._labels > 0
            return mask
        return self._mask

    @cached_property
    def _mask(self) -> Mask:
        return mask_cells(
            self.maps,
            threshold=self.threshold,
            high_threshold=self.high_threshold,
            min_area_px=self.min_area_px,
            parting=self.parting,
        )


class MapStitcher(Stitcher):
    """A Stitcher that keeps, of a large image, not the logits but the maps that are made of them.

    Args:
        planes, grid: as there.
        config: says what the logits mean.
        image_quality: goes into the answer.
    """

    def __init__(
        self, planes: PlaneReader, grid: TileGrid, config: ModelConfig, image_quality: Iterable[Flag] = ()
    ) -> None:
        self.image_quality = frozenset(image_quality)
        super().__init__(planes, grid, config.architecture.n_classes)
        self._config = config
        # Small images are left to whoever asks for the maps, so that the thread of the network goes on with the next.
        self._at_once = grid.height * grid.width <= MAPS_AT_ONCE_PX
        self._maps: Maps | None = None

    def maps(self) -> Maps:
        """The maps of the whole image, once complete."""
        if self._at_once:
            return self._to_maps(self.result())
        self._check_complete()
        if self._maps is None:
            raise ValueError("an image without rows")
        return self._maps

    def _finish_rows(self, top: int, logits: Logits) -> None:
        if self._at_once:
            super()._finish_rows(top, logits)
            return
        band = self._to_maps(logits)
        if self._maps is None:
            self._maps = band.empty_like(self.grid.height, self.grid.width)
        self._maps.put(top, band)

    def _to_maps(self, logits: Logits) -> Maps:
        return to_maps(logits, self._config.outputs, self._config.activation)


class Segmenter:
    """A checkpoint on a device.

    Args:
        checkpoint: weights, config and card.
        runtime: runs the network.
        twin: that the runtime runs in int8, with its file's digest.
        twin_error: why the twin beside the weights is not used.

    Example:
        >>> segmenter = load_segmenter(Path("weights/best_model.pth"))  # doctest: +SKIP
        >>> labels = segmenter.segment(image).labels()  # doctest: +SKIP
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        runtime: Runtime,
        *,
        twin: TwinFile | None = None,
        twin_error: str | None = None,
    ) -> None:
        self.runtime = runtime
        self.twin = twin
        self.twin_error = twin_error
        self.config: ModelConfig = checkpoint.config
        self.card: dict[str, Any] = checkpoint.card
        self.version = checkpoint.version

    def start(self, image: Image | RowReader) -> "MapStitcher":
        """Find an image's scale and cut it into tiles, for a caller that runs these itself.

        Args:
            image: in memory, or one whose rows are read as its tiles are.

        Raises:
            ImageError: a shape or dtype that is not allowed.
        """
        channels = self.config.architecture.n_channels
        planes = Preprocessor(image, n_channels=channels, normalisation=self.config.normalisation)
        grid = plan_tiles(planes.shape[1], planes.shape[2], self.config.tile_px)
        seen = image if isinstance(image, np.ndarray) else sample_rows(image.read_rows, image.height)
        return MapStitcher(planes, grid, self.config, assess_image(seen, self.card.get(PROFILE_KEY)))

    def finish(
        self,
        stitcher: "MapStitcher",
        *,
        threshold: float | None = None,
        high_threshold: float | None = None,
        min_area_px: int | None = None,
    ) -> Segmentation:
        """Turn the collected logits into an answer; None takes the value of the checkpoint, as `segment` does."""
        answer = self.read(stitcher.maps(), threshold=threshold, high_threshold=high_threshold, min_area_px=min_area_px)
        return replace(answer, image_quality=stitcher.image_quality)

    def read(
        self,
        maps: Maps,
        *,
        threshold: float | None = None,
        high_threshold: float | None = None,
        min_area_px: int | None = None,
    ) -> Segmentation:
        """What the maps of an image mean; None takes the value of the checkpoint, as `segment` does."""
        return Segmentation(
            maps=maps,
            threshold=self.config.threshold if threshold is None else threshold,
            high_threshold=self.config.high_threshold_at(threshold) if high_threshold is None else high_threshold,
            min_area_px=self.config.min_area_px if min_area_px is None else min_area_px,
            parting=self.config.parting,
        )

    def segment(
        self,
        image: Image | RowReader,
        *,
        threshold: float | None = None,
        high_threshold: float | None = None,
        min_area_px: int | None = None,
    ) -> Segmentation:
        """Segment one image of any size.

        Args:
            image: (H, W) or (H, W, 1, 3 or 4), bool, integer or float; colour as R, G, B[, A]. In memory, or one whose
                rows are read as its tiles are, such as model.images.open_image returns.
            threshold: in [0, 1]; None takes the checkpoint's.
            high_threshold: in [0, 1]; connected foreground that nowhere reaches it is dropped. None takes what goes
                with the threshold, see ModelConfig.high_threshold_at.
            min_area_px: smallest cell to keep, in pixels; None takes the checkpoint's.

        Raises:
            ImageError: a shape or dtype that is not allowed.
            SegmentationError: the network answered with NaN or infinity.
            MemoryError: there is no room for a pass.
        """
        stitcher = self.start(image)
        step = self.runtime.batch_tiles
        batches = [range(some.start, some.stop) for some in cut(len(stitcher.grid), step)]
        if len(batches) == 1 or self.runtime.streams == 1:
            for indices in batches:
                self._add(stitcher, indices, self._run(stitcher, indices, alone=True))
        else:
            with ThreadPoolExecutor(self.runtime.streams) as threads:
                passes: deque[tuple[range, Future[Logits]]] = deque()
                for indices in batches:
                    passes.append((indices, threads.submit(self._run, stitcher, indices)))
                    if len(passes) > self.runtime.streams:  # no more: each holds its logits
                        self._add(stitcher, passes[0][0], passes.popleft()[1].result())
                while passes:
                    self._add(stitcher, passes[0][0], passes.popleft()[1].result())
        return self.finish(stitcher, threshold=threshold, high_threshold=high_threshold, min_area_px=min_area_px)

    def _run(self, stitcher: Stitcher, indices: range, *, alone: bool = False) -> Logits:
        logits = self.runtime.run(stack_tiles([stitcher.tile(index) for index in indices]), alone=alone)
        if not np.isfinite(logits).all():  # would pass for an image without a cell
            raise SegmentationError("the network answered with NaN or infinity")
        return logits

    def _add(self, stitcher: Stitcher, indices: range, logits: Logits) -> None:
        for index, tile_logits in zip(indices, logits, strict=True):
            stitcher.add(index, tile_logits)

    def warm_up(self) -> None:
        """Run each tile size once, so that the first user waits for nothing, and see that the network works.

        Where memory is short, passes become smaller from now on.

        Raises:
            WeightsError: it answers with NaN or infinity, or says the same of every pixel of every picture.
            MemoryError: there is no room for a single tile.
        """
        while True:
            try:
                self._try_out()
                return
            except MemoryError:
                if self.runtime.batch_tiles == 1:
                    raise
            self.runtime.batch_tiles //= 2
            logger.warning("out of memory: %d tiles a pass on %s", self.runtime.batch_tiles, self.runtime.device)

    def _try_out(self) -> None:
        generator = np.random.default_rng(0)
        channels = self.config.architecture.n_channels
        for side in self.config.tile_px:
            batch = generator.random((1, channels, side, side), dtype=np.float32)
            if self.config.normalisation == "raw":
                batch *= 255
            logits = self.runtime.run(batch, alone=True)
            if not np.isfinite(logits).all():
                raise WeightsError("the network answers a test picture with NaN or infinity")
            if not np.ptp(logits, axis=(0, 2, 3)).any():  # of each of its maps
                raise WeightsError("the network gives one and the same value for every pixel of a test picture")


def load_segmenter(
    path: Path,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    batch_tiles: int = 0,
    streams: int = 0,
    threads: int = 0,
    cache: CompiledCache | None = None,
) -> Segmenter:
    """Read weights and put them on a device.

    Args:
        path: a Maskwell checkpoint, or a bare state dict of a known U-Net.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto` (float16 on a GPU; on a CPU int8 where the weights have a twin that fits, else float32),
            `fp32`, `fp16` (GPU alone), `bf16` or `int8` (CPU alone).
        batch_tiles: tiles in a pass; 0 takes what suits the device.
        streams: passes under way at a time; 0 takes what suits the device.
        threads: cores of a CPU to use; 0 takes all that the process may use.
        cache: keeps compiled networks from one start to the next.

    Raises:
        WeightsError: the file cannot be used, or the device is not there; or int8 was asked for and there is no twin
            that fits.
    """
    checkpoint = read_checkpoint(path)
    make = partial(
        make_runtime,
        checkpoint,
        device=device,
        batch_tiles=batch_tiles,
        streams=streams,
        threads=threads,
        cache=cache,
    )
    twin_error = None
    if precision in ("auto", "int8") and choose_device(device).type == "cpu":
        try:
            twin = read_twin(path, checkpoint.version)
            if twin is not None:
                return Segmenter(checkpoint, make(precision="int8", twin=twin.twin), twin=twin)
        except WeightsError as error:
            if precision == "int8":
                raise
            twin_error = str(error)
    return Segmenter(checkpoint, make(precision=precision), twin_error=twin_error)
