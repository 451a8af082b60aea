"""The app in this process, its lifespan included, for what a live server cannot be made to do at will."""

import hashlib
import io
import json
import logging
import os
import re
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import app
from app.main import create_app
from app.patience import MAX_STUCK
from app.service import Service
from app.settings import Settings
from model.images import open_image
from tests.e2e.kit import ROOT, draw_cells, promise_png, to_png, wait_for
from tests.files import by_tifffile

IMAGE = to_png(draw_cells(60, 80))


def build(weights: Path, **settings: Any) -> FastAPI:
    values = {"weights_dir": weights, "device": "cpu", "reload_poll_s": 0, **settings}
    return create_app(Settings(**values))


@pytest.fixture
def client(tiny_weights: Path) -> Iterator[TestClient]:
    with TestClient(build(tiny_weights)) as client:
        yield client


def service_of(client: TestClient) -> Service:
    application = client.app
    assert isinstance(application, FastAPI)
    service = application.state.service
    assert isinstance(service, Service)
    return service


def post(client: TestClient, image: bytes = IMAGE, **query: Any) -> Any:
    return client.post("/segment", files={"file": ("x.png", image)}, params=query)


def test_building_the_app_loads_nothing(tmp_path: Path) -> None:
    build(tmp_path / "nowhere")


def test_two_apps_with_different_settings_live_in_one_process(tiny_weights: Path) -> None:
    with TestClient(build(tiny_weights, max_pixels=100)) as small, TestClient(build(tiny_weights)) as large:
        assert (post(small).status_code, post(large).status_code) == (413, 200)


def test_a_model_brings_the_text_beside_it_if_that_is_of_its_version(client: TestClient, tiny_weights: Path) -> None:
    about = tiny_weights / "best_model.md"
    detail = client.get("/models/best_model").json()
    assert detail["readme"] is None
    about.write_text(text := f"# Nuclei\n\nVersion {detail['version'][:12]}, free for any use.\n")
    assert client.get("/models/best_model").json()["readme"] == text
    about.write_text("Version 0123456789ab")
    assert client.get("/models/best_model").json()["readme"] is None
    about.unlink()
    os.mkfifo(about)  # to read it would take for ever
    assert client.get("/models/best_model").json()["readme"] is None
    about.unlink()


