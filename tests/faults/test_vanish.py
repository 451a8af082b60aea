"""Clients that vanish at each stage of a request, beside others that stay."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.kit import ServerProcess, decode, draw_cells, load_reference, to_png, wait_for
from tests.faults.kit import TIMEOUT, check_at_rest, counts, form, hang_up, head, metric, resident_mib

SMALL, LARGE = draw_cells(100, 140), draw_cells(700, 700)


@pytest.fixture(scope="module")
def server(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"log_level": "warning", "max_queue_requests": 64}
    with ServerProcess(tiny_weights, tmp_path_factory.mktemp("log") / "log", settings) as process:
        yield process


def vanish(server: ServerProcess, stage: str, generator: random.Random) -> None:
    """One client that begins and does not wait for the end."""
    body = form(to_png(SMALL if stage == "queue" else LARGE))
    whole = head(len(body), "?output=probability" if stage == "download" else "") + body
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        if stage == "download":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(whole[: generator.randrange(len(whole))] if stage == "upload" else whole)
        if stage == "inference":
            time.sleep(generator.uniform(0.0, 0.4))
        if stage == "download":
            connection.recv(generator.randrange(1, 2000))
        hang_up(connection)


@pytest.mark.parametrize("count", counts(short=60, long=1000))
def test_clients_that_vanish_leave_nothing_behind_and_harm_nobody(
    server: ServerProcess, tiny_weights: Path, count: int
) -> None:
    expected = load_reference(tiny_weights / "best_model.pth").segment(SMALL).mask().tobytes()
    stop = threading.Event()

    def stay(_: int) -> int:
        answered = 0
        with httpx.Client(timeout=TIMEOUT) as client:
            while not stop.is_set():
                answer = client.post(f"{server.url}/segment", files={"file": ("x.png", to_png(SMALL))})
                assert answer.status_code == 200, answer.text
                assert (decode(answer.content) > 0).tobytes() == expected
                answered += 1
        return answered

    def leave(number: int) -> None:
        stage = ("upload", "queue", "inference", "download")[number % 4]
        vanish(server, stage, random.Random(number))

    cancelled_before = metric(server, "maskwell_requests_cancelled_total")
    memory_before = resident_mib(server.process.pid)
    with ThreadPoolExecutor(2) as neighbours, ThreadPoolExecutor(8) as leavers:
        stayed = [neighbours.submit(stay, number) for number in range(2)]
        try:
            list(leavers.map(leave, range(count)))
        finally:
            stop.set()
        answered = sum(future.result() for future in stayed)
    check_at_rest(server)
    wait_for(lambda: metric(server, "maskwell_requests_cancelled_total") > cancelled_before)
    cancelled = metric(server, "maskwell_requests_cancelled_total") - cancelled_before
    growth = resident_mib(server.process.pid) - memory_before
    assert answered > 0
    print(f"{count} vanished ({cancelled:.0f} before their answer), {answered} neighbours answered, 0 wrong; "
          f"memory grew by {growth:.0f} MiB")  # fmt: skip
