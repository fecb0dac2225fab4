"""Lines of JSON on stderr, written by a thread: a reader that stops reading must not stop the server."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from typing import Any

_MOST_LINES = 10_000  # that wait for a reader; beyond them lines are lost, and counted

_lines: queue.SimpleQueue[str] = queue.SimpleQueue()
_state = {"writer": False, "lost": 0}


def log(event: str, **figures: Any) -> None:
    """One line; it holds nothing of what was said."""
    if _lines.qsize() > _MOST_LINES:
        _state["lost"] += 1
        return
    lost, _state["lost"] = _state["lost"], 0
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"time": now, "event": event, **figures, **({"lost_lines": lost} if lost else {})}
    _lines.put(json.dumps(line, ensure_ascii=False) + "\n")
    if not _state["writer"]:
        _state["writer"] = True
        threading.Thread(target=_write, daemon=True, name="journal").start()


def flush(limit_seconds: float = 2.0) -> None:
    """Wait until what was said is written, for a while."""
    deadline = time.monotonic() + limit_seconds
    while not _lines.empty() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.01)  # the last line is taken before it is written


def _write() -> None:
    while True:
        line = _lines.get()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line)
            sys.stderr.flush()
