"""A server under everything at once: many clients, some that leave, some that talk nonsense, and an engine that dies.

Each request forces a token of its own (a logit bias of 100), so that an answer that went to another client, or was
cut off, is seen for what it is.
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiohttp
from msgspec import Struct

LEAVING, NONSENSE, STREAMED = 0.05, 0.05, 0.5
_TOKENS = range(300, 20_000)
_REFUSALS = (429, 503)


class Outcome(Struct, frozen=True):
    """How many requests ended in which way.

    `right`: whole and as forced. `refused`: an error that says so, before or in the stream. `left`: by the client.
    `nonsense`: refused with 4xx, as it should be. `wrong`: another answer than was asked for. `lost`: neither an
    answer nor an error.
    """

    right: int = 0
    refused: int = 0
    left: int = 0
    nonsense: int = 0
    wrong: int = 0
    lost: int = 0


Event = Callable[[], Awaitable[None]]


async def storm(
    url: str,
    spell: Mapping[int, str],
    requests: int,
    clients: int,
    events: Mapping[int, Event],
    seed: int = 0,
    answer_tokens: int = 6,
) -> tuple[Outcome, list[str]]:
    """Send `requests` by so many `clients`; `events` happen when so many were sent. Also says what was wrong or lost.

    `spell`: what a forced token reads as.
    """
    draw, counted, faults = random.Random(seed), collections.Counter[str](), []
    numbers = iter(range(requests))
    running: set[asyncio.Task[None]] = set()

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            if number in events:
                running.add(asyncio.create_task(events[number]()))
            ended, why = await _one(session, url, spell, draw, answer_tokens)
            counted[ended] += 1
            if ended in ("wrong", "lost"):
                faults.append(f"{number}: {ended}: {why}")
            if ended == "refused":
                await asyncio.sleep(draw.uniform(0.1, 0.5))

    limits = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    await asyncio.gather(*running)
    return Outcome(**counted), faults


async def _one(
    session: aiohttp.ClientSession,
    url: str,
    spell: Mapping[int, str],
    draw: random.Random,
    answer_tokens: int,
) -> tuple[str, str]:
    kind = draw.random()
    token = draw.choice(list(spell))
    stream = draw.random() < STREAMED
    words = " ".join(draw.choices(("river", "stone", "pine", "moss", "rain"), k=draw.randint(1, 20)))
    document: dict[str, Any] = {
        "messages": [{"role": "user", "content": words}], "max_tokens": answer_tokens, "temperature": 0,
        "logit_bias": {str(token): 100}, "stream": stream,
    }  # fmt: skip
    try:
        if kind < NONSENSE:
            return await _nonsense(session, url, draw, document)
        if kind < NONSENSE + LEAVING:
            return await _leaving(session, url, {**document, "stream": True, "max_tokens": 200})
        async with session.post(f"{url}/chat/completions", json=document) as reply:
            if reply.status in _REFUSALS:
                return "refused", (await reply.json())["error"]["message"]
            if reply.status != 200:
                return "wrong", f"{reply.status}: {await reply.text()}"
            text, said = await (_streamed(reply) if stream else _whole(reply))
    except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
        return "lost", repr(error)
    if said is not None:
        return "refused", said
    return (
        ("right", "") if text == spell[token] * answer_tokens else ("wrong", f"{text!r} for {spell[token]!r}")
    )


async def _whole(reply: aiohttp.ClientResponse) -> tuple[str, str | None]:
    return (await reply.json())["choices"][0]["message"]["content"], None


async def _streamed(reply: aiohttp.ClientResponse) -> tuple[str, str | None]:
    """The text of a stream that ends in order, or the error that ended it."""
    text, done = "", False
    async for line in reply.content:
        if line == b"data: [DONE]\n":
            done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                return text, event["error"]["message"]
            text += "".join(c["delta"].get("content") or "" for c in event["choices"])
    if not done:
        raise aiohttp.ClientPayloadError("the stream ended without its end")
    return text, None


async def _leaving(session: aiohttp.ClientSession, url: str, document: dict[str, Any]) -> tuple[str, str]:
    async with session.post(f"{url}/chat/completions", json=document) as reply:
        await reply.content.readany()
        reply.close()
    return "left", ""


async def _nonsense(
    session: aiohttp.ClientSession, url: str, draw: random.Random, document: dict[str, Any]
) -> tuple[str, str]:
    bodies: Sequence[bytes] = (
        b"", b"{", b"[1]", b"\xff\xfe", json.dumps({**document, "temperature": -1}).encode(),
        json.dumps({**document, "messages": []}).encode(), json.dumps({**document, "max_tokens": -1}).encode(),
        json.dumps({**document, "model": "another"}).encode(), json.dumps({**document, "id_slot": 7}).encode(),
    )  # fmt: skip
    headers = {"Content-Type": "application/json"}
    async with session.post(f"{url}/chat/completions", data=draw.choice(bodies), headers=headers) as reply:
        error = (await reply.json())["error"]
    return ("nonsense", "") if reply.status in (400, 404) else ("wrong", f"{reply.status}: {error}")


async def spelling(url: str, count: int, seed: int = 0) -> dict[int, str]:
    """Some tokens and what each reads as when it is forced alone and again; those of whole characters alone."""
    found: dict[int, str] = {}
    draw = random.Random(seed)
    async with aiohttp.ClientSession() as session:
        while len(found) < count:
            token = draw.choice(_TOKENS)
            one, three = [await _forced(session, url, token, n) for n in (1, 3)]
            if one.strip() and one == one.strip() and three == 3 * one and "\ufffd" not in one:
                found[token] = one
    return found


async def _forced(session: aiohttp.ClientSession, url: str, token: int, tokens: int) -> str:
    document = {
        "messages": [{"role": "user", "content": "Hi"}], "max_tokens": tokens, "temperature": 0,
        "logit_bias": {str(token): 100},
    }  # fmt: skip
    async with session.post(f"{url}/chat/completions", json=document) as reply:
        return str((await reply.json())["choices"][0]["message"]["content"])
