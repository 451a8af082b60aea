"""Build the application from its settings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import __version__
from app.docs import describe
from app.errors import RequestError, handle_error
from app.middleware import RequestContext
from app.peers import Peers
from app.routes import health, metrics, models, page, segment
from app.service import Service
from app.settings import Settings
from model.errors import SegmentationError

DESCRIPTION = """Segments cells in microscope images of any size.

```
curl -F file=@image.png http://localhost:8000/segment -o mask.png
```

Every refusal is `application/problem+json` with a stable `code`; every answer carries `X-Request-ID`.
"""
Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]
FAMILIES: tuple[type[Exception], ...] = (RequestError, SegmentationError, RequestValidationError, HTTPException)


def create_app(settings: Settings | None = None, peers: Peers | None = None) -> FastAPI:
    """Build the app; weights are loaded when it starts up, not here.

    Args:
        settings: read from the environment if left out.
        peers: the line to the other workers, where there are any.
    """
    service = Service(settings or Settings(), peers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(peers.run(service))] if peers else []
        try:
            await service.registry.start()
        except SegmentationError as error:
            app.state.startup_error = error  # the middleware says it in one line
            service.close()
            raise
        default = service.registry.default
        service.batcher.start(default.segmenter.runtime.streams if default else 1)
        tasks.append(asyncio.create_task(service.batcher.guard()))
        if service.settings.reload_poll_s > 0:
            tasks.append(asyncio.create_task(service.registry.watch()))
        service.lifecycle.set_ready()
        if peers:
            peers.beat(service)
        try:
            yield
        finally:
            service.lifecycle.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            service.close()

    handlers: dict[int | type[Exception], Handler] = dict.fromkeys(FAMILIES, handle_error)
    app = FastAPIOffline(
        redoc_url=None,
        title="Maskwell",
        version=__version__,
        summary="Segments cells in microscope images.",
        description=DESCRIPTION,
        lifespan=lifespan,
        exception_handlers=handlers,
        redirect_slashes=False,  # /segment/ is a mistake to be told of; a redirect would send the upload twice
    )
    app.state.service = service
    app.state.page = page.read_page()
    app.add_middleware(
        RequestContext,
        lifecycle=service.lifecycle,
        metrics=service.metrics,
        max_upload_bytes=service.settings.max_upload_bytes,
    )
    for routes in (segment, health, metrics, models, page):
        app.include_router(routes.router)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents
    return app
