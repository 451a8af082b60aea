import re
from pathlib import Path
from typing import get_args

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.routes.page import STATIC, read_page
from app.settings import Settings
from model.images import SUFFIXES, decode_image
from model.outputs import Output

HTML = (STATIC / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return TestClient(create_app(Settings(weights_dir=tmp_path)))  # the page waits for no model


def test_the_page_is_html_that_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text == HTML
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' blob: data:"
    for name in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[name] == "'none'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy[name]), policy[name]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert client.head("/").content == b""


def test_a_changed_script_gets_a_digest_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.html").write_text("<style>p {}</style><script>alert(1)</script>")
    (tmp_path / "sample.png").write_bytes(b"")
    before = read_page().headers["Content-Security-Policy"]
    monkeypatch.setattr("app.routes.page.STATIC", tmp_path)
    assert (
        "script-src 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"
        in read_page().headers["Content-Security-Policy"]
    )
    assert before != read_page().headers["Content-Security-Policy"]


def test_every_address_in_the_page_is_relative_so_that_it_works_behind_a_prefix() -> None:
    names_no_host = HTML.replace("http://www.w3.org/2000/svg", "")
    assert "//" not in re.sub(r"^\s*//.*|\s// .*", "", names_no_host, flags=re.MULTILINE)
    assert not re.search(r"""(?:href|src)=["']/""", HTML)
    assert not re.search(r" style=| on[a-z]+=", HTML)  # the policy would not let them work


def test_the_page_offers_every_output_that_the_service_has() -> None:
    listed = re.search(r"const OUTPUTS = \[(.*?)\n\];", HTML, re.DOTALL)
    assert listed
    offered = re.findall(r'^  \["(\w+)",', listed[1], re.MULTILINE)
    assert [*offered, "view"] == list(get_args(Output))  # which is for the page itself


def test_the_page_offers_to_choose_every_kind_of_file_that_is_read() -> None:
    accepted = re.search(r'accept="([^"]+)"', HTML)
    assert accepted
    assert accepted[1].split(",") == [*SUFFIXES, "image/*"]


def test_the_sample_is_a_small_picture(client: TestClient) -> None:
    answer = client.get("/sample.png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert len(answer.content) < 200_000
    assert decode_image(answer.content).pixels.shape == (512, 512)


def test_neither_stands_in_the_openapi_document(client: TestClient) -> None:
    assert {"/", "/sample.png"}.isdisjoint(client.get("/openapi.json").json()["paths"])
