"""GET /docs: Swagger UI from the service itself, under a policy that lets it load nothing from elsewhere."""

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse

from app.routes.page import allow_inline

router = APIRouter(include_in_schema=False)

STATIC_URL = "/static-offline-docs"  # where fastapi-offline puts the files of Swagger UI


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """The interactive documentation."""
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="Maskwell: API",
        oauth2_redirect_url=None,
        swagger_js_url=f"{root}{STATIC_URL}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{STATIC_URL}/swagger-ui.css",
        swagger_favicon_url=f"{root}{STATIC_URL}/favicon.png",
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
