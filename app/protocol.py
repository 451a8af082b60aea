"""uvicorn's HTTP/1.1, less patient: heads have a size and a deadline, and who takes no answer is let go.

What is no request gets a problem like any other refusal, and is counted. Deadlines for bodies are in middleware.py.
"""

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import (
    HeadTimeoutError,
    HeadTooLargeError,
    MalformedHTTPError,
    RequestError,
    TransferCodingError,
    find_answer,
    problem_response,
)
from app.logs import FIELDS
from app.middleware import DAMAGE, SECURITY_HEADERS
from app.notes import new_request_id
from app.service import Service

logger = logging.getLogger("app.request")

# Request line and headers together, and their number: several times what browsers and proxies send.
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
# Headers that say where a message, or the connection, ends.
FRAMING = (b"connection", b"proxy-connection", b"content-length", b"transfer-encoding")
# A connection that is closed while the client still sends is reset, and the client may lose the answer: what it sends
# is dropped for so long.
LINGER_S = 2.0


class Protocol(HttpToolsProtocol):
    """One connection. `make_protocol` gives it its service."""

    service: Service

    _in_head = False
    _head_bytes = 0  # told of by the parser
    _unfinished_bytes = 0  # fed to it since the head began
    _running: RequestResponseCycle | None = None
    _message_ended = False  # in the bytes at hand
    _refused = False
    _error: RequestError | None = None
    # the header that says where the body beside an upgrade ends
    _framing: bytes | None = None
    _is_replaying = False
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)  # type: ignore[assignment]  # all that uvicorn calls of it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        # uvicorn tells the last that came, which need not be the one under way
        for cycle in (self._running, *(queued for queued, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._message_ended = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            # a head that has not ended; the parser holds what it has not told of yet
            if not self._message_ended:  # else much of these bytes may be the body before it
                self._unfinished_bytes += len(data)
            if self._unfinished_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLargeError(f"more than {MAX_HEAD_BYTES:,} bytes of headers"))
        elif not self._is_busy:
            self._await_head()  # line breaks between two requests, which begin none and end uvicorn's own patience

    def on_message_begin(self) -> None:
        if self._is_replaying:
            return
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._unfinished_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        if self._is_replaying:
            return
        self._measure(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_replaying:
            return
        self._measure(len(name) + len(value) + 4)
        if not self._in_head:  # a trailer: what comes after the body changes nothing about it
            if name.lower() in FRAMING and self.cycle is not None:
                self.cycle.keep_alive = False  # but the parser goes by it for what follows
            return
        if len(self.headers) >= MAX_HEADERS:
            self._fail(HeadTooLargeError(f"more than {MAX_HEADERS} headers"))
        super().on_header(name, value.strip(b" \t"))  # spaces around a value are none of it (RFC 9110, 5.5)

    def on_headers_complete(self) -> None:
        if self._is_replaying:
            return
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._fail(MalformedHTTPError(f"HTTP/{version}; HTTP/1.1 is spoken here, and HTTP/1.0"))
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            # a proxy in front may have taken another one than what stands behind
            self._fail(MalformedHTTPError(f"{hosts} Host headers; a request of HTTP/1.1 has one (RFC 9112, 3.2)"))
        codings = b", ".join(value for name, value in self.headers if name == b"transfer-encoding")
        if codings and codings.strip().lower() != b"chunked":  # RFC 9112, 6.1
            found = codings[:50].decode("latin-1")
            self._fail(TransferCodingError(f"Transfer-Encoding {found!r}; chunked alone is understood"))
        if self.parser.should_upgrade():
            bodies = [b"%s: %s" % item for item in self.headers if item[0] in (b"content-length", b"transfer-encoding")]
            if self.parser.get_method() == b"CONNECT" and bodies:
                self._fail(MalformedHTTPError("a CONNECT with a body; it has none (RFC 9110, 9.3.6)"))
            self._framing = b"\r\n".join(bodies)
        super().on_headers_complete()
        if self.scope["method"] == "CONNECT":
            self.cycle.keep_alive = False  # what follows is no request

    def on_message_complete(self) -> None:
        if not self._framing:  # else the parser ends a message whose body it has left out
            self._message_ended = True
            super().on_message_complete()

    def pass_over_upgrade(self, parser: httptools.HttpRequestParser) -> None:
        """Bring a new parser to where the body of the request begins whose head the last one has read."""
        framing, self._framing = self._framing, None
        if framing:
            self._is_replaying = True
            parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % framing)
            self._is_replaying = False

    def send_400_response(self, msg: str) -> None:
        """What uvicorn does where the parser gives up."""
        self._refuse(self._error or MalformedHTTPError("this is not HTTP/1.1 as RFC 9112 has it"))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None and not self.transport.is_closing():
            self._stall_timer.cancel()
            self._stall_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_closing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_closing()

    @property
    def _is_busy(self) -> bool:
        """Whether a request is under way."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            deadline_s = self.service.settings.head_deadline_s
            self._head_timer = self.loop.call_later(deadline_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            deadline_s = self.service.settings.head_deadline_s
            self._refuse(HeadTimeoutError(f"the headers were not there after {deadline_s:g} s"))
        elif not self._is_busy:
            self.transport.close()  # nothing was asked, so nothing is owed

    def _measure(self, n_bytes: int) -> None:
        self._head_bytes += n_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._fail(HeadTooLargeError(f"more than {MAX_HEAD_BYTES:,} bytes of headers"))

    def _fail(self, error: RequestError) -> None:
        """End parsing; uvicorn then calls send_400_response."""
        self._error = error
        raise error

    def _refuse(self, error: RequestError) -> None:
        self._refused, self._in_head = True, False
        cycle = self.cycle
        if not self._is_busy:
            answer = find_answer(error)
            self.service.metrics.refuse_unread(answer.status, answer.code)
        elif not cycle.more_body:
            cycle.keep_alive = False  # it came after a whole request, which is still answered
            return
        elif cycle.response_started:
            self.transport.close()
            return
        else:
            # the body of a request under way is damaged: whoever reads it is told, and answers
            cycle.scope[DAMAGE] = error  # type: ignore[literal-required]  # what ASGI allows for
            cycle.keep_alive = False
            cycle.message_event.set()
            return
        request_id = new_request_id()
        response = problem_response(error, request_id)
        headers = [*self.server_state.default_headers, *response.raw_headers, *SECURITY_HEADERS]
        headers += [(b"x-request-id", request_id.encode()), (b"connection", b"close")]
        lines = [STATUS_LINE[response.status_code], *(b"%s: %s\r\n" % item for item in headers), b"\r\n"]
        self.transport.write(b"".join([*lines, bytes(response.body)]))
        code = find_answer(error).code
        fields = {"status": response.status_code, "reason": code, "request_id": request_id}
        logger.info("- - %d %s [%s]", response.status_code, code, request_id, extra={FIELDS: fields})
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._watch_closing()

    def _watch_closing(self) -> None:
        """What a closed connection has left to send may be too little to be told of by pause_writing."""
        left = self.transport.get_write_buffer_size() if self.transport.is_closing() else 0
        if left and self._stall_timer is None:
            self._watch_writing(left)

    def _watch_writing(self, left: int) -> None:
        idle_s = self.service.settings.idle_deadline_s

        def look() -> None:
            self._stall_timer = None
            now_left = self.transport.get_write_buffer_size()
            if now_left == left:
                self.transport.abort()
            elif now_left:
                self._watch_writing(now_left)

        self._stall_timer = self.loop.call_later(idle_s, look)


class _Parser:
    """httptools' parser of requests, to which an Upgrade header changes nothing, as RFC 9110, 7.8 allows.

    The library takes all that follows such a head for another protocol. Java's HttpClient asks for HTTP/2 with every
    connection, bodies or not, and goes on in HTTP/1.1 where nobody answers that.

    Args:
        protocol: whose callbacks are called.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._parser = self._make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> None:
        """As the library has it, but it never raises HttpParserUpgrade."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self._parser.get_method() == b"CONNECT":
                    return  # what follows is for nobody here
                data = data[upgrade.args[0] :]
                self._parser = self._make()
                self._protocol.pass_over_upgrade(self._parser)

    def _make(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        return parser


def make_protocol(service: Service) -> type[Protocol]:
    """The class that uvicorn makes connections of."""
    return type("ServiceProtocol", (Protocol,), {"service": service})
