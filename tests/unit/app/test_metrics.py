import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from app.metrics import OTHER, Metrics, bury
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
