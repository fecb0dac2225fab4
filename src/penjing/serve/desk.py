"""Where requests are answered: read, admitted, passed on, counted, whatever becomes of them."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from starlette.types import Receive, Scope, Send

from penjing.serve.gate import Gate, Turn
from penjing.serve.journal import log
from penjing.serve.keeper import Keeper
from penjing.serve.keys import Ring
from penjing.serve.metrics import Done, Metrics
from penjing.serve.problems import Problem
from penjing.serve.relay import Answer, Relay, Unreached
from penjing.serve.requests import Chat, Completion, Embedding, Limits, Order, read

MOST_BODY_BYTES = 4 * 2**20
_BODY_SECONDS = 30.0
_SEND_SECONDS = 60.0  # a client that reads nothing for so long is let go
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]  # fmt: skip
_WHOLE = [(b"content-type", b"application/json; charset=utf-8"), (b"cache-control", b"no-store")]


class Desk:
    """What the endpoints share. `limits` and `usual_tokens` change with the plan.

    Units:
        usual_tokens: of a prompt and its answer, by the plan. tokens_seen: of answers, since the start.
        plans: that were served by.
    """

    def __init__(
        self, limits: Limits, usual_tokens: int, gate: Gate, keeper: Keeper, relay: Relay, ring: Ring,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self.limits, self.usual_tokens = limits, usual_tokens
        self.gate, self.keeper, self.relay, self.ring, self.metrics = gate, keeper, relay, ring, metrics
        self.tokens_seen = 0
        self.plans = 1


class Endpoint:
    """One path of the API, as an ASGI application."""

    def __init__(self, desk: Desk, kind: type[Chat] | type[Completion] | type[Embedding], path: str) -> None:
        self._desk, self._kind, self._path = desk, kind, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a client that goes away ends the work for it at once."""
        desk, visit = self._desk, Visit(self._desk, self._path, scope, send)
        try:
            desk.ring.check_budget(visit.key)
            desk.gate.check_room(visit.key)
            order = read(await read_body(scope, receive), self._kind, desk.limits)
        except Problem as problem:
            await visit.refuse(problem)
            return
        work = asyncio.create_task(visit.answer(order))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            if work.cancelled():
                visit.log(499, "the client went away")
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error


