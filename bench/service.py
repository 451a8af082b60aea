"""`python bench/service.py`: a bounded load of many clients on a running server; requests, megapixels and waits.

Only ever against this machine (127.0.0.1), and only for as long and as much as its arguments say.
"""

import argparse
import asyncio
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from model.errors import ImageError
from model.images import encode_png, inspect_image


@dataclass
class Tally:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    pixels: int = 0
    refused: dict[int, int] = field(default_factory=dict)


async def keep_asking(
    client: httpx.AsyncClient, images: list[bytes], first: int, until: float, params: dict[str, str], tally: Tally
) -> None:
    """Post one image after another until the time is over."""
    sizes = [(header.height * header.width) for header in map(inspect_image, images)]
    index = first
    while time.perf_counter() < until:
        image = images[index % len(images)]
        started_at = time.perf_counter()
        answer = await client.post("/segment", files={"file": ("image.png", image)}, params=params)
        if answer.status_code == 200:
            tally.seconds.append(time.perf_counter() - started_at)
            tally.pixels += sizes[index % len(images)]
        else:
            tally.refused[answer.status_code] = tally.refused.get(answer.status_code, 0) + 1
            await asyncio.sleep(min(float(answer.headers.get("retry-after", 1)), 5.0))
        index += 1


async def measure(port: int, clients: int, seconds: float, images: list[bytes], params: dict[str, str]) -> str:
    """Warm up for a tenth of the time, then measure; a line of a Markdown table."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits) as client:
        for duration in (seconds / 10, seconds):
            tally = Tally()
            started_at = time.perf_counter()
            until = started_at + duration
            await asyncio.gather(
                *(keep_asking(client, images, number, until, params, tally) for number in range(clients))
            )
            spent = time.perf_counter() - started_at
    if not tally.seconds:
        raise SystemExit(f"error: no request succeeded: {tally.refused}")
    waits = sorted(tally.seconds)
    p50, p99 = statistics.median(waits), waits[min(int(len(waits) * 0.99), len(waits) - 1)]
    refused = ", ".join(f"{count} x {status}" for status, count in sorted(tally.refused.items())) or "none"
    return (
        f"| {clients} | {len(waits)} | {len(waits) / spent:.2f} | {tally.pixels / spent / 1e6:.2f} "
        f"| {p50 * 1000:.0f} | {p99 * 1000:.0f} | {p99 / p50:.2f} | {refused} |"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python bench/service.py", description=__doc__)
    parser.add_argument("images", nargs="*", type=Path, help="files to send in turn; a drawn one if left out")
    parser.add_argument("--port", type=int, default=8000, help="of the server on 127.0.0.1 (8000)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="clients at a time (1 8 32)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of clients (20)")
    parser.add_argument("--side-px", type=int, default=512, help="of the drawn image (512)")
    parser.add_argument("--output", default="mask", help="mask, probability, labels or overlay (mask)")
    options = parser.parse_args(arguments)
    if options.seconds > 600 or max(options.clients) > 256:
        parser.error("at most 600 seconds and 256 clients: this is a measurement, not an attack")
    try:
        images = [path.read_bytes() for path in options.images]
        for image in images:
            inspect_image(image)
    except (OSError, ImageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not images:
        noise = np.random.default_rng(0).normal(60, 12, (options.side_px, options.side_px))
        images = [encode_png(np.clip(noise, 0, 255).astype(np.uint8))]
    print("| clients | answers | answers/s | megapixels/s | p50 ms | p99 ms | p99/p50 | refused |")
    print("|---|---|---|---|---|---|---|---|")
    for clients in options.clients:
        params = {"output": options.output}
        print(asyncio.run(measure(options.port, clients, options.seconds, images, params)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
