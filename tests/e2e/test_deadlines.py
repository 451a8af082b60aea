"""Clients that are slow, silent or speak no HTTP, against a real server, byte by byte."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.e2e.kit import ServerProcess, draw_cells, to_png, wait_for
from tests.e2e.test_metrics import check_sums, scrape, total

TIMEOUT = httpx.Timeout(120)
GOOD = to_png(draw_cells(60, 80))
HEAD_S, IDLE_S, UPLOAD_S = 1.0, 1.0, 3.0
SLACK_S = 30.0  # the machine may be busy


@pytest.fixture(scope="module")
def server(shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {
        "head_deadline_s": HEAD_S, "idle_deadline_s": IDLE_S, "upload_deadline_s": UPLOAD_S, "keep_alive_s": 2,
        "reload_poll_s": 0,
    }  # fmt: skip
    with ServerProcess(shared_weights, tmp_path_factory.mktemp("log") / "log", settings) as process:
        yield process


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=SLACK_S)


def read_all(connection: socket.socket) -> bytes:
    reply = b""
    try:
        while part := connection.recv(65536):
            reply += part
    except ConnectionResetError:
        pass
    return reply


def check_problem(reply: bytes, status: int, code: str) -> None:
    head, _, body = reply.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first.split()[:2] == ["HTTP/1.1", str(status)], reply
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-content-type-options"] == "nosniff"
    problem = json.loads(body[: int(headers["content-length"])])
    assert (problem["status"], problem["code"], problem["request_id"]) == (status, code, headers["x-request-id"])
    assert "Traceback" not in body.decode()


def drip(connection: socket.socket, data: bytes, stop: threading.Event) -> None:
    """A byte every tenth of a second."""
    for index in range(len(data)):
        try:
            connection.sendall(data[index : index + 1])
        except OSError:
            return
        if stop.wait(0.1):
            return


def head_of(n_bytes: int) -> bytes:
    return (
        "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {n_bytes}\r\n\r\n"
    ).encode()


def test_headers_that_come_drop_by_drop_get_408(server: ServerProcess) -> None:
    stop = threading.Event()
    started_at = time.monotonic()
    with connect(server) as connection:
        dripping = threading.Thread(
            target=drip, args=(connection, b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 99, stop)
        )
        dripping.start()
        try:
            check_problem(read_all(connection), 408, "head_timeout")
        finally:
            stop.set()
            dripping.join()
        assert HEAD_S * 0.9 < time.monotonic() - started_at < HEAD_S + SLACK_S


@pytest.mark.parametrize("said", [b"", b"\r\n"])
def test_a_connection_on_which_nothing_is_asked_is_closed_without_a_word(server: ServerProcess, said: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(said)
        assert read_all(connection) == b""
    with connect(server) as connection:  # nor after a request
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = connection.recv(65536)
        assert reply.startswith(b"HTTP/1.1 200")
        connection.sendall(said)
        assert b"HTTP/1.1 4" not in read_all(connection)


def test_a_body_that_stops_gets_408(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(head_of(10_000) + b"--b\r\n")
        reply = read_all(connection)
        check_problem(reply, 408, "upload_timeout")
        assert b"nothing came for 1 s; 5 bytes were here" in reply


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_never_ends_gets_408_however_steadily_it_drips(server: ServerProcess, chunked: bool) -> None:
    head, body = head_of(10_000), b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\n" + b"x" * 9000
    if chunked:
        head = head.replace(b"Content-Length: 10000", b"Transfer-Encoding: chunked")
        body = b"1\r\nx\r\n" * 9000
    stop = threading.Event()
    with connect(server) as connection:
        connection.sendall(head)
        dripping = threading.Thread(target=drip, args=(connection, body, stop))
        dripping.start()
        try:
            if not chunked:  # of a body in chunks "xxx" is no form, which is found at once
                check_problem(read_all(connection), 408, "upload_timeout")
            else:
                assert read_all(connection).split()[1] in (b"400", b"408")
        finally:
            stop.set()
            dripping.join()
    assert httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()["queue"]["requests"] == 0


MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "a TLS greeting": bytes.fromhex("160301020001000001fc0303") + bytes(64),
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two Hosts, HTTP/1.0": b"GET /livez HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
    "a CONNECT with a body": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "another version": b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n",
    "no version": b"GET /livez\r\n\r\n",
    "a space in a header's name": b"GET /livez HTTP/1.1\r\nHo st: x\r\n\r\n",
    "two lengths": b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "a length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length beyond 64 bits": b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "a path outside ASCII": "GET /ü HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
}  # fmt: skip


def test_http_1_0_needs_no_host(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("body", ["none", "counted", "empty", "in chunks"])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_an_upgrade_changes_nothing_about_a_request(server: ServerProcess, body: str, step: int) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"  # in the body, where it is no request
    form = b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\n" + hidden + b"\r\n--b--\r\n"
    upgrade = b" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\nUpgrade: h2c\r\n"
    post = b"POST /segment" + upgrade + b"Content-Type: multipart/form-data; boundary=b\r\n"
    first = {
        "none": b"GET /livez" + upgrade + b"\r\n",
        "counted": post + b"Content-Length: %d\r\n\r\n" % len(form) + form,
        "empty": b"GET /livez" + upgrade + b"Content-Length: 0\r\n\r\n",
        "in chunks": post + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(form), form),
    }[body]
    sent = first + first + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(server) as connection:
        for start in range(0, len(sent), step):
            connection.sendall(sent[start : start + step])
        replies = read_all(connection).split(b"HTTP/1.1 ")[1:]
    own = b"200" if body in ("none", "empty") else b"415"
    assert [reply[:3] for reply in replies] == [own, own, b"200"]


def test_nothing_after_a_connect_is_a_request(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 4")
    assert reply.count(b"HTTP/1.1 4") == 1
    assert b"HTTP/1.1 200" not in reply


def test_what_is_no_http_is_refused_with_a_problem_and_counted(server: ServerProcess) -> None:
    before = scrape(server)
    for what, sent in MALFORMED.items():
        with connect(server) as connection:
            connection.sendall(sent)
            try:
                check_problem(read_all(connection), 400, "malformed_http")
            except AssertionError as error:
                raise AssertionError(what) from error
    after = scrape(server)
    name = "maskwell_requests_refused_total"
    assert total(after, name, reason="malformed_http") - total(before, name, reason="malformed_http") == len(MALFORMED)
    check_sums(after)


def test_a_transfer_coding_that_is_not_understood_gets_501(server: ServerProcess) -> None:
    head = b"POST /segment HTTP/1.1\r\nHost: x\r\n"
    for codings in (b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"):
        with connect(server) as connection:
            connection.sendall(head + codings + b"\r\n\r\n0\r\n\r\n")
            check_problem(read_all(connection), 501, "unknown_transfer_coding")
    with connect(server) as connection:
        connection.sendall(head + b"Connection: close\r\nTransfer-Encoding:  Chunked \r\n\r\n0\r\n\r\n")
        check_problem(read_all(connection), 400, "malformed_request")  # understood; it holds no form
    check_sums(scrape(server))


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 101 + b"\r\n",
        b"GET /livez HTTP/1.1\r\nX-A: " + b"b" * 40_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nX-A: " + b"b" * 10_000_000,
        b"GET /" + b"b" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"b" * 500) for n in range(90)) + b"\r\n",
    ],
    ids=["many", "long", "endless", "path", "together"],
)
def test_headers_that_are_too_large_get_431(server: ServerProcess, head: bytes) -> None:
    with connect(server) as connection:
        sending = threading.Thread(target=lambda: _send(connection, head))
        sending.start()
        reply = read_all(connection)
        sending.join()
    check_problem(reply, 431, "head_too_large")


def _send(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)


def test_what_is_sent_behind_a_whole_request_does_not_cost_it_its_answer(server: ServerProcess) -> None:
    # large enough to take longer than what follows may take to become a request
    large = to_png(draw_cells(2000, 2000))
    request = httpx.Request("POST", f"{server.url}/segment", files={"file": ("x.png", large)})
    body = request.read()
    head = head_of(len(body)).replace(b"multipart/form-data; boundary=b", request.headers["content-type"].encode())
    with connect(server) as connection:
        connection.sendall(head + body + b"rubbish \x00\r\n\r\n")
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 200")
    assert reply.count(b"HTTP/1.1") == 1


def test_rubbish_behind_two_requests_costs_neither_its_answer(server: ServerProcess) -> None:
    ask = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(ask + ask + b"rubbish \x00\r\n\r\n")
        reply = read_all(connection)
    assert reply.count(b"HTTP/1.1 200") == 2


def test_who_leaves_with_a_request_queued_behind_is_gone_and_no_error(server: ServerProcess) -> None:
    # large enough that nobody's machine has answered before it is seen that the request is there
    large = to_png(draw_cells(4000, 4000))
    request = httpx.Request("POST", f"{server.url}/segment", files={"file": ("x.png", large)})
    body = request.read()
    head = head_of(len(body)).replace(b"multipart/form-data; boundary=b", request.headers["content-type"].encode())
    before = total(scrape(server), "maskwell_requests_cancelled_total")
    with connect(server) as connection:
        connection.sendall(head + body + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: check_sums(scrape(server))["in_flight"] == 1)
    wait_for(lambda: check_sums(scrape(server))["in_flight"] == 0)
    assert total(scrape(server), "maskwell_requests_cancelled_total") == before + 1
    assert "Traceback" not in server.log.read_text()


def test_spaces_behind_a_length_change_nothing(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(head_of(10_000).replace(b"10000", b"10000 \t") + b"--b\r\n")
        check_problem(read_all(connection), 408, "upload_timeout")


def test_a_body_in_one_packet_with_half_of_the_next_head_is_no_head_that_is_too_large(server: ServerProcess) -> None:
    body = b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\n" + b"x" * 60_000 + b"\r\n--b--\r\n"
    ask = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head_of(len(body)))
        time.sleep(0.1)
        connection.sendall(body + ask[:10])
        time.sleep(0.1)
        connection.sendall(ask[10:].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 415")
    assert b"HTTP/1.1 200" in reply


def test_a_connection_is_kept_for_the_next_request_as_long_as_it_should_be(server: ServerProcess) -> None:
    ask = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as connection:
        for _ in range(2):
            began_at = time.monotonic()
            connection.sendall(ask)
            reply = b""
            while not reply.endswith(b"}"):
                reply += connection.recv(65536)
            assert reply.startswith(b"HTTP/1.1 200")
        assert read_all(connection) == b""
        assert time.monotonic() - began_at > 1
    assert Settings().keep_alive_s > 60  # what proxies and load balancers have by default


def test_a_damaged_chunk_is_refused_and_counted_so_and_the_request_is_over(server: ServerProcess) -> None:
    before = scrape(server)
    with connect(server) as connection:
        connection.sendall(
            head_of(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"5\r\n--b\r\n\r\nzz\r\n"
        )
        check_problem(read_all(connection), 400, "malformed_http")
    wait_for(lambda: check_sums(scrape(server))["in_flight"] == 0)
    after = scrape(server)
    refused = {"route": "/segment", "reason": "malformed_http"}
    assert (
        total(after, "maskwell_requests_refused_total", **refused)
        == total(before, "maskwell_requests_refused_total", **refused) + 1
    )
    assert total(after, "maskwell_requests_cancelled_total") == total(before, "maskwell_requests_cancelled_total")


def test_who_takes_no_answer_is_let_go(server: ServerProcess) -> None:
    request = httpx.Request("POST", f"{server.url}/preview", files={"file": ("x.png", to_png(draw_cells(3000, 3000)))})
    body = request.read()
    head = head_of(len(body)).replace(b"/segment", b"/preview")
    head = head.replace(b"multipart/form-data; boundary=b", request.headers["content-type"].encode())
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(SLACK_S)
    with connection:
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head + body)
        connection.recv(100)
        deadline = time.monotonic() + SLACK_S
        while _peers(connection):  # the other end is there as long as the server has not closed it
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _peers(connection: socket.socket) -> bool:
    """Whether the server's end of a connection is open, as Linux lists it."""
    mine, theirs = connection.getsockname()[1], connection.getpeername()[1]
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ends = [line.split()[1:4] for line in lines]
    return any(
        (local.split(":")[1], remote.split(":")[1], state) == (f"{theirs:04X}", f"{mine:04X}", "01")
        for local, remote, state in ends
    )


def test_slow_but_steady_clients_are_served(server: ServerProcess) -> None:
    request = httpx.Request("POST", f"{server.url}/segment", files={"file": ("x.png", GOOD)})
    body = request.read()
    head = head_of(len(body)).replace(b"multipart/form-data; boundary=b", request.headers["content-type"].encode())
    with connect(server) as connection:
        connection.sendall(head[:50])
        time.sleep(HEAD_S / 10)
        connection.sendall(head[50:])
        for start in range(0, len(body), len(body) // 12 + 1):  # longer than IDLE_S in all
            time.sleep(IDLE_S / 10)
            connection.sendall(body[start : start + len(body) // 12 + 1])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
