"""`python bench/doors.py`: what the layers around a request cost, with no network between: GET /livez, in µs each."""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import Settings

SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
    "path": "/livez", "raw_path": b"/livez", "query_string": b"", "root_path": "",
    "headers": [(b"host", b"127.0.0.1"), (b"accept", b"*/*"), (b"user-agent", b"bench")],
    "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
}  # fmt: skip


async def measure(app: Any, rounds: int, requests: int) -> list[float]:
    """Seconds of one request, as the mean of each round; the first warms up."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise SystemExit(f"error: the probe says {message['status']}")

    seconds = []
    for _ in range(rounds + 1):
        started_at = time.perf_counter()
        for _ in range(requests):
            await app(dict(SCOPE), receive, send)
        seconds.append((time.perf_counter() - started_at) / requests)
    return seconds[1:]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python bench/doors.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=1000, help="in a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(weights_dir=Path(folder), log_level="warning"))
        app.state.service.batcher.start()
        app.state.service.lifecycle.set_ready()
        seconds = asyncio.run(measure(app, options.rounds, options.requests))
        app.state.service.close()
    middle, least = statistics.median(seconds) * 1e6, min(seconds) * 1e6
    print(f"{middle:.0f} µs a request (median of {options.rounds} rounds; least {least:.0f})")


if __name__ == "__main__":
    main()
