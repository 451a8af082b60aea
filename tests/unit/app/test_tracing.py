"""Traces, as the SDK's own exporter in memory sees them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

import app.tracing
from app.main import create_app
from app.settings import Settings
from app.tracing import TracingError, check_tracing, parse_trace_id
from tests.e2e.kit import ROOT, draw_cells, to_png

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
IMAGE = to_png(draw_cells(60, 80))


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(tiny_weights: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(app.tracing, "_make_provider", lambda: provider)
    settings = Settings(weights_dir=tiny_weights, device="cpu", reload_poll_s=0, tracing=True)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_request_is_a_span_below_the_client_s_with_its_stages_below_it(
    client: TestClient, spans: InMemorySpanExporter
) -> None:
    answer = client.post(
        "/segment", files={"file": ("x.png", IMAGE)}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}
    )
    assert answer.status_code == 200
    found = named(spans)
    assert set(found) == {"POST /segment", "queue", "decode", "infer", "encode"}
    request = found["POST /segment"]
    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.context is not None
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{request.context.span_id:016x}-01"
    attributes = dict(request.attributes or {})
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.route"] == "/segment"
    assert attributes["maskwell.model_version"] == answer.headers["x-model-version"]
    assert attributes["maskwell.request_id"] == answer.headers["x-request-id"]
    assert attributes["maskwell.pixels"] == 4800
    stages = [span for span in spans.get_finished_spans() if span is not request]
    for span in spans.get_finished_spans():
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE
    assert request.start_time is not None
    assert request.end_time is not None
    for span in stages:
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        # two clocks: the stages were timed by the one that has no date
        assert request.start_time - 5e6 <= span.start_time <= span.end_time <= request.end_time + 5e6
    order = [found[name].end_time or 0 for name in ("decode", "infer", "encode")]
    assert order == sorted(order)


def test_without_a_client_s_trace_each_request_begins_one(client: TestClient, spans: InMemorySpanExporter) -> None:
    for parent in ("", "00-nonsense", f"00-{'0' * 32}-{PARENT}-01"):
        assert client.get("/models", headers={"traceparent": parent}).status_code == 200
    finished = spans.get_finished_spans()
    assert len({span.context.trace_id for span in finished if span.context}) == 3
    assert all(span.parent is None for span in finished)


def test_what_the_client_does_not_sample_is_not_recorded(client: TestClient, spans: InMemorySpanExporter) -> None:
    client.get("/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert spans.get_finished_spans() == ()


def test_refusals_and_errors_are_told_apart(
    client: TestClient, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/segment", files={"file": ("x.png", b"junk")})
    refused = named(spans)["POST /segment"]
    assert (refused.attributes or {})["error.type"] == "undecodable_image"
    assert refused.status.status_code is StatusCode.UNSET  # the client's mistake, not the service's
    spans.clear()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("app.service.open_image", fail)
    client.post("/segment", files={"file": ("x.png", IMAGE)})
    failed = named(spans)["POST /segment"]
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["http.response.status_code"] == 500


def test_probes_and_scrapes_are_not_traced(client: TestClient, spans: InMemorySpanExporter) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert "traceresponse" not in client.get(path).headers
    assert spans.get_finished_spans() == ()


def test_where_it_is_off_nothing_of_the_sdk_is_loaded(tiny_weights: Path) -> None:
    code = (
        "import sys\nfrom app.main import create_app\nfrom app.settings import Settings\n"
        f"create_app(Settings(weights_dir={str(tiny_weights)!r}))\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "[]\n", ended.stderr


def test_where_the_sdk_is_missing_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracing()
    monkeypatch.setattr("app.tracing.importlib.util.find_spec", lambda _: None)
    with pytest.raises(TracingError, match=r"pip install 'maskwell\[tracing\]'"):
        check_tracing()


@pytest.mark.parametrize(
    ("given", "trace"),
    [
        (f"00-{TRACE}-{PARENT}-01", TRACE),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-may-be.400", TRACE),
        (f"ff-{TRACE}-{PARENT}-01", ""),
        (f"00-{TRACE.upper()}-{PARENT}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{'0' * 32}-{PARENT}-01", ""),
        (f"00-{TRACE}-{PARENT}-01\n", ""),
        ("", ""),
    ],
)
def test_a_trace_id_is_taken_from_a_sound_header_only(given: str, trace: str) -> None:
    assert parse_trace_id(given) == trace
