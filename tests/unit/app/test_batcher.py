import asyncio
import math
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.admission import Reservation
from app.batcher import AHEAD, Batcher, _Batch, _Pick
from app.errors import DeadlineExceededError, DrainingError, InferenceError, NotReadyError, OutOfMemoryError
from model.checkpoint import read_checkpoint
from model.errors import ImageMemoryError, UndecodableImageError
from model.images import open_image
from model.runtime import make_runtime
from model.segmenter import Segmenter
from model.types import Batch, Image, Logits
from tests.e2e.kit import draw_cells, load_reference, write_weights
from tests.files import by_tifffile


class WatchedRuntime:
    """The real runtime, with a gate before each pass, a record of each tile's grey level, and room for mischief."""

    name = "watched"

    def __init__(
        self, path: Path, batch_tiles: int, mischief: Callable[[Batch], None] | None = None, streams: int = 1
    ) -> None:
        self.streams = streams
        self._real = make_runtime(read_checkpoint(path), device="cpu", batch_tiles=batch_tiles)
        self.device = self._real.device
        self.precision = self._real.precision
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.passes: list[list[int]] = []
        self.alone: list[bool] = []
        self.mischief = mischief

    @property
    def batch_tiles(self) -> int:
        return self._real.batch_tiles

    @batch_tiles.setter
    def batch_tiles(self, value: int) -> None:
        self._real.batch_tiles = value

    def run(self, batch: Batch, *, alone: bool = False) -> Logits:
        self.alone.append(alone)
        self.begun.release()
        self.gate.wait()
        self.passes.append([round(float(tile.mean())) for tile in batch])
        if self.mischief:
            self.mischief(batch)
        return self._real.run(batch)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey levels as they are, so that a tile's mean tells whose it is."""
    path = tmp_path_factory.mktemp("batcher") / "raw.pth"
    write_weights(path, tile_px=(128,), normalisation="raw")
    return path


def make(
    weights: Path, batch_tiles: int, mischief: Callable[[Batch], None] | None = None, streams: int = 1
) -> Segmenter:
    return Segmenter(read_checkpoint(weights), WatchedRuntime(weights, batch_tiles, mischief, streams))


def watched(segmenter: Segmenter) -> WatchedRuntime:
    runtime = segmenter.runtime
    assert isinstance(runtime, WatchedRuntime)
    return runtime


def grey(level: int, height: int = 64, width: int = 64) -> Image:
    return np.full((height, width), level, dtype=np.uint8)


def run(
    work: Callable[[Batcher], Coroutine[Any, Any, None]],
    batch_wait_ms: float = 0.0,
    pass_timeout_s: float = math.inf,
    streams: int = 1,
) -> None:
    async def main() -> None:
        batcher = Batcher(batch_wait_ms=batch_wait_ms, observe=lambda _: None, pass_timeout_s=pass_timeout_s)
        batcher.start(streams)
        await work(batcher)  # what fails here leaves a gate closed, and threads that could not be waited for
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())


async def infer(batcher: Batcher, segmenter: Segmenter, image: Image, wait_s: float = 600.0) -> bytes:
    stitcher = segmenter.start(image)
    await batcher.infer(segmenter, stitcher, Reservation(image.size, image.size), wait_s=wait_s)
    return segmenter.finish(stitcher).probability.tobytes()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def begin_pass(batcher: Batcher, segmenter: Segmenter, image: Image) -> "asyncio.Task[bytes]":
    """Close the gate and send an image; returns once its first pass waits at the gate."""
    runtime = watched(segmenter)
    runtime.gate.clear()
    task = asyncio.create_task(infer(batcher, segmenter, image))
    await asyncio.to_thread(runtime.begun.acquire)
    return task


def test_images_get_the_same_bytes_in_company_as_alone(weights: Path) -> None:
    images = [draw_cells(height, width, seed) for seed, (height, width) in
              enumerate([(1, 1), (40, 300), (128, 128), (129, 500), (400, 3), (300, 300)])]  # fmt: skip
    reference = load_reference(weights, batch_tiles=4)
    alone = [reference.segment(image).probability.tobytes() for image in images]
    segmenter = make(weights, batch_tiles=4)

    async def work(batcher: Batcher) -> None:
        together = await asyncio.gather(*(infer(batcher, segmenter, image) for image in images * 3))
        assert together == alone * 3

    run(work, batch_wait_ms=5)
    assert max(len(tiles) for tiles in watched(segmenter).passes) == 4


