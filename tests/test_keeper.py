"""One engine at a time: started again when it ends, stands still or hangs; nobody waits for a start in vain."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from penjing.errors import EngineError
from penjing.serve.keeper import Keeper


class Engine:
    """Lives until it is killed."""

    url, process_id = "", 0

    def __init__(self) -> None:
        self.killed = False

    def ended(self) -> str | None:
        return "it was killed" if self.killed else None

    def kill(self) -> None:
        self.killed = True


class Yard:
    """Where engines are started, each after `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.engines, self.told = seconds, [], []

    def start(self) -> Any:
        time.sleep(self.seconds)
        self.engines.append(Engine())
        return self.engines[-1]

    def tell(self, event: str, **figures: object) -> None:
        self.told.append((event, figures))

    def keeper(self, alive: Callable[[], Awaitable[object]], stall: float = 1.0) -> Keeper:
        return Keeper(self.start, alive, stall, self.tell)


def always(value: object) -> Callable[[], Awaitable[object]]:
    async def alive() -> object:
        return value

    return alive


def moving() -> Callable[[], Awaitable[object]]:
    steps = itertools.count()

    async def alive() -> object:
        return next(steps)

    return alive


@pytest.mark.parametrize(
    ("alive", "restarts"), [(always(b"step 7"), 1), (always(None), 0), (moving(), 0)],
    ids=["stands still", "has nothing to do", "moves"],
)  # fmt: skip
def test_an_engine_that_stands_still_is_started_again(alive, restarts):
    """It answers, but has work and takes no step; one without work, or one that moves, is left alone."""

    async def run() -> Yard:
        yard = Yard()
        keeper = yard.keeper(alive, stall=0.6)
        await keeper.begin()
        await asyncio.sleep(2.4)
        assert keeper.restarts >= restarts and (restarts or not keeper.restarts)
        await keeper.stop()
        return yard

    yard = asyncio.run(run())
    assert all(engine.killed for engine in yard.engines)
    assert restarts == 0 or any("took no step" in str(figures) for _, figures in yard.told)


def test_an_engine_that_ends_is_started_again():
    async def run() -> list[Engine]:
        yard = Yard()
        keeper = yard.keeper(always(None))
        await keeper.begin()
        yard.engines[0].killed = True
        await asyncio.sleep(1.2)
        assert keeper.state == "up" and keeper.restarts == 1
        await keeper.stop()
        return yard.engines

    assert len(asyncio.run(run())) == 2


def test_nobody_waits_for_a_start_that_is_given_up():
    """Stopping does not wait for a model that is still loading; the engine is ended when it comes."""

    async def run() -> tuple[float, Yard]:
        yard = Yard(seconds=0.8)
        keeper = yard.keeper(always(None))
        first = asyncio.create_task(keeper.begin())
        await asyncio.sleep(0.1)
        began = time.monotonic()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await keeper.stop()
        seconds = time.monotonic() - began
        await asyncio.sleep(1.0)
        return seconds, yard

    seconds, yard = asyncio.run(run())
    assert seconds < 0.4
    assert [engine.killed for engine in yard.engines] == [True]


def test_the_old_engine_comes_back_where_the_new_one_cannot_start():
    """Replacing is told of the failure, and the watch goes on with what worked before."""

    def fails() -> Any:
        raise EngineError("no such plan")

    async def run() -> Yard:
        yard = Yard()
        keeper = yard.keeper(always(None))
        await keeper.begin()
        with pytest.raises(EngineError):
            await keeper.replace(fails, 1.0)
        await asyncio.sleep(1.0)
        assert keeper.state == "up"
        await keeper.stop()
        return yard

    assert [engine.killed for engine in asyncio.run(run()).engines] == [True, True]
