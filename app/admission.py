"""How much the service has taken on, how fast it gets done, and when there will be room: knows no images."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.errors import QueueFullError

# Throughput is an average whose memory halves in this time of work: it follows a change of load within a minute.
HALF_LIFE_S = 20.0
MAX_RETRY_AFTER_S = 3600


@dataclass(eq=False)
class Reservation:
    """What one request was let in with.

    Attributes:
        pixels: of its images.
        work_px: pixels that the network computes for them, overlaps and padding included.
        done_px: how many of these are computed; the engine's thread adds to it.
        accepted_at: seconds, of the clock of Admission.
    """

    pixels: int
    work_px: int
    done_px: int = 0
    accepted_at: float = 0.0


class Throughput:
    """Pixels that the network computes in a second of work, as an average that forgets."""

    def __init__(self) -> None:
        self._pixels = 0.0
        self._seconds = 0.0

    def observe(self, pixels: int, seconds: float) -> None:
        """Add `pixels` done in `seconds` in which there was work."""
        kept = 0.5 ** (seconds / HALF_LIFE_S)
        self._pixels = self._pixels * kept + pixels
        self._seconds = self._seconds * kept + seconds

    @property
    def pixels_per_s(self) -> float | None:
        """None before the first observation."""
        return self._pixels / self._seconds if self._seconds > 0 else None


class Admission:
    """Bounds what is accepted and not yet answered, in pixels and in requests.

    Args:
        max_pixels: of all images together; a request that is alone is let in whatever it holds.
        max_requests: number of requests.
        clock: seconds, for tests.
    """

    def __init__(self, *, max_pixels: int, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_pixels = max_pixels
        self.max_requests = max_requests
        self.pixels = 0
        self.throughput = Throughput()
        self._clock = clock
        self._reservations: set[Reservation] = set()
        self._observed_at = self._busy_since = clock()

    @property
    def requests(self) -> int:
        """Requests accepted and not yet answered."""
        return len(self._reservations)

    @property
    def oldest_age_s(self) -> float:
        """Seconds since the oldest of these was accepted; 0 if there is none."""
        oldest = min((item.accepted_at for item in self._reservations), default=None)
        return 0.0 if oldest is None else self._clock() - oldest

    def check(self) -> None:
        """Refuse early, before a body is read, what could not be let in anyway.

        Raises:
            QueueFullError: no room for even one pixel.
        """
        self._refuse_if_full(1)

    @contextmanager
    def reserve(self, pixels: int, work_px: int) -> Iterator[Reservation]:
        """Let a request in for the time of the block.

        Raises:
            QueueFullError: no room; says when there will be.
        """
        self._refuse_if_full(pixels)
        if not self._reservations:
            self._busy_since = self._clock()
        reservation = Reservation(pixels, work_px, accepted_at=self._clock())
        self._reservations.add(reservation)
        self.pixels += pixels
        try:
            yield reservation
        finally:
            self._reservations.discard(reservation)
            self.pixels -= pixels

    def observe(self, work_px: int) -> None:
        """The network has computed so many pixels; the time since the last ones counts, less that without work."""
        now = self._clock()
        self.throughput.observe(work_px, max(now - max(self._observed_at, self._busy_since), 1e-6))
        self._observed_at = now

    def estimate_wait_s(self, share: float) -> int:
        """Seconds, rounded up, in which `share` (0..1) of the work taken on should be done; at least 1."""
        rate = self.throughput.pixels_per_s
        if rate is None:
            return 1
        left_px = sum(max(item.work_px - item.done_px, 0) for item in self._reservations)
        return min(max(math.ceil(left_px * share / rate), 1), MAX_RETRY_AFTER_S)

    def _refuse_if_full(self, pixels: int) -> None:
        if not self._reservations:
            return
        if len(self._reservations) >= self.max_requests:
            raise QueueFullError(
                f"{self.requests} requests are waiting, which is the most allowed",
                retry_after_s=self.estimate_wait_s(1 / self.requests),
            )
        surplus = self.pixels + pixels - self.max_pixels
        if surplus > 0:
            raise QueueFullError(
                f"{self.pixels:,} pixels are waiting; with these {pixels:,} it would be more than "
                f"{self.max_pixels:,}, which is the most allowed",
                retry_after_s=self.estimate_wait_s(min(surplus / max(self.pixels, 1), 1.0)),
            )
