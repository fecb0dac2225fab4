"""Admission: never more than the slots, in turn, and nothing is lost by who gives up."""

from __future__ import annotations

import asyncio
import random

import pytest

from penjing.serve.gate import Gate, Rules
from penjing.serve.problems import Problem


def gate(slots: int = 2, waiting: int = 100, patience: float = 30.0) -> Gate:
    return Gate(Rules(slots, waiting, patience, 1.0))


async def visit(
    door: Gate, seconds: float, key: str = "", weight: int = 1, seen: list[int] | None = None
) -> None:
    async with door.turn(key, weight, 10) as turn:
        if seen is not None:
            seen.append(door.in_flight)
        await asyncio.sleep(seconds)
        turn.given = 10


def test_never_more_than_the_slots():
    """A hundred visitors of all weights, some of whom give up at random moments: slots are kept, and all come back."""

    async def run() -> tuple[list[int], Gate]:
        door, seen, draw = gate(3), [], random.Random(7)
        visits = [
            asyncio.create_task(
                visit(door, draw.uniform(0, 0.01), draw.choice("abc"), draw.randint(1, 3), seen)
            )
            for _ in range(100)
        ]
        for task in draw.sample(visits, 40):
            await asyncio.sleep(draw.uniform(0, 0.004))
            task.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        return seen, door

    seen, door = asyncio.run(run())
    assert seen and max(seen) <= 3
    assert (door.in_flight, door.waiting) == (0, 0)


def test_a_full_queue_is_a_429_that_says_when():
    """The queue has an end, and who is turned away learns how long the others will take."""

    async def run() -> Problem:
        door = gate(slots=1, waiting=3)
        tasks = [asyncio.create_task(visit(door, 0.2)) for _ in range(4)]
        await asyncio.sleep(0.01)
        with pytest.raises(Problem) as caught:
            await visit(door, 0)
        await asyncio.gather(*tasks)
        await visit(door, 0)
        return caught.value

    found = asyncio.run(run())
    assert (found.status, found.code, found.retry_after) == (429, "queue_full", 4)


def test_patience_ends():
    """Who waits too long is sent away, and leaves no place behind."""

    async def run() -> Problem:
        door = gate(slots=1, patience=0.05)
        first = asyncio.create_task(visit(door, 0.3))
        await asyncio.sleep(0.01)
        with pytest.raises(Problem) as caught:
            await visit(door, 0)
        assert door.waiting == 0
        await first
        await visit(door, 0)
        return caught.value

    assert asyncio.run(run()).status == 429


def test_a_closed_gate_keeps_the_queue_and_an_ended_one_clears_it():
    """While another plan is taken up everyone waits; when the server stops those who wait are told."""

    async def run() -> list[object]:
        door = gate(slots=1)
        door.close()
        waiting = [asyncio.create_task(visit(door, 0)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert (door.in_flight, door.waiting) == (0, 2)
        door.open(Rules(2, 5, 30.0, 1.0))
        await asyncio.gather(*waiting)
        late = [asyncio.create_task(visit(door, 0.1)) for _ in range(4)]
        await asyncio.sleep(0.01)
        door.end()
        assert await door.empty(5)
        return await asyncio.gather(*late, return_exceptions=True)

    results = asyncio.run(run())
    assert results[:2] == [None, None]
    assert [r.status for r in results[2:] if isinstance(r, Problem)] == [503, 503]


def test_one_key_cannot_fill_the_queue():
    """Where the queue is full, who came last of the key with most in it makes room for another key."""

    async def run() -> list[object]:
        door = gate(slots=1, waiting=3)
        greedy = [asyncio.create_task(visit(door, 0.02, "greedy")) for _ in range(4)]
        await asyncio.sleep(0.005)
        other = asyncio.create_task(visit(door, 0.02, "other"))
        return await asyncio.gather(*greedy, other, return_exceptions=True)

    *greedy, other = asyncio.run(run())
    assert other is None
    assert [getattr(r, "status", None) for r in greedy] == [None, None, None, 429]


def test_what_failed_costs_nothing():
    """A key whose requests fail does not fall behind one whose requests are answered."""

    async def run() -> list[str]:
        door, order = gate(slots=1), []

        async def one(key: str, tokens: int) -> None:
            async with door.turn(key, 1, 1000) as turn:
                order.append(key)
                await asyncio.sleep(0.001)
                turn.given = tokens

        async with door.turn("", 1, 1):  # so that all wait for each other
            tasks = [asyncio.create_task(one("fails", 0)) for _ in range(4)]
            tasks += [asyncio.create_task(one("is answered", 50)) for _ in range(4)]
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run())[:5].count("fails") == 4


def test_fewer_slots_hold_nobody_up():
    """A request that was to take four slots takes the two that a new plan has."""

    async def run() -> int:
        door = gate(slots=4)
        door.close()
        large = asyncio.create_task(visit(door, 0, weight=4))
        await asyncio.sleep(0.005)
        door.open(Rules(2, 10, 5.0, 1.0))
        await large
        return door.in_flight

    assert asyncio.run(run()) == 0
