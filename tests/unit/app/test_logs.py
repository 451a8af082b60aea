import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.keys import make_key
from app.logs import FIELDS, JsonFormatter, TextFormatter
from app.main import create_app
from app.settings import Settings
from tests.e2e.kit import ROOT, draw_cells, to_png

KEY, LINE = make_key("alice", "user")
IMAGE = to_png(draw_cells(60, 80))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def record(message: str, *arguments: object, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("app.x", logging.INFO, "x.py", 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


class Lines(logging.Handler):
    """Keeps what a formatter makes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Iterator[Lines]:
    handler = Lines(JsonFormatter())
    logger = logging.getLogger("app")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def client(tiny_weights: Path) -> Iterator[TestClient]:
    settings = Settings(weights_dir=tiny_weights, device="cpu", reload_poll_s=0, keys=SecretStr(LINE))
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def requests_of(log: Lines) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.lines]
    return [line for line in lines if line["logger"] == "app.request"]


def test_a_request_is_one_json_object_with_what_made_its_answer(client: TestClient, log: Lines) -> None:
    headers = {"X-API-Key": KEY, "X-Request-ID": "r-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    answer = client.post("/segment?output=labels", files={"file": ("secret-name.png", IMAGE)}, headers=headers)
    assert answer.status_code == 200
    [line] = requests_of(log)
    assert line["request_id"] == "r-1"
    assert line["trace_id"] == TRACE
    assert (line["method"], line["path"], line["route"], line["status"]) == ("POST", "/segment", "/segment", 200)
    assert (line["key"], line["model"], line["pixels"]) == ("alice", "best_model", 4800)
    assert line["model_version"] == answer.headers["x-model-version"]
    assert set(line["stages_ms"]) == {"queue", "decode", "infer", "encode"}
    assert 0 <= sum(line["stages_ms"].values()) <= line["duration_ms"] + 1
    assert line["received_bytes"] > len(IMAGE)
    assert line["level"] == "info"
    assert line["time"].endswith("+00:00")
    assert KEY not in "".join(log.lines)
    assert "secret-name" not in "".join(log.lines)


def test_a_refusal_says_its_reason(client: TestClient, log: Lines) -> None:
    client.post("/segment", files={"file": ("x", b"junk")}, headers={"X-API-Key": KEY})
    client.get("/health")
    refused, locked = requests_of(log)
    assert (refused["status"], refused["reason"]) == (415, "undecodable_image")
    assert (locked["status"], locked["reason"], locked["key"]) == (401, "key_required", "")


def test_an_unforeseen_error_keeps_its_traceback_in_one_line(
    client: TestClient, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("line one\nline two")

    monkeypatch.setattr("app.service.open_image", fail)
    client.post("/segment", files={"file": ("x", IMAGE)}, headers={"X-API-Key": KEY, "X-Request-ID": "r-9"})
    errors = [line for line in map(json.loads, log.lines) if line["level"] == "error"]
    assert [line["request_id"] for line in errors] == ["r-9"]
    assert "RuntimeError: line one\nline two" in errors[0]["exception"]
    assert all("\n" not in line for line in log.lines)


HOSTILE = 'a\r\n2026-01-01 00:00:00,000 INFO app: forged\x1b[31m\u2028\u0085"'


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_what_came_from_outside_breaks_no_line(formatter: logging.Formatter) -> None:
    for made in (record("found %r and %s", HOSTILE, HOSTILE), record(HOSTILE)):
        line = formatter.format(made)
        assert line.isprintable(), line
        assert len(line.splitlines()) == 1
    assert "forged" in line


def test_json_keeps_it_as_it_came() -> None:
    line = JsonFormatter().format(record("found %s", HOSTILE, **{FIELDS: {"path": HOSTILE}}))
    assert json.loads(line)["message"] == f"found {HOSTILE}"
    assert json.loads(line)["path"] == HOSTILE


PROGRAM = """
import logging, warnings
from app.logs import set_up_logging
set_up_logging("info", "json")
logging.getLogger("app.x").info("hello %s", "you")
logging.getLogger("uvicorn.error").warning("not this")
warnings.warn("of two" + chr(10) + "lines")
set_up_logging("info", "text")
logging.getLogger("app.x").info("and you")
"""


def test_both_configurations_are_ones_that_logging_takes() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    first, warning, second = ended.stderr.splitlines()
    assert json.loads(first)["message"] == "hello you"
    warned = json.loads(warning)
    assert (warned["level"], warned["logger"]) == ("warning", "py.warnings")
    assert "of two\nlines" in warned["message"]
    assert second.endswith("INFO app.x: and you")
