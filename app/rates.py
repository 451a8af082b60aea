"""How much one client may ask for in a minute: a token bucket each, shared by all worker processes; knows no HTTP."""

import fcntl
import hashlib
import ipaddress
import math
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import RateLimitedError
from app.settings import Settings

# Clients that are remembered, in sets of a few; in a set that is full, whoever was quiet longest is forgotten, and
# starts with a full bucket again.
SETS, SET_SIZE = 8192, 8
# A bucket: whose (a digest), what is in it, and since when.
BUCKET = struct.Struct("<16sdd")
SECRET_BYTES = 16
REQUESTS, PIXELS = "requests", "pixels"
# Whoever holds the lock needs microseconds. A process that was stopped while holding it shall not stop the others: a
# charge that is lost is the lesser evil.
LOCK_TRIES = 200


class Buckets:
    """A table of buckets of one size, in memory that processes may share.

    Args:
        path: of a file that `create` has made, for several processes; None for this process alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file = None if path is None else os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if self._file is None:
            self._secret = os.urandom(SECRET_BYTES)
            self._memory = mmap.mmap(-1, SETS * SET_SIZE * BUCKET.size)
            self._first = 0
        else:
            self._memory = mmap.mmap(self._file, 0)
            self._secret = self._memory[:SECRET_BYTES]
            self._first = SECRET_BYTES

    @staticmethod
    def create(path: Path) -> None:
        """Make an empty table in a file.

        Raises:
            OSError: it cannot be written, or there is no room for all of it, which would be deadly later.
        """
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, SECRET_BYTES + SETS * SET_SIZE * BUCKET.size)
            file.write(os.urandom(SECRET_BYTES))

    def update(self, client: str, change: Callable[[float, float], tuple[float, float]], new: float) -> None:
        """Change one client's bucket, in one step for all processes.

        Args:
            client: its name.
            change: from what is in the bucket, and since when, to the same afterwards.
            new: what is in a bucket that nobody has used.
        """
        # by a secret, so that nobody can choose whose place in the table to take
        digest = hashlib.blake2b(client.encode("utf-8", "surrogatepass"), digest_size=16, key=self._secret).digest()
        start = self._first + int.from_bytes(digest[:4], "little") % SETS * SET_SIZE * BUCKET.size
        with self._locked():
            place, oldest = start, math.inf
            held, since = new, -math.inf
            for offset in range(start, start + SET_SIZE * BUCKET.size, BUCKET.size):
                owner, kept, at = BUCKET.unpack_from(self._memory, offset)
                if owner == digest:
                    place, held, since = offset, kept, at
                    break
                age = at if any(owner) else -math.inf
                if age < oldest:
                    place, oldest = offset, age
            BUCKET.pack_into(self._memory, place, digest, *change(held, since))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._file is None:  # the event loop's thread alone comes here
            yield
            return
        held = False
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.0001)
                continue
            held = True
            break
        try:
            yield
        finally:
            if held:
                fcntl.flock(self._file, fcntl.LOCK_UN)


class RateLimit:
    """A bucket a client: holds one minute's worth, and fills up in a minute.

    What costs more than a whole bucket is let in where the bucket is full, and leaves a debt; so an image of any size
    can be sent, and who sent it waits accordingly.

    Args:
        unit: of what is counted, in words.
        per_min: how much of it; 0 is no limit.
        folder: where `prepare` was called, for a limit that holds for several processes together; None for one.
        clock: seconds, the same for all processes.
    """

    def __init__(
        self, unit: str, per_min: float, folder: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unit, self._per_min = unit, float(per_min)
        self._clock = clock
        self._buckets = Buckets(folder / _file_name(unit) if folder else None) if per_min else None

    @staticmethod
    def prepare(unit: str, per_min: float, folder: Path) -> None:
        """Make what the processes share of a limit, before they start; arguments and errors as elsewhere here."""
        if per_min:
            Buckets.create(folder / _file_name(unit))

    def charge(self, client: str, cost: float) -> None:
        """Take so much out of a client's bucket.

        Raises:
            RateLimitedError: there is not enough in it; says when there will be.
        """
        if self._buckets is None:
            return
        now = self._clock()
        missing = 0.0

        def take(held: float, since: float) -> tuple[float, float]:
            nonlocal missing
            held = min(held + max(now - since, 0.0) * self._per_min / 60, self._per_min)
            missing = min(cost, self._per_min) - held
            return (held if self._refuses(missing) else held - cost), now

        self._buckets.update(client, take, self._per_min)
        if self._refuses(missing):
            raise RateLimitedError(
                f"{self._per_min:,.0f} {self._unit} a minute are allowed, and no more are left now",
                retry_after_s=max(math.ceil(missing * 60 / self._per_min), 1),
            )

    @staticmethod
    def _refuses(missing: float) -> bool:
        return missing > 1e-9


def rates_of(settings: Settings) -> dict[str, float]:
    """How much of each unit a client may ask for in a minute; 0 is no limit."""
    return {REQUESTS: settings.max_client_requests_per_min, PIXELS: settings.max_client_pixels_per_min}


def _file_name(unit: str) -> str:
    return f"rate-{unit}"


def to_client(address: str) -> str:
    """Whom an address stands for: of IPv6, where everybody has many, the network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))
    return address
