import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from app.lanes import Lane


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("test", threads=1, max_pixels=100)
    yield lane
    lane.close()


async def enter(room: AbstractAsyncContextManager[None]) -> None:
    await room.__aenter__()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_who_finds_no_room_waits_first_come_first_served(lane: Lane) -> None:
    order: list[str] = []

    async def take(name: str, pixels: int, leave: asyncio.Event) -> None:
        async with lane.room(pixels):
            order.append(name)
            await leave.wait()

    async def main() -> None:
        events = [asyncio.Event() for _ in range(4)]
        sizes = (60, 60, 40, 10)  # the last two would fit beside the first, but may not overtake
        tasks = [asyncio.create_task(take("abcd"[i], sizes[i], events[i])) for i in range(4)]
        await settle()
        assert order == ["a"]
        events[0].set()
        await settle()
        assert order == ["a", "b", "c"]
        assert lane.pixels == 100
        for event in events:
            event.set()
        await asyncio.gather(*tasks)
        assert (order, lane.pixels) == (["a", "b", "c", "d"], 0)

    asyncio.run(main())


def test_an_image_larger_than_the_room_is_let_in_alone(lane: Lane) -> None:
    async def main() -> None:
        async with lane.room(1000):
            room = lane.room(1)
            waiting = asyncio.create_task(enter(room))
            await settle()
            assert not waiting.done()
        await waiting
        assert lane.pixels == 1

    asyncio.run(main())


def test_one_who_gives_up_waiting_lets_the_others_pass(lane: Lane) -> None:
    async def main() -> None:
        async with lane.room(50):
            rooms = [lane.room(pixels) for pixels in (80, 20)]  # kept: an abandoned one would be given back
            big, small = (asyncio.create_task(enter(room)) for room in rooms)
            await settle()
            big.cancel()
            await settle()
            assert small.done()
            assert lane.pixels == 70

    asyncio.run(main())


def test_one_who_gives_up_as_the_turn_comes_gives_it_back(lane: Lane) -> None:
    async def main() -> None:
        first = lane.room(100)
        await first.__aenter__()
        second = lane.room(100)
        waiting = asyncio.create_task(enter(second))
        await settle()
        await first.__aexit__(None, None, None)  # the turn is granted, but the task has not run yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert lane.pixels == 0

    asyncio.run(main())


@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_call_returns_only_when_its_thread_is_done(lane: Lane, times: int) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()

    async def main() -> None:
        task = asyncio.create_task(lane.run(work))
        await asyncio.to_thread(begun.wait)
        for _ in range(times):
            task.cancel()
            await settle()
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_cancelled_call_that_has_not_begun_never_runs(lane: Lane) -> None:
    begun, go_on = threading.Event(), threading.Event()
    ran: list[int] = []

    def block() -> None:
        begun.set()
        go_on.wait()

    async def main() -> None:
        blocker = asyncio.create_task(lane.run(block))
        await asyncio.to_thread(begun.wait)
        waiting = asyncio.create_task(lane.run(ran.append, 1))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        await blocker

    asyncio.run(main())
    assert ran == []


def test_results_and_errors_come_through(lane: Lane) -> None:
    async def main() -> None:
        assert await lane.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await lane.run(divmod, 7, 0)

    asyncio.run(main())
