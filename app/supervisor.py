"""Several worker processes on one port: starts them, replaces those that die, and ends when all have ended.

The supervisor holds the listening socket and serves nothing itself. The workers share that socket: connections that
wait to be accepted outlive the death of a worker, which they would not if each had a queue of its own (SO_REUSEPORT).
Why not uvicorn's own supervisor: docs/decisions/0010-workers.md.
"""

import itertools
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

from app.peers import Adopt, Adopted, Beat, Look, Message, Roster

if TYPE_CHECKING:  # the supervisor itself runs no network and loads none of what that needs
    from app.settings import Settings

logger = logging.getLogger("app.supervisor")

# A worker that lives so long with its models loaded was sound; one that dies sooner counts as a failed start.
STEADY_S = 2.0
# Failed starts in a row after which, with no worker left that serves, there is no use in going on.
MAX_FAILED_STARTS = 5
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
# Without a beat for so long a worker's event loop is blocked for good; a second a beat is what it promises.
SILENT_S = 60.0
# Until its first beat it imports PyTorch and its like, on a slow disk perhaps.
SLOWEST_START_S = 300.0
# A worker whose engine has failed has answered everyone; it needs no more than to close its connections.
FAILED_EXIT_S = 10.0
TICK_S = 0.5
# On top of the drain: the workers' own last resort is 15 s.
KILL_AFTER_S = 30.0
FAILED_START = 3  # uvicorn's exit status where start-up failed

RunWorker = Callable[["Settings", socket.socket, Connection, int], None]


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    link: Connection
    slot: int
    started_at: float
    heard_at: float
    beat: Beat | None = None
    ready_at: float | None = None
    kill_at: float | None = None
    linked: bool = True
    told: Roster = field(default_factory=Roster)
    pid: int = 0

    @property
    def serves(self) -> bool:
        return self.beat is not None and self.beat.status == "ready"


@dataclass(eq=False)
class _Ask:
    """A reload that one worker has done and the others are to follow."""

    origin: _Worker
    ask: int
    pending: set[_Worker]
    errors: list[str] = field(default_factory=list)


