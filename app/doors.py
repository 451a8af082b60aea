"""Who may come in: the key, the rate, and what the body says of its length; in plain ASGI, before a body is read."""

from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import KeyMissingError, RequestError, UploadTooLargeError, problem_response
from app.keys import Key, KeyRing
from app.notes import current_notes
from app.rates import REQUESTS, RateLimit, rates_of, to_client
from app.settings import Settings

# Without a key: the probes, for orchestrators have none; the page and the documentation, which show what the source
# shows to anybody. Whatever is not named here, an unknown path too, needs one where keys are required.
OPEN_PATHS = frozenset({"/", "/sample.png", "/livez", "/readyz", "/docs", "/openapi.json"})
OPEN_PREFIX = "/static-offline-docs/"
METRICS_PATH = "/metrics"
# What a client's rate counts: requests that make work.
WORK_PATHS = frozenset({"/segment", "/segment/batch", "/preview"})
KEY_IN_SCOPE = "maskwell.key"


class Doors:
    """Pure ASGI middleware; give it to `FastAPI.add_middleware`. The request's context is around it, CORS too.

    Args:
        app: what is behind the doors.
        keys: of the service.
        settings: of the service.
        shared: folder of what all workers share; None where there is one.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, settings: Settings, shared: Path | None = None) -> None:
        self._app = app
        self._keys = keys
        self._max_upload_bytes = settings.max_upload_bytes
        self._open_paths = OPEN_PATHS | ({METRICS_PATH} if settings.metrics == "open" else set())
        self._rate = RateLimit(REQUESTS, rates_of(settings)[REQUESTS], shared)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RequestError as error:
                await problem_response(error, scope["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        path = scope["path"].removesuffix("\n")  # the router passes over one
        given = _given_key(headers)
        key = self._keys.find(given) if given is not None else None
        notes = current_notes()
        if key is not None:
            notes.key = notes.client = key.name
        elif scope.get("client"):
            notes.client = to_client(scope["client"][0])
        scope[KEY_IN_SCOPE] = key
        if self._keys.required and key is None and path not in self._open_paths and not path.startswith(OPEN_PREFIX):
            raise KeyMissingError(
                "send an API key: Authorization: Bearer KEY, or X-API-Key: KEY"
                if given is None
                else "this key is unknown here, or has expired"
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_upload_bytes:
            raise UploadTooLargeError(f"a body of {int(declared):,} bytes; at most {self._max_upload_bytes:,} bytes")
        if path in WORK_PATHS and scope["method"] == "POST":
            self._rate.charge(notes.client, 1)


def key_of(scope: Scope) -> Key | None:
    """The valid key that the request came with."""
    key: Key | None = scope.get(KEY_IN_SCOPE)
    return key


def _given_key(headers: Headers) -> str | None:
    """X-API-Key first: a proxy in front may use Authorization for itself."""
    given = headers.get("x-api-key")
    if given is None:
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        given = rest.strip() if scheme.lower() == "bearer" else None
    return given or None
