"""Starting, ready, draining, closed: what the service may take on, and the tasks it still owes an answer."""

import asyncio
import time
from typing import Literal

from app.errors import DrainingError, NotReadyError

State = Literal["starting", "ready", "draining", "closed"]


class Lifecycle:
    """The state of the process. Moves forward only: starting, ready, draining, closed.

    While draining, requests are still served, for load balancers need a moment to notice; once closed, none is begun.
    """

    def __init__(self) -> None:
        self.state: State = "starting"
        self.aborting = False
        self.started_at = time.monotonic()
        self._tasks: set[asyncio.Task[object]] = set()

    def set_ready(self) -> None:
        """Everything is loaded and warm."""
        self.state = "ready"

    def drain(self) -> None:
        """Say so on /readyz, and close connections after their next answer."""
        self.state = "draining"

    def close(self) -> None:
        """Begin no more work."""
        self.state = "closed"

    def abort(self) -> None:
        """Stop what is still running; each of these requests gets 503."""
        self.aborting = True
        for task in self._tasks:
            task.cancel()

    @property
    def leaving(self) -> bool:
        """Whether the process is on its way out."""
        return self.state in ("draining", "closed")

    def check(self) -> None:
        """See that new work may begin.

        Raises:
            NotReadyError, DrainingError: it may not.
        """
        if self.state == "starting":
            raise NotReadyError("the models are being loaded")
        if self.state == "closed":
            raise DrainingError("the service is shutting down and takes no new requests")

    def enter(self, task: asyncio.Task[object]) -> None:
        """Note a task that owes an answer."""
        self._tasks.add(task)

    def leave(self, task: asyncio.Task[object]) -> None:
        """The task has answered."""
        self._tasks.discard(task)
