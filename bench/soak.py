"""`python -m bench.soak`: a service under more load than it can take, for as long as one likes; does its memory grow?

It starts a service of its own with tiny weights, so that many requests go through it; measures how many a second it
answers; then sends 1.1 times as many, of mixed sizes, at random moments, while weights are replaced and some clients
leave before their answer. Afterwards it fits a line through the memory of the second half and looks whether every
request is accounted for. The exit status is 1 where memory grows by more than --most-mb-per-min, an answer is wrong,
or something is left over.

    python -m bench.soak --minutes 30
    python -m bench.soak --minutes 480
    python -m bench.soak --minutes 5 --leak-bytes 20000   the same with a service that leaks on purpose: must end with 1
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np

from tests.e2e.kit import ServerProcess, decode, draw_cells, load_reference, to_png, write_weights
from tests.faults.kit import check_at_rest, resident_mib

SIDES_PX = (64, 100, 100, 140, 200, 300, 450)
CLIENTS_AT_ONCE = 48
MEASURE_S = 20.0
RELOAD_EVERY_S = 10.0
VANISH_SHARE = 0.03
PATIENCE_S = 600.0  # of the others: on a busy machine a slow answer is no lost one
# Keeps some bytes of each request for ever.
LEAKY = """
import sys
from app.service import Service
honest, kept = Service.segment, []
async def segment(self, *arguments):
    kept.append(bytes([165]) * {leak_bytes})
    return await honest(self, *arguments)
Service.segment = segment
from app.__main__ import main
sys.exit(main([]))
"""


class Soak:
    """The service, what is sent to it, and what came back."""

    def __init__(self, folder: Path, leak_bytes: int) -> None:
        self.sources = [folder / "a.pth", folder / "b.pth"]
        self.images = [draw_cells(side, side, number) for number, side in enumerate(SIDES_PX)]
        self.uploads = [to_png(image) for image in self.images]
        self.expected: dict[str, list[bytes]] = {}
        for seed, source in enumerate(self.sources):
            write_weights(source, seed=seed, tile_px=(128,))
            reference = load_reference(source)
            self.expected[reference.version] = [reference.segment(image).mask().tobytes() for image in self.images]
        self.served = folder / "weights"
        self.served.mkdir()
        shutil.copy(self.sources[0], self.served / "best_model.pth")
        command = ["-c", LEAKY.format(leak_bytes=leak_bytes)] if leak_bytes else ["-m", "app"]
        settings = {"max_queue_requests": 32, "reload_poll_s": 1, "log_level": "warning"}
        self.server = ServerProcess(self.served, folder / "log", settings, command=command)
        self.outcomes: Counter[str] = Counter()
        self.memory: list[tuple[float, float]] = []
        self.reloads = 0

    async def ask(self, client: httpx.AsyncClient, number: int, patience_s: float | None = None) -> None:
        """One request, given up after `patience_s`; its answer is compared with the library's."""
        index = number % len(self.uploads)
        try:
            async with asyncio.timeout(patience_s):
                answer = await client.post("/segment", files={"file": ("x.png", self.uploads[index])})
        except TimeoutError:
            self.outcomes["left"] += 1
            return
        except httpx.TransportError as error:
            self.outcomes[f"broken connection, {type(error).__name__}"] += 1
            return
        if answer.status_code == 200:
            right = self.expected[answer.headers["x-model-version"]][index]
            self.outcomes["200" if (decode(answer.content) > 0).tobytes() == right else "wrong"] += 1
        else:
            self.outcomes[str(answer.status_code)] += 1

    async def capacity(self, client: httpx.AsyncClient) -> float:
        """Answers a second to clients that wait for each."""
        until = time.monotonic() + MEASURE_S

        async def keep_asking(number: int) -> None:
            while time.monotonic() < until:
                await self.ask(client, number)
                number += 1

        await asyncio.gather(*(keep_asking(number) for number in range(8)))
        rate = self.outcomes.pop("200") / MEASURE_S
        if self.outcomes:
            raise SystemExit(f"error: {dict(self.outcomes)} before it began")
        return rate

    async def load(self, client: httpx.AsyncClient, rate: float, seconds: float) -> None:
        """Requests at random moments, `rate` a second on average, whether or not the earlier ones are answered."""
        generator = random.Random(0)
        tasks: set[asyncio.Task[None]] = set()
        began_at = time.monotonic()
        at = 0.0
        while at < seconds:
            at += generator.expovariate(rate)
            await asyncio.sleep(max(began_at + at - time.monotonic(), 0))
            if len(tasks) >= CLIENTS_AT_ONCE:
                self.outcomes["not sent, too many under way"] += 1
                continue
            patience_s = generator.uniform(0, 0.3) if generator.random() < VANISH_SHARE else None
            task = asyncio.create_task(self.ask(client, generator.randrange(1 << 20), patience_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def replace_weights(self) -> None:
        """Other weights every few seconds; never returns."""
        while True:
            await asyncio.sleep(RELOAD_EVERY_S)
            self.reloads += 1
            shutil.copy(self.sources[self.reloads % 2], self.served / ".part")
            (self.served / ".part").replace(self.served / "best_model.pth")

    async def watch_memory(self) -> None:
        """A sample a second; never returns."""
        began_at = time.monotonic()
        while True:
            self.memory.append((time.monotonic() - began_at, resident_mib(self.server.process.pid)))
            await asyncio.sleep(1)

    async def run(self, minutes: float, load: float) -> None:
        """Measure, then load."""
        limits = httpx.Limits(max_connections=CLIENTS_AT_ONCE, max_keepalive_connections=CLIENTS_AT_ONCE)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=PATIENCE_S, limits=limits) as client:
            rate = await self.capacity(client)
            print(
                f"{rate:.1f} answers/s to 8 clients; now {rate * load:.1f} requests/s for {minutes:g} min", flush=True
            )
            others = [asyncio.create_task(self.replace_weights()), asyncio.create_task(self.watch_memory())]
            await self.load(client, rate * load, minutes * 60)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


def slope_mb_per_min(memory: list[tuple[float, float]]) -> float:
    """Of a line through the second half of samples of (seconds, MiB)."""
    seconds, mib = np.array(memory[len(memory) // 2 :]).T
    return float(np.polyfit(seconds / 60, mib * 1024**2 / 1e6, 1)[0])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--load", type=float, default=1.1, help="requests sent over those that can be answered (1.1)")
    parser.add_argument("--most-mb-per-min", type=float, default=1.0, help="growth of memory that is allowed (1)")
    parser.add_argument("--leak-bytes", type=int, default=0, help="have the service keep so much of each request")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), options.leak_bytes)
        with soak.server:
            asyncio.run(soak.run(options.minutes, options.load))
            check_at_rest(soak.server)
    slope = slope_mb_per_min(soak.memory)
    print(f"outcomes: {dict(soak.outcomes.most_common())}; {soak.reloads} times other weights")
    step = max(len(soak.memory) // 10, 1)
    print("memory, MiB: " + ", ".join(f"{mib:.0f}" for _, mib in soak.memory[::step]))
    print(
        f"memory grows by {slope:+.3f} MB/min over the second half; at rest nothing is queued, and the counts reconcile"
    )
    bad = {what: count for what, count in soak.outcomes.items() if what == "wrong" or what[0] in "5b"}
    if bad or slope > options.most_mb_per_min:
        print(f"FAILED: {bad or 'memory grows'}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
