import math

import pytest

import app.rates
from app.errors import QueueFullError, RateLimitedError
from app.rates import RateLimit, to_client


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
    limit = RateLimit("requests", 6, clock)
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
    limit = RateLimit("pixels", 7_000_000, clock)
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
    limit = RateLimit("pixels", 60, clock)
    limit.charge("a", 180)
    assert refusal(limit, 60) == 180
    clock.now = 180
    limit.charge("a", 60)


def test_zero_is_no_limit() -> None:
    limit = RateLimit("requests", 0)
    for _ in range(1000):
        limit.charge("a", math.inf)


def test_the_memory_for_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.rates, "MAX_CLIENTS", 100)
    limit = RateLimit("requests", 5)
    for number in range(1000):
        limit.charge(str(number), 1)
    assert len(limit._buckets) == 100


def test_a_limit_is_answered_as_a_full_queue_is() -> None:
    assert issubclass(RateLimitedError, QueueFullError)


def test_an_address_of_ipv6_stands_for_its_network() -> None:
    assert to_client("2001:db8:1:2:3:4:5:6") == to_client("2001:db8:1:2:ffff::1") != to_client("2001:db8:1:3::1")
    assert to_client("::ffff:192.0.2.1") == to_client("192.0.2.1") == "192.0.2.1"
    assert to_client("testclient") == "testclient"
