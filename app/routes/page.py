"""GET /: the page, one HTML file that needs nothing but this service; and the picture that it offers to try."""

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

STATIC = Path(__file__).resolve().parents[1] / "static"
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
LINK_TO_DOCS = re.compile(r"<a href=\"docs\">.*?</a>", re.DOTALL)

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Page:
    """The page and its picture, and the headers that the page is sent with."""

    html: bytes
    headers: dict[str, str]
    sample: bytes


def allow_inline(html: str) -> dict[str, str]:
    """The digests of the scripts and of the styles that stand in a page, as a policy names them."""
    digests: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        digests[kind].append(f"'sha256-{digest}'")
    return {kind: " ".join(found) for kind, found in digests.items()}


def read_page(*, docs: bool = True) -> Page:
    """Read the files, and allow by their digests the script and the style that stand in the page, and no others.

    Args:
        docs: whether there is a /docs for the page to lead to.
    """
    html = (STATIC / "index.html").read_text(encoding="utf-8")  # line ends as browsers see them, whatever the file has
    if not docs:
        html = LINK_TO_DOCS.sub("", html)
    digests = allow_inline(html)
    policy = (
        "default-src 'none'",
        f"script-src {digests['script']}",
        f"style-src {digests['style']}",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
    }
    return Page(html.encode(), headers, (STATIC / "sample.png").read_bytes())


@router.get("/")
async def index(request: Request) -> Response:
    """The page."""
    page: Page = request.app.state.page
    return Response(page.html, media_type="text/html", headers=page.headers)


@router.get("/sample.png")
async def sample(request: Request) -> Response:
    """The picture to try."""
    page: Page = request.app.state.page
    return Response(page.sample, media_type="image/png", headers={"Cache-Control": "no-cache"})
