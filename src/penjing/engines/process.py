"""A child process that talks in frames and never outlives its owner.

A frame is two big-endian 32-bit lengths, then a JSON document, then raw bytes. What the child writes to
stderr is kept (the last lines of it), because it is the only thing that a crash leaves behind.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from penjing.errors import EngineDied, EngineTimeout

_HEADER = struct.Struct(">II")
_MAX_FRAME_BYTES = 2**30
_TELLING = re.compile(r"assert|terminate called|what\(\)|error", re.I)
_STAMP = re.compile(r"^[\d.]+ [DIWE] ")  # time and level, before a line of the server's log


def pack(document: bytes, payload: bytes | memoryview = b"") -> bytes:
    """One frame, ready to be written."""
    return _HEADER.pack(len(document), len(payload)) + document + bytes(payload)


def read_frame(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    """The next frame of a blocking stream, None at its end."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    n_document, n_payload = _HEADER.unpack(header)
    return stream.read(n_document), stream.read(n_payload)


class Child:
    """`python -m MODULE` in a process group of its own, spoken to over pipes.

    `name` is what errors call it; `if_killed` and `if_slow` are their hints where memory or time ran out.
    """

    def __init__(
        self,
        module: str,
        env: Mapping[str, str] | None = None,
        *,
        name: str = "the engine",
        if_killed: str = "try a smaller `--context` or `--memory`",
        if_slow: str = "a damaged file can make it hang; check where the file came from, or try a smaller context",
    ) -> None:
        self.name, self._if_killed, self._if_slow = name, if_killed, if_slow
        self._buffer = bytearray()
        self.log: collections.deque[str] = collections.deque(maxlen=400)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal reaches the owner alone, who stops the child in order
            # the backtrace of a crash starts a debugger, for minutes
            env={**os.environ, **(env or {}), "GGML_NO_BACKTRACE": "1"},
        )
        self._listener = threading.Thread(target=self._collect_log, daemon=True)
        self._listener.start()

    def send(self, document: bytes, payload: bytes = b"") -> None:
        """Raises EngineDied if the child is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(pack(document, payload))
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self.died() from error

    def receive(self, limit_seconds: float, doing: str) -> tuple[bytes, bytes]:
        """The next frame.

        Raises:
            EngineTimeout: none within `limit_seconds`; the child is killed.
            EngineDied: the child ended.
        """
        deadline = time.monotonic() + limit_seconds
        header = self._read(_HEADER.size, deadline, limit_seconds, doing)
        n_document, n_payload = _HEADER.unpack(header)
        if n_document + n_payload > _MAX_FRAME_BYTES:
            self.kill()
            raise EngineDied(f"{self.name} sent a frame of {n_document + n_payload} bytes")
        document = self._read(n_document, deadline, limit_seconds, doing)
        return document, self._read(n_payload, deadline, limit_seconds, doing)

    def close(self, grace_seconds: float = 3.0) -> None:
        """End the child: by end of input, and by SIGKILL to its group after the grace time."""
        with contextlib.suppress(OSError, ValueError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._listener.join(1.0)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def kill(self) -> None:
        """SIGKILL to the child's process group; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def died(self) -> EngineDied:
        """The error for a child that has ended, or is ending: how, and its own words."""
        self.close()
        code = self.process.returncode
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        said = self.telling_line()
        hint = ""
        if code == -signal.SIGKILL:
            hint = f"SIGKILL often means that memory ran out: {self._if_killed}"
        return EngineDied(f"{self.name} ended {how}" + (f": {said}" if said else ""), hint=hint)

    def telling_line(self) -> str:
        """The line of the log that says most about what went wrong, empty if none does."""
        return next((_STAMP.sub("", line.strip())[:300] for line in self.log if _TELLING.search(line)), "")

    def _read(self, n_bytes: int, deadline: float, limit_seconds: float, doing: str) -> bytes:
        assert self.process.stdout is not None
        handle = self.process.stdout.fileno()
        while len(self._buffer) < n_bytes:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                self.kill()
                raise EngineTimeout(
                    f"{self.name} did not finish {doing} within {limit_seconds:.0f} s and was stopped",
                    hint=self._if_slow,
                )
            data = os.read(handle, 1 << 20)
            if not data:
                raise self.died()
            self._buffer += data
        taken = bytes(self._buffer[:n_bytes])
        del self._buffer[:n_bytes]
        return taken

    def _collect_log(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stderr:
                self.log.append(line.decode("utf-8", "replace").rstrip())


def die_with_parent() -> None:
    """Called in the child: ask Linux for a SIGKILL when the owner dies, however it dies.

    Linux watches the thread that started the child: one that ends takes its children with it.

    The owner's process id is our first argument: asking for number 1 would be no test, for in a
    container penjing itself can have it.
    """
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):  # it died before we asked
        os._exit(1)


def take_stdout() -> IO[bytes]:
    """Called in the child: a private copy of stdout for frames; whatever libraries print goes to stderr."""
    private = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return private


def write_all(stream: IO[bytes], data: Sequence[int] | bytes) -> None:
    """Write all of `data` to an unbuffered stream."""
    view = memoryview(bytes(data))
    while view:
        view = view[stream.write(view) or 0 :]
