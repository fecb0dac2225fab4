"""The engine's quantizers and dequantizers, called row by row on all cores.

They work on arrays of ours, whose sizes are checked here, and read no file: they run in this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from penjing.engines.llamacpp import library
from penjing.errors import UsageError
from penjing.formats import BY_NAME, type_bytes

_CHUNK_WEIGHTS = 2**18  # of one call: enough to hide its cost, few enough to keep all cores busy
IGNORES_IMPORTANCE = frozenset({"q8_0", "mxfp4", "nvfp4", "tq1_0", "tq2_0", "f16", "bf16", "f32"})


def usable_threads() -> int:
    """Logical CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Native:
    """Quantizers of the pinned engine. Cheap to call from several threads; the calls run outside Python's lock."""

    def __init__(self, threads: int | None = None) -> None:
        self._ffi, self._lib = library.bind()
        self.threads = threads or usable_threads()
        self._pool = ThreadPoolExecutor(self.threads)

    def needs_importance(self, kind: str) -> bool:
        """The quantizer cannot work without weights of the columns."""
        return bool(self._lib.ggml_quantize_requires_imatrix(BY_NAME[kind].id))

    def quantize(self, kind: str, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
        """`rows`, float32 (rows, columns), as uint8 (rows, bytes of a row).

        `importance`, float32 (columns,), weighs the squared error of each column.
        """
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        n_rows, n_columns = rows.shape
        row_bytes = type_bytes(kind, n_columns, n_columns)
        if kind in _PLAIN:
            return _PLAIN[kind](rows).view(np.uint8).reshape(n_rows, row_bytes)
        weights = self._ffi.NULL
        if importance is None and self.needs_importance(kind):  # without any, the library would abort
            importance = np.ones(n_columns, dtype=np.float32)
        if importance is not None and kind not in IGNORES_IMPORTANCE:
            importance = np.ascontiguousarray(importance, dtype=np.float32)
            if importance.shape != (n_columns,):
                raise UsageError(f"{importance.shape[0]} importances for {n_columns} columns")
            weights = self._pointer("float *", importance)
        out = np.empty((n_rows, row_bytes), dtype=np.uint8)
        number = BY_NAME[kind].id
        self._lib.ggml_quantize_init(number)

        def work(start: int, stop: int) -> None:
            self._lib.ggml_quantize_chunk(
                number, self._pointer("float *", rows[start:stop]), self._pointer("void *", out[start:stop]),
                0, stop - start, n_columns, weights,
            )  # fmt: skip

        self._spread(work, n_rows, n_columns)
        return out

    def dequantize(self, kind: str, data: np.ndarray) -> np.ndarray:
        """uint8 (rows, bytes of a row) back to float32 (rows, columns)."""
        data = np.ascontiguousarray(data)
        n_rows, row_bytes = data.shape
        n_columns = row_bytes // BY_NAME[kind].block_bytes * BY_NAME[kind].block_weights
        if kind in _NUMPY:
            return np.asarray(data.view(_NUMPY[kind]), dtype=np.float32)
        out = np.empty((n_rows, n_columns), dtype=np.float32)
        to_float = self._lib.ggml_get_type_traits(BY_NAME[kind].id).to_float

        def work(start: int, stop: int) -> None:
            source, target = (
                self._pointer("void *", data[start:stop]),
                self._pointer("float *", out[start:stop]),
            )
            to_float(source, target, (stop - start) * n_columns)

        self._spread(work, n_rows, n_columns)
        return out

    def _spread(self, work: Callable[[int, int], None], n_rows: int, n_columns: int) -> None:
        step = max(1, _CHUNK_WEIGHTS // n_columns)
        starts = range(0, n_rows, step)
        list(self._pool.map(lambda start: work(start, min(start + step, n_rows)), starts))

    def _pointer(self, kind: str, array: np.ndarray) -> Any:
        return self._ffi.cast(kind, array.ctypes.data)


def _bf16(rows: np.ndarray) -> np.ndarray:
    """Round to nearest even, as ggml does."""
    bits = rows.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


_NUMPY = {"f32": np.float32, "f16": np.float16}
_PLAIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "f32": lambda rows: rows,
    "f16": lambda rows: rows.astype(np.float16),
    "bf16": _bf16,
}
