"""The page where the service wants an API key, and the interactive documentation under its policy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from app.keys import make_key
from tests.browser.conftest import is_error
from tests.browser.kit import find_browser
from tests.e2e.kit import ServerProcess, write_weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome in the path")]

KEY, LINE = make_key("alice", "user")


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "best_model.pth", seed=0, tile_px=(128,))
    settings = {"reload_poll_s": 0, "drain_grace_s": 0, "keys": LINE}
    with ServerProcess(folder, tmp_path_factory.mktemp("log") / "server.log", settings) as process:
        yield process


def test_the_page_asks_for_a_key_once_and_keeps_it_for_the_tab(page: Page, server: ServerProcess) -> None:
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for no_key in ("••••••••", "mw_ two"):  # a password manager's dots, which no header can carry
        page.get_by_label("Key", exact=True).fill(no_key)
        page.get_by_role("button", name="Enter").click()
        expect(dialog).to_be_visible()
        assert page.evaluate("document.querySelector('#key').validity.patternMismatch")
        assert page.evaluate("sessionStorage.length") == 0
    page.get_by_label("Key", exact=True).fill("mw_wrong")
    page.get_by_role("button", name="Enter").click()
    expect(dialog).to_contain_text("not, or no longer, valid")
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#model")).to_contain_text("best_model")
    page.locator("#try").click()
    expect(page.locator("#status")).to_contain_text("cells", timeout=60_000)
    with page.expect_download() as started:
        page.locator("#downloads").get_by_role("button", name="Table").click()
    assert Path(started.value.path()).read_text().startswith("label,")
    expect(page.locator("#shell")).to_contain_text('curl -H "Authorization: Bearer $MASKWELL_KEY" -F \'file=@"')
    page.reload()
    expect(page.locator("#model")).to_contain_text("best_model")
    expect(dialog).to_be_hidden()
    assert page.evaluate("localStorage.length") == 0
    other = page.context.new_page()
    other.goto(f"{server.url}/")
    expect(other.get_by_role("dialog")).to_be_visible()
    other.get_by_role("button", name="Cancel").click()
    expect(other.locator("#status")).to_contain_text("needs an API key")
    other.locator("#try").click()
    other.locator("#list .open").wait_for()
    other.get_by_label("Key", exact=True).fill(KEY)
    other.keyboard.press("Enter")
    expect(other.locator("#model")).to_contain_text("best_model")  # asked for again, now that there is a key


def test_the_documentation_asks_where_it_lies_under_a_path_of_a_proxy(browser: Browser, server: ServerProcess) -> None:
    context = browser.new_context()
    page = context.new_page()
    prefix = f"{server.url}/lab/maskwell"
    page.route(
        f"{prefix}/**",
        lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace(prefix, server.url))),
    )
    page.goto(f"{prefix}/docs")
    operation = page.locator("#operations-health-livez_livez_get")
    operation.get_by_role("button").first.click(timeout=60_000)
    operation.get_by_role("button", name="Try it out").click()
    with page.expect_request("**/livez") as asked:
        operation.get_by_role("button", name="Execute").click()
    assert asked.value.url == f"{prefix}/livez"
    expect(operation.locator(".live-responses-table")).to_contain_text('"live"')
    context.close()


def test_the_documentation_works_under_its_policy(browser: Browser, server: ServerProcess) -> None:
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server.url}/docs")
    operation = page.locator("#operations-segment-segment_segment_post")
    expect(operation).to_be_visible(timeout=60_000)
    operation.get_by_role("button").first.click()
    expect(operation).to_contain_text("multipart/form-data")
    page.get_by_role("button", name="Authorize").click()
    expect(page.locator(".modal-ux")).to_contain_text("X-API-Key")
    context.close()
    assert errors == []
