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

# a 500 of the engine that the request caused
_BLAME = re.compile(r"template|schema|grammar|parse|jinja|tool|too large", re.I)
_IDLE = re.compile(rb"^llamacpp:requests_processing 0$", re.M)
_SAID = re.compile(r"Error: |^\[json\.exception\.[\w.]+\] ")


class Timings(Struct):
    """What the engine says of an answer; milliseconds."""

    prompt_n: int = 0
    cache_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0

    def __add__(self, other: Timings) -> Timings:
        """The counts of both; times do not add, since several are answered at once."""
        return Timings(
            self.prompt_n + other.prompt_n, self.cache_n + other.cache_n, other.prompt_ms,
            self.predicted_n + other.predicted_n, other.predicted_ms,
        )  # fmt: skip


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Last(Struct):
    """The end of an answer, as far as it is read."""

    timings: Timings | None = None
    usage: _Usage | None = None

    @property
    def figures(self) -> Timings:
        """Zeros if it has none."""
        usage = self.usage or _Usage()
        return self.timings or Timings(prompt_n=usage.prompt_tokens, predicted_n=usage.completion_tokens)


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

    async def alive(self) -> bytes | None:
        """The engine's figures, which change with each of its steps; None while it has nothing to do. Raises OSError.

        They alone say that it lives: its queue answers while a step is computed, however long that takes.
        """
        try:
            async with self._session.get("http://engine/metrics") as reply:
                figures = await reply.read()
                reply.raise_for_status()
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error
        return None if _IDLE.search(figures) else figures

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
        first_at: `time.monotonic` of the first piece; None before it.
        timings: the engine's own figures, zeros before they come; those of several answers in one stream are added.
        failed: what the engine said that ended it early.
    """

    def __init__(self, asking: Any) -> None:
        self._asking = asking
        self.first_at: float | None = None
        self.timings = Timings()
        self.failed = ""

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
                if (end := held.rfind(b"\n\n") + 2) >= 2:
                    self.first_at = self.first_at or time.monotonic()
                    self._read(held[:end])
                    yield held[:end]
                    held = held[end:]
            if held:
                yield held
        except aiohttp.ClientError as error:
            raise lost() from error

    async def whole(self) -> bytes:
        """All of it at once. Raises Problem if the engine is lost on the way."""
        try:
            body: bytes = await self._reply.read()
        except aiohttp.ClientError as error:
            raise lost() from error
        with contextlib.suppress(msgspec.DecodeError):
            self.timings = msgspec.json.decode(body, type=_Last).figures
        return body

    def _read(self, piece: bytes) -> None:
        """Figures and errors among events that have come."""
        if b'"timings"' not in piece and b'"error"' not in piece:
            return
        for line in piece.split(b"\n"):
            with contextlib.suppress(msgspec.DecodeError):
                if line.startswith(b'data: {"error"'):
                    self.failed = msgspec.json.decode(line[6:], type=_Refusal).error.message
                elif b'"timings"' in line:
                    self.timings += msgspec.json.decode(line.removeprefix(b"data: "), type=_Last).figures


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
