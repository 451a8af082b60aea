"""Workers that do nothing, or misbehave; each process imports this, so it is light."""

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from app.peers import Adopt, Adopted, Beat, Look, Roster
from app.supervisor import FAILED_START


@dataclass(frozen=True)
class Fake:
    """The settings that a supervisor reads, and a folder in which its workers leave marks."""

    port: int
    folder: Path
    workers: int = 2
    host: str = "127.0.0.1"
    drain_grace_s: float = 0.0
    drain_deadline_s: float = 5.0


def mark(settings: Fake) -> None:
    (settings.folder / f"{time.monotonic_ns()}-{os.getpid()}").touch()


def started(settings: Fake) -> int:
    return len(list(settings.folder.glob("*-*")))


def serve(settings: Fake, listener: socket.socket, link: Connection, slot: int) -> None:
    """Beat, answer each connection with the process id, leave on SIGTERM; follow every reload but that to 'bad'."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    mark(settings)
    listener.settimeout(0.05)
    roster = Roster()
    while True:
        link.send(Beat("ready", {"m": "1"}))
        while link.poll():
            match link.recv():
                case Adopt(ask, _, version):
                    link.send(Adopted(ask, ("it is bad",) if version == "bad" else ()))
                case Look():
                    (settings.folder / f"looked_{os.getpid()}").touch()
                case Adopted(_, errors):
                    (settings.folder / "answer").write_text(repr(errors))
                case Roster() as roster:
                    pass
        with suppress(FileNotFoundError):  # none, or another worker's
            (settings.folder / "spread").rename(settings.folder / "spread_taken")
            link.send(Look())
            link.send(Adopt(7, "m", (settings.folder / "spread_taken").read_text()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.sendall(f"{os.getpid()} {len(roster.beats)} {roster.replaced} {roster.last_death}".encode())
        connection.close()


def die_at_once(settings: Fake, listener: socket.socket, link: Connection, slot: int) -> None:
    mark(settings)
    sys.exit(FAILED_START)


def die_when_ready(settings: Fake, listener: socket.socket, link: Connection, slot: int) -> None:
    mark(settings)
    link.send(Beat("ready", {}))
    os.kill(os.getpid(), signal.SIGSEGV)


def fail_once(settings: Fake, listener: socket.socket, link: Connection, slot: int) -> None:
    """The second worker's engine fails, and it does not leave by itself."""
    if started(settings) == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mark(settings)
        link.send(Beat("ready", {}))
        link.send(Beat("failed", {}))
        time.sleep(600)
    serve(settings, listener, link, slot)


def fall_silent_once(settings: Fake, listener: socket.socket, link: Connection, slot: int) -> None:
    if started(settings) == 1:
        mark(settings)
        link.send(Beat("ready", {}))
        time.sleep(600)
    serve(settings, listener, link, slot)
