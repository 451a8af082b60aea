"""A worker's line to its supervisor, and through it to the other workers. Knows no HTTP and no images.

Each worker tells once a second that its event loop turns and what it serves. When one has taken new weights, it asks
the others to follow.
"""

import asyncio
import itertools
import logging
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger("app.peers")

BEAT_S = 1.0
GONE = "the supervisor is gone, and with it the way to the other workers"


@dataclass(frozen=True)
class Beat:
    """A worker is there.

    Attributes:
        status: as in /health.
        models: name to version of what it serves.
    """

    status: str
    models: dict[str, str]


@dataclass(frozen=True)
class Look:
    """There are new weights in the folder."""


@dataclass(frozen=True)
class Adopt:
    """Serve this version of a model, from its file.

    Attributes:
        ask: number of the question, of the worker that asks.
    """

    ask: int
    model: str
    version: str


@dataclass(frozen=True)
class Adopted:
    """The answer to an Adopt, from one worker to the supervisor and from there, of all workers, to the one that asked.

    Attributes:
        errors: why it could not be done, one a worker; empty if all went well.
    """

    ask: int
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roster:
    """All workers, as the supervisor sees them.

    Attributes:
        beats: the latest of each worker by process id; None before its first.
        replaced: workers that died and were replaced, or are to be.
        last_death: how the latest of them died.
    """

    beats: dict[int, Beat | None] = field(default_factory=dict)
    replaced: int = 0
    last_death: str | None = None


Message = Beat | Look | Adopt | Adopted | Roster


class Follower(Protocol):
    """What a worker does on behalf of the others."""

    def beat(self) -> Beat:
        """Its own state."""
        ...

    async def look(self) -> None:
        """Look into the folder of weights now."""
        ...

    async def adopt(self, model: str, version: str) -> str | None:
        """Serve a version, from the file; why not, or None."""
        ...


class Peers:
    """The worker's end of the line.

    Args:
        link: to the supervisor.
        folder: whose files all workers share.
    """

    def __init__(self, link: Connection, folder: Path | None = None) -> None:
        self.folder = folder
        self.roster = Roster()
        self._link = link
        self._asks: dict[int, asyncio.Future[tuple[str, ...]]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone = False

    async def run(self, follower: Follower) -> None:
        """Beat, and do what the supervisor asks for; never returns."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link.fileno(), self._receive, follower)
        try:
            while True:
                self._send(follower.beat())
                await asyncio.sleep(BEAT_S)
        finally:
            loop.remove_reader(self._link.fileno())

    def beat(self, follower: Follower) -> None:
        """Tell of a change of one's own state at once."""
        self._send(follower.beat())

    def tell_of_change(self) -> None:
        """New weights serve here: let the others look for them now."""
        self._send(Look())

    async def spread(self, model: str, version: str) -> tuple[str, ...]:
        """Have every other worker serve this version, and wait until they do.

        Returns:
            Why some could not, one text a worker.
        """
        if self._alone:
            return (GONE,)
        ask = next(self._numbers)
        answer: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        self._asks[ask] = answer
        try:
            self._send(Adopt(ask, model, version))
            return await answer
        finally:
            del self._asks[ask]

    def _send(self, message: Message) -> None:
        if self._alone:
            return
        try:
            self._link.send(message)
        except OSError:
            self._leave()

    def _receive(self, follower: Follower) -> None:
        try:
            while self._link.poll():
                self._handle(self._link.recv(), follower)
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._leave()

    def _handle(self, message: Message, follower: Follower) -> None:
        match message:
            case Roster():
                self.roster = message
            case Look():
                self._begin(follower.look())
            case Adopt():
                self._begin(self._adopt(message, follower))
            case Adopted(ask, errors) if ask in self._asks and not self._asks[ask].done():
                self._asks[ask].set_result(errors)

    async def _adopt(self, message: Adopt, follower: Follower) -> None:
        try:
            error = await follower.adopt(message.model, message.version)
        except Exception as reason:  # whatever it is, somebody waits for an answer
            logger.exception("could not adopt %s", message.model)
            error = f"{message.model} could not be adopted ({type(reason).__name__})"
        self._send(Adopted(message.ask, () if error is None else (error,)))
        self._send(follower.beat())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _leave(self) -> None:
        """The supervisor is gone, and with it whoever would stop this process: drain and end."""
        if not self._alone:
            self._alone = True
            for answer in self._asks.values():
                if not answer.done():
                    answer.set_result(("the supervisor is gone",))
            os.kill(os.getpid(), signal.SIGTERM)
