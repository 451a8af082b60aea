"""Build the application from its settings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from app import __version__
from app.docs import RESULT_HEADERS, describe
from app.doors import Doors
from app.errors import RequestError, handle_error
from app.middleware import RequestContext
from app.peers import Peers
from app.routes import docs, health, metrics, models, page, segment
from app.service import Service
from app.settings import Settings
from model.errors import SegmentationError

DESCRIPTION = """Segments cells in microscope images of any size.

```
curl -F file=@image.png http://localhost:8000/segment -o mask.png
```

Every refusal is `application/problem+json` with a stable `code`; every answer carries `X-Request-ID`.
"""
# What a page of another origin may send and see, where CORS is on.
CORS_SENT = ("Authorization", "X-API-Key", "X-Request-ID", "Content-Type", "traceparent", "tracestate")
CORS_SEEN = (*RESULT_HEADERS, "Retry-After", "WWW-Authenticate")
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
        tasks += [asyncio.create_task(work) for work in service.watch()]
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
    make_app = FastAPIOffline if service.settings.docs else FastAPI
    app = make_app(
        docs_url=None,  # routes/docs.py
        redoc_url=None,
        openapi_url="/openapi.json" if service.settings.docs else None,
        title="Maskwell",
        version=__version__,
        summary="Segments cells in microscope images.",
        description=DESCRIPTION,
        lifespan=lifespan,
        exception_handlers=handlers,
        redirect_slashes=False,  # /segment/ is a mistake to be told of; a redirect would send the upload twice
    )
    app.state.service = service
    app.state.page = page.read_page(docs=service.settings.docs)
    # The last one that is added is the first to see a request.
    app.add_middleware(Doors, keys=service.keys, settings=service.settings, shared=peers.folder if peers else None)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in service.settings.cors_origins.split(",")],
            allow_methods=("GET", "POST"),
            allow_headers=CORS_SENT,
            expose_headers=CORS_SEEN,
        )
    app.add_middleware(
        RequestContext,
        lifecycle=service.lifecycle,
        metrics=service.metrics,
        settings=service.settings,
        tracing=service.tracing,
    )
    for routes in (segment, health, models, page):
        app.include_router(routes.router)
    if service.settings.metrics != "off":
        app.include_router(metrics.router)
    if service.settings.docs:
        app.include_router(docs.router)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app, keys_required=service.keys.required)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents
    return app
