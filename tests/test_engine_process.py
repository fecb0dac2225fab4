"""The child process: it talks in frames, keeps its limits, and never outlives its owner."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import penjing, wait_for
from penjing.engines.base import Message, Sampling
from penjing.engines.llamacpp import LlamaCpp
from penjing.engines.process import Child
from penjing.errors import EngineDied, EngineTimeout
from penjing.plan import Settings

SMALL = Settings(1, 1, context_tokens=1024)
MEMORY_HINT = "SIGKILL often means that memory ran out: try a smaller `--context` or `--memory`"
USUAL_HINT = "run it again; if the error stays, check the file with another program"

ECHO = """
import os, subprocess, sys, time
from penjing.engines.process import die_with_parent, pack, read_frame, take_stdout, write_all

die_with_parent()
out = take_stdout()
while frame := read_frame(sys.stdin.buffer):
    exec(frame[0].decode())
"""
SAY = "write_all(out, pack({document!r}, {payload!r}))"


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """A child that does whatever the frames that it is sent say."""
    (tmp_path / "obedient.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Child("obedient")
    yield made
    made.close(grace_seconds=0.2)


def is_running(pid: int) -> bool:
    """There is such a process, and it is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# --- frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "payload"), [(b"{}", b""), (b"", b"x"), ("盆景".encode(), bytes(range(256)) * 8192)]
)
def test_frames_arrive_as_they_were_sent(child: Child, document: bytes, payload: bytes):
    """Documents and payloads of any size cross both ways unchanged."""
    child.send(SAY.format(document=document, payload=payload).encode())

    assert child.receive(20, "saying it") == (document, payload)


def test_frames_keep_their_order(child: Child):
    """Many frames written at once are read one by one."""
    child.send(b"for n in range(100): write_all(out, pack(b'%d' % n))")

    assert [child.receive(20, "counting")[0] for _ in range(100)] == [b"%d" % n for n in range(100)]


def test_what_libraries_print_is_no_frame(child: Child):
    """Text on the child's stdout, from Python or from below it, goes to its log."""
    child.send(b"print('chatter', flush=True); os.write(1, b'noise\\n'); write_all(out, pack(b'frame'))")

    assert child.receive(20, "chattering")[0] == b"frame"
    assert wait_for(lambda: list(child.log) == ["chatter", "noise"])


def test_a_frame_that_cannot_be_is_refused(child: Child):
    """A child that claims to send gigabytes is ended, and none of them is waited for."""
    child.send(b"write_all(out, b'\\xff' * 8)")

    with pytest.raises(EngineDied, match="the engine sent a frame of 8589934590 bytes"):
        child.receive(20, "lying")
    assert not is_running(child.process.pid)


# --- its end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "problem", "hint"),
    [
        ("sys.exit(3)", "the engine ended with exit code 3", USUAL_HINT),
        ("os.kill(os.getpid(), 9)", "the engine ended by SIGKILL", MEMORY_HINT),
        (
            "print('loading', file=sys.stderr); print('GGML_ASSERT(x > 0) failed', file=sys.stderr); os.abort()",
            "the engine ended by SIGABRT: GGML_ASSERT(x > 0) failed",
            USUAL_HINT,
        ),
        (
            "print('0.01.234.567 E srv: error: no room', file=sys.stderr); os._exit(1)",
            "the engine ended with exit code 1: srv: error: no room",
            USUAL_HINT,
        ),
    ],
)
def test_the_end_of_a_child_is_told_in_words(child: Child, work: str, problem: str, hint: str):
    """How it ended, and the line of its log that says why."""
    child.send(work.encode())

    with pytest.raises(EngineDied) as caught:
        child.receive(20, "working")

    assert (str(caught.value), caught.value.hint) == (problem, hint)


def test_a_dead_child_cannot_be_asked(child: Child):
    """Sending to a child that is gone raises the same error as waiting for it."""
    child.process.kill()
    child.process.wait()

    with pytest.raises(EngineDied, match="the engine ended by SIGKILL"):
        child.send(b"pass")


def test_a_hanging_child_is_killed_after_its_limit(child: Child):
    """The error says what it was doing and for how long it was waited; the process is gone."""
    child.send(b"while True: pass")
    start = time.monotonic()

    with pytest.raises(EngineTimeout) as caught:
        child.receive(0.6, "counting to infinity")

    assert str(caught.value) == "the engine did not finish counting to infinity within 1 s and was stopped"
    assert "check where the file came from" in caught.value.hint
    assert 0.5 < time.monotonic() - start < 5
    assert not is_running(child.process.pid)


