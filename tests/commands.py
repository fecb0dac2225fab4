"""Runs `penjing` as its users do, in a process of its own, and sees to it that nothing outlives it.

Every process that a command starts inherits a mark in its environment; by that mark they are found.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

import random_model
from gguf_files import real_model
from penjing.cli import main
from penjing.fingerprint import fingerprint

LIMIT_SECONDS = 120.0
_MARK = "TEST_COMMAND_MARK"
_PROC = Path("/proc")


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    stdout: str
    stderr: str


class Command:
    """A running command. `prefix` words come before it, as `setpriv` or `unshare` need it."""

    def __init__(
        self,
        *words: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self._mark = uuid.uuid4().hex
        environment = {**os.environ, **(env or {}), _MARK: self._mark}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "penjing", *words],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
        )

    def family(self) -> dict[int, str]:
        """Id and command line of every process that is left of this command, itself included."""
        mark = f"{_MARK}={self._mark}".encode()
        found = {}
        for folder in _PROC.iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def engine(self) -> int:
        """The process id of the engine that this command runs."""
        (pid,) = (pid for pid, line in self.family().items() if "penjing.engines.llamacpp" in line)
        return pid

    def read(self, n_bytes: int) -> bytes:
        """The first of what it prints, at most `n_bytes`, as soon as there is any."""
        assert self.process.stdout is not None
        return os.read(self.process.stdout.fileno(), n_bytes)

    def read_until(self, end: bytes) -> bytes:
        """All that it prints until `end` is seen."""
        seen = b""
        while end not in seen:
            piece = self.read(1 << 16)
            assert piece, f"the output ended without {end!r}: {seen!r}, {self.finish()}"
            seen += piece
        return seen

    def document(self) -> dict[str, Any]:
        """What `serve --json` prints as soon as it answers."""
        found: dict[str, Any] = json.loads(self.read_until(b"\n}\n"))
        return found

    def finish(self, limit_seconds: float = LIMIT_SECONDS, given: bytes | None = None) -> Done:
        """Wait for its end. Fails if it takes longer, or leaves a process behind."""
        out, err = self.process.communicate(given, timeout=limit_seconds)
        assert wait_for(lambda: not self.family()), f"still running: {self.family()}"
        return Done(self.process.returncode, (out or b"").decode(), (err or b"").decode())

    def kill(self) -> None:
        """End what is left of it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def started(*words: str, **how: object) -> Iterator[Command]:
    """A running command, ended with the block whatever happens in it."""
    command = Command(*words, **how)  # type: ignore[arg-type]
    try:
        yield command
    finally:
        command.kill()


def penjing(
    *words: str, given: str | bytes | None = None, limit_seconds: float = LIMIT_SECONDS, **how: object
) -> Done:
    """Run a command to its end; `given` is its stdin, which is empty otherwise."""
    if given is not None:
        how["stdin"] = subprocess.PIPE
    data = given.encode() if isinstance(given, str) else given
    with started(*words, **how) as command:
        return command.finish(limit_seconds, data)


def refusal(done: Done) -> tuple[str, str]:
    """The problem and the hint of a command that refused: code 2, one line each, last, and no traceback."""
    *talk, problem, gap, hint = done.stderr.splitlines()
    assert done.code == 2, done
    assert problem.startswith("error: ") and gap == "" and hint.startswith("hint: "), done.stderr
    assert len(problem) > len("error: ") and len(hint) > len("hint: "), done.stderr
    assert not any(line.startswith(("error:", "hint:", "Traceback")) for line in talk), done.stderr
    return problem.removeprefix("error: "), hint.removeprefix("hint: ")


def refused(*words: str, **how: object) -> tuple[str, str]:
    """Run a command that must refuse, and print nothing on stdout; returns the problem and the hint."""
    done = penjing(*words, **how)  # type: ignore[arg-type]
    assert done.stdout == "", done
    return refusal(done)


def wait_for(condition: Callable[[], bool], limit_seconds: float = 5.0) -> bool:
    """Whether `condition` comes true in time."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def without_privilege() -> list[str]:
    """Words before a command that take from root its right to files of others; others have none."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root without `setpriv` can read everything")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Calls a command that refuses before it starts any process; gives the problem and the hint."""

    def call(*words: str) -> tuple[str, str]:
        code = main(words)
        printed = capsys.readouterr()
        assert printed.out == ""
        return refusal(Done(code, printed.out, printed.err))

    return call


# --- what is measured once for all tests ------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two small layers with random weights in Q4_0: for all where content does not matter."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    random_model.write(path, "tiny", "Q4_0")
    return path


@pytest.fixture(scope="session")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that knows this machine, the model that ships and `tiny`, measured once by `plan`.

    The rates serve beside any load, so that no test has to measure again.
    """
    cache = tmp_path_factory.mktemp("measured")
    short, long = ("Hi", "--max-tokens", "8"), ("Hi", "--max-tokens", "4000")
    asked = (("run", *short), ("plan",), ("run", str(tiny), *short), ("run", str(tiny), *long))
    served = (
        ("plan", "--users", "2", "--context", "1024"),
        *(("plan", str(tiny), "--users", n) for n in "24"),
    )
    for words in (*asked, *served):
        done = penjing(*words, env={"PENJING_CACHE": str(cache)}, limit_seconds=300)
        assert done.code == 0, done
    for rates in list((cache / "rates").iterdir()):
        for load in ("quiet", "busy"):
            name = rates.stem.rpartition("-")[0] + f"-{load}.json"
            if not (cache / "rates" / name).exists():
                shutil.copy(rates, cache / "rates" / name)
    return cache


@pytest.fixture
def known(measured: Path) -> Path:
    """This test's own cache folder, filled from `measured`."""
    cache = Path(os.environ["PENJING_CACHE"])
    shutil.copytree(measured, cache)
    return cache


def lend_rates(cache: Path, owner: Path, borrower: Path) -> None:
    """Take the rates of one model file for another one of the same weights."""
    if fingerprint([owner]) == fingerprint([borrower]):
        return
    for rates in list((cache / "rates").glob(f"{fingerprint([owner])}-*")):
        shutil.copy(rates, rates.with_name(rates.name.replace(fingerprint([owner]), fingerprint([borrower]))))


__all__ = [
    "Command", "Done", "known", "lend_rates", "measured", "penjing", "real_model", "refusal", "refused",
    "refuses", "started", "tiny", "wait_for", "without_privilege",
]  # fmt: skip
