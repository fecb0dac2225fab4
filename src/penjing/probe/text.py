"""Getting at text: a file of the system, or what a vendor's tool prints. Reading it is others' work.

Text that cannot be had is `""`, from which every reader of this package concludes "unknown".
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path("/")

TOOL_SECONDS = 3.0


def read(path: Path) -> str:
    """The text of a file; empty if it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def run(tool: str, *arguments: str, seconds: float = TOOL_SECONDS) -> str:
    """What `tool` prints; empty if it is not on PATH, fails, or needs longer than `seconds`."""
    path = shutil.which(tool)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def integer(text: str) -> int | None:
    """The whole number of up to 20 digits that `text` is, or None."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None
