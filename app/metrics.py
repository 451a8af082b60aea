"""What the service counts, for Prometheus; app/routes/metrics.py shows it. Knows no HTTP.

Every request ends in one of three ways, so at any moment

    received = answered + refused + cancelled + in flight

holds exactly. Scrapes of /metrics are not counted: at rest nothing is in flight, and the first three add up.

Several worker processes share the work by the library's own multiprocess mode: where PROMETHEUS_MULTIPROC_DIR names a
folder when the process starts, each writes its numbers into files there, and any of them shows the sum over all. A
worker goes on with the files of the one that it replaces (`count_as`), so there are never more than there are workers;
what a dead one had in flight is counted as lost (`bury`), so that the sums still meet.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from app import __version__
from app.notes import Notes

if TYPE_CHECKING:
    from app.service import Service

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the library's own variable
# How often a worker writes down what else would only be looked at when it is asked.
SAMPLE_S = 1.0

# Who may put any word in place of a method or a path shall not fill the memory with it.
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
OTHER = "other"
LOST = "requests_lost"
LOST_HELP = "Requests in flight in a worker process that died."

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STAGE_SECONDS = (0.001, 0.0025, *SECONDS)
# Each worker's files, with room for all series that there can be: one takes some 250 bytes, and labels are bounded.
ROOM_BYTES = {
    "counter": 1 << 20,
    "histogram": 1 << 20,
    **{f"gauge_{mode}": 1 << 16 for mode in ("livesum", "livemin", "livemax")},
}
TILES = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)


class Metrics:
    """All numbers of one service."""

    def __init__(self) -> None:
        self.shared = SHARED_FOLDER in os.environ
        self._registry = CollectorRegistry()
        if not self.shared:
            ProcessCollector(registry=self._registry)
        self.received = self._counter("requests_received", "Requests whose head, or what was to be one, has come.")
        self.answered = self._counter(
            "requests_answered", "Requests answered with a status below 400.", ("method", "route", "code")
        )
        self.refused = self._counter(
            "requests_refused",
            "Requests answered with a status from 400 on; `reason` is the problem's code.",
            ("method", "route", "code", "reason"),
        )
        self.cancelled = self._counter(
            "requests_cancelled",
            "Requests without a whole answer, for the client left or the process had to end.",
            ("method", "route"),
        )
        self._counter(LOST, LOST_HELP)
        self.in_flight = self._gauge("requests_in_flight", "Requests that are owed an answer.")
        self.request_seconds = self._histogram(
            "request_duration_seconds", "From the head of a request to the end of its answer.", SECONDS, ("route",)
        )
        self.stage_seconds = self._histogram(
            "stage_duration_seconds",
            "Per image: waiting (queue), decode, infer and encode.",
            STAGE_SECONDS,
            ("stage",),
        )
        self.images = self._counter("images", "Images segmented.", ("model",))
        self.image_pixels = self._counter("image_pixels", "Pixels of the images segmented.", ("model",))
        self.quality_flags = self._counter(
            "quality_flags", "Images whose answer was flagged, by what X-Quality says.", ("model", "flag")
        )
        self.files_refused = self._counter(
            "batch_files_refused", "Files of batches that stand in errors.json, by the problem's code.", ("reason",)
        )
        self.pass_tiles = self._histogram("batch_tiles", "Tiles in a pass of the network.", TILES)
        self.pass_fill = self._histogram("batch_fill_ratio", "Tiles in a pass over those that it has room for.", SHARES)
        self.pass_seconds = self._histogram("pass_duration_seconds", "A pass of the network.", STAGE_SECONDS)
        self.reloads = self._counter(
            "reloads", "Files of weights tried after start-up; `result` is ok or failed.", ("model", "result")
        )
        self._ready = self._gauge("ready", "1 where /readyz says 200.", "livemin")
        self._live = self._gauge("live", "1 where /livez says 200.", "livemin")
        self._queue_pixels = self._gauge("queue_pixels", "Pixels accepted and not yet answered.")
        self._queue_max_pixels = self._gauge("queue_max_pixels", "Pixels above which requests get 429.")
        self._queue_requests = self._gauge("queue_requests", "Requests accepted and not yet answered.")
        self._queue_max_requests = self._gauge("queue_max_requests", "Requests above which others get 429.")
        self._queue_tiles = self._gauge("queue_tiles", "Tiles that no pass has begun on.")
        self._queue_age = self._gauge("queue_oldest_age_seconds", "Age of the oldest accepted request.", "livemax")
        self._upload_bytes = self._gauge("held_upload_bytes", "Bytes of uploads that are held.")
        self._memory = self._gauge("memory_bytes", "Resident memory of the process.")
        self._device_memory = self._gauge("device_memory_bytes", "Memory reserved on the GPU; 0 on a CPU.")
        self._refused_weights = self._gauge("refused_weights", "Files of weights that cannot be used.", "livemax")

    def begin(self) -> None:
        """A request has come."""
        self.received.inc()
        self.in_flight.inc()

    def settle(self, method: str, route: str, status: int | None, seconds: float, notes: Notes) -> None:
        """A request has ended.

        Args:
            method: as sent.
            route: its template, such as `/models/{name}`; empty if there is none.
            status: of the answer; None if it had none, or only a part.
            seconds: from its head to its end.
            notes: of the request.
        """
        method, route = method if method in METHODS else OTHER, route or OTHER
        if status is None:
            self.cancelled.labels(method, route).inc()
        elif status < 400:
            self.answered.labels(method, route, str(status)).inc()
        else:
            self.refused.labels(method, route, str(status), notes.reason or "http_error").inc()
        self.in_flight.dec()
        self.request_seconds.labels(route).observe(seconds)
        for stage in notes.stages:
            self.stage_seconds.labels(stage.name).observe(stage.seconds)

    def refuse_unread(self, status: int, reason: str) -> None:
        """What should have been a request was answered before it was one."""
        self.received.inc()
        self.refused.labels(OTHER, OTHER, str(status), reason).inc()

    def note_pass(self, tiles: int, capacity: int, seconds: float) -> None:
        """The network has done a batch; called from the engine's thread."""
        self.pass_tiles.observe(tiles)
        self.pass_fill.observe(tiles / capacity)
        self.pass_seconds.observe(seconds)

    def note_reload(self, model: str, ok: bool) -> None:
        """A file of weights was tried."""
        self.reloads.labels(model, "ok" if ok else "failed").inc()

    def sample(self, service: "Service") -> None:
        """Look at what is a state, not an event."""
        admission = service.admission
        self._ready.set(service.status == "ready")
        self._live.set(service.status != "failed")
        self._queue_pixels.set(admission.pixels)
        self._queue_max_pixels.set(admission.max_pixels)
        self._queue_requests.set(admission.requests)
        self._queue_max_requests.set(admission.max_requests)
        self._queue_tiles.set(service.batcher.waiting_tiles)
        self._queue_age.set(admission.oldest_age_s)
        self._upload_bytes.set(service.uploads.held_bytes)
        self._memory.set(_resident_bytes())
        self._device_memory.set(_device_bytes())
        self._refused_weights.set(len(service.registry.refused))
        for model in service.registry.models:  # a series that is there before its first event can be alerted on
            for result in ("ok", "failed"):
                self.reloads.labels(model.name, result)

    def expose(self, service: "Service", accept: str) -> tuple[bytes, str]:
        """The text for a scrape, and its media type; of all worker processes where there are several."""
        self.sample(service)
        registry = self._registry
        if self.shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        encode, media_type = choose_encoder(accept)
        return encode(_Both(registry, _ModelInfo(service))), media_type

    def _counter(self, name: str, help_text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"maskwell_{name}", help_text, labels, registry=self._registry)

    def _gauge(self, name: str, help_text: str, mode: str = "livesum") -> Gauge:
        return Gauge(f"maskwell_{name}", help_text, registry=self._registry, multiprocess_mode=mode)  # type: ignore[arg-type]

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()
    ) -> Histogram:
        return Histogram(f"maskwell_{name}", help_text, labels, buckets=buckets, registry=self._registry)


