"""Talk on stderr: a bar for long work, a line for what was decided. stdout stays data."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Bar(Protocol):
    """Long work that says how far it is."""

    def advance(self, amount: float) -> None:
        """`amount` more is done, in the unit of the bar's total."""
        ...


class _Silent:
    def advance(self, amount: float) -> None:
        pass


@contextlib.contextmanager
def bar(label: str, total: float | None, *, in_bytes: bool = False) -> Iterator[Bar]:
    """A progress bar on stderr while the block runs; nothing where stderr is no terminal.

    `total` None means that nobody knows how long it takes; `in_bytes` shows sizes and speed.
    """
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = (
        (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (TextColumn("{task.percentage:>3.0f} %"),)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield _Shown(display, display.add_task(label, total=total))


class _Shown:
    def __init__(self, display: object, task: object) -> None:
        self._display, self._task = display, task

    def advance(self, amount: float) -> None:
        self._display.advance(self._task, amount)  # type: ignore[attr-defined]


def say(text: str) -> None:
    """One line of talk on stderr."""
    print(text, file=sys.stderr, flush=True)
