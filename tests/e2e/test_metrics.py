"""What GET /metrics says after all kinds of traffic to a real server: every request is counted once."""

import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.kit import HeldServer, ServerProcess, draw_cells, promise_png, to_png

TIMEOUT = httpx.Timeout(120)
GOOD = to_png(draw_cells(60, 80))
KEY = "a-key-of-some-length"


@pytest.fixture
def server(shared_weights: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    settings = {"max_pixels": 2000 * 2000, "admin_key": KEY, "batch_tiles": 4, "reload_poll_s": 0}
    with ServerProcess(shared_weights, tmp_path / "log", settings) as process:
        yield process


Samples = dict[str, list[tuple[dict[str, str], float]]]


def scrape(server: ServerProcess) -> Samples:
    answer = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT)
    assert answer.status_code == 200
    samples: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for found, value in samples.get(name, []) if labels.items() <= found.items())


def check_sums(samples: Samples) -> dict[str, float]:
    ways = ("received", "answered", "refused", "cancelled")
    sums = {way: total(samples, f"maskwell_requests_{way}_total") for way in ways}
    sums["in_flight"] = total(samples, "maskwell_requests_in_flight")
    assert sums["received"] == sum(sums[way] for way in (*ways[1:], "in_flight")), sums
    return sums


def vanish(server: ServerProcess, moment: int) -> None:
    """Begin a request and reset the connection: in the head, in the body, or while the answer is made."""
    request = httpx.Request("POST", f"{server.url}/segment", files={"file": ("x.png", to_png(draw_cells(1200, 1200)))})
    body = request.read()
    head = (
        f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    sent = (head[:40], head + body[: len(body) // 2], head + body)[moment]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(sent)
        time.sleep(0.05 if moment < 2 else 0.3)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def post(server: ServerProcess, image: bytes = GOOD, path: str = "/segment", field: str = "file") -> int:
    return httpx.post(server.url + path, files={field: ("x.png", image)}, timeout=TIMEOUT).status_code


def test_received_is_answered_plus_refused_plus_cancelled_after_mixed_traffic(server: ServerProcess) -> None:
    before = check_sums(scrape(server))
    assert before["in_flight"] == 0
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(post, server) for _ in range(12)]
        refused = [pool.submit(post, server, data) for data in (b"no image", promise_png(9000, 9000)) * 4]
        gone = [pool.submit(vanish, server, number % 3) for number in range(12)]
        midway = [check_sums(scrape(server)) for _ in range(5)]  # also while all of them are under way
        assert {job.result() for job in good} == {200}
        assert {job.result() for job in refused} == {413, 415}
        for job in gone:
            job.result()
    assert max(sums["received"] for sums in midway) > before["received"]
    assert post(server, path="/segment/batch", field="files") == 200
    assert post(server, b"junk", path="/segment/batch", field="files") == 200
    assert post(server, path="/preview") == 200
    for path in ("/nowhere", "/nowhere/else", "/models/nobody"):
        assert httpx.get(server.url + path, timeout=TIMEOUT).status_code == 404
    assert httpx.request("BREW", f"{server.url}/segment", timeout=TIMEOUT).status_code in (400, 405)
    assert httpx.get(f"{server.url}/segment", timeout=TIMEOUT).status_code == 405
    assert httpx.post(f"{server.url}/segment?threshold=7", timeout=TIMEOUT).status_code == 422
    url, headers = f"{server.url}/models/best_model/reload", {"Authorization": f"Bearer {KEY}"}
    assert httpx.post(url, headers=headers, timeout=TIMEOUT).status_code == 200
    assert httpx.post(url, timeout=TIMEOUT).status_code == 401

    deadline = time.monotonic() + 60
    while (samples := scrape(server)) and (sums := check_sums(samples))["in_flight"]:
        assert time.monotonic() < deadline, sums
        time.sleep(0.05)
    assert sums["received"] == sums["answered"] + sums["refused"] + sums["cancelled"]
    for reason, count in {"undecodable_image": 4, "image_too_large": 4, "key_required": 1, "unknown_model": 1}.items():
        assert total(samples, "maskwell_requests_refused_total", reason=reason) == count, reason
    # two of three leave after the head: those in the middle of the body, and those who wait for the answer, if a quick
    # machine has not sent it before
    assert 4 <= sums["cancelled"] <= 8
    answered = total(samples, "maskwell_requests_answered_total", route="/segment", method="POST", code="200")
    assert answered == 12 + 8 - sums["cancelled"]
    assert total(samples, "maskwell_requests_cancelled_total", route="/segment") == sums["cancelled"]
    assert total(samples, "maskwell_requests_refused_total", route="other", code="404") == 2
    assert total(samples, "maskwell_batch_files_refused_total", reason="undecodable_image") == 1
    assert total(samples, "maskwell_reloads_total", result="ok") == 1
    assert total(samples, "maskwell_reloads_total", result="failed") == 0
    images = total(samples, "maskwell_images_total", model="best_model")
    assert images >= 13
    assert total(samples, "maskwell_image_pixels_total") >= images * 60 * 80
    assert total(samples, "maskwell_stage_duration_seconds_count", stage="infer") >= images
    for stage in ("queue", "decode", "encode"):
        assert total(samples, "maskwell_stage_duration_seconds_count", stage=stage) >= images, stage
    assert total(samples, "maskwell_batch_tiles_count") == total(samples, "maskwell_batch_fill_ratio_count") > 0
    for name in ("queue_pixels", "queue_requests", "queue_tiles", "queue_oldest_age_seconds", "held_upload_bytes"):
        assert total(samples, f"maskwell_{name}") == 0, name
    assert total(samples, "maskwell_memory_bytes") > 50e6
    assert (total(samples, "maskwell_ready"), total(samples, "maskwell_live")) == (1, 1)
    models = {labels["model"]: labels for labels, _ in samples["maskwell_model_info"]}
    assert set(models) == {"best_model", "other"}
    assert set(models["best_model"]) == {"model", "version", "precision", "runtime", "device", "default"}
    assert len(models["best_model"]["version"]) == 64
    routes = {labels["route"] for labels, _ in samples["maskwell_requests_refused_total"]}
    assert routes <= {"/segment", "/segment/batch", "/preview", "/models/{name}", "/models/{name}/reload", "other"}


def test_the_age_of_the_oldest_request_and_what_waits_are_seen(shared_weights: Path, tmp_path: Path) -> None:
    with HeldServer(shared_weights, tmp_path / "log") as server, ThreadPoolExecutor(1) as pool:
        server.hold()
        job = pool.submit(post, server, to_png(draw_cells(200, 300)))
        deadline = time.monotonic() + 60
        while total(samples := scrape(server), "maskwell_queue_oldest_age_seconds") < 0.02:
            assert time.monotonic() < deadline
        assert total(samples, "maskwell_queue_requests") == 1
        assert total(samples, "maskwell_queue_pixels") == 60_000
        assert total(samples, "maskwell_requests_in_flight") == 1
        server.let_go()
        assert job.result() == 200


def test_openmetrics_is_given_to_whoever_asks_for_it(server: ServerProcess) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    answer = httpx.get(f"{server.url}/metrics", headers=accept, timeout=TIMEOUT)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
    assert {"maskwell_requests_received", "maskwell_model_info", "maskwell_stage_duration_seconds"} <= names
    plain = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT)
    assert plain.headers["content-type"].startswith("text/plain")
