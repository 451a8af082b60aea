"""What is learnt of a request on its way, for its line in the log, the metrics and the traces; knows no HTTP.

The outermost layer opens the notes, whoever knows something writes it down, and the outermost layer reads them when the
request has ended. They travel in a context variable, so that the service need not pass them on.
"""

import random
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

StageName = Literal["queue", "decode", "infer", "encode"]


def new_request_id() -> str:
    """32 hex digits, of no meaning and no secret.

    Not of the system's random numbers: to ask for these lets go of the interpreter, which the threads that decode then
    keep from the event loop for a good part of a millisecond.
    """
    return f"{random.getrandbits(128):032x}"


@dataclass(frozen=True)
class Stage:
    """A part of the work on one image.

    Attributes:
        name: of the stage; `queue` is waiting, for room or for the network.
        ended_at: seconds, of time.perf_counter.
        seconds: that it took.
    """

    name: StageName
    ended_at: float
    seconds: float


@dataclass
class Notes:
    """Of one request.

    Attributes:
        request_id: as in X-Request-ID.
        trace_id: 32 hex digits, of the client's `traceparent`; empty if it sent none.
        key: name of the API key that was sent, never the key; empty if none was asked for.
        client: whose rate is limited: the key's name or the client's address.
        reason: code of the problem that the request was refused with.
        model, model_version: that answered.
        pixels: of the images that were decoded.
        quality: flags of the images, of model/quality.py.
        stages: in the order in which they ended; those of a batch's images overlap.
    """

    request_id: str = ""
    trace_id: str = ""
    key: str = ""
    client: str = ""
    reason: str = ""
    model: str = ""
    model_version: str = ""
    pixels: int = 0
    quality: set[str] = field(default_factory=set)
    stages: list[Stage] = field(default_factory=list)

    def add_stage(self, name: StageName, seconds: float, ended_at: float | None = None) -> None:
        """Note a stage that ended at `ended_at` of time.perf_counter, or now."""
        self.stages.append(Stage(name, time.perf_counter() if ended_at is None else ended_at, max(seconds, 0.0)))

    def seconds_by_stage(self) -> dict[StageName, float]:
        """Sums over the images."""
        sums: dict[StageName, float] = {}
        for stage in self.stages:
            sums[stage.name] = sums.get(stage.name, 0.0) + stage.seconds
        return sums


_current: ContextVar[Notes] = ContextVar("notes")


def open_notes(notes: Notes) -> None:
    """Make these the notes of the request that this task answers."""
    _current.set(notes)


def current_notes() -> Notes:
    """The notes of the request under way; a blank page where there is none, as in a notebook or a test."""
    return _current.get(None) or Notes()
