"""Codes and scales chosen for what the layer computes, not for each weight by itself.

The loss of a row is Δ·H·Δᵀ with Δ its rounding error and H the second moment of the layer's input, weighed by the
gradient: errors that cancel in the output cost nothing. The format stays as it is; only its free choices are used:

    feedback    columns are rounded one after the other, and the error of each is made up for by those that follow
                (Frantar et al., GPTQ, arXiv 2210.17323, with the scales of the format held fixed)
    rescaling   each block's scale, and minimum where it has one, is set to what is best given the codes
    sweeps      each code in turn is set to what is best given all others (coordinate descent)

Every step lowers the loss or leaves it; what is returned is never worse than what came in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from msgspec import Struct

from penjing.formats import BY_NAME
from penjing.quality.sensitivity import Form
from penjing.quantize.codes import CODECS, Bytes, Codec, Floats, affine, pack, unpack

_BLOCK = 32  # columns between two updates of what they add up to: few enough for the cache, enough for BLAS
WIDEST = 2048  # columns that feedback goes through together: the work for its factor grows with their cube
WAY = 2  # of rounding; another number for every change of what comes out
_DAMPING = 0.01  # of the mean diagonal, so that H can be inverted whatever was sampled
_TINY = np.finfo(np.float32).tiny

# Byte of the half-precision scale (and of the minimum, where there is one) in a block.
_SCALES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "iq4_nl": (0,), "iq4_xs": (0,),
    "q2_K": (80, 82), "q3_K": (108,), "q4_K": (0, 2), "q5_K": (0, 2), "q6_K": (208,),
}  # fmt: skip

Dequantize = Callable[[str, Bytes], Floats]
Scales = tuple[Floats, Floats]  # scale and offset of every weight


class Span(Struct, frozen=True):
    """Columns of one feedback: `order`, the most important first, and U, upper triangular, with UᵀU = H⁻¹ of them."""

    order: np.ndarray
    upper: np.ndarray


class Metric:
    """H of a matrix, ready for use: damped so that it can be inverted, factored once for all rows."""

    def __init__(self, form: Form) -> None:
        mean = float(form.diagonal().mean()) or 1.0
        self.form = Form(form.rest + np.float32(_DAMPING * mean), form.wide)

    @cached_property
    def spans(self) -> list[Span]:
        """Wide matrices are taken apart; what columns of two parts have in common is left to rescaling and sweeps."""
        width = len(self.form.rest)
        return [self._span(np.arange(at, min(at + WIDEST, width))) for at in range(0, width, WIDEST)]

    def _span(self, columns: np.ndarray) -> Span:
        order = columns[np.argsort(-self.form.diagonal()[columns], kind="stable")]
        ordered = Form(self.form.rest[order], self.form.wide[:, order]).full().astype(np.float64)
        flipped = np.linalg.cholesky(ordered[::-1, ::-1])  # H = Jᵀ·L·Lᵀ·J, with J that turns the order around
        return Span(order, np.ascontiguousarray(_inverse_of_lower(flipped)[::-1, ::-1], dtype=np.float32))


def _inverse_of_lower(matrix: np.ndarray) -> np.ndarray:
    """Of a lower triangular matrix, by halves: a third of the work of a general inverse, all in products."""
    n = len(matrix)
    if n <= _BLOCK:
        return np.linalg.inv(matrix)
    half, inverse = n // 2, np.zeros_like(matrix)
    inverse[:half, :half] = first = _inverse_of_lower(matrix[:half, :half])
    inverse[half:, half:] = second = _inverse_of_lower(matrix[half:, half:])
    inverse[half:, :half] = -second @ (matrix[half:, :half] @ first)
    return inverse


class _State(Struct):
    """Rows in work, transposed so that a column of weights is contiguous: all arrays (columns, rows)."""

    codec: Codec
    target: Floats
    scale: Floats
    offset: Floats
    value: Floats


def refine(
    kind: str, rows: Floats, data: Bytes, metric: Metric, dequantize: Dequantize, sweeps: int = 1
) -> Bytes:
    """`data`, the quantized `rows`, with better codes and scales under `metric`.

    Types whose codes are not scalars (the IQ2 and IQ3 families) come back as they are.
    """
    if kind not in CODECS:
        return data
    codec, form = CODECS[kind], metric.form
    best, least = data, form.losses(dequantize(kind, data) - rows)
    scales = affine(codec, data, dequantize)
    tried = pack(codec, data, _feedback(_state(codec, rows, data, scales, dequantize), metric))
    best, least = _better(kind, rows, form, dequantize, best, least, tried)
    for _ in range(sweeps):
        tried = _rescaled(codec, rows, best, scales, form, dequantize)
        best, least = _better(kind, rows, form, dequantize, best, least, tried)
        scales = affine(codec, best, dequantize)
        tried = pack(codec, best, _swept(_state(codec, rows, best, scales, dequantize), form))
        best, least = _better(kind, rows, form, dequantize, best, least, tried)
    return best


def _better(kind: str, rows: Floats, form: Form, dequantize: Dequantize,
            best: Bytes, least: np.ndarray, tried: Bytes) -> tuple[Bytes, np.ndarray]:  # fmt: skip
    """Row by row the better of the two."""
    found = form.losses(dequantize(kind, tried) - rows)
    better = found < least
    return np.where(better[:, None], tried, best), np.where(better, found, least)


def _state(codec: Codec, rows: Floats, data: Bytes, scales: Scales, dequantize: Dequantize) -> _State:
    return _State(
        codec=codec,
        target=np.ascontiguousarray(rows.T),
        scale=np.ascontiguousarray(scales[0].T),
        offset=np.ascontiguousarray(scales[1].T),
        value=np.ascontiguousarray(dequantize(codec.type, data).T),
    )


class _Grid:
    """Nearest code of a format for wanted levels, by a table of half steps: levels are whole numbers."""

    def __init__(self, codec: Codec) -> None:
        levels = np.asarray(codec.levels, dtype=np.float32)
        self.low = 2 * levels.min()
        middles = np.arange(self.low, 2 * levels.max() + 1) / 2 + 0.25  # where no two levels are equally near
        nearest = np.abs(middles[:, None] - levels).argmin(axis=1)
        self.codes, self.levels = nearest.astype(np.uint8), levels[nearest]

    def place(self, wanted: Floats) -> np.ndarray:
        """Index into `codes` and `levels` of what is nearest to each."""
        half = wanted * np.float32(2)
        half -= self.low
        np.maximum(half, 0, out=half)
        np.minimum(half, len(self.codes) - 1, out=half)
        return half.astype(np.intp)


def _inverse(scale: Floats) -> Floats:
    """Zero where a block of zeros has no scale, or one so small (MXFP4: 2⁻¹²⁸) that its inverse is no float32."""
    return np.asarray(np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > _TINY))


def _feedback(state: _State, metric: Metric) -> np.ndarray:
    """GPTQ with fixed scales; codes as (rows, columns)."""
    grid, inverse = _Grid(state.codec), _inverse(state.scale)
    codes = np.empty(state.target.shape, dtype=np.uint8)
    for span in metric.spans:
        _feed(state, span, grid, inverse, codes)
    return np.asarray(codes.T)


def _feed(state: _State, span: Span, grid: _Grid, inverse: Floats, codes: np.ndarray) -> None:
    """The codes of the columns of one span."""
    order, upper = span.order, span.upper
    errors = np.empty((len(order), state.target.shape[1]), dtype=np.float32)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        left = state.target[order[start:stop]] - upper[:start, start:stop].T @ errors[:start]
        for n, column in enumerate(order[start:stop]):
            j = start + n
            place = grid.place((left[n] - state.offset[column]) * inverse[column])
            codes[column] = grid.codes[place]
            value = state.scale[column] * grid.levels[place] + state.offset[column]
            errors[j] = (left[n] - value) / upper[j, j]
            left[n + 1 :] -= upper[j, j + 1 : stop, None] * errors[j]


def _swept(state: _State, form: Form) -> np.ndarray:
    """One pass of coordinate descent over all columns; codes as (rows, columns)."""
    grid, inverse = _Grid(state.codec), _inverse(state.scale)
    error = state.value - state.target
    along = form.wide @ error
    codes = np.empty(error.shape, dtype=np.uint8)
    for start in range(0, len(error), _BLOCK):
        span = slice(start, min(start + _BLOCK, len(error)))
        near, wide = form.full(span), form.wide[:, span]
        pull = wide.T @ along + form.rest[span, None] * error[span]  # half the gradient
        moved = np.empty_like(pull)
        for n in range(len(near)):
            j = start + n
            wanted = state.value[j] - pull[n] / near[n, n]
            place = grid.place((wanted - state.offset[j]) * inverse[j])
            codes[j] = grid.codes[place]
            moved[n] = state.scale[j] * grid.levels[place] + state.offset[j] - state.value[j]
            pull[n + 1 :] += near[n, n + 1 :, None] * moved[n]
        along += wide @ moved
    return np.asarray(codes.T)


def _rescaled(
    codec: Codec, rows: Floats, data: Bytes, scales: Scales, form: Form, dequantize: Dequantize
) -> Bytes:
    """Scales (and minima) by least squares, block after block, given the codes and all other blocks."""
    if codec.type not in _SCALES:
        return data
    size = BY_NAME[codec.type].block_weights
    blocks = data.reshape(len(data), -1, BY_NAME[codec.type].block_bytes).copy()
    fields = [_field(blocks, at) for at in _SCALES[codec.type]]
    units = _units(codec, data, scales, fields)
    error = dequantize(codec.type, data) - rows
    along = error @ form.wide.T
    for b in range(blocks.shape[1]):
        span = slice(b * size, (b + 1) * size)
        wide = form.wide[:, span]
        pull = along @ wide + error[:, span] * form.rest[span]
        basis = np.stack([unit[:, span] for unit in units], axis=1)  # (rows, 1 or 2, size)
        spread = basis @ form.full(span)
        step = _solve(spread @ basis.transpose(0, 2, 1), -(basis @ pull[:, :, None])[..., 0])
        for n, field in enumerate(fields):
            old = field[:, b].astype(np.float32)
            field[:, b] = (old + step[:, n]).astype(np.float16)
            step[:, n] = field[:, b].astype(np.float32) - old
        along += np.einsum("rn,rns->rs", step, basis) @ wide.T
    for at, field in zip(_SCALES[codec.type], fields, strict=True):
        blocks[:, :, at : at + 2] = field[:, :, None].view(np.uint8)
    return blocks.reshape(data.shape)


def _field(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[..., 0].copy()


def _units(codec: Codec, data: Bytes, scales: Scales, fields: list[np.ndarray]) -> list[Floats]:
    """What one unit of each field adds to every weight, given the codes."""
    scale, offset = scales
    levels = np.asarray(codec.levels, dtype=np.float32)[unpack(codec, data)]
    size = BY_NAME[codec.type].block_weights
    parts = [scale * levels, offset]
    wide = [np.repeat(field.astype(np.float32), size, axis=1) for field in fields]
    units = [part * _inverse(field) for part, field in zip(parts, wide, strict=False)]
    if codec.type in ("q4_1", "q5_1"):
        units[1] = np.ones_like(scale)
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
