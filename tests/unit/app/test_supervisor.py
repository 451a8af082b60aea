"""The supervisor with workers that do nothing, or misbehave; the real ones are in tests/faults."""

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

import pytest

from app import supervisor
from app.settings import Settings
from app.supervisor import Supervisor
from tests.e2e.kit import find_free_port, wait_for
from tests.unit.app.fake_workers import (
    Fake,
    die_at_once,
    die_when_ready,
    fail_once,
    fall_silent_once,
    serve,
    started,
)


class Running:
    """A supervisor in a thread of its own would get no signals, so it runs here and the test in the thread."""

    def __init__(self, folder: Path, run_worker: Callable[..., None], workers: int = 2) -> None:
        self.settings = Fake(find_free_port(), folder, workers)
        self._supervisor = Supervisor(cast(Settings, self.settings), run_worker)
        self._error: BaseException | None = None

    def ask(self) -> tuple[int, int, int, str]:
        """Who answers, how many it says there are, how many were replaced, and how the last one died."""
        with socket.create_connection(("127.0.0.1", self.settings.port), timeout=30) as connection:
            pid, count, replaced, death = connection.makefile().read().split(" ", 3)
        return int(pid), int(count), int(replaced), death

    def run(self, test: Callable[["Running"], Any] = lambda _: None, stop: int | None = signal.SIGTERM) -> int:
        ended = threading.Event()

        def work() -> None:
            handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                wait_for(lambda: ended.is_set() or all(signal.getsignal(each) != old for each, old in handlers.items()))
                test(self)
            except BaseException as error:
                self._error = error
            finally:
                if stop is not None and not ended.is_set():
                    os.kill(os.getpid(), stop)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            status = self._supervisor.run()
        finally:
            ended.set()
            thread.join()
        if self._error is not None:
            raise self._error
        return status


def test_workers_share_a_port_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    def test(running: Running) -> None:
        wait_for(lambda: started(running.settings) == 2)
        wait_for(lambda: running.ask()[1] == 2)
        victim = running.ask()[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: running.ask()[1:] == (2, 1, "was killed by SIGKILL"))
        wait_for(lambda: started(running.settings) == 3)
        assert victim not in {running.ask()[0] for _ in range(20)}

    assert Running(tmp_path, serve).run(test) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_first_worker_starts_is_obeyed(tmp_path: Path, number: int) -> None:
    assert Running(tmp_path, serve).run(stop=number) == 0


def test_a_ctrl_c_while_a_worker_is_spawned_is_late_and_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SpawnProcess.start

    def start(self: SpawnProcess) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        honest(self)

    monkeypatch.setattr(SpawnProcess, "start", start)
    assert Running(tmp_path, serve).run(stop=None) == 0


def test_a_first_worker_that_cannot_start_ends_it_all_with_its_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Running(tmp_path, die_at_once, workers=4).run(stop=None) == supervisor.FAILED_START
    assert started(Fake(0, tmp_path)) == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []  # the worker has said why


def test_a_crash_loop_slows_down_and_ends_with_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.2)
    assert Running(tmp_path, die_when_ready).run(stop=None) == 1
    assert supervisor.MAX_FAILED_STARTS <= started(Fake(0, tmp_path)) <= supervisor.MAX_FAILED_STARTS + 1
    times = sorted(int(path.name.split("-")[0]) for path in tmp_path.iterdir())
    assert times[-1] - times[0] >= 0.2e9
    assert "died before they had served for 2 s, the last one was killed by SIGSEGV; giving up" in caplog.text


def test_a_worker_whose_engine_has_failed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FAILED_EXIT_S", 0.5)
    assert Running(tmp_path, fail_once).run(lambda it: wait_for(lambda: it.ask()[1:3] == (2, 1))) == 0


def test_a_worker_that_falls_silent_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "SILENT_S", 2.0)
    assert Running(tmp_path, fall_silent_once).run(lambda it: wait_for(lambda: it.ask()[1:3] == (2, 1))) == 0
    assert "has said nothing for" in caplog.text


@pytest.mark.parametrize(("version", "answer"), [("2", "()"), ("bad", "('it is bad', 'it is bad')")])
def test_a_reload_goes_to_all_others_and_their_answers_come_back(tmp_path: Path, version: str, answer: str) -> None:
    def test(running: Running) -> None:
        wait_for(lambda: running.ask()[1] == 3)
        (tmp_path / "part").write_text(version)
        (tmp_path / "part").rename(tmp_path / "spread")
        wait_for(lambda: (tmp_path / "answer").exists() and (tmp_path / "answer").read_text() == answer)
        assert len(list(tmp_path.glob("looked_*"))) == 2

    assert Running(tmp_path, serve, workers=3).run(test) == 0


def test_a_port_that_is_taken_ends_it_with_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    running = Running(tmp_path, serve)
    with socket.create_server(("127.0.0.1", running.settings.port)):
        assert running.run(stop=None) == supervisor.FAILED_START
    assert f"cannot listen on 127.0.0.1:{running.settings.port}: Address already in use" in caplog.text
    assert started(running.settings) == 0


def test_a_worker_for_which_there_is_no_room_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "MAX_DELAY_S", 0.2)
    spawn, calls = Supervisor._spawn, iter(range(100))

    def full(self: Supervisor) -> None:
        if next(calls) == 2:  # the one that is to replace the first that dies
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        spawn(self)

    monkeypatch.setattr(Supervisor, "_spawn", full)

    def test(running: Running) -> None:
        wait_for(lambda: started(running.settings) == 2)
        wait_for(lambda: running.ask()[1] == 2)
        os.kill(running.ask()[0], signal.SIGKILL)
        wait_for(lambda: started(running.settings) == 3)
        wait_for(lambda: running.ask()[1] == 2)

    assert Running(tmp_path, serve).run(test) == 0
    assert "could not be started: Resource temporarily unavailable" in caplog.text


def test_no_room_for_the_first_worker_ends_it_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Supervisor) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(Supervisor, "_spawn", full)
    assert Running(tmp_path, serve).run(stop=None) == supervisor.FAILED_START
