"""What each format costs each tensor: divergences predicted from a sample of its rows.

Rows are drawn by their share in the squared gradient, so that the mean of few says much: with n rows the standard
error is the spread of their losses over √n, and it is given with every figure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from penjing.quality.sensitivity import Moments, divergences
from penjing.quantize.native import Native
from penjing.quantize.rounding import Metric, refine
from penjing.quantize.tensors import Tensors

SAMPLE_ROWS = 96
_EXPERTS = 8  # of a stack that are sampled
_EVEN = 0.1  # share of the draw that ignores gradients, so that no row is never seen


class Cost(Struct, frozen=True):
    """Predicted divergence (nats per token) of one tensor in one format.

    `kld` is what rounding its weights adds, with its sampling error, and `noise` what rounding the activations adds.
    """

    kld: float
    stderr: float
    noise: float


class _Sample(Struct, frozen=True):
    """Rows of one matrix, and what the loss of each counts towards the whole tensor."""

    rows: np.ndarray
    factors: np.ndarray
    moments: Moments


def cost(tensors: Tensors, native: Native, name: str, kinds: list[str], moments: Moments) -> dict[str, Cost]:
    """Each of `kinds` for a tensor, as the engine's quantizers round it. The draw depends on its name alone."""
    samples = list(_samples(tensors, name, moments))
    return {
        kind: _mean([_losses(native, kind, s) for s in samples], moments.activation_noise(kind))
        for kind in kinds
    }


def gain(tensors: Tensors, native: Native, name: str, kinds: list[str], moments: Moments) -> dict[str, float]:
    """For each of `kinds`, the loss after refining the rounding over that before, on a sample of the rows."""
    sample = next(_samples(tensors, name, moments))
    metric = Metric(sample.moments.form())
    found = {}
    for kind in kinds:
        plain, refined = (_losses(native, kind, sample, m).sum() for m in (None, metric))
        found[kind] = float(refined / plain) if plain > 0 else 1.0
    return found


def importance(moments: Moments) -> np.ndarray:
    """Weights of the columns for the engine's quantizers: the second moment of the input."""
    values = moments.inputs.astype(np.float32)
    return np.asarray(values / (values.mean() or 1) + np.float32(1e-6))


def quantized(
    native: Native, kind: str, rows: np.ndarray, moments: Moments | None, metric: Metric | None = None
) -> np.ndarray:
    """`rows` in the format `kind`, uint8 (rows, bytes of a row): weighed by `moments`, refined under a metric."""
    if moments is None:
        return native.quantize(kind, rows)
    data = native.quantize(kind, rows, importance(moments))
    return data if metric is None else refine(kind, rows, data, metric, native.dequantize)


def _samples(tensors: Tensors, name: str, moments: Moments) -> Iterator[_Sample]:
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    for expert, share in _experts(moments, draw):
        mine = moments if expert is None else moments.of_expert(expert)
        weights = mine.outputs.astype(np.float64)
        chances = (1 - _EVEN) * weights / (weights.sum() or 1) + _EVEN / len(weights)
        chances /= chances.sum()
        chosen = np.sort(draw.choice(len(weights), size=min(SAMPLE_ROWS, len(weights)), p=chances))
        unique, places = np.unique(chosen, return_inverse=True)
        rows = tensors.rows(name, unique + (expert or 0) * len(weights))[places]
        yield _Sample(rows, share * weights[chosen] / chances[chosen], mine)


def _losses(native: Native, kind: str, sample: _Sample, metric: Metric | None = None) -> np.ndarray:
    data = quantized(native, kind, sample.rows, sample.moments, metric)
    error = native.dequantize(kind, data) - sample.rows
    return np.asarray(sample.factors * divergences(error, sample.moments))


def _experts(moments: Moments, draw: np.random.Generator) -> list[tuple[int | None, float]]:
    """(expert, what its losses count) of a sample of the experts; the sum of counts is their number."""
    if moments.inputs.ndim == 1:
        return [(None, 1.0)]
    count = len(moments.inputs)
    chosen = draw.choice(count, size=min(_EXPERTS, count), replace=False)
    return [(int(e), count / len(chosen)) for e in sorted(chosen)]


def _mean(losses: list[np.ndarray], noise: float) -> Cost:
    values = np.array([part.mean() for part in losses])
    errors = np.array([part.std(ddof=1) / np.sqrt(len(part)) if len(part) > 1 else 0 for part in losses])
    return Cost(float(values.sum()), float(np.sqrt((errors**2).sum())), noise)
