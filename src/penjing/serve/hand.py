"""A thread for what blocks: engines are started and ended by it.

Linux ends a child with the thread that started it, so it lives as long as we do. Nobody waits for it at the end: what
it still starts then goes with the process.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Hand:
    """Does one call after the other."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="hand").start()

    async def do(self, call: Callable[[], T], undo: Callable[[T], object] = lambda _: None) -> T:
        """What `call` returns; it is undone if nobody waits for it any more when it comes."""
        loop = asyncio.get_running_loop()
        awaited: asyncio.Future[T] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if error is not None:
                if not awaited.cancelled():
                    awaited.set_exception(error)
            elif awaited.cancelled():
                undo(result)
            else:
                awaited.set_result(result)

        def work() -> None:
            result, error = _outcome(call)
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:  # the loop has come to its end
                if error is None:
                    undo(result)

        self._calls.put(work)
        return await awaited

    def close(self) -> None:
        """No calls come after those that wait."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _outcome(call: Callable[[], object]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except BaseException as error:  # it belongs to who asked
        return None, error
