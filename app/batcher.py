"""One thread that runs the network: tiles of all waiting images, in turns, in batches. Knows no HTTP and no files.

What it promises, each with a test:

- Every image gets an answer, whatever the network does.
- Images take turns: one batch after another, a tile from each in order, so a small image never waits for a large one
  for more than one batch.
- Tiles of one image come back in order, whatever else was in the batch: the same bytes alone and in company.
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
from dataclasses import dataclass

import numpy as np

from app.admission import Reservation
from app.errors import DeadlineExceededError, DrainingError, InferenceError, NotReadyError, OutOfMemoryError
from model import Segmenter
from model.runtime import Runtime
from model.tiling import Stitcher
from model.types import Batch, Logits

logger = logging.getLogger("app.batcher")

# How often guard() looks; a hung pass is noticed so much later than it could be.
GUARD_S = 0.5


@dataclass(eq=False)
class _Job:
    """An image on its way through the network. Only the engine's thread changes it once it is queued."""

    segmenter: Segmenter
    stitcher: Stitcher
    reservation: Reservation
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    queued_at: float
    next_index: int = 0
    started_at: float | None = None
    withdrawn: bool = False
    settled: bool = False

    @property
    def kind(self) -> tuple[int, int]:
        """Tiles of one kind may share a batch: same network, same size."""
        return id(self.segmenter), self.stitcher.grid.side


@dataclass(frozen=True)
class _Pick:
    job: _Job
    index: int


