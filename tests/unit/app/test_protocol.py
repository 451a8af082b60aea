"""A connection on a socket whose buffers are smaller than an answer; what else the protocol does is in tests/e2e."""

import asyncio
import socket
from typing import Any, cast

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.protocol import make_protocol
from app.service import Service
from app.settings import Settings

# More than the socket's buffers take, and less than pauses the writer.
ANSWER = bytes(50_000)


class OnlySettings:
    """All that a connection asks a service for, where nothing is refused."""

    settings = Settings(idle_deadline_s=0.2)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER})


def test_who_does_not_take_the_end_of_a_last_answer_is_let_go() -> None:
    async def main() -> None:
        config = uvicorn.Config(answer, lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        make = make_protocol(cast(Service, OnlySettings()))
        protocol: Any = make(config=config, server_state=state, app_state={})
        await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours)
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(10):
            while not protocol.transport.is_closing():
                await asyncio.sleep(0.01)
            assert state.connections  # there is something left to send
            while state.connections:
                await asyncio.sleep(0.01)
        theirs.close()

    asyncio.run(main())
