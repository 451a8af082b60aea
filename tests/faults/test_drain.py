"""SIGTERM under load: keep-alive connections, an upload that is slow, a large image under way."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.kit import HalfSent, HeldServer, draw_cells, to_png, wait_for
from tests.faults.kit import TIMEOUT, counts


@pytest.mark.parametrize("count", counts(short=1, long=20))
def test_sigterm_turns_readyz_503_answers_all_that_was_accepted_and_exits_0(
    shared_weights: Path, tmp_path: Path, count: int
) -> None:
    answered = sum(drain(shared_weights, tmp_path / f"log{number}") for number in range(count))
    print(f"SIGTERM {count} times: {answered} requests accepted and answered with 200, 0 others; status 0 each time")


def drain(weights: Path, log: Path) -> int:
    """One life; how many requests were answered."""
    with HeldServer(weights, log, {"drain_grace_s": 12, "idle_deadline_s": 300}) as server:
        small, large = to_png(draw_cells(200, 300)), to_png(draw_cells(2000, 2000))
        leaving = threading.Event()

        def segment(image: bytes) -> httpx.Response:
            return httpx.post(f"{server.url}/segment", files={"file": ("x.png", image)}, timeout=TIMEOUT)

        def keep_asking(_: int) -> list[int]:
            statuses = []
            with httpx.Client(timeout=TIMEOUT) as client:  # keeps its connection
                while not leaving.is_set():
                    answer = client.post(f"{server.url}/segment", files={"file": ("x.png", small)})
                    statuses.append(answer.status_code)
            return statuses

        with ThreadPoolExecutor(10) as pool:
            clients = [pool.submit(keep_asking, number) for number in range(6)]
            segment(small)
            server.hold()
            in_flight = pool.submit(segment, large)
            slow = HalfSent(server, small)
            wait_for(lambda: httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()["queue"]["pixels"] > 4_000_000)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{server.url}/readyz", timeout=TIMEOUT).status_code == 503)
            probe = httpx.get(f"{server.url}/readyz", timeout=TIMEOUT)
            live = httpx.get(f"{server.url}/livez", timeout=TIMEOUT)
            server.let_go()
            served_meanwhile = segment(small)
            leaving.set()
            slow.go_on()
            assert (probe.status_code, probe.json()["code"]) == (503, "draining")
            assert live.status_code == 200
            assert (served_meanwhile.status_code, served_meanwhile.headers["connection"]) == (200, "close")
            assert slow.read_status() == 200
            assert in_flight.result().status_code == 200
            answers = [status for client in clients for status in client.result()]
        assert answers
        assert set(answers) == {200}
        assert server.wait() == 0
        assert "Traceback" not in server.log.read_text()
        return len(answers) + 3
