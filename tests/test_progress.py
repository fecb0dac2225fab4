"""Bars and talk go to stderr, and bars only to a terminal."""

import os
import pty
import subprocess
import sys

import pytest

from penjing import progress

WORK = """
from penjing import progress
with progress.bar("working [hard]", 4, in_bytes={in_bytes}) as bar:
    for _ in range(4):
        bar.advance(1)
progress.say("done")
print("data")
"""


@pytest.mark.parametrize("total", [4, None])
def test_silent_without_a_terminal(total: float | None, capfd: pytest.CaptureFixture[str]) -> None:
    """Where stderr is a pipe there is no bar, and no terminal codes, but the talk."""
    with progress.bar("working", total) as bar:
        bar.advance(3)
    progress.say("done")
    assert capfd.readouterr() == ("", "done\n")


@pytest.mark.parametrize("in_bytes", [False, True])
def test_bar_on_a_terminal(in_bytes: bool) -> None:
    """On a terminal the bar is drawn on stderr, with its label as it is; stdout has the data alone."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", WORK.format(in_bytes=in_bytes)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        check=True,
    )
    os.close(theirs)
    talk = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.stdout == b"data\n"
    assert "working [hard]" in talk and "done" in talk
    assert ("4/4 bytes" if in_bytes else "100%") in talk
