from contextlib import ExitStack

import pytest

from app.admission import Admission, Throughput
from app.errors import QueueFullError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def retry_after(error: QueueFullError) -> int:
    return int(error.headers()["Retry-After"])


def test_pixels_are_bounded_and_given_back() -> None:
    admission = Admission(max_pixels=100, max_requests=10)
    with admission.reserve(60, 60):
        with (
            pytest.raises(QueueFullError, match=r"60 pixels are waiting; with these 41 .* 100"),
            admission.reserve(41, 41),
        ):
            pass
        with admission.reserve(40, 40):
            assert (admission.pixels, admission.requests) == (100, 2)
    assert (admission.pixels, admission.requests) == (0, 0)


def test_requests_are_bounded() -> None:
    admission = Admission(max_pixels=100, max_requests=2)
    with admission.reserve(1, 1), admission.reserve(1, 1):
        with pytest.raises(QueueFullError, match="2 requests are waiting"), admission.reserve(1, 1):
            pass
        with pytest.raises(QueueFullError):
            admission.check()
    admission.check()


def test_an_image_larger_than_the_queue_is_let_in_when_it_is_alone() -> None:
    admission = Admission(max_pixels=100, max_requests=10)
    with admission.reserve(1000, 1000):
        with pytest.raises(QueueFullError), admission.reserve(1, 1):
            pass
        with pytest.raises(QueueFullError):
            admission.check()
    with admission.reserve(1, 1), pytest.raises(QueueFullError), admission.reserve(1000, 1000):
        pass


def test_a_reservation_is_given_back_when_its_request_fails() -> None:
    admission = Admission(max_pixels=100, max_requests=10)
    with pytest.raises(ZeroDivisionError), admission.reserve(60, 60):
        raise ZeroDivisionError
    assert (admission.pixels, admission.requests) == (0, 0)


def test_retry_after_is_the_work_ahead_over_the_measured_throughput() -> None:
    clock = Clock()
    admission = Admission(max_pixels=1000, max_requests=10, clock=clock)
    with admission.reserve(800, 1600) as first:
        clock.now += 10
        first.done_px = 600
        admission.observe(600)  # 60 pixels a second; 1,000 of 1,600 are left
        with pytest.raises(QueueFullError) as refusal, admission.reserve(600, 600):
            pass
        # half of the 800 waiting pixels have to go first: 500 at 60 a second
        assert retry_after(refusal.value) == 9


def test_time_without_work_does_not_count_as_slowness() -> None:
    clock = Clock()
    admission = Admission(max_pixels=1000, max_requests=10, clock=clock)
    clock.now += 3600
    with admission.reserve(10, 10):
        clock.now += 1
        admission.observe(50)
    assert admission.throughput.pixels_per_s == pytest.approx(50)


def test_retry_after_is_at_least_a_second_and_says_so_before_anything_is_measured() -> None:
    admission = Admission(max_pixels=10, max_requests=10)
    with admission.reserve(10, 10), pytest.raises(QueueFullError) as refusal, admission.reserve(1, 1):
        pass
    assert retry_after(refusal.value) == 1


def test_retry_after_has_an_end() -> None:
    admission = Admission(max_pixels=10, max_requests=1)
    admission.throughput.observe(1, 1000)
    with admission.reserve(10**9, 10**9), pytest.raises(QueueFullError) as refusal, admission.reserve(1, 1):
        pass
    assert retry_after(refusal.value) == 3600


def test_throughput_follows_a_change() -> None:
    throughput = Throughput()
    assert throughput.pixels_per_s is None
    for _ in range(100):
        throughput.observe(1000, 1)
    for _ in range(100):
        throughput.observe(10, 1)
    assert throughput.pixels_per_s == pytest.approx(10 + 990 * 2**-5, rel=0.1)


def test_reservations_are_told_apart_even_if_alike() -> None:
    admission = Admission(max_pixels=100, max_requests=10)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(admission.reserve(1, 1))
        assert admission.requests == 5
