"""Reads weights of GGUF files as float32: whole tensors, one of a stack, or some rows; never more than is asked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from penjing.errors import BadFile
from penjing.gguf.cursor import fetch_again
from penjing.gguf.header import Header, TensorInfo
from penjing.quantize.native import Native
from penjing.units import MIB

PIECE_BYTES = 32 * MIB  # of float32 at a time
_NOT_WEIGHTS = frozenset({"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K"})  # nothing makes floats of them


class Tensors:
    """The tensors of a file, or of all its parts. Shapes are numpy's: rows before columns, experts first."""

    def __init__(self, header: Header, native: Native) -> None:
        self.infos = {info.name: info for info in header.tensors}
        self._files = header.files
        self._native = native

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape[::-1]

    def read(self, name: str, number: int | None = None) -> np.ndarray:
        """A tensor, or `number` of a stack."""
        info, shape = self._info(name), self.shape(name)
        rows = _row_count(info)
        if number is None:
            return self._rows(info, 0, rows).reshape(shape)
        each = rows // shape[0]
        return self._rows(info, number * each, each).reshape(shape[1:])

    def rows(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, in ascending order, of a matrix: (numbers, columns)."""
        info = self._info(name)
        return np.concatenate([self._rows(info, start, stop - start) for start, stop in runs(numbers)])

    def raw(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows as they are stored: uint8 (rows, bytes of a row)."""
        return self._stored(self._info(name), start, stop - start)

    def pieces(self, name: str) -> Iterator[tuple[int, int, int]]:
        """(expert, first row, row after the last) of pieces that stay within one expert and small in memory."""
        info = self._info(name)
        each = info.shape[1] if len(info.shape) > 1 else 1
        step = max(1, PIECE_BYTES // (4 * info.shape[0]))
        for expert in range(_row_count(info) // each):
            for start in range(0, each, step):
                yield expert, expert * each + start, expert * each + min(start + step, each)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.infos:
            raise self._bad(self._files[0], f"lacks the tensor `{name}`")
        return self.infos[name]

    def _rows(self, info: TensorInfo, start: int, count: int) -> np.ndarray:
        """`count` rows from `start` of the tensor seen as a matrix, float32."""
        file = self._files[info.file]
        if info.type in _NOT_WEIGHTS:
            raise self._bad(file, f"stores `{info.name}` in {info.type}, which holds no weights")
        values = self._native.dequantize(info.type, self._stored(info, start, count))
        if not np.isfinite(values).all():
            raise self._bad(file, f"has NaN or infinity in the tensor `{info.name}`")
        return values

    def _stored(self, info: TensorInfo, start: int, count: int) -> np.ndarray:
        row_bytes = info.n_bytes // _row_count(info)
        file, offset = self._files[info.file], info.offset + start * row_bytes
        data = np.fromfile(file, dtype=np.uint8, count=count * row_bytes, offset=offset)
        if len(data) < count * row_bytes:
            raise self._bad(file, f"ends within the tensor `{info.name}`")
        return data.reshape(count, row_bytes)

    def _bad(self, file: str, problem: str) -> BadFile:
        return BadFile(f"`{file}` {problem}", fetch_again(file))


def runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Ascending numbers as ranges without gaps, (first, last + 1): neighbours are read at once."""
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]


def _row_count(info: TensorInfo) -> int:
    count = 1
    for size in info.shape[1:]:
        count *= size
    return count