def test_a_text_on_a_share_that_does_not_answer_holds_up_nobody_for_long(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(service_of(client).registry._text_patience, "_deadline_s", 0.05)
    monkeypatch.setattr("app.registry._read_about", lambda *_: go_on.wait())
    try:
        for _ in range(MAX_STUCK + 2):
            assert client.get("/models/best_model").json()["readme"] is None
        assert sum(thread.name == "about" for thread in threading.enumerate()) == MAX_STUCK
    finally:
        go_on.set()


def test_a_mean_of_channels_counts_all_that_it_is_made_of(tiny_weights: Path) -> None:
    stack = by_tifffile(np.zeros((30, 40, 50), np.uint8), imagej=True, metadata={"axes": "CYX"})
    with TestClient(build(tiny_weights, max_pixels=40 * 50, max_queue_pixels=29 * 40 * 50)) as client:
        for path in ("/segment", "/preview"):
            answer = client.post(path, files={"file": ("x.tif", stack)}, params={"channel": "mean"})
            assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
            assert "30 planes of 50 x 40 px = 60,000 pixels; at most 58,000" in answer.json()["detail"]
            assert client.post(path, files={"file": ("x.tif", stack)}, params={"channel": "29"}).status_code == 200


def test_the_texts_beside_the_shipped_weights_are_of_their_versions() -> None:
    files = sorted((ROOT / "weights").glob("*.pth"))
    assert files
    for path in files:
        version = hashlib.sha256(path.read_bytes()).hexdigest()
        assert version[:12] in path.with_suffix(".md").read_text(), path.name


def test_before_it_is_ready_it_says_so(tiny_weights: Path) -> None:
    client = TestClient(build(tiny_weights))  # without the lifespan
    assert client.get("/livez").status_code == 200
    assert (client.get("/readyz").status_code, client.get("/readyz").json()["code"]) == (503, "not_ready")
    assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (503, "starting")


def test_each_request_has_an_id_of_its_own(client: TestClient) -> None:
    ids = {client.get("/livez").headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in ids)


def test_an_unforeseen_error_is_logged_and_not_shown(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr("app.service.open_image", fail)
    answer = client.post("/segment", files={"file": ("x.png", IMAGE)}, headers={"X-Request-ID": "r-1"})
    assert (answer.status_code, answer.json()["code"], answer.headers["x-request-id"]) == (500, "internal_error", "r-1")
    assert "secret" not in answer.text
    assert "a secret of the house" in caplog.text
    assert "r-1" in caplog.text
    assert service_of(client).admission.requests == 0


def test_an_unforeseen_error_on_one_file_of_a_batch_spares_the_others(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_for_wide(data: bytes, *arguments: Any, **options: Any) -> Any:
        source = open_image(data, *arguments, **options)
        if source.width == 81:
            raise RuntimeError("a secret of the house")
        return source

    monkeypatch.setattr("app.service.open_image", fail_for_wide)
    files = [("files", ("a.png", IMAGE)), ("files", ("b.png", to_png(draw_cells(60, 81))))]
    answer = client.post("/segment/batch", files=files, headers={"X-Request-ID": "r-2"})
    assert answer.status_code == 200
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == ["a_mask.png", "errors.json"]
    problems = archive.read("errors.json")
    [problem] = [item["problem"] for item in json.loads(problems)]
    assert (problem["code"], problem["request_id"]) == ("internal_error", "r-2")
    assert b"secret" not in problems


def test_a_batch_says_of_each_file_what_a_single_answer_says_of_it(client: TestClient) -> None:
    sized = by_tifffile(draw_cells(60, 80), imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    files = [
        ("files", ("a.png", IMAGE)),
        ("files", ("b.tif", sized)),
        ("files", ("c.png", to_png(np.zeros((9, 9), np.uint8)))),
    ]
    query = {"min_area_px": 30}
    answer = client.post("/segment/batch", files=files, params=query)
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    flags = set()
    for entry, (_, (name, data)) in zip(archive.infolist(), files, strict=True):
        single = client.post("/segment", files={"file": (name, data)}, params=query).headers
        said = dict(line.split("=", 1) for line in entry.comment.decode().splitlines())
        assert said == {key.title(): value for key, value in single.items() if key.title() in said}
        assert {"X-Quality", "X-Model-Version", "X-Threshold"} < set(said)
        assert ("X-Pixel-Size-Um" in said) == (name == "b.tif")
        flags |= set(said["X-Quality"].split(", ")) - {"ok"}
    assert flags
    assert set(answer.headers["x-quality"].split(", ")) == flags
    assert f"X-Model-Version={answer.headers['x-model-version']}" in archive.comment.decode()
    nothing = client.post("/segment/batch", files=[("files", ("d.png", b"no image"))])
    assert "x-quality" not in nothing.headers


def test_a_dead_engine_turns_every_probe_red(client: TestClient) -> None:
    service_of(client).batcher.close()
    assert (client.get("/livez").status_code, client.get("/readyz").status_code) == (503, 503)
    assert client.get("/health").json()["status"] == "failed"
    assert post(client).status_code == 503


def test_a_device_that_does_not_answer_turns_livez_red(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(build(tiny_weights, pass_timeout_s=0.2)) as client:
        runtime = service_of(client).registry.get(None).segmenter.runtime
        answers = threading.Event()
        real = runtime.run

        def hang(batch: Any, *, alone: bool = False) -> Any:
            answers.wait()
            return real(batch, alone=alone)

        monkeypatch.setattr(runtime, "run", hang)
        refused = post(client)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert refused.json()["detail"] == "the engine hangs: the device does not answer"
        assert (client.get("/livez").status_code, client.get("/readyz").status_code) == (503, 503)
        assert client.get("/health").json()["status"] == "failed"
        answers.set()
        wait_for(lambda: client.get("/livez").status_code == 200)
        service_of(client).batcher._pass_timeout_s = 60  # the machine may be busy
        assert post(client).status_code == 200


@pytest.mark.parametrize("place", ["open_image", "encode_output"])
def test_no_memory_for_an_image_is_503_and_said_to_be_that(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def find_none(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 3.2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(f"app.service.{place}", find_none)
        answer = post(client)
        assert (answer.status_code, answer.json()["code"]) == (503, "out_of_memory")
        assert answer.headers["retry-after"] == "5"
    assert post(client).status_code == 200


def test_draining_is_said_on_readyz_while_requests_are_served(client: TestClient) -> None:
    service_of(client).lifecycle.drain()
    assert (client.get("/readyz").status_code, client.get("/readyz").json()["code"]) == (503, "draining")
    assert client.get("/livez").status_code == 200
    assert client.get("/health").json()["status"] == "draining"
    answer = post(client)
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    service_of(client).lifecycle.close()
    refused = post(client)
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "1"


def test_an_image_that_waits_past_the_deadline_gets_504(tiny_weights: Path) -> None:
    # a batch that never fills up keeps the image waiting
    settings = {"deadline_s": 0.05, "batch_tiles": 64, "batch_wait_ms": 10_000}
    with TestClient(build(tiny_weights, **settings)) as client:
        answer = post(client)
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert service_of(client).admission.requests == 0
        assert service_of(client).batcher.waiting_tiles == 0


def test_any_image_within_max_pixels_is_let_into_an_empty_queue(tiny_weights: Path) -> None:
    with TestClient(build(tiny_weights, max_queue_pixels=10, max_pixels=5000)) as client:
        assert post(client).status_code == 200
        answer = post(client, promise_png(100, 51))
        assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
        assert "100 x 51 px = 5,100 pixels; at most 5,000" in answer.json()["detail"]


def test_the_pixels_of_a_batch_are_bounded_together(tiny_weights: Path) -> None:
    with TestClient(build(tiny_weights, max_queue_pixels=10_000, max_pixels=5000)) as client:
        files = [("files", (f"{index}.png", IMAGE)) for index in range(3)]
        answer = client.post("/segment/batch", files=files)
        assert answer.status_code == 200
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert archive.namelist() == ["0_mask.png", "1_mask.png", "errors.json"]
        [problem] = json.loads(archive.read("errors.json"))
        assert (problem["file"], problem["problem"]["code"]) == ("2.png", "upload_too_large")


def test_the_log_has_a_line_for_each_request_and_no_line_break_from_outside(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="app.request"):
        client.get("/no%0Awhere", headers={"X-Request-ID": "r-2"})
    lines = [record.getMessage() for record in caplog.records if record.name == "app.request"]
    assert len(lines) == 1
    assert lines[0].startswith("GET /no%0Awhere 404 ")
    assert lines[0].endswith("[r-2]")


def test_the_documentation_comes_from_the_service_alone(client: TestClient) -> None:
    page = client.get("/docs").text
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)|url: *["']([^"']+)""", page)
    found = [first or second for first, second in addresses]
    assert len(found) >= 4
    # relative, so that it works under whatever path a proxy puts it
    assert not any(address.startswith("/") or ":" in address for address in found)
    for address in found:
        assert client.get(f"/{address}").status_code == 200


def test_every_operation_documents_its_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "Problem" in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            for status, answer in operation["responses"].items():
                assert answer["description"], (method, path, status)
    answers = document["paths"]["/segment"]["post"]["responses"]
    assert set(answers) == {"200", "400", "401", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
    examples = answers["413"]["content"]["application/problem+json"]["examples"]
    assert set(examples) == {"upload_too_large", "image_too_large"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_version_is_the_package_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == app.__version__