def test_a_small_image_waits_for_one_batch_of_a_large_one(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=4)

    async def work(batcher: Batcher) -> None:
        large = await begin_pass(batcher, segmenter, grey(200, 400, 400))
        small = asyncio.create_task(infer(batcher, segmenter, grey(50)))
        await until(lambda: batcher.waiting_tiles == 6 * 6 + 1 - 4)
        watched(segmenter).gate.set()
        await asyncio.gather(large, small)

    run(work)
    assert 50 in watched(segmenter).passes[1]


def test_images_take_turns(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        first = await begin_pass(batcher, segmenter, grey(10, 128, 256))
        others = [asyncio.create_task(infer(batcher, segmenter, grey(level, 128, 256))) for level in (20, 30)]
        await until(lambda: batcher.waiting_tiles == 2 + 3 + 3)
        watched(segmenter).gate.set()
        await asyncio.gather(first, *others)

    run(work)
    assert watched(segmenter).passes == [[10], [20], [30]] * 3


def test_a_batch_that_is_not_full_waits_for_company(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=2)

    async def work(batcher: Batcher) -> None:
        first = asyncio.create_task(infer(batcher, segmenter, grey(10)))
        await until(lambda: batcher.waiting_tiles == 1)
        await asyncio.gather(first, infer(batcher, segmenter, grey(20)))

    run(work, batch_wait_ms=600_000)
    assert watched(segmenter).passes == [[10, 20]]


def test_a_full_batch_waits_for_nothing(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        await infer(batcher, segmenter, grey(10))

    run(work, batch_wait_ms=600_000)


def test_a_lonely_tile_goes_when_its_wait_is_over(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=8)

    async def work(batcher: Batcher) -> None:
        await infer(batcher, segmenter, grey(10))

    run(work, batch_wait_ms=20)
    assert watched(segmenter).passes == [[10]]


def test_tiles_of_different_models_share_no_batch(weights: Path) -> None:
    one, two = make(weights, batch_tiles=4), make(weights, batch_tiles=4)

    async def work(batcher: Batcher) -> None:
        first = await begin_pass(batcher, one, grey(1))
        others = [asyncio.create_task(infer(batcher, model, grey(level))) for model, level in
                  [(one, 10), (two, 20), (one, 30), (two, 40)]]  # fmt: skip
        await until(lambda: batcher.waiting_tiles == 4)
        watched(one).gate.set()
        await asyncio.gather(first, *others)

    run(work)
    assert (watched(one).passes, watched(two).passes) == ([[1], [10, 30]], [[20, 40]])


def test_an_image_that_breaks_the_pass_fails_alone(weights: Path) -> None:
    def hate_13(batch: Batch) -> None:
        if any(round(float(tile.mean())) == 13 for tile in batch):
            raise ArithmeticError("13")

    segmenter = make(weights, batch_tiles=4, mischief=hate_13)
    expected = load_reference(weights, batch_tiles=4).segment(grey(20)).probability.tobytes()

    async def work(batcher: Batcher) -> None:
        first = await begin_pass(batcher, segmenter, grey(1))
        tasks = [asyncio.create_task(infer(batcher, segmenter, grey(level))) for level in (20, 13, 20, 20)]
        await until(lambda: batcher.waiting_tiles == 4)
        watched(segmenter).gate.set()
        await first
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], ArithmeticError)
        assert [answers[0], answers[2], answers[3]] == [expected] * 3

    run(work)


def test_an_image_for_which_the_network_says_nan_fails_alone(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=2)
    poisoned = grey(13).astype(np.float32)
    real = watched(segmenter)._real
    honest = real.run

    def answer_nan_for_13(batch: Batch, *, alone: bool = False) -> Logits:
        logits = honest(batch, alone=alone)
        logits[[round(float(tile.mean())) == 13 for tile in batch]] = np.nan
        return logits

    real.run = answer_nan_for_13  # type: ignore[method-assign]  # the misbehaving network

    async def work(batcher: Batcher) -> None:
        answers = await asyncio.gather(
            infer(batcher, segmenter, poisoned), infer(batcher, segmenter, grey(20)), return_exceptions=True
        )
        assert isinstance(answers[0], InferenceError)
        assert isinstance(answers[1], bytes)

    run(work, batch_wait_ms=600_000)


