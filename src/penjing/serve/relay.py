"""Passes a request to the engine and its answer back, byte by byte, and reads off what it came to."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from msgspec import Struct

from penjing.serve.problems import Problem

_TAIL_BYTES = 16384
_BLAME = re.compile(
    r"template|schema|grammar|parse|jinja|tool", re.I
)  # a 500 of the engine that the request caused
_SAID = re.compile(r"Error: |^\[json\.exception\.[\w.]+\] ")


class Timings(Struct):
    """What the engine says of an answer; milliseconds."""

    prompt_n: int = 0
    cache_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Last(Struct):
    """The end of an answer, as far as it is read."""

    timings: Timings | None = None
    usage: _Usage | None = None


class _Props(Struct):
    """What the engine says of itself, as far as it is read."""

    chat_template_caps: dict[str, bool] = {}


class Relay:
    """Requests to the engine behind `socket`."""

    def __init__(self, socket: str) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket, limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=None, sock_connect=10),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def alive(self) -> None:
        """A question that the engine's own loop answers, and not its listener alone. Raises OSError."""
        try:
            async with self._session.get("http://engine/metrics") as reply:
                await reply.read()
                reply.raise_for_status()
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error

    async def knows_tools(self) -> bool:
        """Whether the model's chat template has a place for tools. Raises OSError."""
        try:
            async with self._session.get("http://engine/props") as reply:
                found = msgspec.json.decode(await reply.read(), type=_Props)
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error
        return found.chat_template_caps.get("supports_tools", True)

    def ask(self, path: str, document: dict[str, Any]) -> Answer:
        return Answer(
            self._session.post(
                f"http://engine{path}",
                data=msgspec.json.encode(document),
                headers={"content-type": "application/json", "accept-encoding": "identity"},
            )
        )


class Unreached(Exception):
    """The engine is away, and has seen nothing of the request: it may be asked again."""


class Answer:
    """An answer under way: enter it, then take its pieces.

    Units:
        first_seconds: from the request to the first piece; None before it.
        prompt_tokens, answer_tokens: read off the last piece.
    """

    def __init__(self, asking: Any) -> None:
        self._asking = asking
        self._started = time.monotonic()
        self._tail = b""
        self.first_seconds: float | None = None

    async def __aenter__(self) -> Self:
        """Raises Problem where the engine refuses or is lost, Unreached where it is not there."""
        try:
            self._reply = await self._asking.__aenter__()
        except aiohttp.ClientConnectorError as error:
            raise Unreached from error
        except aiohttp.ClientError as error:
            raise lost() from error
        if self._reply.status != 200:
            with contextlib.closing(self._reply):
                raise _refused(self._reply.status, await self._reply.read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reply.close()  # a stream that is not at its end must not be read to it

    async def events(self) -> AsyncIterator[bytes]:
        """What comes, as it comes, in whole events. Raises Problem if the engine is lost on the way."""
        held = b""
        try:
            async for piece in self._reply.content.iter_any():
                held += piece
                if end := held.rfind(b"\n\n") + 2 * (b"\n\n" in held):
                    self.first_seconds = self.first_seconds or time.monotonic() - self._started
                    self._tail = (self._tail + held[:end])[-_TAIL_BYTES:]
                    yield held[:end]
                    held = held[end:]
        except aiohttp.ClientError as error:
            raise lost() from error

    async def whole(self) -> bytes:
        """All of it at once. Raises Problem if the engine is lost on the way."""
        try:
            self._tail = await self._reply.read()
        except aiohttp.ClientError as error:
            raise lost() from error
        return self._tail

    def timings(self) -> Timings:
        """The engine's own figures; zeros if it gave none."""
        for line in reversed(self._tail.split(b"\n")):
            text = line.removeprefix(b"data: ")
            if b'"timings"' in text or b'"usage"' in text:
                try:
                    last = msgspec.json.decode(text, type=_Last)
                except msgspec.DecodeError:
                    continue
                if last.timings is not None:
                    return last.timings
                if last.usage is not None:
                    return Timings(
                        prompt_n=last.usage.prompt_tokens, predicted_n=last.usage.completion_tokens
                    )
        return Timings()


def lost() -> Problem:
    return Problem(
        503, "the engine ended while it answered; it is being started again", code="engine_lost",
        retry_after=2,
    )  # fmt: skip


class _Error(Struct, frozen=True):
    message: str = "the engine refused"
    type: str = ""


class _Refusal(Struct, frozen=True):
    error: _Error = _Error()


def _refused(status: int, body: bytes) -> Problem:
    """The engine's refusal as ours; what it blames on itself though the client is at fault is put right."""
    try:
        error = msgspec.json.decode(body, type=_Refusal).error
    except msgspec.DecodeError:
        error = _Error(f"the engine answered with status {status}")
    message = " ".join(_SAID.sub("", error.message).split())[:1000]
    if error.type == "exceed_context_size_error":
        return Problem(400, message, code="context_length_exceeded", param="messages")
    if status == 501:
        return Problem(400, message, code="not_supported")
    if status == 503:
        return Problem(503, message, code="engine_starting", retry_after=2)
    return Problem(500 if status >= 500 and not _BLAME.search(message) else 400, message)