class Batcher:
    """The engine's thread and its queue.

    Args:
        batch_wait_ms: longest time a tile waits for company in a batch that is not full.
        pass_timeout_s: longest time that one pass may take before the engine counts as hung.
        observe: called from the thread after each pass with the pixels that it computed.
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
        self._pass_began_at: float | None = None
        self._observe = observe
        self._note_pass = note_pass
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()  # who waits for a turn
        self._in_pass: list[_Job] = []  # whose tiles the network is working on
        self._closing = False
        self._dead = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; what is still queued fails with DrainingError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            # one that hangs is left to the end of the process, which it does not hold up
            self._thread.join(None if self._pass_timeout_s == math.inf else self._pass_timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the thread is there to work."""
        return self._thread.is_alive() and self.failure is None

    @property
    def failure(self) -> str | None:
        """Why it does not work, in words."""
        if self._dead:
            return "the engine has stopped"
        return "the engine hangs: the device does not answer" if self.hung else None

    @property
    def hung(self) -> bool:
        """Whether the pass under way has taken longer than any should: a device that does not answer, say."""
        began_at = self._pass_began_at
        return began_at is not None and time.monotonic() - began_at > self._pass_timeout_s

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
            return sum(len(job.stitcher.grid) - job.next_index for job in (*self._jobs, *self._in_pass))

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
                raise DeadlineExceededError(f"the image waited {wait_s:.0f} s, which is the longest allowed")
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
            self._changed.notify()

    def _withdraw(self, job: _Job) -> None:
        with self._changed:
            job.withdrawn = True
            for queue in (self._jobs, self._in_pass):
                if job in queue:
                    queue.remove(job)
            self._changed.notify()
        job.future.cancel()

    def _run(self) -> None:
        try:
            while picks := self._next_batch():
                self._attempt(picks)
                self._requeue()
            self._fail_all(lambda: DrainingError("the service is shutting down"))
        except BaseException:
            logger.critical("the engine has stopped", exc_info=True)
            with self._changed:
                self._dead = True
            self._fail_all(lambda: NotReadyError("the engine has stopped"))

    def _next_batch(self) -> list[_Pick]:
        """Wait for a batch that is full, or whose oldest tile has waited long enough; none when closing."""
        with self._changed:
            while not self._closing:
                if not self._jobs:
                    self._changed.wait()
                    continue
                picks = self._choose()
                oldest = min(pick.job.queued_at for pick in picks)
                wait_s = oldest + self._batch_wait_s - time.monotonic()
                if len(picks) >= picks[0].job.segmenter.runtime.batch_tiles or wait_s <= 0:
                    self._take(picks)
                    return picks
                self._changed.wait(wait_s)
        return []

    def _choose(self) -> list[_Pick]:
        """Deal tiles in turns, beginning with the image that has waited longest since its last pass."""
        first = self._jobs[0]
        capacity = first.segmenter.runtime.batch_tiles
        peers = [job for job in self._jobs if job.kind == first.kind]
        picks: list[_Pick] = []
        turn = 0
        while peers and len(picks) < capacity:
            peers = [job for job in peers if job.next_index + turn < len(job.stitcher.grid)]
            picks += [_Pick(job, job.next_index + turn) for job in peers[: capacity - len(picks)]]
            turn += 1
        return picks

    def _take(self, picks: list[_Pick]) -> None:
        """Note the picked tiles as begun, and take their images out of the queue."""
        now = time.monotonic()
        for pick in picks:
            pick.job.next_index = pick.index + 1
            pick.job.started_at = pick.job.started_at or now
        self._in_pass = _jobs_of(picks)
        for job in self._in_pass:
            self._jobs.remove(job)

    def _requeue(self) -> None:
        """After a pass, send its images to the back of the queue: behind those that came during the pass."""
        with self._changed:
            self._jobs.extend(
                job for job in self._in_pass if not job.settled and job.next_index < len(job.stitcher.grid)
            )
            self._in_pass = []

    def _attempt(self, picks: list[_Pick]) -> None:
        """Run a batch; smaller ones where it fails. Each tile's image is told of its fate."""
        picks = [pick for pick in picks if not pick.job.withdrawn and not pick.job.settled]
        if not picks:
            return
        runtime = picks[0].job.segmenter.runtime
        started_at = time.perf_counter()
        try:
            logits = self._pass(runtime, np.stack([pick.job.stitcher.tile(pick.index) for pick in picks]))
        except MemoryError as error:
            self._attempt_in_halves(picks, error)
            return
        except Exception as error:
            jobs = _jobs_of(picks)
            if len(jobs) == 1:
                self._settle(jobs[0], error)
                return
            logger.warning("a pass for %d images failed (%s); trying each alone", len(jobs), error)
            for job in jobs:
                self._attempt([pick for pick in picks if pick.job is job])
            return
        self._note_pass(len(picks), runtime.batch_tiles, time.perf_counter() - started_at)
        work_px = 0
        for pick, tile_logits in zip(picks, logits, strict=True):
            work_px += pick.job.stitcher.grid.side**2
            self._deliver(pick, tile_logits)
        self._observe(work_px)

    def _pass(self, runtime: Runtime, batch: Batch) -> Logits:
        self._pass_began_at = time.monotonic()
        try:
            return runtime.run(batch)
        finally:
            self._pass_began_at = None

    def _attempt_in_halves(self, picks: list[_Pick], error: MemoryError) -> None:
        # A runtime fills every batch up to batch_tiles, so that shapes, and with them bytes, are always the same.
        # Fewer tiles need less memory only if that number goes down; what did not fit won't fit later, so it stays.
        runtime = picks[0].job.segmenter.runtime
        if runtime.batch_tiles == 1:
            for job in _jobs_of(picks):
                self._settle(job, OutOfMemoryError(f"{runtime.device} has no memory for one tile"))
            logger.error("out of memory with one tile on %s: %s", runtime.device, error)
            return
        runtime.batch_tiles = max(1, runtime.batch_tiles // 2)
        logger.warning("out of memory on %s: %d tiles a pass from now on", runtime.device, runtime.batch_tiles)
        step = runtime.batch_tiles
        for first in range(0, len(picks), step):
            # the number may have gone down again meanwhile
            part = picks[first : first + step]
            for start in range(0, len(part), runtime.batch_tiles):
                self._attempt(part[start : start + runtime.batch_tiles])

    def _deliver(self, pick: _Pick, tile_logits: np.ndarray) -> None:
        job = pick.job
        if job.withdrawn or job.settled:
            return
        if not np.isfinite(tile_logits).all():
            self._settle(job, InferenceError("the network answered with NaN or infinity"))
            return
        try:
            job.stitcher.add(pick.index, tile_logits)
        except MemoryError:
            self._settle(job, OutOfMemoryError("no memory for the answer of the network"))
            return
        except Exception as error:
            self._settle(job, error)
            return
        job.reservation.done_px += job.stitcher.grid.side**2
        if job.stitcher.complete:
            self._settle(job, None)

    def _settle(self, job: _Job, error: Exception | None) -> None:
        """Give a job its answer, once."""
        if job.settled:
            return
        job.settled = True
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            job.loop.call_soon_threadsafe(_resolve, job.future, error)

    def _fail_all(self, make_error: Callable[[], Exception]) -> None:
        with self._changed:
            jobs = [*self._jobs, *self._in_pass]
            self._jobs.clear()
            self._in_pass = []
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