def test_closing_ends_a_child_that_does_not_listen(child: Child):
    """After the grace time it is killed, with whatever it had started; closing again does no harm."""
    child.send(b"write_all(out, pack(b'%d' % subprocess.Popen(['sleep', '600']).pid)); time.sleep(600)")
    grandchild = int(child.receive(20, "starting")[0])
    start = time.monotonic()

    child.close(grace_seconds=0.2)
    child.close(grace_seconds=0.2)

    assert time.monotonic() - start < 5
    assert not is_running(child.process.pid)
    assert wait_for(lambda: not is_running(grandchild))


def test_the_keyboard_does_not_reach_a_child(child: Child):
    """It has a session of its own, so that Ctrl-C in a terminal is its owner's to deal with."""
    assert os.getsid(child.process.pid) == child.process.pid != os.getsid(0)


# --- its owner --------------------------------------------------------------------------------------------

OWNER = """
import sys, time
from pathlib import Path
from penjing.engines.base import Sampling
from penjing.engines.llamacpp import LlamaCpp
from penjing.plan import Settings

session = LlamaCpp().open(Path(sys.argv[1]), Settings(1, 1, context_tokens=8192))
pieces = session.generate(session.tokenize("On"), 8000, Sampling(seed=1))
next(pieces)
print(session.process_id, flush=True)
time.sleep(600)
"""


def test_a_child_dies_with_its_owner(tiny: Path):
    """SIGKILL to the owner, which leaves it no time for anything, ends the engine even in mid-answer."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tiny)], stdout=subprocess.PIPE)
    with owner:
        pid = int(owner.stdout.readline())
        assert is_running(pid)

        owner.kill()

        assert wait_for(lambda: not is_running(pid))


def test_a_child_whose_owner_died_before_it_asked_ends(tmp_path: Path):
    """The owner's process id is its argument; if that is not its parent any more, it ends at once."""
    code = "from penjing.engines.process import die_with_parent; die_with_parent(); print('lives')"

    mine = subprocess.run([sys.executable, "-c", code, str(os.getpid())], capture_output=True, text=True)
    gone = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, text=True)

    assert (mine.returncode, mine.stdout) == (0, "lives\n")
    assert (gone.returncode, gone.stdout) == (1, "")


@pytest.mark.usefixtures("known")
def test_penjing_can_be_the_first_process_of_a_container(tiny: Path):
    """Process number 1 is an owner like any other."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no process namespace")

    done = penjing("run", str(tiny), "On", "--max-tokens", "3", prefix=alone)

    assert done.code == 0, done
    assert done.stdout.strip()


def test_an_exception_leaves_no_engine_behind(tiny: Path):
    """Leaving the block by any way ends the child."""
    with pytest.raises(ZeroDivisionError), LlamaCpp().open(tiny, SMALL) as session:
        pid = session.process_id
        assert is_running(pid)
        1 / 0  # noqa: B018

    assert not is_running(pid)


def test_a_killed_engine_is_told_of_in_mid_answer(tiny: Path):
    """The text so far has come, then the error; the session can be closed as ever."""
    with LlamaCpp().open(tiny, SMALL) as session:
        pieces = session.generate(session.tokenize("On"), 900, Sampling(seed=1))
        assert next(pieces).text
        os.kill(session.process_id, signal.SIGKILL)

        with pytest.raises(EngineDied) as caught:
            list(pieces)

    assert (str(caught.value), caught.value.hint) == ("the engine ended by SIGKILL", MEMORY_HINT)


def test_a_stopped_engine_is_killed_after_the_start_limit(tmp_path: Path):
    """A file that cannot be read to its end, a pipe, keeps the engine waiting: the limit ends that."""
    path = tmp_path / "endless.gguf"
    os.mkfifo(path)
    start = time.monotonic()

    with pytest.raises(EngineTimeout) as caught:
        LlamaCpp().open(path, SMALL, start_seconds=1.0)

    assert str(caught.value) == "the engine did not finish loading `endless.gguf` within 1 s and was stopped"
    assert time.monotonic() - start < 10


def test_messages_with_odd_characters_reach_the_engine(tiny: Path):
    """Null bytes, line separators and emoji cross the pipe as they are."""
    with LlamaCpp().open(tiny, SMALL) as session:
        assert "a\0b\u2028🎉\r\n" in session.render([Message("user", "a\0b\u2028🎉\r\n")])
