import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import OTHER, ROOM_BYTES, Metrics, bury, take_room
from app.notes import Notes
from tests.e2e.kit import ROOT


def read(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    [family] = [family for family in metrics._registry.collect() if family.name == f"maskwell_{name}"]
    kept = [sample for sample in family.samples if sample.name.endswith(("_total", "_count", name))]
    return {tuple(sample.labels.values()): sample.value for sample in kept}


def test_what_strangers_can_choose_makes_no_new_series() -> None:
    metrics = Metrics()
    for number in range(500):
        metrics.begin()
        metrics.settle(f"BREW{number}", "", 404, 0.01, Notes(reason="not_found"))
    assert read(metrics, "requests_refused") == {(OTHER, OTHER, "404", "not_found"): 500}


def test_each_way_to_end_counts_once() -> None:
    metrics = Metrics()
    for status, reason in ((200, ""), (204, ""), (413, "image_too_large"), (500, ""), (None, "")):
        metrics.begin()
        metrics.settle("POST", "/segment", status, 0.01, Notes(reason=reason))
    metrics.refuse_unread(400, "malformed_http")
    assert sum(read(metrics, "requests_received").values()) == 6
    assert sum(read(metrics, "requests_answered").values()) == 2
    assert read(metrics, "requests_refused") == {
        ("POST", "/segment", "413", "image_too_large"): 1,
        ("POST", "/segment", "500", "http_error"): 1,
        (OTHER, OTHER, "400", "malformed_http"): 1,
    }
    assert sum(read(metrics, "requests_cancelled").values()) == 1
    assert sum(read(metrics, "requests_in_flight").values()) == 0


WORKER = """
    import sys, time
    from app.metrics import Metrics, count_as
    from app.notes import Notes
    count_as(int(sys.argv[2]))
    metrics = Metrics()
    for index in range(5):
        metrics.begin()
        if index < int(sys.argv[1]):
            metrics.settle("GET", "/livez", 200, 0.01, Notes())
    print("done", flush=True)
    time.sleep(600)
"""
READER = """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    print(generate_latest(registry).decode())
"""


def test_counts_of_several_processes_add_up_and_what_a_killed_one_owed_is_lost(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(code: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def sums() -> dict[str, float]:
        text, _ = run(READER).communicate(timeout=90)
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
        ways = ("answered_total", "refused_total", "cancelled_total", "lost_total", "in_flight")
        named = {way: totals.get(f"maskwell_requests_{way}", 0.0) for way in ways}
        assert totals["maskwell_requests_received_total"] == sum(named.values())
        return named

    def start(answers: int, slot: int) -> "subprocess.Popen[str]":
        worker = run(WORKER, str(answers), str(slot))
        workers.append(worker)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "done\n"
        return worker

    workers: list[subprocess.Popen[str]] = []
    try:
        killed = start(3, slot=0)
        start(5, slot=1)
        assert sums() == {
            "answered_total": 8,
            "refused_total": 0,
            "cancelled_total": 0,
            "lost_total": 0,
            "in_flight": 2,
        }
        files = len(list(tmp_path.iterdir()))
        for deaths in (1, 2, 3):
            killed.send_signal(signal.SIGKILL)
            killed.wait(60)
            for _ in range(2):
                bury(tmp_path, 0)
                assert sums()["lost_total"] == 2 * deaths
                assert sums()["in_flight"] == 0
            killed = start(3, slot=0)  # goes on where the dead one was
            assert sums()["answered_total"] == 8 + 3 * deaths
            assert sums()["in_flight"] == 2
        assert len(list(tmp_path.iterdir())) == files
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


MANY_SERIES = """
    import sys
    from pathlib import Path
    from app.metrics import METHODS, Metrics, count_as, take_room
    from app.notes import Notes
    take_room(Path(sys.argv[1]), 0)
    count_as(0)
    metrics = Metrics()
    for method in [*METHODS, "BREW"]:
        for route in range(20):
            for status in (200, 307, 401, 404, 405, 429, 503, None):
                metrics.begin()
                metrics.settle(method, f"/models/{{name}}/{route}", status, 0.01, Notes(reason="a_reason"))
"""


def test_the_disk_has_room_for_all_series_before_the_first_is_written(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(MANY_SERIES), str(tmp_path)], env=environment, check=True)
    assert {path.name.removesuffix("_0.db") for path in tmp_path.iterdir()} == set(ROOM_BYTES)
    for path in tmp_path.iterdir():
        status = path.stat()
        assert status.st_size == ROOM_BYTES[path.name.removesuffix("_0.db")]  # it had not to grow
        assert status.st_blocks * 512 >= status.st_size  # no holes
    read = [sys.executable, "-c", textwrap.dedent(READER)]
    text = subprocess.run(read, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    [family] = [item for item in text_string_to_metric_families(text) if item.name == "maskwell_requests_received"]
    assert family.samples[0].value == 8 * 20 * 8


def test_where_there_is_no_room_nothing_is_left_that_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, n_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left"):
        take_room(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    bury(tmp_path, 0)
