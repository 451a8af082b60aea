"""Threads for decoding and encoding, and how many decoded pixels may exist at once; knows no images."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import ParamSpec, TypeVar

from app.errors import OutOfMemoryError

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """A pool of threads, and room for so many decoded pixels; who finds no room waits, first come, first served.

    Args:
        name: of the threads.
        threads: how many.
        max_pixels: decoded at once. A larger image is let in when it is the only one.
    """

    def __init__(self, name: str, *, threads: int, max_pixels: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._max_pixels = max_pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.pixels = 0

    @asynccontextmanager
    async def room(self, pixels: int) -> AsyncIterator[None]:
        """Wait until there is room for an image, and keep it for the time of the block."""
        await self._enter(pixels)
        try:
            yield
        finally:
            self._leave(pixels)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread.

        A thread cannot be stopped. Where the caller is cancelled, this returns only when the thread has ended, so that
        whatever room it holds is still counted.

        Raises:
            OutOfMemoryError: the function found no memory.
        """
        work = self._executor.submit(function, *args, **kwargs)
        future = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(future)
        except MemoryError as error:
            raise OutOfMemoryError("the service has no memory for this image now") from error
        except asyncio.CancelledError:
            if not work.cancel():  # it has begun
                while not future.done():  # however often it is cancelled
                    with suppress(Exception, asyncio.CancelledError):
                        await asyncio.shield(future)
            raise

    def close(self) -> None:
        """Let the threads go."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _fits(self, pixels: int) -> bool:
        return self.pixels == 0 or self.pixels + pixels <= self._max_pixels

    async def _enter(self, pixels: int) -> None:
        if not self._waiting and self._fits(pixels):
            self.pixels += pixels
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (pixels, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(pixels)  # the turn came in the same moment
            else:
                self._waiting.remove(entry)
                self._admit()
            raise

    def _leave(self, pixels: int) -> None:
        self.pixels -= pixels
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            pixels, turn = self._waiting.popleft()
            if turn.cancelled():
                self._waiting.appendleft((pixels, turn))  # its owner removes it when it runs
                return
            self.pixels += pixels
            turn.set_result(None)
