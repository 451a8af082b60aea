"""Photograph the page in Chromium: docs/images/page.png, or with a folder its states on a desk and on a phone.

PYTHONPATH=. python bench/screenshots.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.kit import find_browser
from tests.e2e.kit import ServerProcess

DESK, PHONE = (1280, 800), (390, 844)


def main() -> None:
    """Write the pictures; needs a browser in the path and fonts-dejavu-core or better."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with (
        tempfile.TemporaryDirectory() as log,
        ServerProcess(Path("weights"), Path(log) / "server.log") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        if folder is None:
            page = _open(browser, server.url, "light", DESK)
            _photograph(page, Path("docs/images/page.png"))
        else:
            for scheme in ("light", "dark"):
                for name, size in (("desk", DESK), ("phone", PHONE)):
                    page = _open(browser, server.url, scheme, size, sample=False)
                    _photograph(page, folder / f"{scheme}-{name}-empty.png")
                    page = _open(browser, server.url, scheme, size)
                    _photograph(page, folder / f"{scheme}-{name}.png")
                    page.screenshot(path=folder / f"{scheme}-{name}-whole.png", full_page=True)
        browser.close()


def _open(
    browser: Browser, url: str, scheme: Literal["light", "dark"], size: tuple[int, int], *, sample: bool = True
) -> Page:
    page = browser.new_page(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    page.goto(f"{url}/")
    if sample:
        page.click("#try")
        page.wait_for_selector("#overlay[data-state=exact]")
        page.evaluate("document.activeElement.blur()")
    return page


def _photograph(page: Page, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(300)  # for the last frame
    page.screenshot(path=path)
    print(path)


if __name__ == "__main__":
    main()
