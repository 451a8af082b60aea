"""Requests a second of the service beside other servers with the same weights, on the same images, in one run.

    python bench/peers.py                     the default weights
    python bench/peers.py --costless          a model that costs nothing: what the servers themselves take
    python bench/peers.py --weights runs/x.pth --clients 1 8 32 --seconds 10

The client is wrk, which has to be installed. The peers live in a virtual environment of their own in the folder of
temporary files, made at the first run from bench/peers/requirements.txt; a CPU build of torch is taken where pip finds
one. Every server must return the mask that Maskwell returns, to 99 % of the pixels, before it is timed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import torch
from kit import ROOT, draw_png, free_port, machine, plot_bars, report, write_costless_weights

from model.checkpoint import read_checkpoint
from model.images import decode_image

PEERS = Path(__file__).resolve().parent / "peers"
START_S = 120.0


@dataclass(frozen=True)
class Server:
    """How one is started, and how it takes an image.

    Attributes:
        name: in the table.
        command: `{python}` and `{bin}` are those of the peers' environment, `{port}` a free one.
        raw: whether the body is the image itself and not a form.
        path: of the route.
    """

    name: str
    command: tuple[str, ...]
    raw: bool = False
    path: str = "/segment"


MASKWELL = Server("Maskwell", ())
SERVERS = (
    MASKWELL,
    Server("FastAPI, threads", ("{python}", "fastapi_app.py")),
    Server("LitServe", ("{python}", "litserve_app.py")),
    Server("Ray Serve", ("{python}", "ray_app.py")),
    Server("BentoML", ("{bin}/bentoml", "serve", "bento_app:Segment", "--port", "{port}")),
    Server(
        "mosec", ("{python}", "mosec_app.py", "--port", "{port}", "--timeout", "300000"), raw=True, path="/inference"
    ),
)


@dataclass(frozen=True)
class Cell:
    """What wrk saw, and what a request took of the processor in all processes of the server, in ms."""

    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_ms: float = float("nan")


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costless", action="store_true", help="a model that costs nothing")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "best_model.pth")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=8.0, help="for each number of clients")
    parser.add_argument("--side", type=int, default=512, help="of the drawn picture, in pixels")
    parser.add_argument("--servers", nargs="+", help="names of some of them, lower case, by how they begin")
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "maskwell-peers")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with it
    if shutil.which("wrk") is None:
        print("error: wrk is not installed (Debian: apt install wrk)", file=sys.stderr)
        return 2
    make_environment(options.venv)
    chosen = [
        server
        for server in SERVERS
        if not options.servers or any(server.name.lower().startswith(name.lower()) for name in options.servers)
    ]
    with tempfile.TemporaryDirectory(prefix="maskwell-bench-") as temporary:
        folder = Path(temporary)
        image = draw_png(options.side)
        (folder / "image.png").write_bytes(image)
        results: dict[str, list[Cell]] = {}
        expected: np.ndarray | None = None
        for server in chosen:
            with running(server, folder, options) as port:
                mask = ask(server, port, image)
                expected = mask if expected is None else expected
                agree = float((mask == expected).mean())
                if agree < 0.99:
                    print(f"error: {server.name} agrees in {agree:.4f} of the pixels only", file=sys.stderr)
                    return 1
                load(server, port, folder, clients=2, seconds=min(options.seconds, 3.0))  # warm-up
                results[server.name] = [
                    load(server, port, folder, clients=n, seconds=options.seconds) for n in options.clients
                ]
                print(server.name, *results[server.name], file=sys.stderr, flush=True)
        loop = None if options.costless else run_loop(folder, options)
    what = "a model that costs nothing"
    if not options.costless:
        what = f"{options.weights.stem}, width {read_checkpoint(options.weights).config.architecture.width}"
    lines = table(results, options.clients)
    if loop is not None:
        cells = [f"{loop:.2f} | | |", *["| | |"] * (len(options.clients) - 1)]
        lines.append(f"| the tutorial's loop, files to files, without HTTP | {' '.join(cells)} |")
    title = f"{what}; one grey PNG of {options.side} x {options.side} px, {len(image):,} bytes"
    section = "peers-costless" if options.costless else "peers"
    report(section, [f"{title}. {machine()}", "", *lines], write=options.write)
    if options.write:
        groups = [f"{n} client{'s' * (n > 1)}" for n in options.clients]
        bars = {name: [cell.per_s for cell in cells] for name, cells in results.items()}
        plot_bars(section, title, "requests a second", groups, bars)
    return 0


def table(results: dict[str, list[Cell]], clients: list[int]) -> list[str]:
    """A Markdown table: requests a second and waits, and Maskwell over the best of the others."""
    heads = [f"{n} client{'s' * (n > 1)}: /s | p50, p99 ms | processor ms" for n in clients]
    lines = [
        f"| server | {' | '.join(heads)} | failed |",
        "|---" * (3 * len(clients) + 2) + "|",
    ]
    for name, cells in results.items():
        parts = [f"{cell.per_s:.2f} | {cell.p50_ms:.0f}, {cell.p99_ms:.0f} | {cell.cpu_ms:.1f}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(parts)} | {sum(cell.failed for cell in cells)} |")
    others = [cells for name, cells in results.items() if name != MASKWELL.name]
    if MASKWELL.name in results and others:
        ours = results[MASKWELL.name]
        ratios = [f"{ours[i].per_s / max(c[i].per_s for c in others):.2f} | |" for i in range(len(clients))]
        lines.append(f"| **Maskwell over the best peer** | {' | '.join(ratios)} | |")
    return lines


def run_loop(folder: Path, options: argparse.Namespace) -> float:
    """Images a second of bench/peers/loop.py."""
    write_peers_weights(options.weights, folder / "peers.pth")
    command = [str(options.venv / "bin" / "python"), "loop.py", str(folder / "image.png"), str(folder)]
    done = subprocess.run(
        [*command, str(options.seconds)],
        cwd=PEERS,
        env=os.environ | {"PEER_WEIGHTS": str(folder / "peers.pth")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


def make_environment(venv: Path) -> None:
    """The peers' own virtual environment; the project's is not touched."""
    wanted = (PEERS / "requirements.txt").read_text()
    done = venv / "installed.txt"
    if done.exists() and done.read_text() == wanted:
        return
    print(f"installing the peers into {venv}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    versions = (ROOT / "constraints.txt").read_text().splitlines()
    shared = ("torch==", "numpy==", "pillow==")
    (venv / "constraints.txt").write_text("\n".join(line for line in versions if line.startswith(shared)))
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(PEERS / "requirements.txt"), "-c", str(venv / "constraints.txt")], check=True)
    done.write_text(wanted)


@contextmanager
def running(server: Server, folder: Path, options: argparse.Namespace) -> Iterator[int]:
    """A server that answers, on a free port; with all its children it ends with the block."""
    port = free_port()
    cores = len(os.sched_getaffinity(0))
    environment = dict(os.environ)
    if server is MASKWELL:
        weights = folder / "weights"
        weights.mkdir(exist_ok=True)
        if options.costless:
            write_costless_weights(weights / "best_model.pth")
            command = [sys.executable, str(ROOT / "bench" / "costless.py")]
        else:
            for path in options.weights.parent.glob(f"{options.weights.stem}.*"):
                shutil.copy(path, weights / f"best_model{path.name.removeprefix(options.weights.stem)}")
            command = [sys.executable, "-m", "app"]
        environment |= {
            "MASKWELL_PORT": str(port),
            "MASKWELL_WEIGHTS_DIR": str(weights),
            "MASKWELL_LOG_LEVEL": "warning",
        }
        where = ROOT
    else:
        bin_ = options.venv / "bin"
        command = [part.format(python=bin_ / "python", bin=bin_, port=port) for part in server.command]
        weights_file = ""
        if not options.costless:
            weights_file = str(folder / "peers.pth")
            write_peers_weights(options.weights, Path(weights_file))
        # eager torch takes every core by itself; a model that costs nothing is worth a process a core
        environment |= {
            "PEER_PORT": str(port),
            "PEER_WEIGHTS": weights_file,
            "PEER_WORKERS": str(cores if options.costless else 1),
            "PATH": f"{bin_}:{environment['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "BENTOML_DO_NOT_TRACK": "1",
        }
        where = PEERS
    log = (folder / f"{server.name.split(',')[0]}.log").open("w")
    process = subprocess.Popen(
        command, cwd=where, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        wait_until_up(process, port, folder, server, Path(log.name))
        yield port
    finally:
        end(process)
        log.close()


def wait_until_up(process: subprocess.Popen[bytes], port: int, folder: Path, server: Server, log: Path) -> None:
    """Until it answers a picture, or its time is over."""
    deadline = time.monotonic() + START_S
    image = (folder / "image.png").read_bytes()
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            ask(server, port, image)
            return
        except (httpx.HTTPError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"error: {server.name} did not start:\n{log.read_text()[-3000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Its whole session: some of them leave children behind."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            continue
        time.sleep(0.5)


def ask(server: Server, port: int, image: bytes) -> np.ndarray:
    """One mask."""
    url = f"http://127.0.0.1:{port}{server.path}"
    with httpx.Client(timeout=120) as client:
        if server.raw:
            answer = client.post(url, content=image)
        else:
            answer = client.post(url, files={"file": ("image.png", image, "image/png")})
    answer.raise_for_status()
    return decode_image(answer.content).pixels


def load(server: Server, port: int, folder: Path, *, clients: int, seconds: float) -> Cell:
    """Wrk for so long."""
    script = folder / ("raw.lua" if server.raw else "form.lua")
    if not script.exists():
        script.write_text(lua(folder / "image.png", raw=server.raw))
    command = ["wrk", "-t1", f"-c{clients}", f"-d{max(round(seconds), 1)}s", "--latency", "--timeout", "120s"]
    command += ["-s", str(script), f"http://127.0.0.1:{port}{server.path}"]
    before = cpu_s(os.getpid())
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent_s = cpu_s(os.getpid()) - before
    found = re.search(r"(\d+) requests in", output)
    answered = int(found[1]) if found else 0
    return replace(parse(output), cpu_ms=spent_s / answered * 1000 if answered else float("nan"))


def cpu_s(ancestor: int) -> float:
    """Seconds of the processor that all living descendants of a process have taken."""
    times, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1])
            times[int(entry.name)] = int(fields[11]) + int(fields[12])

    def descends(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == ancestor:
                return True
        return False

    return sum(ticks for pid, ticks in times.items() if descends(pid)) / os.sysconf("SC_CLK_TCK")


def lua(image: Path, *, raw: bool) -> str:
    """The request, as wrk's script."""
    read = f'local f = io.open({json.dumps(str(image))}, "rb"); local image = f:read("*a"); f:close()\n'
    read += 'wrk.method = "POST"\n'
    if raw:
        return read + "wrk.body = image\n"
    return read + (
        'local b = "----------bench"\n'
        'wrk.headers["Content-Type"] = "multipart/form-data; boundary=" .. b\n'
        'wrk.body = "--" .. b .. "\\r\\nContent-Disposition: form-data; name=\\"file\\"; filename=\\"image.png\\"\\r\\n'
        'Content-Type: image/png\\r\\n\\r\\n" .. image .. "\\r\\n--" .. b .. "--\\r\\n"\n'
    )


def parse(output: str) -> Cell:
    """Numbers of wrk's report."""

    def milliseconds(percent: str) -> float:
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)\s*$", output, re.MULTILINE)
        if found is None:
            return float("nan")
        return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[found[2]]

    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    failed = (int(bad[1]) if bad else 0) + (sum(map(int, errors.groups())) if errors else 0)
    return Cell(float(rate[1]) if rate else 0.0, milliseconds("50"), milliseconds("99"), failed)


def write_peers_weights(path: Path, to: Path) -> None:
    """What the peers need of a checkpoint, as plain as can be."""
    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    network = checkpoint.build()
    architecture = {
        "n_channels": config.architecture.n_channels,
        "n_classes": config.architecture.n_classes,
        "bilinear": config.architecture.bilinear,
        "width": config.architecture.width,
        "align_corners": config.architecture.align_corners,
        "layout": config.architecture.layout,
    }
    state = {name: value.float() for name, value in network.state_dict().items()}
    torch.save(
        {
            "state": state,
            "architecture": architecture,
            "normalisation": config.normalisation,
            "threshold": config.threshold,
        },
        to,
    )


if __name__ == "__main__":
    sys.exit(main())
