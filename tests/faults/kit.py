"""How often a fault is made to happen, and what is to be true of the service after it."""

import re
import socket
import struct
from pathlib import Path

import httpx
import pytest

from tests.e2e.kit import ServerProcess, wait_for

TIMEOUT = httpx.Timeout(120)
BOUNDARY = "faults"


def counts(*, short: int, long: int) -> list[object]:
    """Values for parametrize: a few for `make test`, and for `make faults` as many as the documentation says."""
    return [short, pytest.param(long, marks=[pytest.mark.long, pytest.mark.timeout(7200)])]


def form(data: bytes, name: str = "file") -> bytes:
    """A multipart body with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="x.png"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def head(n_bytes: int, query: str = "", path: str = "/segment") -> bytes:
    """The head of a request that says its body has so many bytes."""
    return (
        f"POST {path}{query} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {n_bytes}\r\n\r\n"
    ).encode()


def hang_up(connection: socket.socket) -> None:
    """Leave with a reset, as a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def resident_mib(pid: int) -> float:
    """Memory of a process, as the system counts it."""
    status = Path(f"/proc/{pid}/status").read_text()
    [kib] = re.findall(r"VmRSS:\s+(\d+) kB", status)
    return int(kib) / 1024


def metric(server: ServerProcess, name: str) -> float:
    """The sum over all labels of a metric."""
    text = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def check_at_rest(server: ServerProcess) -> None:
    """Nothing is queued, held or owed; whatever was received has been answered, refused or cancelled."""

    def at_rest() -> bool:
        queue = httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()["queue"]
        held = metric(server, "maskwell_held_upload_bytes"), metric(server, "maskwell_requests_in_flight")
        return (queue["requests"], queue["pixels"], queue["waiting_tiles"], *held) == (0, 0, 0, 0, 0)

    wait_for(at_rest)
    received = metric(server, "maskwell_requests_received_total")
    ended = sum(metric(server, f"maskwell_requests_{end}_total") for end in ("answered", "refused", "cancelled"))
    assert received == ended
    assert "Traceback" not in server.log.read_text()
