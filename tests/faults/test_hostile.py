"""Uploads that mean harm: whatever is sent, the service answers or hangs up, does not fail, and does not grow."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.kit import ROOT, ServerProcess, draw_cells, promise_png, to_png
from tests.faults.fuzz import damage, make_corpus
from tests.faults.hostile import hostile_files
from tests.faults.kit import BOUNDARY, TIMEOUT, check_at_rest, counts, form, head, resident_mib

GOOD = to_png(draw_cells(40, 60))
CLIENTS = 4
# Allocators keep what they once had; a leak of a thousandth of the uploads would be more.
GROWTH_MIB = 96


@pytest.fixture(scope="module")
def server(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"max_pixels": 1 << 20, "max_upload_bytes": 4 << 20, "log_level": "warning"}
    with ServerProcess(tiny_weights, tmp_path_factory.mktemp("log") / "log", settings) as process:
        yield process
        check_at_rest(process)


@pytest.mark.parametrize("count", counts(short=1000, long=20_000))
def test_damaged_files_are_read_or_refused_in_time(count: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.faults.fuzz", str(count)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = ended.stdout.splitlines()
    told = [line for line in lines if line.startswith("BAD")] or lines[-1:]
    assert ended.returncode == 0, f"status {ended.returncode}: {told}\n{ended.stderr[-3000:]}"
    print(lines[-1])


@pytest.mark.parametrize("count", counts(short=400, long=20_000))
def test_damaged_uploads_get_answers_below_500_and_leave_no_memory_behind(server: ServerProcess, count: int) -> None:
    corpus = make_corpus()

    def send(seeds: range) -> dict[int, int]:
        tally: dict[int, int] = {}
        with httpx.Client(timeout=TIMEOUT) as client:
            for seed in seeds:
                damaged = damage(corpus, seed)
                answer = client.post(f"{server.url}/segment", files={"file": ("x", damaged.data)})
                assert answer.status_code < 500, f"{damaged.name}: {answer.text}"
                tally[answer.status_code] = tally.get(answer.status_code, 0) + 1
        return tally

    def send_all(first: int, last: int) -> dict[int, int]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            tallies = list(pool.map(send, [range(first + number, last, CLIENTS) for number in range(CLIENTS)]))
        return {status: sum(tally.get(status, 0) for tally in tallies) for status in {*tallies[0], *tallies[1]}}

    warm = count // 4
    send_all(0, warm)
    before = resident_mib(server.process.pid)
    tally = send_all(warm, count)
    growth = resident_mib(server.process.pid) - before
    assert growth < GROWTH_MIB
    assert httpx.post(f"{server.url}/segment", files={"file": ("x", GOOD)}, timeout=TIMEOUT).status_code == 200
    print(f"{count} damaged uploads: the last {count - warm} got {tally}; memory grew by {growth:.0f} MiB")


def test_files_drawn_up_by_hand_get_answers_below_500(server: ServerProcess) -> None:
    bodies = dict(hostile_files())
    assert len(bodies) >= 200
    before = resident_mib(server.process.pid)
    with httpx.Client(timeout=TIMEOUT) as client:
        for name, data in bodies.items():
            answer = client.post(f"{server.url}/segment", files={"file": ("x", data)})
            assert answer.status_code < 500, f"{name}: {answer.text}"
    assert resident_mib(server.process.pid) - before < GROWTH_MIB
    print(f"{len(bodies)} files by hand, none of them answered with 5xx")


def test_a_tiff_that_speaks_of_a_million_tiles_is_refused(server: ServerProcess) -> None:
    data = dict(hostile_files())["TIFF of a million tiles of one pixel"]
    answer = httpx.post(f"{server.url}/segment", files={"file": ("x", data)}, timeout=TIMEOUT)
    assert (answer.status_code, answer.json()["code"]) == (415, "undecodable_image")
    assert "1,000,000 tiles" in answer.json()["detail"]


def part(name: str, *, filename: str | None = "x.png", more: str = "") -> bytes:
    said = "" if filename is None else f'; filename="{filename}"'
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{said}\r\n{more}\r\n'.encode()


END = f"\r\n--{BOUNDARY}--\r\n".encode()
BODIES = {
    "100,000 parts": (part("file") + b"\r\n") * 100_000 + END,
    "100,000 fields": (part("field", filename=None) + b"v\r\n") * 100_000 + END,
    "100,000 headers in a part": part("file", more="A: b\r\n" * 100_000) + GOOD + END,
    "a header of 3 MB": part("file", more=f"A: {'b' * 3_000_000}\r\n") + GOOD + END,
    "a field name of 3 MB": part("f" * 3_000_000) + GOOD + END,
    "a file name of 3 MB": part("file", filename="n" * 3_000_000) + GOOD + END,
    "a file name that is a path": part("file", filename="../../../../etc/passwd") + GOOD + END,
    "a file name of null bytes": part("file", filename="\0\0") + GOOD + END,
    "no end": part("file") + GOOD,
    "only an end": END,
    "only a beginning": f"--{BOUNDARY}".encode(),
    "line breaks alone": b"\r\n" * 1_000_000,
    "dashes alone": b"-" * 2_000_000,
    "boundaries alone": f"--{BOUNDARY}\r\n".encode() * 100_000,
    "boundaries that are not quite": part("file") + f"\r\n--{BOUNDARY[:-1]}".encode() * 200_000 + END,
    "zeros": bytes(2_000_000),
    "a form in a form": part("file", more=f"Content-Type: multipart/mixed; boundary={BOUNDARY}\r\n") + form(GOOD) + END,
    "a file that says it is encoded": part("file", more="Content-Transfer-Encoding: base64\r\n") + b"////" * 9999 + END,
    "a pixel count that lies": part("file") + promise_png(2**31 - 1, 2**31 - 1) + END,
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_forms_that_mean_harm_get_answers_below_500(server: ServerProcess, what: str) -> None:
    body = BODIES[what]
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    for path in ("/segment", "/segment/batch", "/preview"):
        answer = httpx.post(server.url + path, content=body, headers=headers, timeout=TIMEOUT)
        assert answer.status_code < 500, answer.text
    assert httpx.get(f"{server.url}/livez", timeout=TIMEOUT).status_code == 200


CHUNKED = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
REQUESTS = {
    "a length that is too long": head(len(form(GOOD)) + 50) + form(GOOD),
    "a length that is too short": head(10) + form(GOOD),
    "a length of minus one": head(-1) + form(GOOD),
    "a length of 30 digits": head(10**30) + form(GOOD),
    "two lengths": head(5).replace(b"Host: x\r\n", b"Host: x\r\nContent-Length: 7\r\n") + b"12345",
    "a length and chunks": head(5).replace(b"Host: x\r\n", b"Host: x\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
    "a chunk of 2^64 bytes": CHUNKED + b"F" * 16 + b"\r\n12",
    "a chunk whose size is no number": CHUNKED + b"many\r\n",
    "a header of 10 MB": b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 10_000_000 + b"\r\n\r\n",
    "a path of 1 MB": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a query of 50,000 parameters": head(len(form(GOOD)), "?" + "a=b&" * 12_000) + form(GOOD),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "nothing but line breaks": b"\r\n" * 50_000,
    "an upgrade": b"GET /segment HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "100 requests at once": b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 100,
}  # fmt: skip


@pytest.mark.parametrize("what", REQUESTS)
def test_requests_that_mean_harm_are_answered_below_500_or_hung_up_on(server: ServerProcess, what: str) -> None:
    reply = b""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    with connection, contextlib.suppress(ConnectionError):  # it hung up; a timeout is an error
        connection.sendall(REQUESTS[what])
        connection.shutdown(socket.SHUT_WR)
        while received := connection.recv(65_536):
            reply += received
    statuses = [line.split()[1] for line in reply.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert all(status < b"500" for status in statuses), reply[:2000]
    assert httpx.get(f"{server.url}/livez", timeout=TIMEOUT).status_code == 200
