"""What other work takes at this moment; the load average still remembers our own of a minute ago."""

from __future__ import annotations

import time
from pathlib import Path


def busy_share(seconds: float = 0.1, root: Path = Path("/")) -> float | None:
    """Share of all processors that was not idle during `seconds`; None where the system does not tell.

    Meant to be asked while penjing itself waits. Ticks are 10 ms, so that short times are coarse.
    """
    before = _ticks(root)
    time.sleep(seconds)
    after = _ticks(root)
    if before is None or after is None:
        return None
    total = sum(after) - sum(before)
    return None if total <= 0 else 1 - (_idle(after) - _idle(before)) / total


def _ticks(root: Path) -> list[int] | None:
    """The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        words = (root / "proc/stat").read_text().splitlines()[0].split()
        return [int(word) for word in words[1:9]]
    except (OSError, ValueError, IndexError):
        return None


def _idle(ticks: list[int]) -> int:
    return sum(ticks[3:5])