def test_out_of_memory_halves_the_batch_and_everyone_is_answered(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=8)

    def fit_two(_: Batch) -> None:
        if segmenter.runtime.batch_tiles > 2:
            raise MemoryError

    watched(segmenter).mischief = fit_two
    expected = load_reference(weights, batch_tiles=2).segment(draw_cells(300, 300)).probability.tobytes()

    async def work(batcher: Batcher) -> None:
        answers = await asyncio.gather(*(infer(batcher, segmenter, draw_cells(300, 300)) for _ in range(3)))
        assert answers == [expected] * 3

    run(work, batch_wait_ms=5)
    assert segmenter.runtime.batch_tiles == 2


@pytest.mark.parametrize(
    ("failure", "answered"),
    [(ImageMemoryError, OutOfMemoryError), (MemoryError, OutOfMemoryError), (UndecodableImageError, None)],
)
def test_a_tile_that_cannot_be_read_fails_its_image_alone_and_keeps_the_size_of_the_batches(
    weights: Path, failure: type[Exception], answered: type[Exception] | None
) -> None:
    segmenter = make(weights, batch_tiles=8)
    expected = load_reference(weights, batch_tiles=8).segment(draw_cells(300, 300)).probability.tobytes()
    file = by_tifffile(draw_cells(500, 128), rowsperstrip=10)

    async def work(batcher: Batcher) -> None:
        with open_image(file, max_pixels=1 << 20) as source:
            assert source.by_rows
            whole, begun = segmenter.start(source), segmenter.start(source)
            honest = source.read_rows

            def fail_far_down(top: int, bottom: int) -> Image:
                if top >= 200:
                    raise failure("no room")
                return honest(top, bottom)

            room = Reservation(500 * 128, 500 * 128)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(source, "read_rows", fail_far_down)
                answers = await asyncio.gather(
                    batcher.infer(segmenter, whole, room, wait_s=600),
                    infer(batcher, segmenter, draw_cells(300, 300)),
                    return_exceptions=True,
                )
            assert (type(answers[0]), answers[1]) == (answered or failure, expected)
            assert segmenter.runtime.batch_tiles == 8
            await batcher.infer(segmenter, begun, room, wait_s=600)  # there is room again

    run(work, batch_wait_ms=5)


