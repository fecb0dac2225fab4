"""Admission: so many answers at once, a queue with an end, and turns by key."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator

from msgspec import Struct

from penjing.serve.fairness import Line
from penjing.serve.problems import Problem

_FORGET = 0.9  # of the mean time of an answer, at each new one


class Rules(Struct, frozen=True):
    """What is let in.

    Units:
        slots: answers that are written at once. most_waiting: requests in the queue, at most.
        patience_seconds: how long one may wait there.
        usual_seconds: how long an answer takes by the plan, until it has been seen.
    """

    slots: int
    most_waiting: int
    patience_seconds: float
    usual_seconds: float


class Turn:
    """A place among those that are answered; `given` is set to the tokens that it came to, 0 where it failed."""

    def __init__(self, key: str, weight: int, promised: int) -> None:
        self.key, self.weight, self.promised = key, weight, promised
        self.given = 0
        self.waited_seconds = 0.0
        self.let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Gate:
    """Lets requests in by `Rules`; one that is cancelled while it waits leaves its place at once."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._line: Line[Turn] = Line()
        self._taken = 0
        self._closed = False
        self.ended = False
        self._usual_seconds = rules.usual_seconds
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def in_flight(self) -> int:
        return self._taken

    @contextlib.asynccontextmanager
    async def turn(self, key: str, weight: int, promised: int) -> AsyncIterator[Turn]:
        """Wait for a turn and hold it; `promised` tokens are set against the key's share until it ends.

        Raises:
            Problem: 429 where the queue is full, or the turn does not come in time.
        """
        if self.ended:
            raise _stopping()
        turn = Turn(key, weight, promised)
        if len(self._line) >= self.rules.most_waiting and not self._can_start(weight):
            self._make_room(key)
        started = time.monotonic()
        self._line.add(key, turn, weight)
        self._let_in()
        try:
            async with asyncio.timeout(self.rules.patience_seconds):
                await turn.let_in
        except BaseException as error:
            self._give_up(turn)
            if isinstance(error, TimeoutError):
                wait = self.rules.patience_seconds
                raise self._refusal(f"no turn came in {wait:.0f} s") from None
            raise
        turn.waited_seconds = time.monotonic() - started
        try:
            yield turn
        finally:
            self._leave(turn, time.monotonic() - started - turn.waited_seconds)

    def close(self) -> None:
        """Let no one in; those who wait stay in the queue."""
        self._closed = True

    def open(self, rules: Rules | None = None) -> None:
        """Let in again, by new rules if there are any."""
        self.rules = rules or self.rules
        self._closed = False
        self._let_in()

    def end(self) -> None:
        """Let no one in any more, and send away those who wait."""
        self.ended = True
        self.close()
        for turn in self._line.all():
            if not turn.let_in.done():
                turn.let_in.set_exception(_stopping())

    async def empty(self, limit_seconds: float) -> bool:
        """Wait until no one is answered any more; whether that came in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                await self._empty.wait()
        return self._empty.is_set()

    def check_room(self, key: str) -> None:
        """Raises Problem where a request of this key would be turned away, so that its body need not be read."""
        if self.ended:
            raise _stopping()
        if len(self._line) >= self.rules.most_waiting and self._line.newest_of_longest(key) is None:
            raise self._refusal(f"{len(self._line)} requests wait already")

    def _make_room(self, key: str) -> None:
        """The queue is full: who came last of the key with most in it leaves it, if this one has fewer.

        Raises:
            Problem: no key has more.
        """
        found = self._line.newest_of_longest(key)
        if found is None or found[1].let_in.done():
            raise self._refusal(f"{len(self._line)} requests wait already")
        self._line.remove(*found)
        found[1].let_in.set_exception(self._refusal("the queue is full, and others have fewer in it"))

    def _can_start(self, weight: int) -> bool:
        return not self._closed and not len(self._line) and self._taken + weight <= self.rules.slots

    def _let_in(self) -> None:
        slots = self.rules.slots
        while not self._closed and (turn := self._line.take(slots - self._taken, slots)) is not None:
            if turn.let_in.done():
                continue  # cancelled, and about to leave by itself
            turn.weight = min(turn.weight, slots)
            self._taken += turn.weight
            self._empty.clear()
            self._line.charge(turn.key, turn.promised)
            turn.let_in.set_result(None)

    def _give_up(self, turn: Turn) -> None:
        """Out of the queue; or, where the turn came at that very moment, out of the slots."""
        came = turn.let_in.done() and not turn.let_in.cancelled() and turn.let_in.exception() is None
        if came:
            self._leave(turn, 0.0)
        else:
            self._line.remove(turn.key, turn)
            self._let_in()

    def _leave(self, turn: Turn, seconds: float) -> None:
        self._taken -= turn.weight
        self._line.charge(turn.key, turn.given - turn.promised)
        if turn.given:
            self._usual_seconds = _FORGET * self._usual_seconds + (1 - _FORGET) * seconds
        self._let_in()
        if self._taken == 0:
            self._empty.set()
            if not len(self._line):
                self._line.forget()

    def _refusal(self, why: str) -> Problem:
        rounds = (len(self._line) + 1) / self.rules.slots
        wait = max(1, math.ceil(rounds * self._usual_seconds))
        return Problem(429, f"too many requests: {why}", code="queue_full", retry_after=wait)


def _stopping() -> Problem:
    return Problem(503, "the server is being stopped", code="stopping", retry_after=10)