class Supervisor:
    """Keeps `settings.workers` processes running.

    Args:
        settings: handed on to the workers.
        run_worker: what each of them does; called in a new process, so it must be a function of a module. The number
            that it gets is below `settings.workers`, and no other worker's at the time; a successor has it again.
        forget: called with that number when a worker has ended.
    """

    def __init__(
        self, settings: "Settings", run_worker: RunWorker, forget: Callable[[int], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._run_worker = run_worker
        self._forget = forget
        self._context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks in any state
        self._workers: list[_Worker] = []
        self._asks: dict[int, _Ask] = {}
        self._numbers = itertools.count()
        self._listener: socket.socket | None = None
        self._signals: list[int] = []
        self._stopping = False
        self._status = 0
        self._served = False  # some worker has been ready
        self._failed_starts = 0
        self._failed_at = 0.0
        self._start_at = 0.0
        self._replaced = 0
        self._last_death: str | None = None

    def run(self) -> int:
        """Supervise until told to stop.

        Returns:
            The exit status: 0 after a signal that every worker obeyed.
        """
        try:
            self._listener = _listen(self._settings.host, self._settings.port)
        except OSError as error:
            logger.error("cannot listen on %s:%d: %s", self._settings.host, self._settings.port, error.strerror)
            return FAILED_START
        # a signal writes a byte, so that wait() returns at once
        wake, woken = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)
        before = {number: signal.signal(number, self._note_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        wakeup_before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        try:
            while self._tend():
                self._listen_to_workers(woken)
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            for end in (wake, woken):
                end.close()
            self._close_listener()
        return self._status

    def _note_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)

    def _tend(self) -> bool:
        """Do whatever it is time for; whether to go on."""
        while self._signals:
            self._stop(self._signals.pop(0))
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            self._bury(worker)
        now = time.monotonic()
        if self._stopping:
            if not self._workers:
                return False
        elif now >= self._start_at:
            # the first alone: if it cannot start, it says why once
            wanted = self._settings.workers if self._served else 1
            while len(self._workers) < wanted and self._start():
                pass
        for worker in self._workers:
            self._check(worker, now)
        self._call_the_roll()
        return True

    def _start(self) -> bool:
        """Start a worker; False where the system has no room for one, which is tried again later."""
        try:
            self._spawn()
        except OSError as error:
            logger.error("a worker could not be started: %s", error.strerror or error)
            self._start_at = time.monotonic() + MAX_DELAY_S
            if not self._served and not self._workers:
                self._status, self._stopping = FAILED_START, True
            return False
        return True

    def _spawn(self) -> None:
        assert self._listener is not None
        ours, theirs = self._context.Pipe()
        slot = min(set(range(self._settings.workers)) - {worker.slot for worker in self._workers})
        arguments = (self._settings, self._listener, theirs, slot)
        process = self._context.Process(target=self._run_worker, args=arguments, name="maskwell-worker")
        # until the worker is out of the terminal's reach, a Ctrl-C shall not end it; for this process it only waits
        resource_tracker.ensure_running()  # or start() did so, and let the signal through
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()  # so that the worker's death closes the line
        now = time.monotonic()
        self._workers.append(_Worker(process, ours, slot, started_at=now, heard_at=now, pid=process.pid or 0))
        logger.info("worker %d started", process.pid)

    def _stop(self, number: int) -> None:
        logger.info("%s: stopping %d workers", signal.Signals(number).name, len(self._workers))
        self._end_all(number)

    def _end_all(self, number: int) -> None:
        self._stopping = True
        self._close_listener()  # or connections would be taken into its queue after the last worker has left
        grace_s = self._settings.drain_grace_s + self._settings.drain_deadline_s + KILL_AFTER_S
        for worker in self._workers:
            # one that starts owes nobody an answer, and hears no SIGINT yet
            self._signal(worker, number if worker.beat else signal.SIGTERM)
            worker.kill_at = worker.kill_at or time.monotonic() + grace_s

    def _bury(self, worker: _Worker) -> None:
        """A worker has ended; note why, and whether that was all right."""
        self._drain_link(worker)  # its last words
        self._workers.remove(worker)
        worker.link.close()
        for ask in list(self._asks.values()):
            self._answer(ask, worker, ())
        code = worker.process.exitcode
        worker.process.join()
        worker.process.close()
        self._forget(worker.slot)
        if self._stopping:
            # one that was told before it could listen dies of the signal
            if code not in (0, -signal.SIGTERM):
                self._status = 1
                logger.error("worker %d %s", worker.pid, _describe_exit(code))
            return
        self._last_death = _describe_exit(code)
        now = time.monotonic()
        if worker.ready_at is None or now - worker.ready_at < STEADY_S:
            self._failed_starts += 1
            self._failed_at = now
        if not self._served:  # it has said why, or been killed
            if code != FAILED_START:
                logger.critical("the first worker %s before it was ready", self._last_death)
            self._status = code if code is not None and code > 0 else 1
            self._end_all(signal.SIGTERM)
            return
        if self._failed_starts >= MAX_FAILED_STARTS and not any(other.serves for other in self._workers):
            logger.critical(
                "%d workers in a row died before they had served for %g s, the last one %s; giving up",
                self._failed_starts, STEADY_S, self._last_death,
            )  # fmt: skip
            self._status = 1
            self._end_all(signal.SIGTERM)
            return
        self._replaced += 1
        delay_s = min(FIRST_DELAY_S * 2 ** (self._failed_starts - 2), MAX_DELAY_S) if self._failed_starts > 1 else 0.0
        self._start_at = now + delay_s
        logger.error("worker %d %s; replaced in %g s", worker.pid, self._last_death, delay_s)

    def _check(self, worker: _Worker, now: float) -> None:
        """End a worker that does not work any more."""
        if worker.kill_at is not None:
            if now >= worker.kill_at:
                logger.error("worker %d did not end in time; killed", worker.pid)
                worker.process.kill()
            return
        if worker.beat is not None and worker.beat.status == "failed":
            logger.error("the engine of worker %d has failed; it is replaced", worker.pid)
            self._signal(worker, signal.SIGTERM)
            worker.kill_at = now + FAILED_EXIT_S
        elif now - worker.heard_at > (SILENT_S if worker.beat else SLOWEST_START_S):
            logger.error("worker %d has said nothing for %.0f s; killed", worker.pid, now - worker.heard_at)
            worker.process.kill()
            worker.kill_at = now + FAILED_EXIT_S
        if worker.ready_at is not None and now - worker.ready_at >= STEADY_S and worker.started_at > self._failed_at:
            self._failed_starts = 0

    def _listen_to_workers(self, woken: socket.socket) -> None:
        """Wait for whatever comes first: a message, a death, a signal, the next tick."""
        by_link = {worker.link: worker for worker in self._workers if worker.linked}
        sentinels = [worker.process.sentinel for worker in self._workers]
        before = time.monotonic()
        ready = wait([*by_link, *sentinels, woken], timeout=TICK_S)
        late_s = time.monotonic() - before - TICK_S
        if late_s > TICK_S:  # this process was stopped, and so, presumably, were the workers
            for worker in self._workers:
                worker.heard_at += late_s
        for source in ready:
            if isinstance(source, Connection):
                self._drain_link(by_link[source])
            elif source is woken:
                woken.recv(4096)

    def _drain_link(self, worker: _Worker) -> None:
        try:
            while worker.linked and worker.link.poll():
                message: Message = worker.link.recv()
                self._hear(worker, message)
        except (EOFError, OSError):
            worker.linked = False

    def _hear(self, worker: _Worker, message: Message) -> None:
        worker.heard_at = time.monotonic()
        match message:
            case Beat():
                worker.beat = message
                if worker.serves and worker.ready_at is None:
                    worker.ready_at = worker.heard_at
                    logger.info("worker %d is ready", worker.pid)
                    if not self._served:
                        self._served = True
                        logger.info("ready on %s", describe_address(self._settings.host, self._settings.port))
            case Look():
                for other in self._workers:
                    if other is not worker:
                        self._tell(other, message)
            case Adopt():
                number = next(self._numbers)
                ask = _Ask(worker, message.ask, {other for other in self._workers if other is not worker})
                self._asks[number] = ask
                for other in list(ask.pending):
                    self._tell(other, Adopt(number, message.model, message.version))
                self._settle(ask)
            case Adopted() if message.ask in self._asks:
                self._answer(self._asks[message.ask], worker, message.errors)

    def _answer(self, ask: _Ask, worker: _Worker, errors: tuple[str, ...]) -> None:
        """A worker has followed, or will not: a dead one's successor reads the file anyway."""
        ask.pending.discard(worker)
        ask.errors += errors
        self._settle(ask)

    def _settle(self, ask: _Ask) -> None:
        if ask.pending:
            return
        self._asks = {number: other for number, other in self._asks.items() if other is not ask}
        self._tell(ask.origin, Adopted(ask.ask, tuple(ask.errors)))

    def _call_the_roll(self) -> None:
        """Tell every worker of all, where something has changed."""
        beats = {worker.pid: worker.beat for worker in self._workers}
        roster = Roster(beats, self._replaced, self._last_death)
        for worker in self._workers:
            if worker.told != roster and worker.beat is not None:
                self._tell(worker, roster)
                worker.told = roster

    def _tell(self, worker: _Worker, message: Message) -> None:
        if worker.linked:
            try:
                worker.link.send(message)
            except OSError:
                worker.linked = False

    def _signal(self, worker: _Worker, number: int) -> None:
        if worker.process.is_alive():
            os.kill(worker.pid, number)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def describe_address(host: str, port: int) -> str:
    """Where a service is, as a URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"left with status {code}"
