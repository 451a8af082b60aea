"""How much one client may ask for in a minute: a token bucket each; knows no HTTP."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from app.errors import RateLimitedError

# Clients that are remembered; whoever was quiet longest is forgotten first, and starts with a full bucket again.
MAX_CLIENTS = 50_000


class RateLimit:
    """A bucket a client: holds one minute's worth, and fills up in a minute.

    What costs more than a whole bucket is let in where the bucket is full, and leaves a debt; so an image of any size
    can be sent, and who sent it waits accordingly.

    Args:
        unit: of what is counted, in words.
        per_min: how much of it; 0 is no limit.
        clock: seconds, for tests.
    """

    def __init__(self, unit: str, per_min: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._unit, self._per_min = unit, float(per_min)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is in it, and since when

    def charge(self, client: str, cost: float) -> None:
        """Take so much out of a client's bucket.

        Raises:
            RateLimitedError: there is not enough in it; says when there will be.
        """
        if self._per_min == 0:
            return
        now = self._clock()
        held, since = self._buckets.pop(client, (self._per_min, now))
        held = min(held + (now - since) * self._per_min / 60, self._per_min)
        needed = min(cost, self._per_min)
        enough = held >= needed - 1e-9
        self._buckets[client] = (held - cost if enough else held, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if not enough:
            raise RateLimitedError(
                f"{self._per_min:,.0f} {self._unit} a minute are allowed, and no more are left now",
                retry_after_s=max(math.ceil((needed - held) * 60 / self._per_min), 1),
            )


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
