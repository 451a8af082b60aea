"""The threads that run the network: tiles of all waiting images, in turns, in batches. Knows no HTTP and no files.

What it promises, each with a test:

- Every image gets an answer, whatever the network does.
- Images take turns: one batch after another, a tile from each in order, so a small image never waits for a large one
  for more than one batch. A thread takes a further tile of an image under way only if no other image waits.
- Tiles of one image are blended in order, whatever else was in the batch: the same bytes alone and in company.
- An image whose tile cannot be read fails alone, and changes nothing for the others.
- A pass that fails is tried again image by image, so that only the one to blame fails; one that finds no memory is
  tried again in halves.
- An image that is withdrawn leaves the queue.
- A pass that does not end is noticed: everyone is told, and nobody is let in until it does end.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from app.admission import Reservation
from app.errors import DeadlineExceededError, DrainingError, InferenceError, NotReadyError, OutOfMemoryError
from model import Segmenter
from model.runtime import Runtime, stack_tiles
from model.tiling import Stitcher
from model.types import Batch, Logits, Planes

logger = logging.getLogger("app.batcher")

# Passes of one image that may have begun, for each stream, before its earliest tile is back.
AHEAD = 2
# How often guard() looks; a hung pass is noticed so much later than it could be.
GUARD_S = 0.5


@dataclass(eq=False)
class _Job:
    """An image on its way through the network.

    Attributes:
        next_index: tile that the next pass takes.
        early: logits of tiles that came back before an earlier one, by index.
        lock: of `early`, the stitcher, and being settled.
    """

    segmenter: Segmenter
    stitcher: Stitcher
    reservation: Reservation
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    queued_at: float
    next_index: int = 0
    added: int = 0
    early: dict[int, Logits] = field(default_factory=dict)
    started_at: float | None = None
    withdrawn: bool = False
    settled: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def kind(self) -> tuple[int, int]:
        """Tiles of one kind may share a batch: same network, same size."""
        return id(self.segmenter), self.stitcher.grid.side

    @property
    def waiting_tiles(self) -> int:
        """Tiles that no pass has begun on."""
        return 0 if self.settled else len(self.stitcher.grid) - self.next_index

    def may_take(self, index: int) -> bool:
        """Whether a pass may take that tile: there is one, and it is not so far ahead that answers would pile up."""
        runtime = self.segmenter.runtime
        return index < len(self.stitcher.grid) and index < self.added + AHEAD * runtime.streams * runtime.batch_tiles


@dataclass(frozen=True)
class _Pick:
    job: _Job
    index: int


@dataclass(frozen=True)
class _Batch:
    """A pass: its tiles, the images that they are of, and whether no other pass is under way or due."""

    picks: list[_Pick]
    jobs: list[_Job]
    alone: bool


class Batcher:
    """The engine's threads and their queue.

    Args:
        batch_wait_ms: longest time a tile waits for company in a batch that is not full.
        pass_timeout_s: longest time that one pass may take before the engine counts as hung.
        observe: called from a thread after each pass with the pixels that it computed.
        note_pass: called likewise with its tiles, the tiles that there was room for, and its seconds.
    """

    def __init__(
        self,
        *,
        batch_wait_ms: float,
        observe: Callable[[int], None],
        pass_timeout_s: float = math.inf,
        note_pass: Callable[[int, int, float], None] = lambda *_: None,
    ) -> None:
        self._batch_wait_s = batch_wait_ms / 1000
        self._pass_timeout_s = pass_timeout_s
        self._pass_began_at: dict[int, float] = {}  # by thread
        self._observe = observe
        self._note_pass = note_pass
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()  # who waits for a turn
        self._passes: list[list[_Job]] = []  # whose tiles the network is working on, oldest pass first
        self._closing = False
        self._dead = False
        self._threads: list[threading.Thread] = []
        self._running = 0

    def start(self, streams: int = 1) -> None:
        """Start the threads, one for each pass that may be under way at a time."""
        self._running = streams
        self._threads = [
            threading.Thread(target=self._run, name=f"engine-{number}", daemon=True) for number in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads; what is still queued fails with DrainingError."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        patience_s = None if self._pass_timeout_s == math.inf else self._pass_timeout_s
        for thread in self._threads:
            # one that hangs is left to the end of the process, which it does not hold up
            thread.join(0 if self.hung else patience_s)

    @property
    def alive(self) -> bool:
        """Whether the threads are there to work."""
        return bool(self._threads) and self.failure is None and all(thread.is_alive() for thread in self._threads)

    @property
    def failure(self) -> str | None:
        """Why it does not work, in words."""
        if self._dead:
            return "the engine has stopped"
        return "the engine hangs: the device does not answer" if self.hung else None

    @property
    def hung(self) -> bool:
        """Whether a pass under way has taken longer than any should: a device that does not answer, say."""
        now = time.monotonic()
        return any(now - began_at > self._pass_timeout_s for began_at in list(self._pass_began_at.values()))

    async def guard(self) -> None:
        """Tell everyone when the engine hangs; never returns. Should the pass end after all, things go on."""
        told = False
        while True:
            await asyncio.sleep(GUARD_S)
            if self.hung:
                if not told:
                    logger.critical("a pass takes longer than %g s; the engine counts as hung", self._pass_timeout_s)
                self._fail_all(lambda: NotReadyError("the engine hangs: the device does not answer"))
            elif told:
                logger.warning("the pass has ended; the engine works again")
            told = self.hung

    @property
    def waiting_tiles(self) -> int:
        """Tiles that no pass has begun on."""
        with self._changed:
            return sum(job.waiting_tiles for job in self._all_jobs())

    async def infer(
        self, segmenter: Segmenter, stitcher: Stitcher, reservation: Reservation, *, wait_s: float
    ) -> float:
        """Run all tiles of an image; its stitcher is complete afterwards.

        Args:
            segmenter: whose runtime runs them.
            stitcher: not yet begun.
            reservation: is told of the progress.
            wait_s: longest time until the first pass.

        Returns:
            Seconds from the start of its first pass to the end of its last.

        Raises:
            DeadlineExceededError: no pass began within `wait_s`.
            OutOfMemoryError, InferenceError, DrainingError, NotReadyError: what they say.
            Exception: whatever the network raised for this image.
        """
        loop = asyncio.get_running_loop()
        job = _Job(segmenter, stitcher, reservation, loop, loop.create_future(), time.monotonic())
        self._submit(job)
        try:
            await asyncio.wait({job.future}, timeout=max(wait_s, 0))
            if not job.future.done() and job.started_at is None:
                raise DeadlineExceededError("no pass of the network began in time")
            await job.future
        finally:
            self._withdraw(job)
        return time.monotonic() - (job.started_at or job.queued_at)

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if self._closing:
                raise DrainingError("the service is shutting down")
            if self.failure is not None:
                raise NotReadyError(self.failure)
            self._jobs.append(job)
            self._changed.notify_all()

    def _withdraw(self, job: _Job) -> None:
        with self._changed:
            job.withdrawn = True
            for queue in (self._jobs, *self._passes):
                if job in queue:
                    queue.remove(job)
            self._changed.notify_all()
        job.future.cancel()

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._attempt(batch.picks, alone=batch.alone)
                self._end_pass(batch.jobs)
        except BaseException:
            logger.critical("the engine has stopped", exc_info=True)
            with self._changed:
                self._dead = True
                self._changed.notify_all()
            self._fail_all(lambda: NotReadyError("the engine has stopped"))
        finally:
            with self._changed:
                self._running -= 1
                last = self._running == 0
            if last:  # the others may be finishing what they have begun
                self._fail_all(lambda: DrainingError("the service is shutting down"))

    def _next_batch(self) -> _Batch | None:
        """Wait for a batch that is full, or whose oldest tile has waited long enough; none when closing."""
        with self._changed:
            while not self._closing and not self._dead:
                picks = self._choose()
                if not picks:
                    self._changed.wait()
                    continue
                oldest = min(pick.job.queued_at for pick in picks)
                wait_s = oldest + self._batch_wait_s - time.monotonic()
                if len(picks) >= picks[0].job.segmenter.runtime.batch_tiles or wait_s <= 0:
                    return self._take(picks)
                self._changed.wait(wait_s)
        return None

    def _choose(self) -> list[_Pick]:
        """Deal tiles in turns, beginning with the image that has waited longest since its last pass.

        Images under way, whose next tile can go beside the one that the network is working on, come after those.
        """
        jobs = [job for job in self._all_jobs() if not job.settled and job.may_take(job.next_index)]
        if not jobs:
            return []
        capacity = jobs[0].segmenter.runtime.batch_tiles
        peers = [job for job in jobs if job.kind == jobs[0].kind]
        picks: list[_Pick] = []
        turn = 0
        while peers and len(picks) < capacity:
            peers = [job for job in peers if job.may_take(job.next_index + turn)]
            picks += [_Pick(job, job.next_index + turn) for job in peers[: capacity - len(picks)]]
            turn += 1
        return picks

    def _take(self, picks: list[_Pick]) -> _Batch:
        """Note the picked tiles as begun, and take their images out of the queue."""
        now = time.monotonic()
        for pick in picks:
            pick.job.next_index = pick.index + 1
            pick.job.started_at = pick.job.started_at or now
        jobs = _jobs_of(picks)
        self._jobs = deque(job for job in self._jobs if job not in jobs)
        alone = not self._passes and not any(job.waiting_tiles for job in (*self._jobs, *jobs))
        self._passes.append(jobs)
        self._changed.notify_all()  # there may be enough for another thread
        return _Batch(picks, jobs, alone)

    def _end_pass(self, jobs: list[_Job]) -> None:
        """After a pass, send its images to the back of the queue: behind those that came during the pass."""
        with self._changed:
            self._passes = [other for other in self._passes if other is not jobs]
            self._jobs.extend(job for job in jobs if job.waiting_tiles and job not in self._jobs)
            self._changed.notify_all()

    def _all_jobs(self) -> list[_Job]:
        """Each once: those that wait, then those that passes work on."""
        return list(dict.fromkeys([*self._jobs, *(job for jobs in self._passes for job in jobs)]))

    def _attempt(self, picks: list[_Pick], *, alone: bool = False) -> None:
        """Run a batch; smaller ones where it fails. Each tile's image is told of its fate."""
        started_at = time.perf_counter()
        picks, parts = self._read_tiles(picks)
        if not picks:
            return
        runtime = picks[0].job.segmenter.runtime
        tiles = runtime.batch_tiles
        try:
            logits = self._pass(runtime, stack_tiles(parts), alone=alone)
        except MemoryError as error:
            self._attempt_in_halves(picks, tiles, error)
            return
        except Exception as error:
            if len(picks) > runtime.batch_tiles:  # another thread has made it smaller meanwhile
                self._attempt_in_parts(picks)
                return
            jobs = _jobs_of(picks)
            if len(jobs) == 1:
                self._settle(jobs[0], error)
                return
            logger.warning("a pass for %d images failed (%s); trying each alone", len(jobs), error)
            for job in jobs:
                self._attempt([pick for pick in picks if pick.job is job])
            return
        with self._changed:  # these count, and are told by one thread at a time
            self._note_pass(len(picks), tiles, time.perf_counter() - started_at)
        work_px = 0
        for pick, tile_logits in zip(picks, logits, strict=True):
            work_px += pick.job.stitcher.grid.side**2
            self._deliver(pick, tile_logits)
        with self._changed:
            self._observe(work_px)

    def _read_tiles(self, picks: list[_Pick]) -> tuple[list[_Pick], list[Planes]]:
        """Those whose image still waits and could be read, and their tiles; the others' images are told.

        A tile may have to be read from a file: what goes wrong there is that image's alone, and says nothing of the
        device.
        """
        read: list[tuple[_Pick, Planes]] = []
        for pick in picks:
            job = pick.job
            if job.withdrawn or job.settled:
                continue
            try:
                read.append((pick, job.stitcher.tile(pick.index)))
            except MemoryError:
                self._settle(job, OutOfMemoryError("the service has no memory for this image now"))
            except Exception as error:
                self._settle(job, error)
        read = [(pick, tile) for pick, tile in read if not pick.job.settled]  # one may have failed at a later tile
        return [pick for pick, _ in read], [tile for _, tile in read]

    def _pass(self, runtime: Runtime, batch: Batch, *, alone: bool) -> Logits:
        thread = threading.get_ident()
        self._pass_began_at[thread] = time.monotonic()
        try:
            return runtime.run(batch, alone=alone)
        finally:
            del self._pass_began_at[thread]

    def _attempt_in_halves(self, picks: list[_Pick], tiles: int, error: MemoryError) -> None:
        # A runtime fills every batch up to batch_tiles, so that shapes, and with them bytes, are always the same.
        # Fewer tiles need less memory only if that number goes down; what did not fit won't fit later, so it stays.
        runtime = picks[0].job.segmenter.runtime
        if tiles == 1:
            for job in _jobs_of(picks):
                self._settle(job, OutOfMemoryError(f"{runtime.device} has no memory for one tile"))
            logger.error("out of memory with one tile on %s: %s", runtime.device, error)
            return
        with self._changed:
            if runtime.batch_tiles == tiles:  # else another thread has halved it for the same reason
                runtime.batch_tiles = tiles // 2
                logger.warning("out of memory on %s: %d tiles a pass from now on", runtime.device, runtime.batch_tiles)
        self._attempt_in_parts(picks)

    def _attempt_in_parts(self, picks: list[_Pick]) -> None:
        while picks:
            step = picks[0].job.segmenter.runtime.batch_tiles  # may go down again meanwhile
            self._attempt(picks[:step])
            picks = picks[step:]

    def _deliver(self, pick: _Pick, tile_logits: Logits) -> None:
        """Blend a tile into its image, and those that came before their turn."""
        job = pick.job
        if not np.isfinite(tile_logits).all():
            self._settle(job, InferenceError("the network answered with NaN or infinity"))
            return
        with job.lock:
            if job.withdrawn or job.settled:
                return
            job.early[pick.index] = tile_logits
            try:
                while job.added in job.early:
                    job.stitcher.add(job.added, job.early.pop(job.added))
                    job.added += 1
                    with self._changed:  # a reservation may be of several images
                        job.reservation.done_px += job.stitcher.grid.side**2
            except MemoryError:
                self._settle(job, OutOfMemoryError("no memory for the answer of the network"))
                return
            except Exception as error:
                self._settle(job, error)
                return
            if job.stitcher.complete:
                self._settle(job, None)

    def _settle(self, job: _Job, error: Exception | None) -> None:
        """Give a job its answer, once."""
        with job.lock:
            if job.settled:
                return
            job.settled = True
            job.early.clear()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            job.loop.call_soon_threadsafe(_resolve, job.future, error)

    def _fail_all(self, make_error: Callable[[], Exception]) -> None:
        with self._changed:
            jobs = self._all_jobs()
            self._jobs.clear()
            self._passes = []
        for job in jobs:
            self._settle(job, make_error())


def _resolve(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _jobs_of(picks: list[_Pick]) -> list[_Job]:
    return list(dict.fromkeys(pick.job for pick in picks))
