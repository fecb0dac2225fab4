"""Answers on their way through the front, from an engine that fails as the real one cannot be made to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from penjing.serve.problems import Problem
from penjing.serve.relay import Relay, Timings, Unreached

_TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
_TIMINGS = b'data: {"choices":[],"timings":{"prompt_n":5,"cache_n":2,"predicted_n":7}}\n\n'
_ERROR = b'data: {"error":{"code":500,"message":"the cache is full","type":"server_error"}}\n\n'


def heard(socket: Path, pieces: list[bytes]) -> tuple[bytes, str, Timings]:
    """What comes through, what failed, and the figures, of an engine that sends `pieces`, each by itself."""

    async def engine(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        for piece in pieces:
            await reply.write(piece)
            await asyncio.sleep(0.01)
        return reply

    async def ask() -> tuple[bytes, str, Timings]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", engine)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        relay = Relay(str(socket))
        try:
            async with relay.ask("/v1/chat/completions", {}) as answer:
                events = [piece async for piece in answer.events()]
            assert all(piece.endswith(b"\n\n") for piece in events[:-1])
            return b"".join(events), answer.failed, answer.timings
        finally:
            await relay.close()
            await runner.cleanup()

    return asyncio.run(ask())


@pytest.mark.parametrize("cut", [1, 7, 40, 10_000])
def test_events_come_whole_wherever_they_were_cut(tmp_path: Path, cut: int):
    """The same bytes in whole events, and the figures, however the engine's pieces fall."""
    sent = 3 * _TOKEN + _TIMINGS + b"data: [DONE]\n\n"
    pieces = [sent[i : i + cut] for i in range(0, len(sent), cut)]

    assert heard(tmp_path / "s", pieces) == (sent, "", Timings(prompt_n=5, cache_n=2, predicted_n=7))


def test_the_last_bytes_come_through(tmp_path: Path):
    """Also where the engine forgot the blank line after its last event."""
    assert heard(tmp_path / "s", [_TOKEN, b"data: [DONE]"])[0] == _TOKEN + b"data: [DONE]"


def test_an_error_inside_a_stream_is_noticed(tmp_path: Path):
    """It reaches the client as the engine said it, and the front knows that the answer failed."""
    assert heard(tmp_path / "s", [_TOKEN, _ERROR]) == (_TOKEN + _ERROR, "the cache is full", Timings())


def test_figures_of_several_answers_add(tmp_path: Path):
    """A stream of two answers has two ends, each with its own counts."""
    _, _, timings = heard(tmp_path / "s", [_TIMINGS, _TIMINGS])

    assert (timings.prompt_n, timings.cache_n, timings.predicted_n) == (10, 4, 14)


def test_an_engine_that_is_away_has_seen_nothing(tmp_path: Path):
    """Then the request may be asked again; one that was lost on the way may not."""

    async def ask() -> None:
        relay = Relay(str(tmp_path / "none"))
        try:
            async with relay.ask("/v1/chat/completions", {}):
                pass
        finally:
            await relay.close()

    with pytest.raises(Unreached):
        asyncio.run(ask())


def test_an_engine_lost_on_the_way_is_a_problem_in_words(tmp_path: Path):
    """The connection ends within an answer: 503, and not the end of a shorter answer."""
    socket = tmp_path / "s"

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(f"{len(_TOKEN):x}\r\n".encode() + _TOKEN + b"\r\n")
        await writer.drain()
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_unix_server(break_off, str(socket))
        relay = Relay(str(socket))
        try:
            async with relay.ask("/v1/chat/completions", {}) as answer:
                async for _ in answer.events():
                    pass
        finally:
            await relay.close()
            server.close()

    with pytest.raises(Problem) as caught:
        asyncio.run(ask())
    assert (caught.value.status, caught.value.code) == (503, "engine_lost")
