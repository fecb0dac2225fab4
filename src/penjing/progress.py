"""Talk on stderr: a bar for long work, a line for what was decided. stdout stays data."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """Long work that says how far it is; without a display, to nobody."""

    def __init__(self, shown: tuple[Progress, TaskID] | None = None) -> None:
        self._shown = shown

    def advance(self, amount: float) -> None:
        """`amount` more is done, in the unit of the bar's total."""
        if self._shown:
            display, task = self._shown
            display.advance(task, amount)


@contextlib.contextmanager
def bar(label: str, total: float | None, *, in_bytes: bool = False) -> Iterator[Bar]:
    """A progress bar on stderr while the block runs; nothing where stderr is no terminal.

    `total` None means that nobody knows how long it takes; `in_bytes` shows sizes and speed.
    """
    if not sys.stderr.isatty():
        yield Bar()
        return
    with _display(in_bytes) as display:
        yield Bar((display, display.add_task(label, total=total)))


def _display(in_bytes: bool) -> Progress:
    from rich import progress
    from rich.console import Console

    amounts = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        *(amounts if in_bytes else (progress.TaskProgressColumn(),)),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def say(text: str) -> None:
    """One line of talk on stderr."""
    print(text, file=sys.stderr, flush=True)
