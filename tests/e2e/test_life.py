import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.e2e.kit import (
    ROOT,
    HalfSent,
    HeldServer,
    ServerProcess,
    decode,
    draw_cells,
    to_png,
    wait_for,
    write_weights,
)

TIMEOUT = httpx.Timeout(120)
KEY = "a-key-of-some-length"


def segment(server: ServerProcess, image: bytes) -> httpx.Response:
    return httpx.post(f"{server.url}/segment", files={"file": ("x.png", image)}, timeout=TIMEOUT)


def test_what_cannot_be_finished_before_the_drain_deadline_gets_503(shared_weights: Path, tmp_path: Path) -> None:
    settings = {"drain_grace_s": 0, "drain_deadline_s": 0.2}
    with HeldServer(shared_weights, tmp_path / "log", settings) as server, ThreadPoolExecutor(1) as pool:
        server.hold()
        in_flight = pool.submit(segment, server, to_png(draw_cells(300, 300)))
        stuck = HalfSent(server, to_png(draw_cells(500, 500)))
        wait_for(lambda: httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()["queue"]["requests"] == 1)
        server.process.send_signal(signal.SIGTERM)
        answer = in_flight.result()
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert stuck.read_status() == 503
        server.let_go()
        assert server.wait() == 0
        assert "Traceback" not in server.log.read_text()


def test_sigint_ends_an_idle_server_with_status_0(shared_weights: Path, tmp_path: Path) -> None:
    with ServerProcess(shared_weights, tmp_path / "log") as server:
        with httpx.Client() as client:  # an open connection that is idle does not hold it up
            client.get(f"{server.url}/livez")
            server.process.send_signal(signal.SIGINT)
            assert server.wait() == 0
        assert "Traceback" not in server.log.read_text()


def run_app(**settings: object) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MASKWELL_")}
    given = {f"MASKWELL_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {**kept, "PYTHONPATH": str(ROOT), **given}
    command = [sys.executable, "-m", "app"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read weights"),
        (b"PK\x03\x04 half a zip", "no readable file of weights"),
    ],
)
def test_weights_that_cannot_be_used_end_start_up_with_one_line(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "best_model.pth").write_bytes(content)
    ended = run_app(weights_dir=tmp_path)
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode not in (0, None)
    assert len(lines) == 1, ended.stderr
    assert reason in lines[0]


def test_wrong_settings_end_start_up_with_one_line(tmp_path: Path) -> None:
    ended = run_app(port="many", admin_key="short", weights_dir=tmp_path)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "MASKWELL_PORT" in ended.stderr
    assert "MASKWELL_ADMIN_KEY" in ended.stderr
    assert "short" not in ended.stderr


def test_a_full_queue_says_when_to_come_back(shared_weights: Path, tmp_path: Path) -> None:
    settings = {"max_queue_requests": 1}
    with HeldServer(shared_weights, tmp_path / "log", settings) as server, ThreadPoolExecutor(1) as pool:
        small = to_png(draw_cells(20, 20))
        for path, field in (("/segment", "file"), ("/segment/batch", "files")):
            server.hold()
            in_flight = pool.submit(segment, server, to_png(draw_cells(300, 300)))
            wait_for(lambda: httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()["queue"]["requests"] == 1)
            refused = httpx.post(server.url + path, files={field: ("x.png", small)}, timeout=TIMEOUT)
            assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
            assert 1 <= int(refused.headers["retry-after"]) <= 3600
            server.let_go()
            assert in_flight.result().status_code == 200
        assert segment(server, small).status_code == 200


def test_the_reload_route_wants_the_admin_key(tmp_path: Path) -> None:
    write_weights(tmp_path / "best_model.pth")
    with ServerProcess(tmp_path, tmp_path / "log", {"reload_poll_s": 0, "admin_key": KEY}) as server:

        def reload(name: str = "best_model", **headers: str) -> httpx.Response:
            return httpx.post(f"{server.url}/models/{name}/reload", headers=headers, timeout=TIMEOUT)

        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            answer = reload(**headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "key_required")
            assert answer.headers["www-authenticate"] == "Bearer"
        key = {"Authorization": f"Bearer {KEY}"}
        assert reload(**key).status_code == 200
        assert reload("nuclei", **key).json()["code"] == "unknown_model"
        assert reload("..%2Fsecret", **key).status_code == 404
        version = write_weights(tmp_path / "nuclei.pth", seed=5)
        answer = reload("nuclei", **key).json()
        assert (answer["name"], answer["version"], answer["default"]) == ("nuclei", version, False)
        (tmp_path / "nuclei.pth").write_bytes(b"junk")
        refused = reload("nuclei", **key)
        assert (refused.status_code, refused.json()["code"]) == (409, "weights_refused")
        assert str(tmp_path) not in refused.text
        (tmp_path / "best_model.pth").unlink()
        assert reload(**key).json()["code"] == "weights_refused"
        answer = segment(server, to_png(draw_cells(30, 30)))
        assert (answer.status_code, set(np.unique(decode(answer.content))) <= {0, 255}) == (200, True)


def test_the_log_says_where_it_serves_once_it_does(shared_weights: Path, tmp_path: Path) -> None:
    with ServerProcess(shared_weights, tmp_path / "log") as server:
        # the probe that the fixture waits for may be answered just before the line is written
        wait_for(lambda: f"INFO app.server: ready on {server.url}\n" in (tmp_path / "log").read_text())


def test_weights_that_do_not_load_in_time_end_the_start_and_not_by_a_crash(
    shared_weights: Path, tmp_path: Path
) -> None:
    # the thread that loads them is still at it when the process ends
    server = ServerProcess(shared_weights, tmp_path / "log", {"load_deadline_s": 0.05, "log_level": "error"})
    server.start()
    assert server.wait() == 3
    [line] = server.log.read_text().strip().splitlines()
    assert "cannot start" in line
    assert "it was not done after 0.05 s" in line


def test_a_candidate_that_hangs_holds_up_neither_the_service_nor_its_end(tmp_path: Path) -> None:
    write_weights(tmp_path / "best_model.pth", tile_px=(128,))
    code = """
import sys, time
from model import Segmenter
honest, loaded = Segmenter.warm_up, []
def warm_up(self):
    if loaded:
        time.sleep(600)
    loaded.append(honest(self))
Segmenter.warm_up = warm_up
from app.__main__ import main
sys.exit(main([]))
"""
    settings = {"load_deadline_s": 20, "reload_poll_s": 0.2, "drain_grace_s": 0}
    with ServerProcess(tmp_path, tmp_path / "log", settings, command=("-c", code)) as server:
        write_weights(tmp_path / "best_model.pth", seed=1, tile_px=(128,))
        wait_for(lambda: httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()["refused_weights"] != {})
        health = httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()
        assert "was not done after 20 s" in health["refused_weights"]["best_model"]
        assert segment(server, to_png(draw_cells(100, 100))).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