def count_as(slot: int) -> None:
    """Name this process's files by a number that its successor will have too; to be called before there are Metrics."""
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]


def take_room(folder: Path, slot: int) -> None:
    """Have the disk's blocks for a process's files before it writes; to be called before there are Metrics.

    The library maps files with holes into memory. A disk that is full when such a page is first written ends the
    process by SIGBUS, with all that it was doing.

    Args:
        folder: that PROMETHEUS_MULTIPROC_DIR names.
        slot: of the process. What its predecessor has counted stays.

    Raises:
        OSError: there is no room.
    """
    for kind, n_bytes in ROOM_BYTES.items():
        path = folder / f"{kind}_{slot}.db"
        if path.exists():
            continue
        part = path.with_suffix(".part")  # whoever reads an empty file of this kind fails
        try:
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def bury(folder: Path, slot: int) -> None:
    """A worker process is dead: forget its gauges, and count as lost the requests that it still owed an answer.

    Args:
        folder: that PROMETHEUS_MULTIPROC_DIR names.
        slot: of the dead process. Its counts stay; to be called again for it does no harm.
    """
    mark_process_dead(slot, str(folder))  # type: ignore[no-untyped-call]
    path = folder / f"counter_{slot}.db"
    if not path.exists():
        return
    sums: dict[str, float] = {}
    for metric in MultiProcessCollector.merge([str(path)]):  # type: ignore[no-untyped-call]
        sums[metric.name] = sum(sample.value for sample in metric.samples)
    ended = sum(sums.get(f"maskwell_requests_{name}", 0.0) for name in ("answered", "refused", "cancelled"))
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    key = mmap_key(f"maskwell_{LOST}", f"maskwell_{LOST}_total", [], [], LOST_HELP)
    file.write_value(key, sums.get("maskwell_requests_received", 0.0) - ended, 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]


class _Both(Collector):
    """Two collectors as one."""

    def __init__(self, *collectors: Collector) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()


class _ModelInfo(Collector):
    """What serves now. Made for each scrape: as a gauge, versions that are gone would stay."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        labels = ("model", "version", "precision", "runtime", "device", "default")
        models = GaugeMetricFamily("maskwell_model_info", "1 for each model that serves.", labels=labels)
        default = self._service.registry.default
        for model in self._service.registry.models:
            runtime = model.segmenter.runtime
            is_default = str(model is default).lower()
            models.add_metric(
                [model.name, model.version, runtime.precision, runtime.name, runtime.device, is_default], 1
            )
        yield models
        build = GaugeMetricFamily("maskwell_build_info", "1 for the release that runs.", labels=("version",))
        build.add_metric([__version__], 1)
        yield build


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # not Linux
        return 0


def _device_bytes() -> int:
    return torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0
