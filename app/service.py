"""From uploads to results: admission, decoding, the network, encoding, in that order; knows no HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from app.admission import Admission, Reservation
from app.archive import Entry, to_unique_stems, write_archive
from app.batcher import Batcher
from app.errors import DeadlineExceededError, RequestError, UploadTooLargeError, WeightsRefusedError, to_problem
from app.keys import KeyRing
from app.lanes import Lane
from app.lifecycle import Lifecycle
from app.metrics import SAMPLE_S, Metrics
from app.notes import current_notes
from app.patience import Patience, TooSlowError
from app.peers import Beat, Peers
from app.rates import PIXELS, RateLimit, rates_of
from app.registry import Model, Registry
from app.schemas import FileProblem, PreviewQuery, SegmentQuery, Status
from app.settings import Settings
from app.tracing import Tracing
from app.uploads import Upload, UploadBudget
from model.errors import ImageTooLargeError, SegmentationError
from model.images import ImageHeader, encode_png, inspect_image, inspect_quickly, open_image, to_display
from model.outputs import NEEDS_IMAGE, QUALITY, SUFFIXES, PlaneParts, encode_output, encode_plane, join_planes
from model.quality import Flag, describe_quality, in_order
from model.segmenter import MapStitcher, Segmentation
from model.source import ImageSource, PixelSize
from model.tiling import plan_tiles
from model.types import Image

logger = logging.getLogger("app.service")
T = TypeVar("T")

# Images up to this part of max_pixels never wait for a larger one to be decoded, nor for a thread busy with one.
SMALL_PART = 16
# Images beyond this are read row by row as their tiles are run, where the file allows it, and never decoded as a whole.
BY_ROWS_PX = 1 << 24
# How often the keys file is looked at, in seconds, unless weights are looked for more often.
KEYS_POLL_S = 2.0
# Longest that a look at it may take before the log says so.
KEYS_DEADLINE_S = 30.0
# Files of one batch under way at a time: it keeps the engine busy and leaves turns to the others.
BATCH_WINDOW = 4


@dataclass(frozen=True)
class Timing:
    """Where the time of a request went, in seconds; `queue` is all waiting."""

    queue: float = 0.0
    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(
            self.queue + other.queue, self.decode + other.decode, self.infer + other.infer, self.encode + other.encode
        )


@dataclass(frozen=True)
class Result:
    """An encoded answer.

    Attributes:
        body: a picture, GeoJSON, CSV or zip.
        media_type: of the body.
        provenance: what made it and whether to trust it, by header name; the former also inside the file.
        timing: where the time went; of a batch, the sum over its files.
        quality: the signs that `provenance` tells of; of a batch, those of any file.
    """

    body: bytes
    media_type: str
    provenance: dict[str, str]
    timing: Timing
    quality: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class _Prepared:
    stitcher: MapStitcher
    image: Image | None  # kept where the result shows it
    pixel_size: PixelSize | None
    seconds: float


@dataclass(frozen=True)
class _Encoded:
    body: bytes
    media_type: str
    provenance: dict[str, str]
    quality: tuple[Flag, ...]


class Service:
    """Everything that lives as long as the process.

    Args:
        settings: read once.
        peers: the line to the other workers; None where this process is the only one.
    """

    def __init__(self, settings: Settings, peers: Peers | None = None) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.admission = Admission(max_pixels=settings.max_queue_pixels, max_requests=settings.max_queue_requests)
        self.keys = KeyRing(settings)
        self.metrics = Metrics()
        self.tracing = Tracing() if settings.tracing else None
        self.peers = peers
        self.batcher = Batcher(
            batch_wait_ms=settings.batch_wait_ms,
            observe=self.admission.observe,
            pass_timeout_s=settings.pass_timeout_s,
            note_pass=self.metrics.note_pass,
        )
        self.registry = Registry(
            settings,
            self.admission.throughput.observe,
            note_reload=self.metrics.note_reload,
            on_swap=peers.tell_of_change if peers else lambda: None,
        )
        self.uploads = UploadBudget(settings.max_held_upload_bytes, self.admission.estimate_wait_s)
        self._pixel_rate = RateLimit(PIXELS, rates_of(settings)[PIXELS], peers.folder if peers else None)
        self._small_px = max(settings.max_pixels // SMALL_PART, 1)
        self._small = Lane("codec", threads=settings.codec_thread_count, max_pixels=settings.max_pixels)
        self._large = Lane("codec-large", threads=1, max_pixels=settings.max_pixels)

    @property
    def status(self) -> Status:
        """What the probes go by."""
        if self.lifecycle.leaving:
            return "draining"
        if self.lifecycle.state == "starting":
            return "starting"
        return "ready" if self.batcher.alive else "failed"

    def watch(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run beside the requests, for as long as they are served."""
        works = [self._sample()] if self.metrics.shared else []
        if self.settings.reload_poll_s > 0:
            works.append(self.registry.watch())
        if self.settings.keys_file is not None:
            works.append(self._watch_keys())
        return works

    async def _watch_keys(self) -> None:
        patience = Patience(KEYS_DEADLINE_S, "keys")  # a share that does not answer holds up no request
        while True:  # also where nobody looks for weights: a key that was taken away must not live on
            await asyncio.sleep(min(self.settings.reload_poll_s or KEYS_POLL_S, KEYS_POLL_S))
            if patience.stuck:  # one look at a time, or an older one that ends later would bring old keys back
                continue
            try:
                await patience.call(self.keys.refresh)
            except TooSlowError:
                logger.error("MASKWELL_KEYS_FILE does not answer; the keys before stay in force until it does")
            except Exception:  # no room for a thread, say: the next look may have it
                logger.exception("could not look at the keys file")

    async def _sample(self) -> None:
        while True:  # what another worker process shows of this one is no older
            self.metrics.sample(self)
            await asyncio.sleep(SAMPLE_S)

    def close(self) -> None:
        """Stop all threads."""
        if self.tracing is not None:
            self.tracing.close()
        self.batcher.close()
        self._small.close()
        self._large.close()
        self.registry.close()

    def beat(self) -> Beat:
        """What the other workers are told of this one."""
        return Beat(self.status, {model.name: model.version for model in self.registry.models})

    async def look(self) -> None:
        """Another worker has found new weights."""
        await self.registry.poll()

    async def adopt(self, model: str, version: str) -> str | None:
        """Another worker was told to load a model again; serve the same version, or say why not."""
        try:
            await self.registry.adopt(model, version)
        except RequestError as error:
            return str(error)
        return None

    async def reload(self, name: str) -> Model:
        """Load a model again, in every worker.

        Raises:
            UnknownModelError: neither a model nor a file of weights has that name.
            WeightsRefusedError: the file cannot be used; the old model keeps serving.
        """
        model = await self.registry.reload(name)
        if self.peers is not None:
            errors = await self.peers.spread(name, model.version)
            if errors:
                raise WeightsRefusedError(
                    f"one worker serves version {model.version[:12]} now, {len(errors)} could not follow: {errors[0]}"
                )
        return model

    async def segment(self, upload: Upload, query: SegmentQuery, model: Model) -> Result:
        """Segment one image.

        Raises:
            ImageError: of any kind.
            RequestError: the queue is full, the deadline passed, ...
        """
        header = await self._inspect(upload, query, several=query.several)
        self._check_size(header)
        with self._admit(header.pixels, _work_px(model, header)) as reservation:
            return await self._process(upload, header, query, model, reservation)

    async def segment_batch(self, uploads: Sequence[Upload], query: SegmentQuery, model: Model) -> Result:
        """Segment several images into a zip; those refused stand in its errors.json.

        Raises:
            QueueFullError: no room for the batch as a whole.
        """
        problems: dict[int, Exception] = {}
        headers = await self._inspect_all(uploads, query, problems)
        pixels = sum(header.pixels for header in headers.values())
        work_px = sum(_work_px(model, header) for header in headers.values())
        window = asyncio.Semaphore(BATCH_WINDOW)
        results: dict[int, Result] = {}
        with self._admit(pixels, work_px) as reservation:

            async def process(index: int) -> None:
                async with window:
                    try:
                        results[index] = await self._process(
                            uploads[index], headers[index], query, model, reservation, window=1
                        )
                    except Exception as error:
                        problems[index] = error

            async with asyncio.TaskGroup() as group:
                for index in headers:
                    group.create_task(process(index))
            stems = to_unique_stems(upload.name for upload in uploads)
            entries = [
                Entry(f"{stems[index]}_{query.output}{SUFFIXES[result.media_type]}", result.body, result.provenance)
                for index, result in sorted(results.items())
            ]
            listed = [_to_file_problem(uploads[index].name, index, problems[index]) for index in sorted(problems)]
            for item in listed:
                self.metrics.files_refused.labels(item.problem.code).inc()
            started_at = time.perf_counter()
            provenance = _provenance(model, _threshold(query, model))
            body = await self._large.run(write_archive, entries, listed, {"Software": "Maskwell", **provenance})
            current_notes().add_stage("encode", time.perf_counter() - started_at)
            timing = sum((result.timing for result in results.values()), Timing())
            timing += Timing(encode=time.perf_counter() - started_at)
        flags = in_order(flag for result in results.values() for flag in result.quality)
        said = {**provenance, QUALITY: describe_quality(flags)} if results else provenance
        return Result(body, "application/zip", said, timing, flags)

    async def preview(self, upload: Upload, query: PreviewQuery) -> Result:
        """The picture in 8 bits, as a browser can show it; the network is not asked.

        Raises:
            ImageError: of any kind.
            RequestError: the queue is full, the deadline passed.
        """
        started_at = time.perf_counter()
        header = await self._inspect(upload, query, several=False)
        self._check_size(header)
        pixels = header.pixels
        lane = self._lane(pixels)
        with self._admit(pixels, work_px=0):
            async with self._room(lane, header.height * header.width):
                body, timing = await lane.run(_draw_preview, upload.data, self.settings.max_pixels, query)
        ended_at = time.perf_counter()
        queue_s = max(ended_at - started_at - timing.decode - timing.encode, 0.0)
        notes = current_notes()
        notes.pixels += pixels
        notes.add_stage("queue", queue_s, started_at + queue_s)
        notes.add_stage("decode", timing.decode, ended_at - timing.encode)
        notes.add_stage("encode", timing.encode, ended_at)
        return Result(body, "image/png", {}, timing + Timing(queue=queue_s))

    @contextmanager
    def _admit(self, pixels: int, work_px: int) -> Iterator[Reservation]:
        """Let a request in for the time of the block, if there is room and its client has not had too much."""
        with self.admission.reserve(pixels, work_px) as reservation:
            self._pixel_rate.charge(current_notes().client, pixels)
            yield reservation

    def _check_size(self, header: ImageHeader) -> None:
        if header.pixels > self._most_pixels:
            raise ImageTooLargeError(
                f"{header.n_read} planes of {header.width} x {header.height} px = {header.pixels:,} pixels; at most "
                f"{self._most_pixels:,} in one request: send fewer by page= or channel="
            )

    @property
    def _most_pixels(self) -> int:
        """Of all planes of a request together."""
        return max(self.settings.max_queue_pixels, self.settings.max_pixels)

    async def _inspect(self, upload: Upload, query: SegmentQuery | PreviewQuery, *, several: bool) -> ImageHeader:
        max_pixels = self.settings.max_pixels
        selection = query.selection()
        header = inspect_quickly(upload.data, selection, max_pixels=max_pixels)
        if header is not None:
            return header
        return await self._small.run(inspect_image, upload.data, selection, max_pixels=max_pixels, several=several)

    async def _inspect_all(
        self, uploads: Sequence[Upload], query: SegmentQuery, problems: dict[int, Exception]
    ) -> dict[int, ImageHeader]:
        """Headers by index of what can be taken on; the rest goes into `problems`."""
        headers: dict[int, ImageHeader] = {}
        pixels = 0
        for index, upload in enumerate(uploads):
            try:
                header = await self._inspect(upload, query, several=query.several)
            except SegmentationError as error:
                problems[index] = error
                continue
            if pixels + header.pixels > self._most_pixels:
                problems[index] = UploadTooLargeError(
                    f"with this image the batch has more than {self._most_pixels:,} pixels, which is the most allowed"
                )
                continue
            pixels += header.pixels
            headers[index] = header
        return headers

    async def _process(
        self,
        upload: Upload,
        header: ImageHeader,
        query: SegmentQuery,
        model: Model,
        reservation: Reservation,
        *,
        window: int = BATCH_WINDOW,
    ) -> Result:
        """Segment a file; of several planes `window` are under way at a time."""
        notes = current_notes()
        notes.model, notes.model_version = model.name, model.version
        if header.n_planes == 1:
            prepare = partial(_prepare, upload.data, self.settings.max_pixels, query, model)
            encode = partial(_encode, query=query, model=model)
            encoded, timing = await self._run_plane(header, prepare, encode, model, reservation)
        else:
            encoded, timing = await self._process_planes(upload, header, query, model, reservation, window)
        notes.pixels += header.pixels
        self.metrics.images.labels(model.name).inc()
        self.metrics.image_pixels.labels(model.name).inc(header.pixels)
        notes.quality.update(encoded.quality)
        for flag in encoded.quality:
            self.metrics.quality_flags.labels(model.name, flag).inc()
        headers = {**encoded.provenance, QUALITY: describe_quality(encoded.quality)}
        return Result(encoded.body, encoded.media_type, headers, timing, encoded.quality)

    async def _process_planes(
        self,
        upload: Upload,
        header: ImageHeader,
        query: SegmentQuery,
        model: Model,
        reservation: Reservation,
        window: int,
    ) -> tuple[_Encoded, Timing]:
        """Each plane as a picture of its own; what is kept of one is its part of the answer, compressed."""
        max_pixels = self.settings.max_pixels
        source = await self._small.run(
            open_image, upload.data, query.selection(), max_pixels=max_pixels, several=query.several
        )
        parts: dict[int, PlaneParts] = {}
        timing = Timing()
        waiting = iter(range(header.n_planes))

        async def work() -> None:
            nonlocal timing
            for plane in waiting:  # shared: each worker takes the next
                prepare = partial(_prepare_plane, source, plane, query, model)
                encode = partial(_encode_plane, query=query, model=model)
                parts[plane], spent = await self._run_plane(header, prepare, encode, model, reservation)
                timing += spent

        with source:
            workers = [asyncio.create_task(work()) for _ in range(min(window, header.n_planes))]
            try:
                await asyncio.gather(*workers)
            finally:  # where one fails, or the client has left, the others are not waited for in vain
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
            started_at = time.perf_counter()
            encoded = await self._large.run(_join, source, parts, query, model)
            encode_s = time.perf_counter() - started_at
        current_notes().add_stage("encode", encode_s)
        return encoded, timing + Timing(encode=encode_s)

    async def _run_plane(
        self,
        header: ImageHeader,
        prepare: Callable[[], _Prepared],
        encode: Callable[[_Prepared], tuple[T, float]],
        model: Model,
        reservation: Reservation,
    ) -> tuple[T, Timing]:
        """Decode, segment and encode a plane, in its turn."""
        started_at = time.perf_counter()
        deadline_s = self.settings.deadline_s
        pixels = header.height * header.width
        lane = self._lane(header.pixels // header.n_planes)
        notes = current_notes()
        async with self._room(lane, pixels):
            prepared = await lane.run(prepare)
            prepared_at = time.perf_counter()
            notes.add_stage("queue", prepared_at - started_at - prepared.seconds, prepared_at - prepared.seconds)
            notes.add_stage("decode", prepared.seconds, prepared_at)
            try:
                infer_s = await self.batcher.infer(
                    model.segmenter, prepared.stitcher, reservation, wait_s=deadline_s - (prepared_at - started_at)
                )
            except DeadlineExceededError:
                raise _too_late(deadline_s) from None
            inferred_at = time.perf_counter()
            notes.add_stage("queue", inferred_at - prepared_at - infer_s, inferred_at - infer_s)
            notes.add_stage("infer", infer_s, inferred_at)
            encoded, encode_s = await lane.run(encode, prepared)
            notes.add_stage("encode", encode_s)
        spent_s = prepared.seconds + infer_s + encode_s
        queue_s = max(time.perf_counter() - started_at - spent_s, 0.0)
        return encoded, Timing(queue_s, prepared.seconds, infer_s, encode_s)

    def _lane(self, pixels: int) -> Lane:
        return self._small if pixels <= self._small_px else self._large

    @asynccontextmanager
    async def _room(self, lane: Lane, pixels: int) -> AsyncIterator[None]:
        """Wait for room in a lane, no longer than the deadline, and keep it for the time of the block."""
        deadline_s = self.settings.deadline_s
        room = lane.room(pixels)
        try:
            async with asyncio.timeout(deadline_s):
                await room.__aenter__()
        except TimeoutError:
            raise _too_late(deadline_s) from None
        try:
            yield
        finally:
            await room.__aexit__(None, None, None)


def _too_late(deadline_s: float) -> DeadlineExceededError:
    return DeadlineExceededError(f"the image waited {deadline_s:g} s, which is the longest allowed")


def _prepare(data: bytes, max_pixels: int, query: SegmentQuery, model: Model) -> _Prepared:
    started_at = time.perf_counter()
    source = open_image(data, query.selection(), max_pixels=max_pixels)
    large = source.height * source.width > BY_ROWS_PX
    if large and source.by_rows and query.output not in NEEDS_IMAGE:  # stays open, and holds nothing but the upload
        return _Prepared(model.segmenter.start(source), None, source.pixel_size, time.perf_counter() - started_at)
    with source:
        return _prepare_plane(source, 0, query, model, started_at)


def _prepare_plane(
    source: ImageSource, plane: int, query: SegmentQuery, model: Model, started_at: float | None = None
) -> _Prepared:
    started_at = time.perf_counter() if started_at is None else started_at
    image = source.read(plane)
    stitcher = model.segmenter.start(image)
    kept = image if query.output in NEEDS_IMAGE else None
    return _Prepared(stitcher, kept, source.pixel_size, time.perf_counter() - started_at)


def _draw_preview(data: bytes, max_pixels: int, query: PreviewQuery) -> tuple[bytes, Timing]:
    started_at = time.perf_counter()
    with open_image(data, query.selection(), max_pixels=max_pixels) as source:
        image = source.read()
    decoded_at = time.perf_counter()
    body = encode_png(to_display(image), {"Software": "Maskwell"})
    return body, Timing(decode=decoded_at - started_at, encode=time.perf_counter() - decoded_at)


def _encode(prepared: _Prepared, query: SegmentQuery, model: Model) -> tuple[_Encoded, float]:
    started_at = time.perf_counter()
    segmentation = _finish(prepared, query, model)
    size = prepared.pixel_size
    provenance = _provenance(model, segmentation.threshold, size)
    body, media_type = encode_output(
        query.output, segmentation, prepared.image, provenance, file_format=query.format or "png", pixel_size=size
    )
    flags = segmentation.quality(with_labels=query.output != "probability")
    return _Encoded(body, media_type, provenance, flags), time.perf_counter() - started_at


def _finish(prepared: _Prepared, query: SegmentQuery, model: Model) -> Segmentation:
    return model.segmenter.finish(
        prepared.stitcher,
        threshold=query.threshold,
        high_threshold=query.high_threshold,
        min_area_px=query.min_area_px,
    )


def _encode_plane(prepared: _Prepared, query: SegmentQuery, model: Model) -> tuple[PlaneParts, float]:
    started_at = time.perf_counter()
    segmentation = _finish(prepared, query, model)
    parts = encode_plane(query.output, segmentation, prepared.image, pixel_size=prepared.pixel_size)
    return parts, time.perf_counter() - started_at


def _join(source: ImageSource, parts: Mapping[int, PlaneParts], query: SegmentQuery, model: Model) -> _Encoded:
    provenance = _provenance(model, _threshold(query, model), source.pixel_size)
    planes = [parts[plane] for plane in range(source.n_planes)]
    body, media_type = join_planes(
        query.output, planes, provenance, axes=source.axes, sizes=source.sizes, pixel_size=source.pixel_size
    )
    return _Encoded(body, media_type, provenance, in_order(flag for plane in planes for flag in plane.quality))


def _provenance(model: Model, threshold: float, pixel_size: PixelSize | None = None) -> dict[str, str]:
    text = {"X-Model": model.name, "X-Model-Version": model.version, "X-Threshold": f"{threshold:.6g}"}
    return text if pixel_size is None else {**text, "X-Pixel-Size-Um": str(pixel_size)}


def _threshold(query: SegmentQuery, model: Model) -> float:
    return model.segmenter.config.threshold if query.threshold is None else query.threshold


def _work_px(model: Model, header: ImageHeader) -> int:
    return header.n_planes * plan_tiles(header.height, header.width, model.segmenter.config.tile_px).pixels


def _to_file_problem(name: str, index: int, error: Exception) -> FileProblem:
    if not isinstance(error, RequestError | SegmentationError):
        logger.error("unforeseen error on file %d of a batch", index, exc_info=error)
    problem, _ = to_problem(error, current_notes().request_id)
    return FileProblem(file=name, index=index, problem=problem)
