"""Rounding in processes of their own.

Refining makes many short calls of numpy, each of which takes Python's lock: two threads of it gain a third, and more
gain nothing. A helper gets rows and moments, and gives bytes back; it touches no file. `python -m` of this module is
the helper.
"""

from __future__ import annotations

import sys
from queue import SimpleQueue
from types import TracebackType

import msgspec
import numpy as np
from msgspec import Struct

from penjing.engines.process import Child, die_with_parent, pack, read_frame, take_stdout, write_all
from penjing.errors import EngineDied
from penjing.quality.sensitivity import Moments
from penjing.quantize.errors import quantized
from penjing.quantize.native import Native
from penjing.quantize.rounding import WIDEST, Metric

_LIMIT_SECONDS = 1800.0
_BATCH_WEIGHTS = 2**21  # refined at a time: a dozen arrays of float32 like it are in memory
_BASE_BYTES = 80_000_000


class _Job(Struct, frozen=True):
    """What to round; the payload is rows, inputs and directions, float32. `matrix` names what the moments are of."""

    matrix: str
    kind: str
    shape: tuple[int, int]
    directions: int


class Helpers:
    """Up to `count` helpers, started when they are needed."""

    def __init__(self, count: int) -> None:
        self._idle: SimpleQueue[Child | None] = SimpleQueue()
        self._started: list[Child] = []
        self._closed = False
        for _ in range(count):
            self._idle.put(None)

    def __enter__(self) -> Helpers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        for child in self._started:
            if kind:
                child.kill()
            child.close()

    def quantized(self, matrix: str, kind: str, rows: np.ndarray, moments: Moments) -> np.ndarray:
        """`rows` of a matrix in the format `kind`, refined: uint8 (rows, bytes of a row). Waits for a free helper.

        Raises:
            EngineDied: the helper was killed, or ran out of memory.
        """
        child = self._idle.get()
        try:
            child = child or self._start()
            wide = np.empty((0, rows.shape[1])) if moments.directions is None else moments.directions
            job = _Job(matrix, kind, (rows.shape[0], rows.shape[1]), len(wide))
            parts = (np.ascontiguousarray(part, np.float32).data for part in (rows, moments.inputs, wide))
            child.send(msgspec.json.encode(job), b"".join(parts))
            _, data = child.receive(_LIMIT_SECONDS, "rounding")
        finally:
            self._idle.put(child)
        return np.frombuffer(data, dtype=np.uint8).reshape(rows.shape[0], -1)

    def _start(self) -> Child:
        if self._closed:
            raise EngineDied("the build was ended")
        hint = "close what else runs, or `--plain`: it needs less memory; the build goes on where it was"
        child = Child(
            __name__,
            {"OPENBLAS_NUM_THREADS": "1"},
            name="the helper that rounds",
            if_killed=hint,
            if_slow=hint,
        )
        self._started.append(child)
        return child


def helper_bytes(columns: int, piece_bytes: int) -> int:
    """Peak memory of a helper: what is kept of H and what its factor takes, a piece, and a batch in work."""
    span = min(columns, WIDEST)
    return _BASE_BYTES + 4 * columns * span + 4 * 8 * span**2 + piece_bytes + 16 * 4 * _BATCH_WEIGHTS


def main() -> None:
    """Answer jobs until the end of input."""
    sys.tracebacklimit = 0  # of a failure the owner shows one line: that of the error
    die_with_parent()
    out, native = take_stdout(), Native(1)
    matrix, metric = "", None
    while frame := read_frame(sys.stdin.buffer):
        job = msgspec.json.decode(frame[0], type=_Job)
        rows, moments = _unpacked(job, frame[1])
        if metric is None or matrix != job.matrix:
            matrix, metric = job.matrix, Metric(moments.form())
        write_all(out, pack(b"", _rounded(native, job.kind, rows, moments, metric)))


def _unpacked(job: _Job, payload: bytes) -> tuple[np.ndarray, Moments]:
    n_rows, n_columns = job.shape
    values = np.frombuffer(payload, dtype=np.float32)
    rows, inputs, wide = np.split(values, np.cumsum([n_rows * n_columns, n_columns]))
    nothing = np.empty(0, dtype=np.float32)
    directions = wide.reshape(job.directions, n_columns) if job.directions else None
    return rows.reshape(job.shape), Moments(inputs, nothing, nothing, directions)


def _rounded(native: Native, kind: str, rows: np.ndarray, moments: Moments, metric: Metric) -> bytes:
    """Batch by batch, for refining takes a dozen times what it refines."""
    step = max(1, _BATCH_WEIGHTS // rows.shape[1])
    batches = (rows[start : start + step] for start in range(0, len(rows), step))
    return b"".join(quantized(native, kind, batch, moments, metric).data for batch in batches)


if __name__ == "__main__":
    main()
