"""Around every request, in plain ASGI: an id, a limit on its body, a line in the log, an answer whatever happens."""

import asyncio
import logging
import re
import time
from contextlib import suppress

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.doors import METRICS_PATH, WORK_PATHS
from app.errors import (
    INTERNAL,
    DrainingError,
    RequestError,
    UploadTimeoutError,
    UploadTooLargeError,
    find_answer,
    problem_response,
)
from app.lifecycle import Lifecycle
from app.logs import FIELDS
from app.metrics import Metrics
from app.notes import Notes, new_request_id, open_notes
from app.settings import Settings
from app.tracing import UNTRACED, RequestTrace, Tracing, parse_trace_id

logger = logging.getLogger("app.request")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # what others use as ids; nothing that could upset a log
# A connection that is closed while the client still sends is reset, and the client may never see the answer. So the
# rest of a refused body is read and dropped, for this long in all and this long without news.
LINGER_S = 10.0
LINGER_IDLE_S = 5.0
# In a request's scope: why the rest of its body will never come. The protocol puts it there.
DAMAGE = "maskwell.damage"
# On every answer that does not say otherwise: the pages have a policy of their own. What an answer says of a user's
# picture, or of the service, is in no cache.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class RequestContext:
    """Pure ASGI middleware; give it to `FastAPI.add_middleware`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifecycle: Lifecycle,
        metrics: Metrics,
        settings: Settings,
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _one_line(scope, send))
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._lifecycle, self._settings)
        counted = scope["path"] != METRICS_PATH  # whoever watches is not among the watched
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an ASGI application runs in a task")
        self._lifecycle.enter(task)
        open_notes(exchange.notes)
        if counted:
            self._metrics.begin()
        if self._tracing is not None and scope["path"] not in UNTRACED:
            exchange.trace = self._tracing.begin(scope["method"], exchange.headers)
            exchange.notes.trace_id = exchange.trace.trace_id
        try:
            await self._answer(exchange)
        except ClientDisconnect:
            exchange.gone = True
        except asyncio.CancelledError:
            if not self._lifecycle.aborting or exchange.status is not None:
                raise
            task.uncancel()
            await exchange.refuse(DrainingError("the service is shutting down and could not finish this request"))
        finally:
            self._lifecycle.leave(task)
            ended = scope["method"], exchange.route, exchange.outcome
            if counted:
                self._metrics.settle(*ended, exchange.seconds, exchange.notes)
            if exchange.trace is not None:
                exchange.trace.end(*ended, exchange.notes)
            exchange.log()

    async def _answer(self, exchange: "_Exchange") -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            raise
        except Exception as error:
            if find_answer(error) is INTERNAL:
                logger.exception("unforeseen error [%s]", exchange.request_id)
            if exchange.status is not None:
                raise  # half an answer is out; the server closes the connection
            await exchange.refuse(error)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, lifecycle: Lifecycle, settings: Settings) -> None:
        headers = Headers(scope=scope)
        asked_id = headers.get("x-request-id", "")
        self.request_id = asked_id if REQUEST_ID.fullmatch(asked_id) else new_request_id()
        self._head = scope["method"] == "HEAD"
        # HEAD is GET without the body, on every route.
        self.scope = {**scope, "request_id": self.request_id, "method": "GET" if self._head else scope["method"]}
        self.headers = headers
        self.notes = Notes(self.request_id, parse_trace_id(headers.get("traceparent", "")))
        self.trace: RequestTrace | None = None
        self.status: int | None = None
        self.gone = False
        self._ended = False
        self._arrived = scope  # the copy above does not see what the protocol adds to it
        self._receive, self._send = receive, send
        self._lifecycle = lifecycle
        self._settings = settings
        declared = headers.get("content-length", "0")
        self._declared_bytes = int(declared) if declared.isdecimal() else 0
        self._received_bytes = 0
        self._body_complete = self._declared_bytes == 0 and "transfer-encoding" not in headers
        self._lingers = False
        self._started_at = time.perf_counter()

    async def receive(self) -> Message:
        message = await (self._receive() if self._body_complete else self._receive_in_time())
        damage: RequestError | None = self._arrived.get(DAMAGE)
        if damage is not None and not self._body_complete:
            raise damage
        self._note(message)
        max_bytes = self._settings.max_upload_bytes
        if self._received_bytes > max_bytes:
            raise UploadTooLargeError(f"a body of more than {max_bytes:,} bytes, which is the most allowed")
        return message

    async def _receive_in_time(self) -> Message:
        """The next part of the body, for which neither the client's silence nor the whole upload may last too long."""
        idle_s, deadline_s = self._settings.idle_deadline_s, self._settings.upload_deadline_s
        left_s = deadline_s - self.seconds
        try:
            async with asyncio.timeout(max(min(idle_s, left_s), 0)):
                return await self._receive()
        except TimeoutError:
            found = f"nothing came for {idle_s:g} s"
            if left_s <= idle_s:
                found = f"the body was not there after {deadline_s:g} s"
            raise UploadTimeoutError(f"{found}; {self._received_bytes:,} bytes were here") from None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._lingers = not self._body_complete and not self.gone and not self._lifecycle.aborting
            headers = list(message.get("headers", ()))
            present = {name for name, _ in headers}
            headers += [item for item in SECURITY_HEADERS if item[0] not in present]
            headers.append((b"x-request-id", self.request_id.encode()))
            if self.trace is not None:
                headers.append((b"traceresponse", self.trace.traceresponse.encode()))
            if self._lingers or self._lifecycle.leaving:
                headers.append((b"connection", b"close"))
            await self._send({**message, "headers": headers})
            return
        if self._head:
            message = {**message, "body": b""}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and self._lingers:
            await self._send({**message, "more_body": True})
            await self._drop_rest_of_body()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)
        self._ended = self._ended or last

    @property
    def route(self) -> str:
        """Template of the route that matched, or would have had the doors let it in; empty if none did."""
        path = self.scope["path"]
        return str(getattr(self.scope.get("route"), "path", path if path in WORK_PATHS else ""))

    @property
    def outcome(self) -> int | None:
        """Status of the answer; None unless all of it went out."""
        return self.status if self._ended and not self.gone else None

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._started_at

    async def refuse(self, error: Exception) -> None:
        await problem_response(error, self.request_id)(self.scope, self.receive, self.send)

    def log(self) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        milliseconds = self.seconds * 1000
        path = self.scope.get("raw_path", b"").decode("latin-1")  # as sent: no decoded line breaks
        status = "gone" if self.gone else self.status
        notes = self.notes
        fields = {
            "method": self.scope["method"],
            "path": path,
            "route": self.route,
            "status": None if self.gone else self.status,
            "duration_ms": round(milliseconds, 1),
            "key": notes.key,
            "reason": notes.reason,
            "model": notes.model,
            "model_version": notes.model_version,
            "pixels": notes.pixels,
            "quality": sorted(notes.quality),
            "received_bytes": self._received_bytes,
            "stages_ms": {name: round(seconds * 1000, 1) for name, seconds in notes.seconds_by_stage().items()},
        }
        logger.info(
            "%s %s %s %.0f ms%s [%s]",
            self.scope["method"], path, status, milliseconds, f" {notes.key}" if notes.key else "", self.request_id,
            extra={FIELDS: fields},
        )  # fmt: skip

    def _note(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._received_bytes += len(message.get("body", b""))
            self._body_complete = not message.get("more_body", False)
        else:
            self.gone = self.status is None

    async def _drop_rest_of_body(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._body_complete:
                    async with asyncio.timeout(LINGER_IDLE_S):
                        message = await self._receive()
                    if message["type"] != "http.request":
                        return
                    self._note(message)


def _one_line(scope: Scope, send: Send) -> Send:
    """Say why start-up failed in the words of its error, where it was foreseen, instead of a traceback."""
    application: FastAPI = scope["app"]

    async def wrapped(message: Message) -> None:
        error = getattr(application.state, "startup_error", None)
        if message["type"] == "lifespan.startup.failed" and error is not None:
            message = {**message, "message": f"cannot start: {error}"}
        await send(message)

    return wrapped
