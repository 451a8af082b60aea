"""The browser that the machine has, a server, and the page in it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.browser.kit import find_browser
from tests.e2e.kit import ServerProcess, write_weights

# Chromium's sandbox wants privileges that root and containers lack; the page in it is the project's own.
SANDBOX = "--no-sandbox"
# No name but the server's resolves: what the page would fetch from elsewhere fails, and is seen by `page` below.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


expect.set_options(timeout=30_000)  # the machine may be busy


def is_error(message: ConsoleMessage) -> bool:
    return message.type == "error" and not message.text.startswith("Failed to load resource")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=[OFFLINE, SANDBOX])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A service with two tiny models, once there is a browser to show it to."""
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "best_model.pth", seed=0, tile_px=(128,), min_area_px=4)
    write_weights(folder / "other.pth", seed=1, tile_px=(128,))
    settings = {"reload_poll_s": 0, "drain_grace_s": 0}
    with ServerProcess(folder, tmp_path_factory.mktemp("log") / "server.log", settings) as process:
        yield process


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    """The page, opened; fails where it asked another host, or the browser found an error in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(30_000)
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    # what breaks the policy is logged as an error; so is a refusal of the service, which some tests are about
    page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    page.goto(f"{server.url}/")
    yield page
    context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((f"{server.url}/", "blob:", "data:"))] == []
