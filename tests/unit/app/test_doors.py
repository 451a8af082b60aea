"""Keys, rates, headers and origins, by the app in this process."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.doors import OPEN_PATHS
from app.keys import make_key
from app.main import create_app
from app.routes.page import STATIC
from app.settings import Settings
from tests.e2e.kit import draw_cells, to_png, wait_for

IMAGE = to_png(draw_cells(60, 80))
ALICE, ALICE_LINE = make_key("alice", "user")
BOSS, BOSS_LINE = make_key("boss", "admin")


def build(weights: Path, **settings: Any) -> FastAPI:
    return create_app(Settings(weights_dir=weights, device="cpu", reload_poll_s=0, **settings))


@pytest.fixture
def locked(tiny_weights: Path) -> Iterator[TestClient]:
    with TestClient(build(tiny_weights, keys=SecretStr(f"{ALICE_LINE};{BOSS_LINE}"))) as client:
        yield client


def post(client: TestClient, path: str = "/segment", **headers: str) -> Any:
    return client.post(
        path, files={"file": ("x.png", IMAGE)}, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def routes_of(client: TestClient) -> list[tuple[str, str]]:
    application = client.app
    assert isinstance(application, FastAPI)
    document = application.openapi()["paths"]
    return [(method.upper(), path) for path, operations in document.items() for method in operations]


def test_every_route_wants_a_key_but_those_that_are_named_as_open(locked: TestClient) -> None:
    listed = routes_of(locked)
    assert len(listed) >= 9
    for method, path in [*listed, ("GET", "/nowhere"), ("GET", "/static/../health"), ("POST", "/livez/x")]:
        answer = locked.request(method, path.replace("{name}", "best_model"))
        if path in OPEN_PATHS:
            assert answer.status_code == 200, path
            continue
        assert (answer.status_code, answer.json()["code"]) == (401, "key_required"), path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
    for path in ("/", "/sample.png", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
        assert locked.get(path).status_code == 200, path


def test_a_key_that_is_taken_out_of_the_file_is_locked_out_also_where_nobody_looks_for_weights(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.service.KEYS_POLL_S", 0.01)
    file = tmp_path / "keys"
    file.write_text(f"{ALICE_LINE}\n{BOSS_LINE}\n")
    with TestClient(build(tiny_weights, keys_file=file)) as client:  # reload_poll_s is 0
        assert post(client, X_API_Key=ALICE).status_code == 200
        (tmp_path / "part").write_text(f"{BOSS_LINE}\n")
        (tmp_path / "part").replace(file)
        wait_for(lambda: client.get("/health", headers={"X-API-Key": ALICE}).status_code == 401)
        assert post(client, X_API_Key=BOSS).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ALICE}"},
        {"authorization": f"bearer  {ALICE}"},
        {"X-API-Key": ALICE},
        {"X-API-Key": ALICE, "Authorization": "Basic c29tZTpwcm94eQ=="},
    ],
)
def test_a_key_opens_by_either_header(locked: TestClient, headers: dict[str, str]) -> None:
    assert post(locked, **headers).status_code == 200
    for path in ("/health", "/models", "/metrics"):
        assert locked.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": ALICE},
        {"Authorization": "Bearer "},
        {"X-API-Key": "mw_x"},
        {"Authorization": f"Bearer {ALICE_LINE.split(':')[1]}"},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {ALICE}"},
    ],
)
def test_what_is_no_key_does_not(locked: TestClient, headers: dict[str, str]) -> None:
    answer = post(locked, **headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "key_required")
    assert ALICE not in answer.text


def test_reloading_is_for_admins(locked: TestClient, tiny_weights: Path) -> None:
    url = "/models/best_model/reload"
    answer = locked.post(url, headers={"X-API-Key": ALICE})
    assert (answer.status_code, answer.json()["code"]) == (403, "admin_only")
    assert "insufficient_scope" in answer.headers["www-authenticate"]
    assert locked.post(url, headers={"X-API-Key": BOSS}).status_code == 200
    with TestClient(build(tiny_weights, keys=SecretStr(ALICE_LINE))) as without_admin:
        answer = without_admin.post(url, headers={"X-API-Key": ALICE})
        assert (answer.status_code, answer.json()["code"]) == (403, "reload_closed")
    with TestClient(build(tiny_weights)) as open_to_all:
        assert open_to_all.post(url).json()["code"] == "reload_closed"


def test_metrics_may_be_open_or_not_there(tiny_weights: Path) -> None:
    keys = SecretStr(ALICE_LINE)
    with TestClient(build(tiny_weights, keys=keys, metrics="open")) as client:
        assert (client.get("/metrics").status_code, client.get("/health").status_code) == (200, 401)
    with TestClient(build(tiny_weights, metrics="off")) as client:
        assert client.get("/metrics").status_code == 404


def test_the_document_says_what_needs_a_key_as_the_service_is_run(locked: TestClient, tiny_weights: Path) -> None:
    def needs(client: TestClient) -> set[str]:
        paths = client.get("/openapi.json").json()["paths"]
        return {path for path, operations in paths.items() for item in operations.values() if "security" in item}

    everything = {path for _, path in routes_of(locked)}
    assert needs(locked) == everything - OPEN_PATHS
    with TestClient(build(tiny_weights)) as client:
        assert needs(client) == {"/models/{name}/reload"}


def test_documentation_can_be_switched_off(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKWELL_DOCS", "off")
    with TestClient(create_app(Settings(weights_dir=tiny_weights, device="cpu", reload_poll_s=0))) as client:
        for path in ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
            assert client.get(path).status_code == 404, path
        page = client.get("/")
        assert page.status_code == 200
        assert "Maskwell" in page.text
        assert 'href="docs"' not in page.text
    monkeypatch.delenv("MASKWELL_DOCS")
    with TestClient(build(tiny_weights)) as client:
        assert client.get("/docs").status_code == 200


def test_what_the_page_links_to_needs_no_key() -> None:
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    for address in re.findall(r"""(?:href|src)=["']([^"'#]+)""", html):
        assert address.startswith("data:") or f"/{address}" in OPEN_PATHS, address


def test_every_answer_carries_the_headers_that_keep_a_browser_in_check(tiny_weights: Path) -> None:
    with TestClient(build(tiny_weights, max_pixels=100)) as client:
        answers = [client.get(path) for path in ("/livez", "/health", "/models", "/nowhere", "/metrics", "/", "/docs")]
        answers += [post(client), client.post("/segment"), client.get("/segment"), client.head("/health")]
        answers += [client.get("/static-offline-docs/swagger-ui.css"), client.get("/sample.png")]
        assert {200, 400, 404, 405, 413} <= {answer.status_code for answer in answers}
        for answer in answers:
            headers = answer.headers
            assert headers["x-content-type-options"] == "nosniff", answer.url
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["x-frame-options"] == "DENY"
            assert "camera=()" in headers["permissions-policy"]
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert len(headers.get_list("content-security-policy")) == 1
            assert headers["cache-control"] in ("no-store", "no-cache")


def test_other_origins_are_let_in_only_where_that_is_set(tiny_weights: Path) -> None:
    origin = {"Origin": "https://lab.example"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    with TestClient(build(tiny_weights)) as client:
        assert not [name for name in client.get("/livez", headers=origin).headers if name.startswith("access-control")]
        assert client.options("/segment", headers=asked).status_code == 405
    key = {"X-API-Key": ALICE}
    settings = {"cors_origins": "https://lab.example, http://localhost:3000", "keys": SecretStr(ALICE_LINE)}
    with TestClient(build(tiny_weights, **settings)) as client:
        preflight = client.options("/segment", headers=asked)  # which never carries a key
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://lab.example"
        assert "access-control-allow-credentials" not in preflight.headers
        refused = post(client, **origin)  # a page must be able to read why
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://lab.example")
        answer = post(client, **origin, **key)
        assert answer.status_code == 200
        assert "X-Model-Version" in answer.headers["access-control-expose-headers"]
        other = client.get("/livez", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        assert client.options("/segment", headers={**asked, "Origin": "https://evil.example"}).status_code == 400


@pytest.mark.parametrize("origins", ["lab.example", "https://lab.example/path", "*, https://lab.example", "ftp://x"])
def test_an_origin_that_is_none_is_refused_at_the_start(origins: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=origins)


def test_a_client_that_asks_too_often_is_told_when_to_come_back(tiny_weights: Path) -> None:
    keys, key = SecretStr(f"{ALICE_LINE};{BOSS_LINE}"), {"X-API-Key": ALICE}
    with TestClient(build(tiny_weights, keys=keys, max_client_requests_per_min=3)) as client:
        statuses = [post(client, **key).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        answer = post(client, **key)
        assert answer.json()["code"] == "rate_limited"
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert post(client, "/segment%0A", **key).status_code == 429  # the same to the router
        assert post(client, **{"X-API-Key": BOSS}).status_code == 200
        assert client.get("/health", headers={"X-API-Key": ALICE}).status_code == 200


def test_pixels_are_limited_too_and_a_refused_request_costs_none(tiny_weights: Path) -> None:
    with TestClient(build(tiny_weights, max_client_pixels_per_min=2 * 60 * 80)) as client:
        assert [post(client).status_code for _ in range(3)] == [200, 200, 429]
        answer = client.post("/preview", files={"file": ("x.png", IMAGE)})
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        state = client.get("/health").json()["queue"]
        assert (state["requests"], state["pixels"]) == (0, 0)


def test_no_route_is_without_an_entry_in_the_document_but_pages(locked: TestClient) -> None:
    application = locked.app
    assert isinstance(application, FastAPI)
    hidden = {route.path for route in application.routes if isinstance(route, APIRoute) and not route.include_in_schema}
    assert hidden <= OPEN_PATHS
