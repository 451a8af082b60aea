"""Which browser the tests of the page use: Debian's package, or whatever Chromium or Chrome is in the path."""

import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Its path; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)
