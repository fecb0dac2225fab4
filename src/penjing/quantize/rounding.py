"""Codes and scales chosen for what the layer computes, not for each weight by itself.

The loss of a row is Δ·H·Δᵀ with Δ its rounding error and H the second moment of the layer's input, weighed by the
gradient: errors that cancel in the output cost nothing. The format stays as it is; only its free choices are used:

    feedback    columns are rounded one after the other, and the error of each is made up for by those that follow
                (Frantar et al., GPTQ, arXiv 2210.17323, with the scales of the format held fixed)
    sweeps      each code in turn is set to what is best given all others (coordinate descent)
    rescaling   each block's scale, and minimum where it has one, is set to what is best given the codes

Every step lowers the loss or leaves it; what is returned is never worse than what came in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from msgspec import Struct

from penjing.formats import BY_NAME
from penjing.quantize.codes import CODECS, Bytes, Codec, Floats, affine, pack, unpack

_BLOCK = 128  # columns between two updates of all that follow: few enough for the cache, enough for BLAS
_DAMPING = 0.01  # of the mean diagonal, so that H can be inverted whatever was sampled

# Byte of the half-precision scale (and of the minimum, where there is one) in a block.
_SCALES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "iq4_nl": (0,), "iq4_xs": (0,),
    "q2_K": (80, 82), "q3_K": (108,), "q4_K": (0, 2), "q5_K": (0, 2), "q6_K": (208,),
}  # fmt: skip

Dequantize = Callable[[str, Bytes], Floats]


class Metric:
    """H of some columns of a matrix, ready for use: damped so that it can be inverted, factored once for all rows."""

    def __init__(self, hessian: np.ndarray, columns: slice = slice(None)) -> None:
        self.columns = columns
        self.hessian = np.array(hessian, dtype=np.float32)
        mean = float(np.trace(self.hessian)) / len(self.hessian)
        self.hessian[np.diag_indices_from(self.hessian)] += _DAMPING * (mean or 1.0)

    @cached_property
    def order(self) -> np.ndarray:
        """Columns, the most important first."""
        return np.argsort(-np.diag(self.hessian), kind="stable")

    @cached_property
    def upper(self) -> np.ndarray:
        """U, upper triangular, with UᵀU = H⁻¹ of the ordered columns."""
        ordered = self.hessian[np.ix_(self.order, self.order)].astype(np.float64)
        flipped = np.linalg.cholesky(ordered[::-1, ::-1])[::-1, ::-1]  # H = flipped·flippedᵀ
        return np.ascontiguousarray(np.linalg.inv(flipped), dtype=np.float32)


class _State(Struct):
    """Rows in work, transposed so that a column of weights is contiguous: all arrays (columns, rows)."""

    codec: Codec
    target: Floats
    scale: Floats
    offset: Floats
    value: Floats
    hessian: np.ndarray


def refine(
    kind: str, rows: Floats, data: Bytes, metric: Metric, dequantize: Dequantize, sweeps: int = 2
) -> Bytes:
    """`data`, the quantized `rows`, with better codes and scales under `metric`.

    Types whose codes are not scalars (the IQ2 and IQ3 families) come back as they are.
    """
    if kind not in CODECS:
        return data
    codec, hessian = CODECS[kind], metric.hessian
    best, least = data, losses(rows, dequantize(kind, data), hessian)
    tried = pack(codec, data, _feedback(_state(codec, rows, data, hessian, dequantize), metric))
    for sweep in range(sweeps + 1):
        best, least = _better(kind, rows, hessian, dequantize, best, least, tried)
        if sweep < sweeps:
            tried = _rescaled(codec, rows, best, hessian, dequantize)
            best, least = _better(kind, rows, hessian, dequantize, best, least, tried)
            tried = pack(codec, best, _swept(_state(codec, rows, best, hessian, dequantize)))
    return best


def losses(rows: Floats, values: Floats, hessian: np.ndarray) -> np.ndarray:
    """Δ·H·Δᵀ of every row."""
    error = values - rows
    return np.asarray(np.einsum("ij,ij->i", error @ hessian, error))


def _better(kind: str, rows: Floats, hessian: np.ndarray, dequantize: Dequantize,
            best: Bytes, least: np.ndarray, tried: Bytes) -> tuple[Bytes, np.ndarray]:  # fmt: skip
    """Row by row the better of the two."""
    found = losses(rows, dequantize(kind, tried), hessian)
    better = found < least
    return np.where(better[:, None], tried, best), np.where(better, found, least)


def _state(codec: Codec, rows: Floats, data: Bytes, hessian: np.ndarray, dequantize: Dequantize) -> _State:
    scale, offset = affine(codec, data, dequantize)
    return _State(
        codec=codec,
        target=np.ascontiguousarray(rows.T),
        scale=np.ascontiguousarray(scale.T),
        offset=np.ascontiguousarray(offset.T),
        value=np.ascontiguousarray(dequantize(codec.type, data).T),
        hessian=hessian,
    )


class _Grid:
    """Nearest code of a format for wanted levels, uniform or not."""

    def __init__(self, codec: Codec) -> None:
        order = np.argsort(codec.levels, kind="stable")
        self.levels = np.asarray(codec.levels, dtype=np.float32)[order]
        self.codes = order.astype(np.uint8)
        self.uniform = bool((np.diff(self.levels) == 1).all())
        self.middles = (self.levels[1:] + self.levels[:-1]) / 2

    def place(self, wanted: Floats) -> np.ndarray:
        """Index into `levels` of the level nearest to each."""
        if self.uniform:
            clipped = np.clip(wanted, self.levels[0], self.levels[-1])
            return np.asarray(np.rint(clipped) - self.levels[0], dtype=np.uint8)
        return np.asarray(np.searchsorted(self.middles, wanted), dtype=np.uint8)


def _inverse(scale: Floats) -> Floats:
    return np.asarray(np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0))


def _feedback(state: _State, metric: Metric) -> np.ndarray:
    """GPTQ with fixed scales, most important columns first; codes as (rows, columns)."""
    order, upper = metric.order, metric.upper
    grid, inverse = _Grid(state.codec), _inverse(state.scale)
    left = state.target[order]
    codes = np.empty(left.shape, dtype=np.uint8)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]), dtype=np.float32)
        for j in range(start, stop):
            column = order[j]
            place = grid.place((left[j] - state.offset[column]) * inverse[column])
            codes[column] = grid.codes[place]
            value = state.scale[column] * grid.levels[place] + state.offset[column]
            error = (left[j] - value) / upper[j, j]
            left[j + 1 : stop] -= upper[j, j + 1 : stop, None] * error
            errors[j - start] = error
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return np.asarray(codes.T)


def _swept(state: _State) -> np.ndarray:
    """One pass of coordinate descent over all columns; codes as (rows, columns)."""
    grid, inverse = _Grid(state.codec), _inverse(state.scale)
    value, hessian = state.value.copy(), state.hessian
    pull = hessian @ (value - state.target)  # half the gradient
    codes = np.empty(value.shape, dtype=np.uint8)
    for start in range(0, len(value), _BLOCK):
        stop = min(start + _BLOCK, len(value))
        moved = np.empty((stop - start, value.shape[1]), dtype=np.float32)
        for j in range(start, stop):
            wanted = value[j] - pull[j] / hessian[j, j]
            place = grid.place((wanted - state.offset[j]) * inverse[j])
            codes[j] = grid.codes[place]
            moved[j - start] = state.scale[j] * grid.levels[place] + state.offset[j] - value[j]
            value[j] += moved[j - start]
            pull[j + 1 : stop] += hessian[j, j + 1 : stop, None] * moved[j - start]
        pull[stop:] += hessian[start:stop, stop:].T @ moved
    return np.asarray(codes.T)


def _rescaled(codec: Codec, rows: Floats, data: Bytes, hessian: np.ndarray, dequantize: Dequantize) -> Bytes:
    """Scales (and minima) by least squares, block after block, given the codes and all other blocks."""
    if codec.type not in _SCALES:
        return data
    size = BY_NAME[codec.type].block_weights
    blocks = data.reshape(len(data), -1, BY_NAME[codec.type].block_bytes).copy()
    fields = [_field(blocks, at) for at in _SCALES[codec.type]]
    units = _units(codec, rows, data, fields, dequantize)
    error = dequantize(codec.type, data) - rows
    pull = error @ hessian
    for b in range(blocks.shape[1]):
        span = slice(b * size, (b + 1) * size)
        basis = np.stack([unit[:, span] for unit in units], axis=1)  # (rows, 1 or 2, size)
        spread = basis @ hessian[span, span]
        step = _solve(spread @ basis.transpose(0, 2, 1), -(basis @ pull[:, span, None])[..., 0])
        for n, field in enumerate(fields):
            old = field[:, b].astype(np.float32)
            field[:, b] = (old + step[:, n]).astype(np.float16)
            step[:, n] = field[:, b].astype(np.float32) - old
        pull += np.einsum("rn,rns->rs", step, basis) @ hessian[span]
    for at, field in zip(_SCALES[codec.type], fields, strict=True):
        blocks[:, :, at : at + 2] = field[:, :, None].view(np.uint8)
    return blocks.reshape(data.shape)


def _field(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[..., 0].copy()


def _units(
    codec: Codec, rows: Floats, data: Bytes, fields: list[np.ndarray], dequantize: Dequantize
) -> list[Floats]:
    """What one unit of each field adds to every weight, given the codes."""
    scale, offset = affine(codec, data, dequantize)
    levels = np.asarray(codec.levels, dtype=np.float32)[unpack(codec, data)]
    size = BY_NAME[codec.type].block_weights
    parts = [scale * levels, offset]
    wide = [np.repeat(field.astype(np.float32), size, axis=1) for field in fields]
    units = [part * _inverse(field) for part, field in zip(parts, wide, strict=False)]
    if codec.type in ("q4_1", "q5_1"):
        units[1] = np.ones_like(rows)
    return units


def _solve(matrices: np.ndarray, rights: np.ndarray) -> np.ndarray:
    """Small least-squares systems, one for each row; what is singular stays as it is."""
    if matrices.shape[1] == 1:
        return np.asarray(rights * _inverse(matrices[:, 0]))
    a, b, c = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]
    determinant = a * c - b * b
    inverse = _inverse(np.where(determinant > 1e-6 * a * c, determinant, 0))
    x, y = rights[:, 0], rights[:, 1]
    return np.stack([(c * x - b * y) * inverse, (a * y - b * x) * inverse], axis=1)
