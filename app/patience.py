"""Calls in threads that may be given up: for a disk, a file or a device that may never answer. Knows no models."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Threads that were given up and have not ended. Each keeps whatever it has loaded, so there is an end to it.
MAX_STUCK = 8
# At the end of the process, for what is under way and may end in order.
CLOSE_S = 30.0


class TooSlowError(Exception):
    """A call did not end in time; or too many before it have not ended yet, and it was not begun."""


class Patience:
    """Calls functions in a thread of its own each, and waits no longer than a deadline.

    A thread cannot be stopped: one that is given up goes on, what it comes to is dropped, and it does not hold up the
    end of the process.

    Args:
        deadline_s: longest that a call may take.
        name: of the threads.
    """

    def __init__(self, deadline_s: float, name: str) -> None:
        self._deadline_s = deadline_s
        self._name = name
        self._threads: set[threading.Thread] = set()
        self._stuck: set[threading.Thread] = set()

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's own answer or error.

        Raises:
            TooSlowError: what it says.
        """
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        self._stuck &= self._threads
        if len(self._stuck) >= MAX_STUCK:
            raise TooSlowError(f"{len(self._stuck)} attempts before it hang and have not ended yet")
        result: Future[T] = Future()

        def work() -> None:
            try:
                result.set_result(function(*args, **kwargs))
            except BaseException as error:  # whatever it is, somebody waits for it
                result.set_exception(error)

        thread = threading.Thread(target=work, name=self._name, daemon=True)
        self._threads.add(thread)
        thread.start()
        answer = asyncio.wrap_future(result)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # also where nobody waits any more
        await asyncio.wait({answer}, timeout=self._deadline_s)
        if not answer.done():
            self._stuck.add(thread)
            raise TooSlowError(f"it was not done after {self._deadline_s:g} s")
        return answer.result()

    @property
    def stuck(self) -> bool:
        """Whether a thread is left that was waited for in vain, or until it was time to close."""
        return any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Wait for what is under way, unless it was given up."""
        for thread in self._threads - self._stuck:
            thread.join(min(self._deadline_s, CLOSE_S))