def test_no_memory_for_one_tile_is_said_to_each(weights: Path) -> None:
    def fit_nothing(_: Batch) -> None:
        raise MemoryError

    segmenter = make(weights, batch_tiles=4, mischief=fit_nothing)

    async def work(batcher: Batcher) -> None:
        answers = await asyncio.gather(
            *(infer(batcher, segmenter, grey(level)) for level in (1, 2, 3)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [OutOfMemoryError] * 3
        assert batcher.alive

    run(work, batch_wait_ms=5)


def test_an_image_that_is_withdrawn_leaves_the_queue(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        first = await begin_pass(batcher, segmenter, grey(10))
        left = asyncio.create_task(infer(batcher, segmenter, grey(20, 400, 400)))
        stays = asyncio.create_task(infer(batcher, segmenter, grey(30)))
        await until(lambda: batcher.waiting_tiles == 6 * 6 + 1)
        left.cancel()
        await until(lambda: batcher.waiting_tiles == 1)
        watched(segmenter).gate.set()
        await asyncio.gather(first, stays)

    run(work)
    assert watched(segmenter).passes == [[10], [30]]


def test_an_image_withdrawn_in_the_middle_takes_no_further_pass(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        leaves = await begin_pass(batcher, segmenter, grey(10, 400, 400))
        leaves.cancel()
        await until(lambda: batcher.waiting_tiles == 0)
        watched(segmenter).gate.set()
        await infer(batcher, segmenter, grey(20))

    run(work)
    assert watched(segmenter).passes == [[10], [20]]


def test_an_image_that_waits_too_long_is_refused_and_takes_no_pass(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        first = await begin_pass(batcher, segmenter, grey(10))
        with pytest.raises(DeadlineExceededError, match="no pass"):
            await infer(batcher, segmenter, grey(20), wait_s=0.01)
        watched(segmenter).gate.set()
        await first

    run(work)
    assert watched(segmenter).passes == [[10]]


def test_an_image_under_way_has_no_deadline(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        watched(segmenter).gate.clear()
        task = asyncio.create_task(infer(batcher, segmenter, grey(10), wait_s=1.0))
        await asyncio.to_thread(watched(segmenter).begun.acquire)
        await asyncio.sleep(1.2)
        watched(segmenter).gate.set()
        assert len(await task) == 64 * 64 * 4

    run(work)


def test_when_the_engine_dies_everyone_is_told_and_nobody_else_let_in(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def die(_: Batch) -> None:
        raise SystemExit("killed")

    segmenter = make(weights, batch_tiles=1, mischief=die)

    async def work(batcher: Batcher) -> None:
        answers = await asyncio.gather(
            *(infer(batcher, segmenter, grey(level, 300, 300)) for level in (1, 2, 3)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [NotReadyError] * 3
        assert not batcher.alive
        with pytest.raises(NotReadyError):
            await infer(batcher, segmenter, grey(4))

    run(work)
    assert "the engine has stopped" in caplog.text


def test_a_pass_that_does_not_end_is_told_to_everyone_and_forgiven_when_it_does(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        guard = asyncio.create_task(batcher.guard())
        inside = await begin_pass(batcher, segmenter, grey(10, 400, 400))
        waiting = asyncio.create_task(infer(batcher, segmenter, grey(20)))
        answers = await asyncio.gather(inside, waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [NotReadyError] * 2
        assert (batcher.alive, batcher.hung, batcher.waiting_tiles) == (False, True, 0)
        with pytest.raises(NotReadyError, match="does not answer"):
            await infer(batcher, segmenter, grey(30))
        watched(segmenter).gate.set()
        await until(lambda: batcher.alive)
        batcher._pass_timeout_s = 60  # the machine may be busy
        await infer(batcher, segmenter, grey(40))
        await until(lambda: "works again" in caplog.text)
        guard.cancel()

    run(work, pass_timeout_s=0.3)
    assert watched(segmenter).passes == [[10], [40]]
    assert caplog.text.count("counts as hung") == 1


def test_an_engine_that_hangs_does_not_hold_up_the_end(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        task = await begin_pass(batcher, segmenter, grey(10))
        await asyncio.to_thread(batcher.close)  # returns
        watched(segmenter).gate.set()
        await task

    run(work, pass_timeout_s=0.1)


def test_closing_answers_those_who_wait(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)

    async def work(batcher: Batcher) -> None:
        large = await begin_pass(batcher, segmenter, grey(10, 400, 400))
        waiting = asyncio.create_task(infer(batcher, segmenter, grey(20)))
        await until(lambda: batcher.waiting_tiles == 6 * 6)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await until(lambda: batcher._closing)
        watched(segmenter).gate.set()
        await closing
        answers = await asyncio.gather(large, waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [DrainingError, DrainingError]
        with pytest.raises(DrainingError):
            await infer(batcher, segmenter, grey(30))

    run(work)


def test_progress_is_told_as_the_network_computes(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1)
    seen: list[int] = []

    async def main() -> None:
        batcher = Batcher(batch_wait_ms=0, observe=seen.append)
        batcher.start()
        image = grey(10, 128, 256)
        stitcher = segmenter.start(image)
        reservation = Reservation(image.size, stitcher.grid.pixels)
        await batcher.infer(segmenter, stitcher, reservation, wait_s=600)
        await asyncio.to_thread(batcher.close)
        assert reservation.done_px == reservation.work_px == sum(seen) == 3 * 128 * 128

    asyncio.run(main())


def mark_first_tile(image: Image, level: int) -> Image:
    image[:128, :128] = level
    return image


def test_passes_beside_each_other_give_the_same_bytes_as_one_after_another(weights: Path) -> None:
    images = [draw_cells(height, width, seed) for seed, (height, width) in
              enumerate([(1, 1), (40, 300), (129, 500), (300, 300)])]  # fmt: skip
    reference = load_reference(weights)
    alone = [reference.segment(image).probability.tobytes() for image in images]
    segmenter = make(weights, batch_tiles=1, streams=3)

    async def work(batcher: Batcher) -> None:
        together = await asyncio.gather(*(infer(batcher, segmenter, image) for image in images * 3))
        assert together == alone * 3
        assert [await infer(batcher, segmenter, image) for image in images] == alone

    run(work, streams=3)


def test_a_tile_that_is_late_is_waited_for_and_blended_in_its_place(weights: Path) -> None:
    late = threading.Event()

    def hold_the_first(batch: Batch) -> None:
        if round(float(batch[0].mean())) == 7:
            late.wait()

    segmenter = make(weights, batch_tiles=1, mischief=hold_the_first, streams=2)
    image = mark_first_tile(grey(50, 400, 400), 7)
    expected = load_reference(weights).segment(image).probability.tobytes()

    async def work(batcher: Batcher) -> None:
        task = asyncio.create_task(infer(batcher, segmenter, image))
        # the other thread goes on, but not so far that what it computes piles up
        await until(lambda: batcher.waiting_tiles == 6 * 6 - AHEAD * 2)
        await asyncio.sleep(0.05)
        assert batcher.waiting_tiles == 6 * 6 - AHEAD * 2
        late.set()
        assert await task == expected

    run(work, streams=2)


def test_a_small_image_goes_before_the_next_tile_of_a_large_one_that_keeps_both_threads_busy(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = make(weights, batch_tiles=1, streams=2)
    taken: list[int] = []  # the tiles of the image of each pick, in the order in which they are taken
    honest = Batcher._take

    def take(self: Batcher, picks: list[_Pick]) -> _Batch:  # under the batcher's lock
        taken.extend(len(pick.job.stitcher.grid) for pick in picks)
        return honest(self, picks)

    monkeypatch.setattr(Batcher, "_take", take)

    async def work(batcher: Batcher) -> None:
        large = await begin_pass(batcher, segmenter, grey(200, 400, 400))
        await until(lambda: batcher.waiting_tiles == 6 * 6 - 2)
        small = asyncio.create_task(infer(batcher, segmenter, grey(50)))
        await until(lambda: batcher.waiting_tiles == 6 * 6 - 2 + 1)
        watched(segmenter).gate.set()
        await asyncio.gather(large, small)

    run(work, streams=2)
    assert taken == [36, 36, 1] + [36] * 34


def test_only_a_pass_that_has_no_company_and_expects_none_gets_all_cores(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1, streams=2)

    async def work(batcher: Batcher) -> None:
        await infer(batcher, segmenter, grey(10))
        assert watched(segmenter).alone == [True]
        await until(lambda: not batcher._passes)
        await infer(batcher, segmenter, grey(10, 128, 200))
        assert watched(segmenter).alone[1] is False  # its second tile was due
        await until(lambda: not batcher._passes)
        while watched(segmenter).begun.acquire(blocking=False):
            pass
        begun = len(watched(segmenter).alone)
        first = await begin_pass(batcher, segmenter, grey(10))
        second = asyncio.create_task(infer(batcher, segmenter, grey(20)))
        await until(lambda: len(watched(segmenter).alone) == begun + 2)
        watched(segmenter).gate.set()
        await asyncio.gather(first, second)
        assert watched(segmenter).alone[begun:] == [True, False]

    run(work, streams=2)


def test_two_threads_that_find_no_memory_at_once_halve_the_batch_once(weights: Path) -> None:
    both = threading.Barrier(2)

    def fail_together(_: Batch) -> None:
        if segmenter.runtime.batch_tiles == 4:
            both.wait()
            raise MemoryError

    segmenter = make(weights, batch_tiles=4, mischief=fail_together, streams=2)
    expected = load_reference(weights, batch_tiles=2).segment(draw_cells(300, 300)).probability.tobytes()

    async def work(batcher: Batcher) -> None:
        assert (
            await asyncio.gather(*(infer(batcher, segmenter, draw_cells(300, 300)) for _ in range(3))) == [expected] * 3
        )

    run(work, streams=2)
    assert segmenter.runtime.batch_tiles == 2


def test_when_one_of_two_threads_dies_everyone_is_told(weights: Path) -> None:
    def die_of_13(batch: Batch) -> None:
        if round(float(batch[0].mean())) == 13:
            raise SystemExit("killed")

    segmenter = make(weights, batch_tiles=1, mischief=die_of_13, streams=2)

    async def work(batcher: Batcher) -> None:
        answers = await asyncio.gather(
            *(infer(batcher, segmenter, grey(level, 400, 400)) for level in (1, 13, 2)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [NotReadyError] * 3
        assert not batcher.alive

    run(work, streams=2)


def test_closing_lets_every_thread_finish_its_pass(weights: Path) -> None:
    segmenter = make(weights, batch_tiles=1, streams=2)

    async def work(batcher: Batcher) -> None:
        under_way = [await begin_pass(batcher, segmenter, grey(level)) for level in (10, 20)]
        waiting = asyncio.create_task(infer(batcher, segmenter, grey(30)))
        await until(lambda: batcher.waiting_tiles == 1)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await until(lambda: batcher._closing)
        watched(segmenter).gate.set()
        await closing
        answers = await asyncio.gather(*under_way, waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [bytes, bytes, DrainingError]

    run(work, streams=2)
