"""Run the app under uvicorn: logging, and an exit that answers what was accepted."""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import time
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import uvicorn
from fastapi import FastAPI

from app import metrics
from app.lifecycle import Lifecycle
from app.logs import set_up_logging
from app.main import create_app
from app.peers import Peers
from app.protocol import make_protocol
from app.rates import RateLimit, rates_of
from app.settings import Settings, describe_strangers
from app.shared import hold, make_shared_folder
from app.supervisor import FAILED_START, Supervisor, describe_address

# On top of grace and deadline, for the answers themselves to go out.
LAST_RESORT_S = 15.0
MAX_FILES = 65_536
NO_PLACE = "there is no place for what workers share, which TMPDIR may name: %s"

logger = logging.getLogger("app.server")


class Server(uvicorn.Server):
    """uvicorn, but on SIGTERM it says so on /readyz and serves on for a while, and a graceful end is exit status 0.

    1. SIGTERM: /readyz answers 503. For `drain_grace_s` everything else goes on.
    2. No new connections and no new work. Accepted requests have `drain_deadline_s` to finish.
    3. What is left then gets 503.

    SIGINT, which a person sends, begins with 2; sent again it ends at once.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, settings: Settings) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._settings = settings
        self._close_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, once the models are loaded and warm; and say where."""
        await super().startup(sockets)
        if self.started and sockets is None:  # else it is a worker, of which the supervisor speaks
            port = self.servers[0].sockets[0].getsockname()[1]
            logger.info("ready on %s", describe_address(self._settings.host, port))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler. uvicorn's own notes the signal, to raise it again at the end: no status 0 after that."""
        if self._close_at is None:
            grace_s = self._settings.drain_grace_s if sig == signal.SIGTERM else 0.0
            self._close_at = time.monotonic() + grace_s
            if self.started:
                self._lifecycle.drain()
            else:
                self.should_exit = True
        elif sig == signal.SIGINT:
            self._close_at = 0.0
            self.force_exit = self.should_exit

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second: is it time to stop?"""
        if self._close_at is not None and time.monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Wait for what was accepted, until the deadline."""
        self._lifecycle.close()
        abort = asyncio.get_running_loop().call_later(self._settings.drain_deadline_s, self._lifecycle.abort)
        await super().shutdown(sockets)
        abort.cancel()


def serve(settings: Settings) -> int:
    """Serve until told to stop: in this process, or in several under a supervisor.

    Returns:
        The exit status, where it is not uvicorn that ends the process.
    """
    _raise_file_limit()
    set_up_logging(settings.log_level, settings.log_format)
    for line in describe_strangers(os.environ):
        logger.warning(line)
    if settings.workers == 1:
        return _run(create_app(settings), settings)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(make_shared_folder())
            for unit, per_min in rates_of(settings).items():
                RateLimit.prepare(unit, per_min, folder)
        except OSError as error:
            logger.error(NO_PLACE, error)
            return FAILED_START
        os.environ[metrics.SHARED_FOLDER] = str(folder)  # the workers inherit it
        return Supervisor(settings, partial(run_worker, folder), partial(metrics.bury, folder)).run()


def _raise_file_limit() -> None:
    """As many open files, and so connections, as the system lets this process have; shells give it a fraction."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if wanted > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_worker(folder: Path, settings: Settings, listener: socket.socket, link: Connection, slot: int) -> None:
    """One of several processes; what a Supervisor starts.

    Args:
        folder: whose files all share.
        settings: the same for all.
        listener: shared by all.
        link: to the supervisor.
        slot: a number that a worker has from its predecessor.
    """
    set_up_logging(settings.log_level, settings.log_format)
    try:
        hold(folder)  # to the end of the process, which may outlive the supervisor
        metrics.take_room(folder, slot)
    except OSError as error:
        logger.error(NO_PLACE, error)
        sys.exit(FAILED_START)
    metrics.count_as(slot)
    os.setpgid(0, 0)  # a Ctrl-C in the terminal goes to the supervisor alone, which passes it on
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that came before is the supervisor's
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.exit(_run(create_app(settings, Peers(link, folder)), settings, [listener]))


def _run(app: FastAPI, settings: Settings, sockets: list[socket.socket] | None = None) -> int:
    """Serve; the exit status.

    Where a thread still hangs in foreign code, the process ends at once: to end in order would crash on it.
    """
    status = 0
    try:
        make_server(app, settings).run(sockets)
    except SystemExit as leaving:  # uvicorn's, where it cannot start
        status = leaving.code if isinstance(leaving.code, int) else 1
    if app.state.service.registry.hangs or app.state.service.batcher.hung:
        logging.shutdown()
        os._exit(status)
    return status


def make_server(app: FastAPI, settings: Settings) -> Server:
    """uvicorn, set up."""
    cv2.setNumThreads(1)  # pictures share the cores, each in a thread of Maskwell's; more would only be in the way
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=make_protocol(app.state.service),
        ws="none",
        lifespan="on",
        access_log=False,  # app.request has its own line, with the id
        server_header=False,
        forwarded_allow_ips=settings.trusted_proxies,
        log_config=None,  # set_up_logging has been called
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=int(settings.drain_deadline_s + LAST_RESORT_S),
    )
    return Server(config, app.state.service.lifecycle, settings)
