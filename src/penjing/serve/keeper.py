"""Keeps one engine up: starts it, watches it, and starts it again when it crashes or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from penjing.engines.base import Serving
from penjing.errors import EngineError
from penjing.serve.hand import Hand

State = Literal["starting", "up", "down", "stopped"]
Start = Callable[[], Serving]
Tell = Callable[..., None]

_LOOK_SECONDS = 0.25
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STEADY_SECONDS = 60.0  # up for so long, an engine that ends starts again at once


class Keeper:
    """One engine at a time, made by `start`.

    `alive` asks it how far it has come, for which it may take as long as `stall_seconds`: None while it has nothing to
    do, else something that changes with each step. It is called when nothing was `heard` for a while.
    """

    def __init__(
        self, start: Start, alive: Callable[[], Awaitable[object]], stall_seconds: float, tell: Tell
    ) -> None:
        self._start, self._alive, self._stall_seconds, self._tell = start, alive, stall_seconds, tell
        self._hand = Hand()
        self._up = asyncio.Event()
        self._serving: Serving | None = None
        self._watching: asyncio.Task[None] | None = None
        self._heard = 0.0
        self._doubted = False
        self.state: State = "stopped"
        self.restarts = 0

    async def begin(self) -> None:
        """Start the engine for the first time, and watch it from then on.

        Raises:
            EngineError: it cannot be started at all.
        """
        await self._launch()
        self._watching = asyncio.create_task(self._watch())

    async def up(self, limit_seconds: float) -> bool:
        """Wait until the engine answers; whether it did so in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                await self._up.wait()
        return self._up.is_set()

    def heard(self) -> None:
        """Something came from the engine."""
        self._heard = time.monotonic()

    def doubt(self) -> None:
        """A request has lost the engine: nobody else is sent there until it was seen to be well."""
        self._up.clear()
        self._doubted = True

    async def replace(self, start: Start, stall_seconds: float) -> None:
        """Another engine in the place of this one; the old one comes back if the new one cannot be started.

        Raises:
            EngineError: the new one cannot be started.
        """
        before = self._start
        await self._end_watch()
        await self._close()
        self._start, self._stall_seconds = start, stall_seconds
        try:
            await self._launch()
        except EngineError:
            self._start = before
            raise
        finally:
            self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        await self._end_watch()
        await self._close()
        self._hand.close()
        self.state = "stopped"

    async def _watch(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            if self._serving is not None:
                why = await self._until_broken(self._serving)
                self._tell("engine_lost", why=why)
                await self._close()
                self.restarts += 1
            pause = _FIRST_PAUSE if time.monotonic() - began > _STEADY_SECONDS else pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                await self._launch()
            except Exception as error:  # whatever it is: the next try may do better
                self._tell("engine_failed", why=str(error), pause_seconds=pause)

    async def _launch(self) -> None:
        self.state = "starting"
        started = time.monotonic()
        try:
            self._serving = await self._hand.do(self._start, lambda late: late.kill())
        except BaseException:
            self.state = "down"
            raise
        self.state = "up"
        self._well()
        self._tell("engine_up", seconds=round(time.monotonic() - started, 3), pid=self._serving.process_id)

    def _well(self) -> None:
        self.heard()
        self._doubted = False
        self._up.set()

    async def _until_broken(self, serving: Serving) -> str:
        """Returns, in words, what became of the engine."""
        before: object = None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if (said := serving.ended()) is not None:
                return said
            silent = time.monotonic() - self._heard
            if not self._doubted and silent <= self._stall_seconds / 2:
                continue
            try:
                async with asyncio.timeout(self._stall_seconds / 2):
                    now = await self._alive()
            except TimeoutError:
                return f"the engine gave no sign of life for {self._stall_seconds:.0f} s"
            except OSError:
                if silent > self._stall_seconds:
                    return f"the engine could not be reached for {silent:.0f} s"
                continue  # perhaps it is ending: the next look tells
            if now is None or now != before:
                self._well()
            elif silent > self._stall_seconds:
                return f"the engine has work, and took no step for {silent:.0f} s"
            before = now

    async def _close(self) -> None:
        self._up.clear()
        self.state = "down"
        serving, self._serving = self._serving, None
        if serving is not None:
            await self._hand.do(serving.kill)

    async def _end_watch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