class Visit:
    """One request from its arrival to its end."""

    def __init__(self, desk: Desk, path: str, scope: Scope, send: Send) -> None:
        self.key: str = scope["penjing.key"]
        self._desk, self._path, self._send, self._scope = desk, path, send, scope
        self._arrived = time.monotonic()
        self._id = uuid.uuid4().hex[:16]
        self._begun = self._failed = False
        self._events = 0
        self._counted: dict[str, Any] = {}

    async def answer(self, order: Order) -> None:
        desk = self._desk
        promised = order.answers * min(order.most_tokens or desk.usual_tokens, 8 * desk.usual_tokens)
        try:
            async with desk.gate.turn(self.key, order.answers, promised) as turn:
                desk.ring.check_budget(self.key)  # others of this key may have spent it meanwhile
                try:
                    while not await self._passed_on(order, turn):
                        desk.keeper.doubt()
                finally:
                    desk.ring.spend(self.key, turn.given)
        except Problem as problem:
            await self.refuse(problem)
        except TimeoutError:
            self.log(499, "the client read nothing")
            self._scope.get("penjing.abort", bool)()
        else:
            self.log(500 if self._failed else 200, "engine_error" if self._failed else None)

    async def _passed_on(self, order: Order, turn: Turn) -> bool:
        """The engine has answered; False if it was away, and may be asked again when it is back.

        Raises:
            Problem: it refused, was lost on the way, or did not come back in time.
        """
        desk = self._desk
        if desk.gate.ended or not await desk.keeper.up(desk.gate.rules.patience_seconds):
            raise Problem(503, "the engine is not up", code="engine_down", retry_after=10)
        turn.given = order.prompt_tokens  # of who leaves before anything comes
        try:
            async with desk.relay.ask(self._path, order.document) as answer:
                try:
                    await (self._stream if order.stream else self._whole)(answer)
                finally:
                    self._count(answer, turn, order)
        except Unreached:
            turn.given = 0
            return False
        except Problem as problem:
            turn.given = turn.given if self._begun else 0
            if problem.code == "engine_lost":
                desk.keeper.doubt()
            raise
        return True

    async def refuse(self, problem: Problem) -> None:
        """An error instead of an answer, or at the end of what was written of one."""
        self.log(problem.status, problem.code or problem.param)
        if self._begun:
            text = b"data: " + problem.body + b"\n\n"
            await self._put({"type": "http.response.body", "body": text, "more_body": False})
        else:
            await problem.send(self._put)

    def log(self, status: int, why: str | None = None) -> None:
        """One line for each request; nothing in it was said by the client."""
        refused = status in (429, 503) and why != "engine_lost"
        self._desk.metrics.request(self._path, status, why if refused else None)
        seconds = round(time.monotonic() - self._arrived, 4)
        told = {"id": self._id, "path": self._path, "key": self.key, "status": status, "seconds": seconds}
        log("request", **told, **self._counted, **({"why": why} if why else {}))

    async def _stream(self, answer: Answer) -> None:
        await self._start(_STREAM)
        async for piece in answer.events():
            tokens = piece.count(b"data: {")
            if tokens:  # and not a sign that the connection alone is alive
                self._desk.keeper.heard()
            self._events += tokens
            self._desk.tokens_seen += tokens
            await self._put({"type": "http.response.body", "body": piece, "more_body": True})
        self._failed = bool(answer.failed)
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _whole(self, answer: Answer) -> None:
        body = await answer.whole()
        self._desk.keeper.heard()
        self._desk.tokens_seen += answer.timings.predicted_n
        await self._start([*_WHOLE, (b"content-length", str(len(body)).encode())])
        await self._put({"type": "http.response.body", "body": body})

    async def _start(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._begun = True
        head = [*headers, (b"x-request-id", self._id.encode())]
        await self._put({"type": "http.response.start", "status": 200, "headers": head})

    async def _put(self, message: Any) -> None:
        async with asyncio.timeout(_SEND_SECONDS):
            await self._send(message)

    def _count(self, answer: Answer, turn: Turn, order: Order) -> None:
        """What the answer came to: for the key's share and budget, the metrics, and the log.

        One that was left before its end came to its prompt, as far as bytes tell, and the events that were seen.
        """
        timings, now = answer.timings, time.monotonic()
        prompt, tokens = timings.prompt_n + timings.cache_n, timings.predicted_n
        if not prompt and not tokens:
            turn.given = order.prompt_tokens + self._events
            return
        others = 1 if order.stream or not tokens else order.texts  # of which the engine gives no figures
        turn.given = max(others * (prompt + tokens), order.prompt_tokens if others > 1 else 0)
        begun = answer.first_at if order.stream else now - timings.predicted_ms / 1000
        first = (begun or now) - self._arrived
        self._desk.metrics.answered(
            Done(now, first, turn.waited_seconds, now - self._arrived - first, prompt, tokens)
        )
        self._counted = {
            "prompt_tokens": prompt, "answer_tokens": tokens, "queue_seconds": round(turn.waited_seconds, 4),
            "first_token_seconds": round(first, 4),
        }  # fmt: skip


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body.

    Raises:
        Problem: 415 for another type than JSON, 413 for too much of it, 408 for too slow a client.
    """
    headers = dict(scope["headers"])
    if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
        raise Problem(415, "the body has to be JSON: send `Content-Type: application/json`")
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > MOST_BODY_BYTES:
        raise _too_large(int(declared))
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "the body ended early")
                body += message.get("body", b"")
                if len(body) > MOST_BODY_BYTES:
                    raise _too_large(len(body))
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Problem(408, f"the body did not come within {_BODY_SECONDS:.0f} s") from None


def _too_large(n_bytes: int) -> Problem:
    return Problem(413, f"the body has {n_bytes} bytes or more, {MOST_BODY_BYTES} are allowed")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
