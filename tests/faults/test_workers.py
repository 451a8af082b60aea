"""Two workers on one port: killed, told to reload, told to stop."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path

import httpx
import pytest

from tests.e2e.kit import ServerProcess, decode, draw_cells, load_reference, to_png, wait_for, write_weights
from tests.faults.kit import BOUNDARY, counts, form, metric

KEY = "a-key-of-some-length"
IMAGE = draw_cells(100, 140)
TIMEOUT = httpx.Timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "best_model.pth", seed=0, tile_px=(128,))
    return folder


SETTINGS = {"workers": 2, "admin_key": KEY, "reload_poll_s": 0.5, "drain_grace_s": 0}


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with ServerProcess(folder, folder / "log", SETTINGS) as process:
        wait_for(lambda: len(ready_workers(process)) == 2)
        yield process


def health(server: ServerProcess) -> dict[str, object]:
    body: dict[str, object] = httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()
    return body


def ready_workers(server: ServerProcess) -> dict[int, str]:
    """Process ids of those that serve, and the version of the default model in each."""
    workers = health(server)["workers"]
    assert isinstance(workers, dict)
    return {item["pid"]: item["models"]["best_model"] for item in workers["running"] if item["status"] == "ready"}


@dataclass(frozen=True)
class Break:
    """A connection that ended before an answer that was owed on it.

    Attributes:
        pid: of the worker that had accepted it; None where not even that had been answered.
        since, until: seconds of time.monotonic between which it ended.
    """

    pid: int | None
    since: float
    until: float


def ask_on_one_connection(server: ServerProcess, requests: int, expected: bytes) -> tuple[int, Break | None]:
    """Learn which worker has the connection, then ask it; the number of answers, and how it broke off if it did."""
    upload = form(to_png(IMAGE))
    content_type = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    pid: int | None = None
    answered = 0
    connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
    began_at = time.monotonic()
    connection.connect()  # one that is refused is a failure: the supervisor's queue outlives the workers
    connection.auto_open = 0  # or it might go on with another worker unnoticed
    try:
        connection.request("GET", "/health")
        pid = json.loads(connection.getresponse().read())["pid"]
        for _ in range(requests):
            began_at = time.monotonic()
            connection.request("POST", "/segment", upload, content_type)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            assert (decode(body) > 0).tobytes() == expected
            answered += 1
    except (ConnectionError, IncompleteRead):
        return answered, Break(pid, began_at, time.monotonic())
    finally:
        connection.close()
    return answered, None


@pytest.mark.parametrize("kills", counts(short=3, long=20))
def test_a_killed_worker_loses_its_own_requests_only_and_is_replaced(server: ServerProcess, kills: int) -> None:
    expected = load_reference(server.weights_dir / "best_model.pth").segment(IMAGE).mask().tobytes()
    stop = threading.Event()
    killed: dict[int, float] = {}  # worker to the time
    answered: list[int] = []
    broken: list[Break] = []

    def keep_asking() -> None:
        while not stop.is_set():
            count, end = ask_on_one_connection(server, 10, expected)
            answered.append(count)
            if end is not None:
                broken.append(end)

    clients = 4
    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(keep_asking) for _ in range(clients)]
        try:
            for number in range(kills):
                wait_for(lambda: len(ready_workers_if_any(server)) == 2)
                time.sleep(random.Random(number).uniform(0.0, 0.5))
                victim = random.Random(number).choice(sorted(ready_workers_if_any(server)))
                killed[victim] = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda wanted=number + 1: replaced_if_any(server) >= wanted)  # type: ignore[misc]  # a default binds
            wait_for(lambda: len(ready_workers_if_any(server)) == 2)
        finally:
            stop.set()
        for future in futures:
            future.result()
    assert sum(answered) > kills
    assert len(killed) == kills
    for end in broken:
        if end.pid is None:  # it had been accepted just before, at the most
            assert any(end.since <= at <= end.until for at in killed.values()), end
        else:
            assert end.pid in killed, f"{end} was with a worker that lives"
            assert killed[end.pid] <= end.until
    print(f"{kills} kills: {sum(answered)} answered, {len(broken)} broken off with their worker, 0 wrong")


def ready_workers_if_any(server: ServerProcess) -> dict[int, str]:
    """The same, by a connection that may be to the worker that was just killed."""
    try:
        return ready_workers(server)
    except httpx.TransportError:
        return {}


def replaced_if_any(server: ServerProcess) -> int:
    try:
        workers = health(server)["workers"]
    except httpx.TransportError:
        return 0
    assert isinstance(workers, dict)
    return int(workers["replaced"])


def test_the_counts_of_all_workers_meet_also_after_one_was_killed_with_requests_in_flight(
    server: ServerProcess,
) -> None:
    def sums() -> dict[str, float]:
        text = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT).text
        names = ("received_total", "answered_total", "refused_total", "cancelled_total", "lost_total", "in_flight")
        found = dict.fromkeys(names, 0.0)
        for line in text.splitlines():
            for name in names:
                if re.match(rf"maskwell_requests_{name}[ {{]", line):
                    found[name] += float(line.rsplit(" ", 1)[1])
        return found

    def meet() -> bool:
        found = sums()
        return found["in_flight"] == 0 and found.pop("received_total") == sum(found.values())

    before = sums()["lost_total"]
    with ThreadPoolExecutor(4) as pool:
        big = to_png(draw_cells(4000, 4000))

        def ask() -> None:
            with suppress(httpx.TransportError):
                httpx.post(f"{server.url}/segment", files={"file": ("x.png", big)}, timeout=TIMEOUT)

        jobs = [pool.submit(ask) for _ in range(4)]
        wait_for(lambda: sums()["in_flight"] >= 4)
        for pid in ready_workers(server):
            os.kill(pid, signal.SIGKILL)
        for job in jobs:
            job.result()
    wait_for(lambda: len(ready_workers(server)) == 2)
    wait_for(meet)
    assert sums()["lost_total"] >= before + 1


def test_a_reload_and_the_watcher_reach_every_worker(server: ServerProcess, folder: Path) -> None:
    assert len(set(ready_workers(server).values())) == 1
    version = write_weights(folder / "best_model.pth", seed=1, tile_px=(128,))
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{server.url}/models/best_model/reload", headers=headers, timeout=TIMEOUT)
    assert (answer.status_code, answer.json()["version"]) == (200, version)
    for _ in range(20):  # whichever worker answers
        assert httpx.get(f"{server.url}/models/best_model", timeout=TIMEOUT).json()["version"] == version
    (folder / "best_model.pth").write_bytes(b"junk")
    refused = httpx.post(f"{server.url}/models/best_model/reload", headers=headers, timeout=TIMEOUT)
    assert (refused.status_code, refused.json()["code"]) == (409, "weights_refused")
    for _ in range(20):
        assert httpx.get(f"{server.url}/models/best_model", timeout=TIMEOUT).json()["version"] == version
    version = write_weights(folder / "best_model.pth", seed=2, tile_px=(128,))
    wait_for(lambda: set(ready_workers(server).values()) == {version})


def test_sigterm_drains_every_worker(server: ServerProcess) -> None:  # the last to use that server
    large = to_png(draw_cells(3000, 3000))

    def segment(_: int) -> int:
        return httpx.post(f"{server.url}/segment", files={"file": ("x.png", large)}, timeout=TIMEOUT).status_code

    with ThreadPoolExecutor(4) as pool:
        in_flight = [pool.submit(segment, number) for number in range(4)]
        # counted as they come, where the queue's length is told once a second
        wait_for(lambda: metric(server, "maskwell_requests_in_flight") == 4)
        server.process.send_signal(signal.SIGTERM)
        assert [future.result() for future in in_flight] == [200] * 4
    assert server.wait() == 0
    assert "Traceback" not in server.log.read_text()


def test_a_client_s_rate_holds_for_all_workers_together(folder: Path, tmp_path: Path) -> None:
    with ServerProcess(folder, tmp_path / "log", SETTINGS | {"max_client_requests_per_min": 5}) as limited:
        wait_for(lambda: len(ready_workers(limited)) == 2)

        def ask(_: int) -> int:  # on a connection of its own, which either worker may take
            return httpx.post(
                f"{limited.url}/segment", files={"file": ("x", to_png(IMAGE))}, timeout=TIMEOUT
            ).status_code

        began_at = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(ask, range(40)))
        regained = int((time.monotonic() - began_at) * 5 / 60)
        assert 5 <= statuses.count(200) <= 5 + regained + 1
        assert set(statuses) == {200, 429}
        for pid in ready_workers(limited):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: replaced_if_any(limited) == 2)
        wait_for(lambda: len(ready_workers_if_any(limited)) == 2)
        later = [ask(0) for _ in range(12)]
        assert later.count(200) <= int((time.monotonic() - began_at) * 5 / 60)  # a new worker knows what was used
        assert set(later) <= {200, 429}


def test_every_line_of_a_json_log_is_an_object_whatever_befalls_the_workers(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(folder / "best_model.pth", weights)
    with ServerProcess(weights, tmp_path / "log", SETTINGS | {"log_format": "json"}) as server:
        wait_for(lambda: len(ready_workers(server)) == 2)
        for query, data in (("", to_png(IMAGE)), ("?threshold=9", to_png(IMAGE)), ("", b"no image")):
            httpx.post(f"{server.url}/segment{query}", files={"file": ("a\nb.png", data)}, timeout=TIMEOUT)
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            assert connection.recv(1000)
        (weights / "bad.pth").write_bytes(b"junk")
        wait_for(lambda: "weights refused" in server.log.read_text())
        os.kill(min(ready_workers(server)), signal.SIGKILL)
        wait_for(lambda: replaced_if_any(server) == 1)
        server.process.send_signal(signal.SIGTERM)  # while the new one starts
        assert server.wait() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "pid", "message"} <= set(line) for line in lines)
    assert {"app.supervisor", "app.registry", "app.request"} <= {line["logger"] for line in lines}
    assert len({line["pid"] for line in lines}) >= 3


def test_workers_that_cannot_start_say_so_once(tmp_path: Path) -> None:
    (tmp_path / "best_model.pth").write_bytes(b"PK\x03\x04 half a zip")
    server = ServerProcess(tmp_path, tmp_path / "log", {"workers": 3, "log_level": "error"})
    server.start()
    assert server.wait() == 3
    [line] = server.log.read_text().strip().splitlines()
    assert "no readable file of weights" in line
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_workers_that_have_nowhere_to_share_anything_say_so(folder: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    code = (
        f"import sys, tempfile; tempfile.tempdir = {str(nowhere)!r}; from app.__main__ import main; sys.exit(main([]))"
    )
    server = ServerProcess(folder, tmp_path / "log", SETTINGS | {"log_level": "error"}, command=("-c", code))
    server.start()
    assert server.wait() == 3
    [line] = server.log.read_text().strip().splitlines()
    assert "no place for what workers share" in line


def test_workers_whose_supervisor_is_killed_drain_and_end_and_the_next_start_removes_what_they_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with ServerProcess(folder, tmp_path / "log", SETTINGS) as server:
        wait_for(lambda: len(ready_workers(server)) == 2)
        workers = ready_workers(server)
        [left] = tmp_path.glob("maskwell-workers-*")
        server.process.kill()
        server.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert left.exists()
    with ServerProcess(folder, tmp_path / "log", SETTINGS):
        [own] = tmp_path.glob("maskwell-workers-*")
        assert own != left
        assert (own / "counter_0.db").exists()
    assert not list(tmp_path.glob("maskwell-workers-*"))


def test_a_full_disk_below_what_workers_share_harms_none_that_serves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a disk of its own is needed, and this user may not mount one")
    monkeypatch.setenv("TMPDIR", str(disk))
    filler = disk / "filler"

    def fill() -> None:
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def ask(server: ServerProcess, path: str) -> int:
        with httpx.Client(timeout=TIMEOUT) as client:  # a connection of its own, which either worker may take
            return client.post(f"{server.url}{path}", files={"file": ("x.png", to_png(IMAGE))}).status_code

    try:
        with ServerProcess(folder, tmp_path / "log", SETTINGS | {"max_client_requests_per_min": 1000}) as server:
            wait_for(lambda: len(ready_workers(server)) == 2)
            first = set(ready_workers(server))
            fill()
            expected = {"/segment": 200, "/segment?output=table": 200, "/preview": 200, "/nowhere": 404}
            for path, status in expected.items():
                assert [ask(server, path) for _ in range(4)] == [status] * 4
            assert set(ready_workers(server)) == first
            os.kill(min(first), signal.SIGKILL)
            wait_for(lambda: replaced_if_any(server) == 1)
            wait_for(lambda: len(ready_workers_if_any(server)) == 2)  # its successor takes the room that it had
        assert "SIGBUS" not in server.log.read_text()
        fill()
        os.truncate(filler, filler.stat().st_size - (256 << 10))  # where nothing fits Python itself looks elsewhere
        server = ServerProcess(folder, tmp_path / "log", SETTINGS | {"log_level": "error"})
        server.start()
        assert server.wait() == 3
        [line] = server.log.read_text().strip().splitlines()
        assert "no place for what workers share" in line
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
