"""Who is next, and who has had enough: pure rules over counts of tokens.

`Line` is start-time fair queueing (Goyal, Vin, Cheng 1996) over keys: who has been given least comes first, one who
comes back gets no credit for the time away, and none waits for ever. `Bucket` limits tokens by time.
"""

from __future__ import annotations

import collections
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """Waiting items by key; `take` gives the next that fits.

    Units:
        given: tokens that were promised or given to a key since it last was idle.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, collections.deque[tuple[T, int]]] = {}
        self._given: dict[str, float] = {}
        self._floor = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, key: str, item: T, weight: int = 1) -> None:
        """`weight`: how many slots the item takes."""
        if key not in self._waiting:
            self._waiting[key] = collections.deque()
            self._given[key] = max(self._given.get(key, 0.0), self._floor)
        self._waiting[key].append((item, weight))

    def all(self) -> list[T]:
        return [item for waiting in self._waiting.values() for item, _ in waiting]

    def newest_of_longest(self, key: str) -> tuple[str, T] | None:
        """Who came last of the key that has most waiting; None if `key` would have as many with one more."""
        longest = max(self._waiting, key=lambda k: len(self._waiting[k]), default=key)
        if len(self._waiting.get(longest, ())) <= len(self._waiting.get(key, ())) + 1:
            return None
        return longest, self._waiting[longest][-1][0]

    def take(self, free: int, most: int) -> T | None:
        """The oldest item of the key that was given least, if it fits into the `free` of `most` slots.

        One that does not fit is waited for: what is smaller may not overtake it for ever.
        """
        if not self._waiting:
            return None
        key = min(self._waiting, key=lambda k: self._given[k])
        item, weight = self._waiting[key][0]
        if min(weight, most) > free:
            return None
        self._floor = max(self._floor, self._given[key])
        self._waiting[key].popleft()
        self._drop_if_empty(key)
        return item

    def remove(self, key: str, item: T) -> None:
        """The item leaves without its turn."""
        waiting = self._waiting.get(key, collections.deque())
        for place, (other, _) in enumerate(waiting):
            if other is item:
                del waiting[place]
                break
        self._drop_if_empty(key)

    def charge(self, key: str, tokens: float) -> None:
        """`tokens` were promised to a key, or given beyond what was promised (negative: less)."""
        self._given[key] = self._given.get(key, self._floor) + tokens
        for other in [
            k for k, given in self._given.items() if given <= self._floor and k not in self._waiting
        ]:
            del self._given[other]  # what it would start with anyway

    def forget(self) -> None:
        """Nobody waits or is answered any more: all start level again."""
        self._given.clear()
        self._floor = 0.0

    def _drop_if_empty(self, key: str) -> None:
        if key in self._waiting and not self._waiting[key]:
            del self._waiting[key]


class Bucket:
    """A budget of tokens that fills up by the hour; more may be taken than is there, which then is owed."""

    def __init__(self, tokens_per_hour: int, now: float) -> None:
        self.tokens_per_hour = tokens_per_hour
        self._most, self._rate = float(tokens_per_hour), tokens_per_hour / 3600
        self._tokens, self._at = self._most, now

    def wait_seconds(self, now: float) -> float:
        """Until something is left; 0 if there is."""
        self._fill(now)
        return 0.0 if self._tokens > 0 else (1 - self._tokens) / self._rate

    def take(self, tokens: int, now: float) -> None:
        self._fill(now)
        self._tokens -= tokens

    def _fill(self, now: float) -> None:
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
