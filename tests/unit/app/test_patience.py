import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from app.patience import MAX_STUCK, Patience, TooSlowError


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_results_and_errors_come_through_the_function_s_own_timeout_too() -> None:
    async def main() -> None:
        patience = Patience(60, "test")
        assert await patience.call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await patience.call(divmod, 7, 0)

        def time_out() -> None:
            raise TimeoutError("the disk's")

        with pytest.raises(TimeoutError, match="the disk's"):
            await patience.call(time_out)

    asyncio.run(main())


def test_one_that_hangs_is_given_up_and_there_is_an_end_to_how_many(go_on: threading.Event) -> None:
    async def main() -> None:
        patience = Patience(0.05, "test")
        for _ in range(MAX_STUCK):
            with pytest.raises(TooSlowError, match=r"not done after 0\.05 s"):
                await patience.call(go_on.wait)
        with pytest.raises(TooSlowError, match="have not ended yet"):
            await patience.call(go_on.wait)
        began_at = time.monotonic()
        patience.close()  # does not wait for them
        assert time.monotonic() - began_at < 20
        go_on.set()
        while any(thread.name == "test" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        patience._deadline_s = 60  # the machine may be busy
        assert await patience.call(abs, -1) == 1  # and it works again

    asyncio.run(main())


def test_close_waits_for_what_is_under_way(go_on: threading.Event) -> None:
    ended = threading.Event()

    def work() -> None:
        go_on.wait()
        ended.set()

    async def main() -> None:
        patience = Patience(60, "test")
        call = asyncio.create_task(patience.call(work))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        threading.Timer(0.2, go_on.set).start()
        patience.close()
        assert ended.is_set()

    asyncio.run(main())
