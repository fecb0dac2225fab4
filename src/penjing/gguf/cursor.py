"""Steps forward through the header of a file that nobody vouches for.

Every step is checked against the size of the file before it is taken, and memory grows only with
bytes that were really there: a file may claim what it likes, it costs at most `MAX_HEADER_BYTES`.
"""

from __future__ import annotations

import shlex
from pathlib import PurePath
from struct import Struct
from typing import BinaryIO

from penjing.errors import BadFile
from penjing.units import KIB, MIB

# The largest headers known, with a vocabulary of 262,144 tokens, are some 16 MiB.
MAX_HEADER_BYTES = 128 * MIB
# Gemma's 262,144 tokens and 514,906 merges are the most strings that a known model has.
MAX_STRINGS = 2**21
MAX_KEPT_BYTES = 16 * MIB

_CHUNK_BYTES = 64 * KIB
_ITEM_BYTES = 64  # what Python spends on a small object and the reference to it

U32 = Struct("<I")
U64 = Struct("<Q")


def printable(text: str, limit: int = 80) -> str:
    """`text` from a file, safe for a terminal: no control characters, not endless."""
    clean = "".join(c if c.isprintable() else "�" for c in text[:limit])
    return clean if len(text) <= limit else clean + "…"


def fetch_again(name: str) -> str:
    """The hint for a file that arrived incomplete or damaged."""
    base = shlex.quote(PurePath(name).name)
    return f"fetch it again: `hf download OWNER/REPOSITORY {base} --force-download`"


class Cursor:
    """A position in a header. `place` says, for errors, what is being read."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self.name = name
        self.size = size
        self.place = "the header"
        self.at = 0
        self._stream = stream
        self._buffer = bytearray()
        self._strings = 0
        self._kept_bytes = 0

    def bad(self, problem: str, hint: str = "") -> BadFile:
        """The error to raise; without a `hint` of its own, how to get a sound copy."""
        return BadFile(f"`{self.name}` {problem}", hint or fetch_again(self.name))

    def take(self, n_bytes: int) -> bytes:
        start = self.skip(n_bytes)
        return bytes(self._buffer[start : self.at])

    def unpack(self, layout: Struct) -> tuple[int, ...]:
        return layout.unpack_from(self._buffer, self.skip(layout.size))

    def u32(self) -> int:
        return self.unpack(U32)[0]

    def u64(self) -> int:
        return self.unpack(U64)[0]

    def skip(self, n_bytes: int) -> int:
        """Step over `n_bytes` that are in the file; returns where they start."""
        start, end = self.at, self.at + n_bytes
        if end > len(self._buffer):
            self._fill(end)
        self.at = end
        return start

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings without making Python strings of them: token lists are long."""
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise self.bad(f"has {self._strings} strings in its metadata, the most allowed is {MAX_STRINGS}")
        buffer, at, length = self._buffer, self.at, U64.unpack_from
        filled = len(buffer)
        for _ in range(count):
            at += 8
            if at > filled:
                self._fill(at)
                filled = len(buffer)
            at += length(buffer, at - 8)[0]
        self.skip(at - self.at)

    def keep(self, items: int, n_bytes: int = 0) -> None:
        """Account for `items` values of `n_bytes` in all that stay in memory."""
        self._kept_bytes += items * _ITEM_BYTES + n_bytes
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise self.bad(f"has metadata of more than {MAX_KEPT_BYTES} bytes beside its token lists")

    def _fill(self, end: int) -> None:
        """Have the first `end` bytes of the file in the buffer."""
        if end > self.size:
            raise self.bad(
                f"ends too early: it has {self.size} bytes, but {self.place} reaches to byte {end}"
            )
        if end > MAX_HEADER_BYTES:
            raise self.bad(f"has a header of at least {end} bytes, the most allowed is {MAX_HEADER_BYTES}")
        while len(self._buffer) < end:
            chunk = self._stream.read(min(_CHUNK_BYTES, self.size - len(self._buffer)))
            if not chunk:
                raise self.bad(f"shrank while it was read: it had {self.size} bytes, now {len(self._buffer)}")
            self._buffer += chunk
