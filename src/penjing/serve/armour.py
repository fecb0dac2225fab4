"""What stands before every endpoint: who may ask, from where, and how long a connection may dawdle."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penjing.serve.keys import Ring
from penjing.serve.names import name_of
from penjing.serve.problems import Problem

HEAD_SECONDS, MOST_HEAD_BYTES = 10.0, 65536
OPEN_PATHS = frozenset({"/health", "/"})
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


class Armour:
    """Puts headers of safety on every answer, refuses strangers, and asks for the key.

    A server on this computer alone answers to its own names alone: a page of the outside whose name was made to point
    here (DNS rebinding) has another. Nor does it answer a page of another origin.
    """

    def __init__(
        self, app: ASGIApp, ring: Ring, names: Collection[str] | None, turned_away: Callable[[Problem], None]
    ) -> None:
        self._app, self._ring, self._names, self._turned_away = app, ring, names, turned_away

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def put(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            self._check(scope)
        except Problem as problem:
            self._turned_away(problem)
            await problem.send(put)
            return
        await self._app(scope, receive, put)

    def _check(self, scope: Scope) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self._names is not None and name_of(host) not in self._names:
            raise Problem(403, f"`{host[:100]}` is not the name of this server")
        if origin is not None and origin.partition("://")[2] != host:
            raise Problem(403, f"pages of `{origin[:100]}` may not ask this server")
        scope["penjing.key"] = ""
        path = scope["path"]
        if path not in OPEN_PATHS and not path.startswith("/page/"):
            scope["penjing.key"] = self._ring.owner(headers.get(b"authorization"))


class Patient(HttpToolsProtocol):
    """A connection whose head has to come within a time and a size; uvicorn itself would wait for ever."""

    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        # asyncio leaves this out for a listener that is handed to it: heads and bodies would wait 40 ms for each other
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()  # also for what is no head yet: blank lines, the rest of a body that nobody wanted
        if self._late is not None:
            if self._head_bytes > MOST_HEAD_BYTES:
                self.transport.abort()
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["penjing.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]
        if self._late is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # a second request before the answer to the first, of which nobody could be told
            return
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._late = asyncio.get_running_loop().call_later(HEAD_SECONDS, self.transport.abort)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
