"""GET /docs: Swagger UI from the service itself, under a policy that lets it load nothing from elsewhere."""

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse

from app.routes.page import allow_inline

router = APIRouter(include_in_schema=False)

# Where fastapi-offline puts the files of Swagger UI. Relative, as all addresses here: a proxy may have put the service
# under a path of its own.
STATIC_URL = "static-offline-docs"


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The interactive documentation."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Maskwell: API",
        oauth2_redirect_url=None,
        swagger_js_url=f"{STATIC_URL}/swagger-ui-bundle.js",
        swagger_css_url=f"{STATIC_URL}/swagger-ui.css",
        swagger_favicon_url=f"{STATIC_URL}/favicon.png",
    )
    digests = allow_inline(bytes(page.body).decode())
    page.headers["Content-Security-Policy"] = "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {digests['script']}",
            f"style-src 'self' {digests['style']}".strip(),
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    page.headers["Cache-Control"] = "no-cache"
    return page
