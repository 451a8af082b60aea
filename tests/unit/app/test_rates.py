import fcntl
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import app.rates
from app.errors import QueueFullError, RateLimitedError
from app.rates import RateLimit, to_client
from tests.e2e.kit import ROOT


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(limit: RateLimit, cost: float, client: str = "a") -> int:
    with pytest.raises(RateLimitedError) as caught:
        limit.charge(client, cost)
    return int(caught.value.headers()["Retry-After"])


def test_a_minute_s_worth_may_come_at_once_and_then_as_it_flows() -> None:
    clock = Clock()
    limit = RateLimit("requests", 6, clock=clock)
    for _ in range(6):
        limit.charge("a", 1)
    assert refusal(limit, 1) == 10
    limit.charge("b", 1)  # others are not held up
    clock.now = 9.5
    assert refusal(limit, 1) == 1
    clock.now = 10
    limit.charge("a", 1)
    assert refusal(limit, 1) == 10


def test_after_as_long_as_it_says_it_works() -> None:
    clock = Clock()
    limit = RateLimit("pixels", 7_000_000, clock=clock)
    for cost in (6_000_000, 3_000_000, 5_500_000, 7_000_000, 1):
        try:
            limit.charge("a", cost)
        except RateLimitedError as error:
            wait_s = int(error.headers()["Retry-After"])
            clock.now += wait_s - 1.001
            with pytest.raises(RateLimitedError):
                limit.charge("a", cost)
            clock.now += 1.001
            limit.charge("a", cost)


def test_what_costs_more_than_a_minute_s_worth_is_let_in_and_paid_for_afterwards() -> None:
    clock = Clock()
    limit = RateLimit("pixels", 60, clock=clock)
    limit.charge("a", 180)
    assert refusal(limit, 60) == 180
    clock.now = 180
    limit.charge("a", 60)


def test_zero_is_no_limit() -> None:
    limit = RateLimit("requests", 0)
    for _ in range(1000):
        limit.charge("a", math.inf)


def test_where_there_is_no_room_for_a_client_the_one_that_was_quiet_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app.rates, "SETS", 1)
    clock = Clock()
    limit = RateLimit("requests", 1, clock=clock)
    for number in range(app.rates.SET_SIZE):
        clock.now += 0.1
        limit.charge(str(number), 1)
    clock.now += 0.1
    assert refusal(limit, 1, "0") == 60  # and by asking it is the latest
    clock.now += 0.1
    limit.charge("new", 1)
    limit.charge("1", 1)  # forgotten, so its bucket is full again
    for client in ("0", "3", "new"):
        assert refusal(limit, 1, client) in (59, 60)


def test_processes_that_share_a_limit_let_in_what_it_says_and_no_more(tmp_path: Path) -> None:
    RateLimit.prepare("requests", 1, tmp_path)
    code = """
        import sys
        from pathlib import Path
        from app.errors import RateLimitedError
        from app import rates
        from app.rates import RateLimit
        rates.LOCK_TRIES = 10**6  # else one that waits long goes on without it
        limit = RateLimit("requests", 3000, Path(sys.argv[1]), clock=lambda: 1.0)
        let_in = 0
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(4000):
            try:
                limit.charge("a", 1)
                let_in += 1
            except RateLimitedError:
                pass
        print(let_in)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    let_in = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said, _ = process.communicate(timeout=120)
        let_in.append(int(said))
    assert sum(let_in) == 3000


def test_a_process_that_was_stopped_with_the_lock_in_its_hand_stops_no_other(tmp_path: Path) -> None:
    RateLimit.prepare("requests", 1, tmp_path)
    limit = RateLimit("requests", 2, tmp_path, clock=Clock())
    with (tmp_path / "rate-requests").open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        limit.charge("a", 1)
    limit.charge("a", 1)
    assert refusal(limit, 1) == 30


def test_what_a_bucket_holds_survives_the_process_that_counted(tmp_path: Path) -> None:
    RateLimit.prepare("requests", 1, tmp_path)
    RateLimit("requests", 1, tmp_path, clock=Clock()).charge("a", 1)
    assert refusal(RateLimit("requests", 1, tmp_path, clock=Clock()), 1) == 60


def test_a_limit_is_answered_as_a_full_queue_is() -> None:
    assert issubclass(RateLimitedError, QueueFullError)


def test_an_address_of_ipv6_stands_for_its_network() -> None:
    assert to_client("2001:db8:1:2:3:4:5:6") == to_client("2001:db8:1:2:ffff::1") != to_client("2001:db8:1:3::1")
    assert to_client("::ffff:192.0.2.1") == to_client("192.0.2.1") == "192.0.2.1"
    assert to_client("testclient") == "testclient"
